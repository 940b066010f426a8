//! A2D: dllm's `MDLMSampler` and `BD3LMSampler`.

use unmask::decode::{BlockOrigin, DecodePlan};
use unmask::engine::Engine;
use unmask::selftest::goldens::plans;

use crate::run::{
    Case, assert_equal, assert_rows_equal, assert_same_changes_of_rows, case, respecified, row,
    set_block_length,
};
use crate::support::engine;

const NAME: &str = "a2d_qwen3";

/// The preset with the arguments of a run.
fn plan(engine: &Engine, case: &Case) -> DecodePlan {
    assert!(case.fraction("cfg_scale").is_some());
    plans::by_blocks(engine.spec(), "dllm", case).unwrap()
}

#[test]
fn completions_equal_those_of_the_mdlm_sampler() {
    let engine = engine(NAME);
    for name in ["mdlm_single", "mdlm_blocks_batch2", "mdlm_cfg"] {
        let case = case(NAME, name);
        assert_rows_equal(&case, &engine, &plan(&engine, &case), name);
    }
}

#[test]
fn infilling_equals_that_of_the_mdlm_sampler() {
    let engine = engine(NAME);
    let case = case(NAME, "mdlm_infill");
    let plan = DecodePlan {
        block_origin: BlockOrigin::Canvas,
        ..plan(&engine, &case)
    };
    assert_same_changes_of_rows(&case, &engine, &plan, "mdlm_infill");
}

/// The run's `suppress_tokens` are never the most probable ones, and plans know none.
#[test]
fn completions_with_shifted_logits_equal_those_of_the_mdlm_sampler() {
    let engine = respecified(NAME, |spec| spec.logit_shift = 1);
    let case = case(NAME, "mdlm_suppress_shift");
    let plan = plan(&engine, &case);
    assert_equal(&row(&case), &engine, &plan, "mdlm_suppress_shift");
}

/// The official code pads prompts on the left to whole blocks: blocks begin where the prompt ends.
#[test]
fn completions_block_by_block_equal_those_of_the_bd3lm_sampler() {
    for name in ["bd3lm_single", "bd3lm_batch2", "bd3lm_cfg", "bd3lm_shift"] {
        let case = case(NAME, name);
        let engine = respecified(NAME, |spec| {
            set_block_length(spec, case.block_length().unwrap());
            if name == "bd3lm_shift" {
                spec.logit_shift = 1;
            }
        });
        let mut plan = plan(&engine, &case);
        if let Some(steps) = case.number("steps_per_block") {
            (plan.steps, plan.steps_per_block) = (None, Some(steps));
        }
        assert_rows_equal(&case, &engine, &plan, name);
    }
}
