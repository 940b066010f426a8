//! LLaDA and LLaDA-MoE: `generate.py` of ML-GSAI/LLaDA, Fast-dLLM's without its cache, and dllm's
//! `MDLMSampler`.

use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{BlockOrigin, Budget, DecodePlan};
use unmask::engine::Engine;
use unmask::models::RaggedBatch;
use unmask::selftest::goldens::plans;

use crate::run::{
    Case, assert_equal, assert_rows_equal, assert_same_changes_of_rows, case, preset_plan, row,
    start,
};
use crate::support::{denoise, engine, load, trace};

/// The plan of a preset with the arguments of a run.
fn plan(engine: &Engine, preset: &str, case: &Case) -> DecodePlan {
    plans::by_blocks(engine.spec(), preset, case).unwrap()
}

fn assert_runs(family: &str, names: &[&str]) {
    let engine = engine(family);
    for name in names {
        let case = case(family, name);
        assert_rows_equal(&case, &engine, &plan(&engine, "llada", &case), name);
    }
}

#[test]
fn completions_of_llada_equal_the_official_runs() {
    let names = [
        "full_block",
        "full_block_fewer_steps",
        "semi_ar",
        "cfg",
        "batch2_left_padded",
        "fastdllm_fast_nothr",
    ];
    assert_runs("llada", &names);
}

#[test]
fn completions_of_llada_moe_equal_the_official_runs() {
    let names = ["full_block", "semi_ar", "cfg", "batch2_left_padded"];
    assert_runs("llada_moe", &names);
}

#[test]
fn completions_by_a_threshold_equal_fast_dllms() {
    let engine = engine("llada");
    let case = case("llada", "fastdllm_fast_thr");
    let plan = plans::by_threshold(plan(&engine, "fast-dllm", &case), &case).unwrap();
    assert_equal(&row(&case), &engine, &plan, "fastdllm_fast_thr");
}

#[test]
fn completions_with_a_cache_equal_fast_dllms() {
    let engine = engine("llada");
    for (preset, cache) in [("fast-dllm-prefix", "prefix"), ("fast-dllm-dual", "dual")] {
        let name = format!("fastdllm_{cache}_nothr");
        let of_shares = case("llada", &name);
        let even = DecodePlan {
            budget: Budget::Even,
            ..plan(&engine, preset, &of_shares)
        };
        assert_equal(&row(&of_shares), &engine, &even, &name);
        let name = format!("fastdllm_{cache}_thr");
        let of_threshold = case("llada", &name);
        let threshold = plan(&engine, preset, &of_threshold);
        let threshold = plans::by_threshold(threshold, &of_threshold).unwrap();
        assert_equal(&row(&of_threshold), &engine, &threshold, &name);
    }
}

#[test]
fn completions_by_the_linear_schedule_equal_dllms() {
    let engine = engine("llada");
    for name in ["dllm_sample_batch2", "dllm_sample_cfg"] {
        let case = case("llada", name);
        assert_rows_equal(&case, &engine, &plan(&engine, "dllm", &case), name);
    }
}

#[test]
fn infilling_with_masks_in_the_middle_equals_dllms() {
    let engine = engine("llada");
    let case = case("llada", "dllm_infill");
    let plan = DecodePlan {
        block_origin: BlockOrigin::Canvas,
        ..plan(&engine, "dllm", &case)
    };
    assert_same_changes_of_rows(&case, &engine, &plan, "dllm_infill");
}

/// The official code lets masks in the prompt use up the block's quota and so leaves as many masks at
/// the end; here they are gaps like any other and every gap is filled.
#[test]
fn masks_inside_a_prompt_are_gaps_and_leave_no_mask_behind() {
    let engine = engine("llada");
    let case = case("llada", "masks_inside_prompt");
    let plan = plan(&engine, "llada", &case);
    let canvas = start(&row(&case), &engine, &plan);
    let before: Vec<_> = canvas.tokens().collect();
    let canvases = trace(&engine, canvas, &plan);
    assert_eq!(canvases.len(), 8);
    let last = canvases.last().unwrap();
    assert!(!last.contains(&engine.mask_token().unwrap()));
    for (slot, token) in before.iter().enumerate() {
        assert!(*token == engine.mask_token().unwrap() || last[slot] == *token);
    }
}

/// The official draws are not recorded: the counts are the even split's, the tokens the greedy ones of
/// their step, the slots uniform.
#[test]
fn random_re_masking_commits_an_even_share_of_the_greedy_tokens_at_random_slots() {
    let engine = engine("llada");
    let model = load("llada");
    let prompt: Vec<TokenId> = (20..30).collect();
    let mut plan = preset_plan(&engine, "llada-random");
    plan.steps = Some(6);
    let mut first = [0usize; 16];
    for seed in 0..200 {
        plan.sampling.seed = seed;
        let mut start = prompt.clone();
        start.resize(26, engine.mask_token().unwrap());
        let canvas = Canvas::from_ids(&start, engine.mask_token().unwrap()).unwrap();
        let (reports, _) = denoise(&engine, canvas, &plan);
        let counts: Vec<usize> = reports
            .iter()
            .map(|report| report.committed.len())
            .collect();
        assert_eq!(counts, [3, 3, 3, 3, 2, 2]);
        for (slot, _) in &reports[0].committed {
            first[slot - prompt.len()] += 1;
        }
        if seed == 0 {
            let mut batch = RaggedBatch::new();
            batch.push(start);
            let hidden = model.hidden(&batch, None).unwrap();
            let greedy: Vec<u32> = model
                .head(&hidden)
                .unwrap()
                .argmax(1)
                .unwrap()
                .to_vec1()
                .unwrap();
            for (slot, commit) in &reports[0].committed {
                assert_eq!(commit.token, greedy[*slot]);
            }
        }
    }
    // Each of 16 slots is among the first 3 in 37.5 of 200 runs on average, standard deviation 5.5.
    assert!(
        first.iter().all(|count| count.abs_diff(37) < 25),
        "{first:?}"
    );
}
