//! LLaDA against the official implementation: logits, and whole sampler runs canvas by canvas.

mod support;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use support::{engine, golden, ids, json, max_difference, trace};
use unmask::canvas::TokenId;
use unmask::decode::{BlockOrigin, Budget, DecodePlan};
use unmask::models::{Checkpoint, Denoiser, KvPool, RaggedBatch, Segment};

const TOLERANCE: f32 = 1e-4;

fn load(name: &str) -> Box<dyn Denoiser> {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

fn forward_goldens(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(name).join("forward.safetensors"), &Device::Cpu).unwrap()
}

/// Logits `[B, L, V]` of `input_ids` `[B, L]` as one ragged batch.
fn logits(model: &dyn Denoiser, input_ids: &Tensor, allowed: &[Option<Vec<bool>>]) -> Tensor {
    let rows: Vec<Vec<i64>> = input_ids.to_vec2().unwrap();
    let mut batch = RaggedBatch::new();
    for (row, allowed) in rows.iter().zip(allowed) {
        let tokens: Vec<TokenId> = row.iter().map(|id| *id as TokenId).collect();
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let segment = Segment {
            allowed: allowed.clone(),
            ..Segment::default()
        };
        batch.push_segment(&tokens, &positions, segment);
    }
    let hidden = model.hidden(&batch, None).unwrap();
    let logits = model.head(&hidden).unwrap();
    let vocab = logits.dim(1).unwrap();
    logits.reshape((rows.len(), rows[0].len(), vocab)).unwrap()
}

#[test]
fn logits_of_a_plain_and_of_a_fully_masked_canvas_equal_the_official_ones() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    for case in ["case0", "case2"] {
        let got = logits(&*model, &goldens[&format!("{case}.input_ids")], &[None]);
        let difference = max_difference(&got, &goldens[&format!("{case}.logits")]);
        assert!(difference < TOLERANCE, "{case}: {difference}");
    }
}

#[test]
fn logits_with_padded_keys_equal_the_official_ones() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let mask: Vec<Vec<i64>> = goldens["case1.attention_mask"].to_vec2().unwrap();
    let allowed: Vec<_> = mask
        .iter()
        .map(|row| {
            Some(
                row.iter()
                    .map(|valid| *valid != 0)
                    .collect::<Vec<_>>()
                    .repeat(row.len()),
            )
        })
        .collect();
    let got = logits(&*model, &goldens["case1.input_ids"], &allowed);
    let difference = max_difference(&got, &goldens["case1.logits"]);
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn logits_with_an_attention_pattern_equal_the_official_ones() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let allowed: Vec<u8> = goldens["case3.attention_bias"]
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let allowed = allowed.into_iter().map(|bit| bit != 0).collect();
    let got = logits(&*model, &goldens["case3.input_ids"], &[Some(allowed)]);
    let difference = max_difference(&got, &goldens["case3.logits"]);
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn sharded_weights_give_the_same_logits_as_a_single_file() {
    let goldens = forward_goldens("llada");
    let input = &goldens["case0.input_ids"];
    let single = logits(&*load("llada"), input, &[None]);
    let sharded = logits(&*load("llada/sharded"), input, &[None]);
    assert_eq!(max_difference(&single, &sharded), 0.0);
}

#[test]
fn bf16_weights_are_read_as_they_are() {
    let (model, goldens) = (load("llada/bf16"), forward_goldens("llada/bf16"));
    let got = logits(&*model, &goldens["case0.input_ids"], &[None]);
    let difference = max_difference(&got, &goldens["case0.logits"]);
    assert!(difference < TOLERANCE, "{difference}");
}

fn scalar(goldens: &HashMap<String, Tensor>, name: &str) -> usize {
    goldens[name].to_scalar::<i64>().unwrap() as usize
}

