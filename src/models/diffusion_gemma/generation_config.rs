//! What a generation_config.json says of sampling (`DiffusionGemmaGenerationConfig`).

use serde_json::Value;

use crate::decode::{Budget, DecodePlan, Revision, TemperatureSchedule};
use crate::models::ModelError;
use crate::models::checkpoint::GENERATION_CONFIG;
use crate::models::fields;
use crate::models::generation_config::{GenerationConfig, invalid};

/// The one sampler that there is.
const SAMPLER: &str = "EntropyBoundSamplerConfig";

/// Takes its options into `plan`, which has the official defaults. An option that is null counts as absent.
///
/// # Errors
/// Names the option that is of the wrong type or out of range, or the sampler that is not known.
pub(super) fn take_over(
    options: &GenerationConfig,
    plan: &mut DecodePlan,
) -> Result<(), ModelError> {
    if let Some(steps) = options.optional("max_denoising_steps")? {
        plan.steps_per_block = Some(steps);
    }
    if let Some(first) = options.optional("t_max")? {
        plan.sampling.temperature = first;
    }
    if let Some(last) = options.optional("t_min")? {
        plan.sampling.temperature_schedule = TemperatureSchedule::LinearInBlock(last);
    }
    let sampler = options.get("sampler_config");
    if !(sampler.is_object() || sampler.is_null()) {
        return Err(invalid(format!(
            "sampler_config is {sampler}; it must be an object"
        )));
    }
    match &sampler["_cls_name"] {
        Value::Null => {}
        Value::String(class) if class == SAMPLER => {}
        other => {
            return Err(invalid(format!(
                "sampler_config._cls_name is {other}; only {SAMPLER:?} is supported"
            )));
        }
    }
    if let Some(bound) = fields::optional(GENERATION_CONFIG, sampler, "entropy_bound")? {
        plan.budget = Budget::EntropyBound(bound);
    }
    if let Revision::RenoiseRest {
        stable_steps,
        max_entropy,
    } = &mut plan.revision
    {
        *stable_steps = options
            .optional("stability_threshold")?
            .unwrap_or(*stable_steps);
        *max_entropy = options
            .optional("confidence_threshold")?
            .unwrap_or(*max_entropy);
    }
    plan.validate().map_err(|error| invalid(error.to_string()))
}
