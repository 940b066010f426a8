//! The recorded runs that are followed, by family.

use candle_core::{DType, Device};

use super::folder::Golden;
use super::replay::{BlockReplay, Recording};
use super::runs::{Case, Follow, respecified, set_block_length};
use super::{GoldenError, plans, replay};
use crate::decode::DecodePlan;
use crate::engine::Engine;
use crate::models::ModelSpec;

/// Follows each run; their names.
fn each(
    names: &[&str],
    mut follow: impl FnMut(&str) -> Result<(), GoldenError>,
) -> Result<Vec<String>, GoldenError> {
    let follow = |name: &&str| match follow(name) {
        Ok(()) => Ok((*name).to_owned()),
        Err(error) => Err(of_run(name, error)),
    };
    names.iter().map(follow).collect()
}

/// Follows none: the draws of the recorded runs are replayed by the tests alone.
pub(super) fn none(_: &Golden, _: &Device) -> Result<Vec<String>, GoldenError> {
    Ok(Vec::new())
}

/// A difference says of which run it is; other errors name their file.
fn of_run(name: &str, error: GoldenError) -> GoldenError {
    match error {
        GoldenError::Differs(reason) => GoldenError::Differs(format!("the run {name}: {reason}")),
        error => error,
    }
}

/// Follows a run's rows by a plan.
fn follow_rows(
    engine: &Engine,
    case: &Case,
    plan: &DecodePlan,
    follow: Follow,
) -> Result<(), GoldenError> {
    for row in case.rows()? {
        row.check(engine, plan, follow)?;
    }
    Ok(())
}

fn engine(golden: &Golden, device: &Device) -> Result<Engine, GoldenError> {
    respecified(golden.load(DType::F32, device)?, 1.0, |_| ())
}

/// Follows runs, each by what `plan` makes of a preset, in every step.
fn greedy(
    golden: &Golden,
    device: &Device,
    runs: &[(&str, &str)],
    plan: impl Fn(&ModelSpec, &str, &Case) -> Result<DecodePlan, GoldenError>,
) -> Result<Vec<String>, GoldenError> {
    let engine = engine(golden, device)?;
    let mut followed = Vec::new();
    for (name, preset) in runs {
        followed.extend(each(&[name], |name| {
            let case = Case::open(golden, name)?;
            let plan = plan(engine.spec(), preset, &case)?;
            follow_rows(&engine, &case, &plan, Follow::Every)
        })?);
    }
    Ok(followed)
}

/// Dream: its own sampler by three scores, and Fast-dLLM's with caches.
pub(super) fn dream(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let engine = engine(golden, device)?;
    let names = [
        "maskgit_plus",
        "topk_margin_fewer_steps",
        "entropy",
        "entropy_top_p_top_k",
        "batch2_left_padded",
    ];
    let mut followed = each(&names, |name| {
        let case = Case::open(golden, name)?;
        let plan = plans::dream(engine.spec(), &case)?;
        follow_rows(&engine, &case, &plan, Follow::Changes)
    })?;
    for (name, preset) in [
        ("fastdllm_prefix_thr", "fast-dllm-dream-prefix"),
        ("fastdllm_dual_thr", "fast-dllm-dream-dual"),
    ] {
        followed.extend(each(&[name], |name| {
            let case = Case::open(golden, name)?;
            let plan = plans::by_threshold(plans::preset(engine.spec(), preset)?, &case)?;
            let plan = DecodePlan {
                block_length: case.block_length(),
                ..plan
            };
            follow_rows(&engine, &case, &plan, Follow::Changes)
        })?);
    }
    Ok(followed)
}

/// LLaDA2.0, or LLaDA2.1 where the runs edit.
pub(super) fn llada2(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let is_editing = |run: &serde_json::Value| run["params"]["editing_threshold"].is_number();
    let is_editing = golden.runs()?.iter().any(is_editing);
    let names: &[&str] = match is_editing {
        true => &["hf_low_thresholds", "hf_zero_edit", "hf_eos_early_stop"],
        false => &[
            "hf_low_threshold",
            "hf_minimal_topk",
            "hf_custom_eos_blockwise",
        ],
    };
    each(names, |name| {
        let case = Case::open(golden, name)?;
        let mut respecify = Ok(());
        let engine = respecified(golden.load(DType::F32, device)?, 1.0, |spec| {
            respecify = plans::respecify_llada2(spec, &case);
        })?;
        respecify?;
        let plan = match is_editing {
            true => plans::llada21(engine.spec(), &case)?,
            false => plans::llada2(engine.spec(), &case)?,
        };
        follow_rows(&engine, &case, &plan, Follow::Every)
    })
}