/// Fills a pool from a full forward of `input`, then computes `rows` of `tokens` with the slots outside
/// of them from the cache.
fn cached_logits(
    model: &dyn Denoiser,
    input: &Tensor,
    tokens: &Tensor,
    rows: std::ops::Range<usize>,
    keys_after: bool,
) -> Tensor {
    let full: Vec<TokenId> = input
        .flatten_all()
        .unwrap()
        .to_vec1::<i64>()
        .unwrap()
        .into_iter()
        .map(|id| id as TokenId)
        .collect();
    let tokens: Vec<TokenId> = tokens
        .flatten_all()
        .unwrap()
        .to_vec1::<i64>()
        .unwrap()
        .into_iter()
        .map(|id| id as TokenId)
        .collect();
    let pool = KvPool::new(model.spec(), full.len() + 3, DType::F32, &Device::Cpu).unwrap();
    // Cached slots need not be in order, nor next to each other.
    let slot_of = |position: usize| (full.len() + 2 - position) as u32;
    let positions: Vec<u32> = (0..full.len() as u32).collect();
    let mut batch = RaggedBatch::new();
    let store = (0..full.len()).map(slot_of).collect();
    batch.push_segment(
        &full,
        &positions,
        Segment {
            store,
            ..Segment::default()
        },
    );
    model.hidden(&batch, Some(&pool)).unwrap();
    let mut batch = RaggedBatch::new();
    let last = if keys_after { full.len() } else { rows.end };
    let context = (0..rows.start).chain(rows.end..last).map(slot_of).collect();
    batch.push_segment(
        &tokens,
        &positions[rows],
        Segment {
            context,
            ..Segment::default()
        },
    );
    model
        .head(&model.hidden(&batch, Some(&pool)).unwrap())
        .unwrap()
}

#[test]
fn logits_with_a_cached_prefix_equal_the_official_prefix_cache() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let input = &goldens["cache0.input_ids"];
    let (start, end) = (scalar(&goldens, "cache0.prefix_len"), input.dim(1).unwrap());
    let suffix = input.narrow(1, start, end - start).unwrap();
    let got = cached_logits(&*model, input, &suffix, start..end, false);
    let difference = max_difference(&got, &goldens["cache0.suffix_logits"].squeeze(0).unwrap());
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn logits_with_a_cached_prefix_and_suffix_equal_the_official_dual_cache() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let rows = scalar(&goldens, "cache1.block_start")..scalar(&goldens, "cache1.block_end");
    let got = cached_logits(
        &*model,
        &goldens["cache1.cached_input_ids"],
        &goldens["cache1.block_input_ids"],
        rows,
        true,
    );
    let difference = max_difference(&got, &goldens["cache1.block_logits"].squeeze(0).unwrap());
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn segments_of_a_ragged_batch_do_not_see_each_other() {
    let model = load("llada");
    let (long, short): (Vec<TokenId>, Vec<TokenId>) = ((10..40).collect(), (50..57).collect());
    let alone = |tokens: &[TokenId]| {
        let mut batch = RaggedBatch::new();
        batch.push(tokens.iter().copied());
        model.hidden(&batch, None).unwrap()
    };
    let mut batch = RaggedBatch::new();
    for tokens in [&long, &short, &short, &long] {
        batch.push(tokens.iter().copied());
    }
    let together = model.hidden(&batch, None).unwrap();
    for (segment, tokens) in batch.segments().iter().zip([&long, &short, &short, &long]) {
        let part = together
            .narrow(0, segment.rows.start, segment.rows.len())
            .unwrap();
        assert!(max_difference(&part, &alone(tokens)) < 1e-5);
    }
}

fn cases() -> Vec<Value> {
    let Value::Array(cases) = json(&golden("llada").join("generate.json")) else {
        panic!("generate.json holds a list of cases");
    };
    cases
}

fn case(name: &str) -> Value {
    cases()
        .into_iter()
        .find(|case| case["name"] == name)
        .unwrap()
}

