//! A2D's Qwen3 form against the official implementation: logits.

mod support;

use support::{
    assert_close, assert_close_where, bits, block_cache_logits, forward_goldens, integers, load,
    logits, scalar, valid_keys,
};
use unmask::models::AttentionPattern;

const NAME: &str = "a2d_qwen3";

#[test]
fn the_mask_token_is_the_one_that_the_tokenizer_declares() {
    let model = load(NAME);
    let spec = model.spec();
    assert_eq!(spec.family, "a2d");
    assert_eq!(spec.attention, AttentionPattern::Bidirectional);
    assert_eq!(spec.logit_shift, 0);
    assert_eq!(spec.mask_token(), Some(507));
    assert_eq!(spec.stop_tokens, [502]);
}

#[test]
fn logits_of_a_plain_canvas_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let got = logits(&*model, &goldens["case0.input_ids"], None, &[None]);
    assert_close(&got, &goldens["case0.logits"], "case0");
}

#[test]
fn logits_with_padded_keys_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let allowed = valid_keys(&goldens["case1.attention_mask"]);
    let got = logits(&*model, &goldens["case1.input_ids"], None, &allowed);
    assert_close(&got, &goldens["case1.logits"], "case1");
}

#[test]
fn block_causal_logits_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let input = &goldens["case2.input_ids"];
    let block_length = scalar(&goldens, "case2.block_size");
    let pattern = AttentionPattern::BlockCausal { block_length };
    let allowed = pattern.allowed(input.dim(1).unwrap());
    assert_eq!(allowed, Some(bits(&goldens["case2.allowed_mask_4d"])));
    let got = logits(&*model, input, None, &[allowed]);
    assert_close(&got, &goldens["case2.logits"], "case2");
}

/// A padded row attends to nothing: the official code gives what its attention kernel happens to
/// give, so those rows are not compared.
#[test]
fn block_causal_logits_of_a_left_padded_row_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let input = &goldens["case3.input_ids"];
    let pad = scalar(&goldens, "case3.pad_token_id") as u32;
    let valid: Vec<bool> = integers(input).into_iter().map(|id| id != pad).collect();
    assert!(valid.contains(&false));
    let allowed = bits(&goldens["case3.allowed_mask_4d"]);
    let positions = &goldens["case3.position_ids"];
    let got = logits(&*model, input, Some(positions), &[Some(allowed)]);
    assert_close_where(&valid, &got, &goldens["case3.logits"], "case3");
}

#[test]
fn logits_with_cached_blocks_equal_the_official_cache() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let block_length = scalar(&goldens, "cache0.block_size");
    let [prefix, block] = block_cache_logits(&*model, &goldens, block_length);
    assert_close(&prefix, &goldens["cache0.prefix_logits"], "prefix");
    assert_close(&block, &goldens["cache0.block_logits"], "block");
}
