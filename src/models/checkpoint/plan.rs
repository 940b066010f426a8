//! The default plan that a checkpoint brings along: `unmask_plan` in generation_config.json.

use serde_json::Value;

use crate::decode::DecodePlan;
use crate::models::generation_config::{self, GenerationConfig};
use crate::models::{ModelError, ModelSpec};

/// The field of generation_config.json.
const FIELD: &str = "unmask_plan";

/// Puts the choices of `unmask_plan`, an object of a plan's fields as `unmask inspect` shows them, in the place of
/// those of the default plan. What it does not name stays.
///
/// # Errors
/// Names the field that is unknown or out of range, and what the model cannot be denoised by.
pub(super) fn take_over(
    generation_config: &GenerationConfig,
    spec: &mut ModelSpec,
) -> Result<(), ModelError> {
    let choices = generation_config.get(FIELD);
    if choices.is_null() {
        return Ok(());
    }
    let plan = changed(&spec.default_plan, choices).map_err(invalid)?;
    plan.validate()
        .and_then(|()| spec.check_plan(&plan))
        .map_err(|error| invalid(error.to_string()))?;
    spec.default_plan = plan;
    Ok(())
}

fn invalid(reason: String) -> ModelError {
    generation_config::invalid(format!("{FIELD}: {reason}"))
}

fn changed(plan: &DecodePlan, choices: &Value) -> Result<DecodePlan, String> {
    let mut fields = serde_json::to_value(plan).map_err(|error| error.to_string())?;
    // A request's own, and no part of a default.
    if let Some(sampling) = fields["sampling"].as_object_mut() {
        sampling.remove("seed");
    }
    let choices = choices.as_object().ok_or("is no object")?;
    for (name, choice) in choices {
        match (&mut fields[name], choice) {
            // The parts of a plan that have fields of their own; others are choices, of which one stands at a time.
            (Value::Object(part), Value::Object(choice))
                if ["sampling", "cache"].contains(&name.as_str()) =>
            {
                part.extend(choice.clone());
            }
            (field, choice) => *field = choice.clone(),
        }
    }
    serde_json::from_value(fields).map_err(|error| error.to_string())
}