/// The plan that the parameters of an official run stand for.
fn plan(params: &Value) -> DecodePlan {
    let number = |key: &str| params[key].as_u64().map(|n| n as usize);
    let mut plan = DecodePlan {
        steps: number("steps"),
        block_length: number("block_length").or(number("block_size")),
        ..DecodePlan::default()
    };
    plan.sampling.guidance_scale = params["cfg_scale"].as_f64().unwrap_or(0.0) as f32;
    if let Some(threshold) = params["threshold"].as_f64() {
        plan.budget = Budget::Threshold(threshold as f32);
        plan.steps = None;
    }
    plan
}

/// Runs the plan from `prompt` followed by a gap, and compares every canvas.
fn assert_completion(
    name: &str,
    prompt: &[TokenId],
    plan: &DecodePlan,
    expected: Vec<Vec<TokenId>>,
) {
    let engine = engine("llada");
    let mut start = prompt.to_vec();
    start.resize(expected[0].len(), engine.mask_token());
    assert_eq!(trace(&engine, &start, plan), expected, "{name}");
}

fn canvases(case: &Value) -> Vec<Vec<TokenId>> {
    case["canvas_per_step"]
        .as_array()
        .unwrap()
        .iter()
        .map(ids)
        .collect()
}

#[test]
fn completions_equal_the_official_runs_canvas_by_canvas() {
    for name in [
        "full_block",
        "full_block_fewer_steps",
        "semi_ar",
        "cfg",
        "fastdllm_fast_nothr",
        "fastdllm_fast_thr",
    ] {
        let case = case(name);
        let prompt = ids(&case["prompt_ids"]);
        assert_completion(name, &prompt, &plan(&case["params"]), canvases(&case));
    }
}

/// A batch's rows in the official code are sequences of their own here, without padding.
#[test]
fn rows_of_an_unpadded_official_batch_equal_sequences_of_their_own() {
    let case = case("dllm_sample_batch2");
    let steps = case["canvas_per_step"].as_array().unwrap();
    for (row, prompt) in case["prompt_ids"].as_array().unwrap().iter().enumerate() {
        let prompt = ids(prompt);
        let length = prompt.len() + case["params"]["max_new_tokens"].as_u64().unwrap() as usize;
        let expected = steps
            .iter()
            .map(|step| ids(&step[row])[..length].to_vec())
            .collect();
        assert_completion("batch", &prompt, &plan(&case["params"]), expected);
    }
}

#[test]
fn infilling_with_masks_in_the_middle_equals_the_official_run() {
    let case = case("dllm_infill");
    let mut plan = plan(&case["params"]);
    plan.block_origin = BlockOrigin::Canvas;
    let steps = case["canvas_per_step"].as_array().unwrap();
    let engine = engine("llada");
    for (row, start) in case["prompt_ids"].as_array().unwrap().iter().enumerate() {
        let start = ids(start);
        // A row that is finished earlier than its batch repeats its last canvas.
        let mut expected: Vec<_> = steps
            .iter()
            .map(|step| ids(&step[row])[..start.len()].to_vec())
            .collect();
        expected.dedup();
        assert_eq!(trace(&engine, &start, &plan), expected, "row {row}");
    }
}

/// The official code lets masks in the prompt use up the block's quota and so leaves as many masks at
/// the end; here they are gaps like any other and every gap is filled.
#[test]
fn masks_inside_a_prompt_are_gaps_and_leave_no_mask_behind() {
    let case = case("masks_inside_prompt");
    let engine = engine("llada");
    let mut start = ids(&case["prompt_ids"]);
    start.resize(23, engine.mask_token());
    let canvases = trace(&engine, &start, &plan(&case["params"]));
    assert_eq!(canvases.len(), 8);
    let last = canvases.last().unwrap();
    assert!(!last.contains(&engine.mask_token()));
    for (slot, token) in start.iter().enumerate() {
        assert!(*token == engine.mask_token() || last[slot] == *token);
    }
}
