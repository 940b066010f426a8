//! SDAR: `block_diffusion_generate` of `generate.py`.

use unmask::canvas::Canvas;
use unmask::decode::{Budget, DecodePlan};
use unmask::engine::Engine;
use unmask::models::ModelSpec;
use unmask::selftest::goldens::plans;

use crate::run::{Case, assert_equal, case, preset_plan, respecified, row, tempered};
use crate::support::denoise;

const NAME: &str = "sdar";

/// The official sampler takes the stop tokens as an argument.
fn set_stop_tokens(spec: &mut ModelSpec, case: &Case) {
    spec.stop_tokens = case.tokens("stopping_criteria_idx").unwrap();
}

/// The preset of a strategy with the arguments of a run.
fn plan(engine: &Engine, case: &Case) -> DecodePlan {
    plans::sdar(engine.spec(), case).unwrap()
}

/// The recorder takes the most probable token; temperature, top-k and top-p change its confidence only.
#[test]
fn greedy_completions_equal_the_official_runs() {
    for name in [
        "greedy_low_confidence_dynamic",
        "greedy_low_confidence_static",
        "greedy_sequential",
        "greedy_dynamic_aligned_2steps",
        "greedy_short_prompt",
        "greedy_temp_topk_topp",
        "greedy_stop",
    ] {
        let case = case(NAME, name);
        let temperature = case.fraction("temperature").unwrap();
        let engine = tempered(NAME, temperature, |spec| set_stop_tokens(spec, &case));
        let mut plan = plan(&engine, &case);
        plan.sampling.top_k = case.number("top_k").filter(|k| *k > 0);
        plan.sampling.top_p = case.fraction("top_p");
        assert_equal(&row(&case), &engine, &plan, name);
    }
}

/// A draw from one token, whose confidence is 1.
#[test]
fn completions_drawn_with_a_top_k_of_one_equal_the_unmodified_official_run() {
    let case = case(NAME, "official_topk1");
    let engine = respecified(NAME, |spec| set_stop_tokens(spec, &case));
    let mut plan = plan(&engine, &case);
    plan.sampling.temperature = case.fraction("temperature").unwrap();
    plan.sampling.top_k = case.number("top_k");
    assert_equal(&row(&case), &engine, &plan, "official_topk1");
}

/// The official `entropy_bounded` ends with an error: this follows the paper of the bound (arXiv:2505.24857).
#[test]
fn the_entropy_bound_commits_one_slot_a_step_or_a_block_at_once_as_it_is_drawn_in_or_out() {
    let engine = respecified(NAME, |_| ());
    let plan = preset_plan(&engine, "sdar-entropy-bounded");
    assert_eq!(plan.block_length, engine.spec().default_plan.block_length);
    let canvas = Canvas::builder(engine.mask_token().unwrap());
    let canvas = canvas.fixed(&[5, 6, 7, 8]).gap(8).build().unwrap();
    for (bound, counts) in [(0.0, vec![1; 8]), (f32::MAX, vec![4, 4])] {
        let plan = DecodePlan {
            budget: Budget::EntropyBound(bound),
            ..plan.clone()
        };
        let (steps, _) = denoise(&engine, canvas.clone(), &plan);
        let committed: Vec<usize> = steps.iter().map(|step| step.committed.len()).collect();
        assert_eq!(committed, counts);
    }
}
