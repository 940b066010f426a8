//! LLaDA against the official implementation: logits, and whole sampler runs canvas by canvas.

mod support;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use support::{
    assert_close, bits, cached_logits, denoise, engine, forward_goldens, golden, ids, json, load,
    logits, max_difference, scalar, trace, valid_keys,
};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{BlockOrigin, Budget, DecodePlan, preset};
use unmask::models::{Checkpoint, RaggedBatch};

#[test]
fn logits_of_a_plain_and_of_a_fully_masked_canvas_equal_the_official_ones() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    for case in ["case0", "case2"] {
        let input = &goldens[&format!("{case}.input_ids")];
        let got = logits(&*model, input, None, &[None]);
        assert_close(&got, &goldens[&format!("{case}.logits")], case);
    }
}

#[test]
fn logits_with_padded_keys_equal_the_official_ones() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let allowed = valid_keys(&goldens["case1.attention_mask"]);
    let got = logits(&*model, &goldens["case1.input_ids"], None, &allowed);
    assert_close(&got, &goldens["case1.logits"], "case1");
}

#[test]
fn logits_with_an_attention_pattern_equal_the_official_ones() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let allowed = bits(&goldens["case3.attention_bias"]);
    let got = logits(&*model, &goldens["case3.input_ids"], None, &[Some(allowed)]);
    assert_close(&got, &goldens["case3.logits"], "case3");
}

#[test]
fn sharded_weights_give_the_same_logits_as_a_single_file() {
    let goldens = forward_goldens("llada");
    let input = &goldens["case0.input_ids"];
    let single = logits(&*load("llada"), input, None, &[None]);
    let sharded = logits(&*load("llada/sharded"), input, None, &[None]);
    assert_eq!(max_difference(&single, &sharded), 0.0);
}

#[test]
fn bf16_weights_are_read_as_they_are() {
    let (model, goldens) = (load("llada/bf16"), forward_goldens("llada/bf16"));
    let got = logits(&*model, &goldens["case0.input_ids"], None, &[None]);
    assert_close(&got, &goldens["case0.logits"], "case0");
}

/// There is no official golden in f16: the weights rounded to f16 give the logits of the same weights
/// in f32.
#[test]
fn f16_weights_are_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let weights = golden("llada").join("model.safetensors");
    let weights = candle_core::safetensors::load(weights, &Device::Cpu).unwrap();
    let open = |dtype: DType| {
        let rounded: HashMap<String, Tensor> = weights
            .iter()
            .map(|(name, tensor)| {
                let halved = tensor.to_dtype(DType::F16).unwrap();
                (name.clone(), halved.to_dtype(dtype).unwrap())
            })
            .collect();
        let folder = folder.path().join(dtype.as_str());
        std::fs::create_dir(&folder).unwrap();
        candle_core::safetensors::save(&rounded, folder.join("model.safetensors")).unwrap();
        let config = golden("llada").join("config.json");
        std::fs::copy(config, folder.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        checkpoint.load(DType::F32, &Device::Cpu).unwrap()
    };
    let input = &forward_goldens("llada")["case0.input_ids"];
    let half = logits(&*open(DType::F16), input, None, &[None]);
    let full = logits(&*open(DType::F32), input, None, &[None]);
    assert_eq!(max_difference(&half, &full), 0.0);
}

#[test]
fn logits_with_a_cached_prefix_equal_the_official_prefix_cache() {
    let (model, goldens) = (load("llada"), forward_goldens("llada"));
    let input = &goldens["cache0.input_ids"];
    let (start, end) = (scalar(&goldens, "cache0.prefix_len"), input.dim(1).unwrap());
    let suffix = input.narrow(1, start, end - start).unwrap();
    let got = cached_logits(&*model, input, &suffix, start..end, false);
    assert_close(
        &got.unsqueeze(0).unwrap(),
        &goldens["cache0.suffix_logits"],
        "cache0",
    );
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
    assert_close(
        &got.unsqueeze(0).unwrap(),
        &goldens["cache1.block_logits"],
        "cache1",
    );
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

/// The preset of an official sampler with the parameters of a run.
fn plan(params: &Value) -> DecodePlan {
    let number = |key: &str| params[key].as_u64().map(|n| n as usize);
    let preset = match (params["remasking"].as_str(), params["threshold"].as_f64()) {
        (Some("low_confidence"), None) => "llada",
        (Some("low_confidence"), Some(_)) => "fast-dllm",
        other => panic!("no preset for {other:?}"),
    };
    let mut plan = preset::by_name(preset)
        .unwrap()
        .plan(&DecodePlan::default());
    plan.block_length = number("block_length").or(number("block_size"));
    plan.sampling.guidance_scale = params["cfg_scale"].as_f64().unwrap_or(0.0) as f32;
    match params["threshold"].as_f64() {
        Some(threshold) => plan.budget = Budget::Threshold(threshold as f32),
        None => plan.steps = number("steps"),
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

/// Left padding shifts a row's positions, which rotary embedding does not see, and is not attended to.
#[test]
fn rows_of_a_left_padded_official_batch_equal_sequences_without_padding() {
    let case = case("batch2_left_padded");
    let steps = case["canvas_per_step"].as_array().unwrap();
    for (row, prompt) in case["prompt_ids"].as_array().unwrap().iter().enumerate() {
        let mask = ids(&case["attention_mask"][row]);
        let padding = mask.iter().filter(|valid| **valid == 0).count();
        let expected = steps
            .iter()
            .map(|step| ids(&step[row])[padding..].to_vec())
            .collect();
        assert_completion(
            "batch",
            &ids(prompt)[padding..],
            &plan(&case["params"]),
            expected,
        );
    }
}

#[test]
fn dllms_sampler_with_guidance_equals_its_official_run() {
    let case = case("dllm_sample_cfg");
    let params = &case["params"];
    let mut plan = preset::by_name("dllm")
        .unwrap()
        .plan(&DecodePlan::default());
    plan.steps = Some(params["steps"].as_u64().unwrap() as usize);
    plan.sampling.guidance_scale = params["cfg_scale"].as_f64().unwrap() as f32;
    let steps = case["canvas_per_step"].as_array().unwrap();
    let expected = steps.iter().map(|step| ids(&step[0])).collect();
    assert_completion("cfg", &ids(&case["prompt_ids"][0]), &plan, expected);
}

/// The official draws are not recorded: the counts are the even split's, the tokens the greedy ones of
/// their step, the slots uniform.
#[test]
fn random_re_masking_commits_an_even_share_of_the_greedy_tokens_at_random_slots() {
    let engine = engine("llada");
    let model = load("llada");
    let prompt: Vec<TokenId> = (20..30).collect();
    let mut plan = preset::by_name("llada-random")
        .unwrap()
        .plan(&DecodePlan::default());
    plan.steps = Some(6);
    let mut first = [0usize; 16];
    for seed in 0..200 {
        plan.sampling.seed = seed;
        let mut start = prompt.clone();
        start.resize(26, engine.mask_token());
        let canvas = Canvas::from_ids(&start, engine.mask_token()).unwrap();
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