/// SDAR: a run of each strategy, and one with filters.
pub(super) fn sdar(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let names = [
        "greedy_low_confidence_dynamic",
        "greedy_low_confidence_static",
        "greedy_sequential",
        "greedy_temp_topk_topp",
    ];
    each(&names, |name| {
        let case = Case::open(golden, name)?;
        let temperature = case.needed("temperature", case.fraction("temperature"))?;
        let stop_tokens = case.tokens("stopping_criteria_idx")?;
        let model = golden.load(DType::F32, device)?;
        let engine = respecified(model, temperature, |spec| spec.stop_tokens = stop_tokens)?;
        let mut plan = plans::sdar(engine.spec(), &case)?;
        plan.sampling.top_k = case.number("top_k").filter(|k| *k > 0);
        plan.sampling.top_p = case.fraction("top_p");
        follow_rows(&engine, &case, &plan, Follow::Every)
    })
}

/// A2D: dllm's sampler of whole canvases, and that of blocks.
pub(super) fn a2d(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let runs = ["mdlm_single", "mdlm_blocks_batch2", "mdlm_cfg"].map(|name| (name, "dllm"));
    let mut followed = greedy(golden, device, &runs, plans::by_blocks)?;
    followed.extend(each(&["bd3lm_single", "bd3lm_cfg"], |name| {
        let case = Case::open(golden, name)?;
        let block_length = case.needed("block_size", case.block_length())?;
        let model = golden.load(DType::F32, device)?;
        let engine = respecified(model, 1.0, |spec| set_block_length(spec, block_length))?;
        let plan = plans::by_blocks(engine.spec(), "dllm", &case)?;
        follow_rows(&engine, &case, &plan, Follow::Every)
    })?);
    Ok(followed)
}

/// LLaDA: its own sampler and Fast-dLLM's with caches, by a threshold.
pub(super) fn llada(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let runs = ["full_block", "semi_ar", "cfg"].map(|name| (name, "llada"));
    let mut followed = greedy(golden, device, &runs, plans::by_blocks)?;
    let runs = [
        ("fastdllm_prefix_thr", "fast-dllm-prefix"),
        ("fastdllm_dual_thr", "fast-dllm-dual"),
    ];
    followed.extend(greedy(golden, device, &runs, |spec, preset, case| {
        plans::by_threshold(plans::by_blocks(spec, preset, case)?, case)
    })?);
    Ok(followed)
}

/// LLaDA-MoE: LLaDA's sampler.
pub(super) fn llada_moe(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let runs = ["full_block", "semi_ar", "cfg"].map(|name| (name, "llada"));
    greedy(golden, device, &runs, plans::by_blocks)
}

/// MDLM: ancestral sampling, by both predictors.
pub(super) fn mdlm(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let model = golden.load(DType::F32, device)?;
    each(&["ddpm_cache", "ddpm"], |name| {
        replay::ancestral(&*model, &Recording::open(golden, name, name)?)
    })
}

/// BD3-LM: first hitting, within and beyond the context, and ancestral sampling in blocks.
pub(super) fn bd3lm(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let model = golden.load(DType::F32, device)?;
    let open = |run: [&str; 3]| BlockReplay::open(&*model, golden, run);
    let hitting = ["first_hitting_kv", "first_hitting_kv_sliding"];
    let mut followed = each(&hitting, |name| {
        open([name, name, "bd3lm-first-hitting"])?.first_hitting()
    })?;
    followed.extend(each(&["ddpm_kv"], |name| {
        open([name, "first_hitting_kv", "bd3lm-ddpm"])?.ancestral()
    })?);
    Ok(followed)
}

/// SEDD: both predictors of the checkpoint's process.
pub(super) fn sedd(golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
    let model = golden.load(DType::F32, device)?;
    each(&["analytic", "euler"], |name| {
        let run = Recording::open(golden, name, name)?;
        match model.spec().mask_token() {
            Some(_) => replay::absorbing_predictor(&*model, &run, name),
            None => replay::uniform_predictor(&*model, &run, name),
        }
    })
}
