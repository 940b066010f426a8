//! Dream: `diffusion_generate` of `generation_utils.py`, and dllm's `DreamSampler`.

use unmask::decode::{Budget, DecodePlan};
use unmask::engine::Engine;
use unmask::selftest::goldens::plans;

use crate::run::{
    Case, assert_equal, assert_same_changes, assert_same_changes_of_rows, case, preset_plan, row,
};
use crate::support::engine;

/// The plan of the preset of an algorithm with the arguments of a run.
fn plan(engine: &Engine, case: &Case) -> DecodePlan {
    plans::dream(engine.spec(), case).unwrap()
}

#[test]
fn completions_equal_the_official_runs() {
    let engine = engine("dream");
    for name in [
        "maskgit_plus",
        "maskgit_plus_fewer_steps",
        "topk_margin",
        "topk_margin_fewer_steps",
        "entropy",
        "entropy_fewer_steps",
        "entropy_top_p_top_k",
        // The official number of slots a step is the mean of the batch's, here equal in both rows.
        "batch2_left_padded",
    ] {
        let case = case("dream", name);
        assert_same_changes_of_rows(&case, &engine, &plan(&engine, &case), name);
    }
}

#[test]
fn masks_inside_a_prompt_are_filled_with_the_others() {
    let engine = engine("dream");
    let case = case("dream", "masks_inside_prompt");
    let plan = plan(&engine, &case);
    assert_same_changes(&row(&case), &engine, &plan, "masks_inside_prompt");
}

/// dllm's sampler has Dream's scores, filters and basis, and the schedule of its own samplers.
#[test]
fn completions_and_infilling_by_dllms_schedule_equal_dllms() {
    let engine = engine("dream");
    for name in ["dllm_sample_cfg", "dllm_sample_batch2", "dllm_infill"] {
        let case = case("dream", name);
        let plan = DecodePlan {
            budget: preset_plan(&engine, "dllm").budget,
            ..plan(&engine, &case)
        };
        assert_same_changes_of_rows(&case, &engine, &plan, name);
    }
}

/// The official code accepts no more slots a step than an even share and what earlier steps left of
/// theirs, a bound that this run never meets, and plans do not know.
#[test]
fn completions_by_a_threshold_equal_fast_dllms() {
    let engine = engine("dream");
    let case = case("dream", "fastdllm_nocache_thr");
    let plan = DecodePlan {
        budget: Budget::Threshold(case.fraction("threshold").unwrap()),
        ..preset_plan(&engine, "dream-maskgit-plus")
    };
    assert_equal(&row(&case), &engine, &plan, "fastdllm_nocache_thr");
}

#[test]
fn completions_with_a_cache_equal_fast_dllms() {
    let engine = engine("dream");
    for (preset, cache) in [
        ("fast-dllm-dream-prefix", "prefix"),
        ("fast-dllm-dream-dual", "dual"),
    ] {
        let name = format!("fastdllm_{cache}_thr");
        let of_threshold = case("dream", &name);
        let threshold = DecodePlan {
            block_length: of_threshold.block_length(),
            budget: Budget::Threshold(of_threshold.fraction("threshold").unwrap()),
            ..preset_plan(&engine, preset)
        };
        assert_same_changes(&row(&of_threshold), &engine, &threshold, &name);
        let name = format!("fastdllm_{cache}_entropy");
        let by_entropy = case("dream", &name);
        let of_algorithm = plan(&engine, &by_entropy);
        let entropy = DecodePlan {
            steps: of_algorithm.steps,
            score: of_algorithm.score,
            budget: of_algorithm.budget,
            block_length: by_entropy.block_length(),
            ..preset_plan(&engine, preset)
        };
        assert_same_changes(&row(&by_entropy), &engine, &entropy, &name);
    }
}
