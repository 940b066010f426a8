//! LLaDA against the official implementation: logits.

mod support;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use support::{
    assert_close, bits, cached_logits, forward_goldens, golden, load, logits, max_difference,
    scalar, valid_keys,
};
use unmask::canvas::TokenId;
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
