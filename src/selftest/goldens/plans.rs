//! The presets with the arguments of recorded runs.

use super::GoldenError;
use super::runs::{Case, set_block_length};
use crate::decode::{Budget, DecodePlan, EarlyStop, Revision, preset};
use crate::models::ModelSpec;

/// The plan of a preset, as a model of `spec` takes it.
///
/// # Errors
/// If there is no such preset.
pub fn preset(spec: &ModelSpec, name: &str) -> Result<DecodePlan, GoldenError> {
    Ok(spec.plan(&preset::by_name(name)?))
}

/// LLaDA, LLaDA-MoE and A2D: steps over the whole gap, blocks and guidance.
///
/// # Errors
/// If there is no such preset.
pub fn by_blocks(spec: &ModelSpec, name: &str, case: &Case) -> Result<DecodePlan, GoldenError> {
    let mut plan = preset(spec, name)?;
    plan.steps = case.number("steps");
    plan.block_length = case.block_length();
    plan.sampling.guidance_scale = case.fraction("cfg_scale").unwrap_or(0.0);
    Ok(plan)
}

/// `plan` that commits what is above the run's threshold, whatever number of steps that takes.
///
/// # Errors
/// If the run has no threshold.
pub fn by_threshold(plan: DecodePlan, case: &Case) -> Result<DecodePlan, GoldenError> {
    let threshold = case.needed("threshold", case.fraction("threshold"))?;
    Ok(DecodePlan {
        steps: None,
        budget: Budget::Threshold(threshold),
        ..plan
    })
}

/// Dream: the preset of the run's algorithm.
///
/// # Errors
/// If the run has another algorithm.
pub fn dream(spec: &ModelSpec, case: &Case) -> Result<DecodePlan, GoldenError> {
    let name = match case.word("alg")? {
        "maskgit_plus" => "dream-maskgit-plus",
        "topk_margin" => "dream-topk-margin",
        "entropy" => "dream-entropy",
        _ => return Err(case.lacks("an alg that has a preset")),
    };
    let mut plan = preset(spec, name)?;
    plan.steps = case.number("steps");
    plan.sampling.top_p = case.fraction("top_p");
    plan.sampling.top_k = case.number("top_k");
    plan.sampling.guidance_scale = case.fraction("cfg_scale").unwrap_or(0.0);
    Ok(plan)
}

/// LLaDA2's samplers take the block length and the end of a sequence as arguments.
///
/// # Errors
/// If the run has none.
pub fn respecify_llada2(spec: &mut ModelSpec, case: &Case) -> Result<(), GoldenError> {
    let block_length = case.needed("block_length", case.block_length())?;
    set_block_length(spec, block_length);
    spec.stop_tokens = vec![case.needed("eos_id", case.number("eos_id"))? as u32];
    Ok(())
}

/// LLaDA2.0.
///
/// # Errors
/// If the run lacks an argument.
pub fn llada2(spec: &ModelSpec, case: &Case) -> Result<DecodePlan, GoldenError> {
    let steps = case.number("steps").or(case.number("steps_per_block"));
    let gap = case.number("gen_length").or(case.number("max_new_tokens"));
    let gap = case.needed("gen_length", gap)?;
    let at_least = case.number("minimal_topk").filter(|count| *count > 0);
    let at_least = case.needed("minimal_topk", at_least)?;
    let early_stop = match case.flag("eos_early_stop")? {
        true => EarlyStop::AtOnce,
        false => EarlyStop::AfterBlock,
    };
    Ok(DecodePlan {
        steps_per_block: steps.min(Some(gap / at_least)),
        budget: Budget::Threshold(case.needed("threshold", case.fraction("threshold"))?),
        early_stop,
        ..preset(spec, "llada2")?
    })
}

/// LLaDA2.1, which looks for an end of sequence after each block, and only if asked to.
///
/// # Errors
/// If the run lacks an argument.
pub fn llada21(spec: &ModelSpec, case: &Case) -> Result<DecodePlan, GoldenError> {
    let number = |argument| case.needed(argument, case.number(argument));
    let fraction = |argument| case.needed(argument, case.fraction(argument));
    let mut plan = preset(spec, "llada2.1")?;
    plan.at_least = number("num_to_transfer")?;
    plan.budget = Budget::Threshold(fraction("threshold")?);
    plan.revision = Revision::Edit {
        threshold: fraction("editing_threshold")?,
        max_post_steps: number("max_post_steps")?,
    };
    if !case.flag("eos_early_stop")? {
        plan.early_stop = EarlyStop::Never;
    }
    Ok(plan)
}

/// SDAR: the preset of the run's strategy. The recorder takes the most probable token; temperature, top-k and top-p
/// change its confidence only.
///
/// # Errors
/// If the run has another strategy, or lacks an argument.
pub fn sdar(spec: &ModelSpec, case: &Case) -> Result<DecodePlan, GoldenError> {
    let name = match case.word("remasking_strategy")? {
        "low_confidence_dynamic" => "sdar-dynamic",
        "low_confidence_static" => "sdar-static",
        "sequential" => "sdar-sequential",
        _ => return Err(case.lacks("a remasking_strategy that has a preset")),
    };
    let mut plan = preset(spec, name)?;
    plan.steps_per_block = case.number("denoising_steps");
    if let Budget::Threshold(threshold) = &mut plan.budget {
        let given = case.fraction("confidence_threshold");
        *threshold = case.needed("confidence_threshold", given)?;
    }
    Ok(plan)
}
