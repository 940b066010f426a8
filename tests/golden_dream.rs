//! Dream against the official implementation: logits.

mod support;

use support::{
    assert_close, assert_close_where, bits, cached_logits, forward_goldens, load, logits, scalar,
    valid_pairs,
};
use unmask::models::AttentionPattern;

#[test]
fn the_spec_is_that_of_a_bidirectional_model_shifted_by_one() {
    let model = load("dream");
    let spec = model.spec();
    assert_eq!(spec.family, "dream");
    assert_eq!(spec.attention, AttentionPattern::Bidirectional);
    assert_eq!(spec.logit_shift, 1);
    assert_eq!(spec.mask_token(), Some(506));
    assert_eq!(spec.stop_tokens, [500]);
}

#[test]
fn logits_of_a_plain_and_of_a_fully_masked_canvas_equal_the_official_ones() {
    let (model, goldens) = (load("dream"), forward_goldens("dream"));
    for case in ["case0", "case2"] {
        let input = &goldens[&format!("{case}.input_ids")];
        let got = logits(&*model, input, None, &[None]);
        assert_close(&got, &goldens[&format!("{case}.logits")], case);
    }
}

/// A padded row attends to nothing: the official code gives what its attention kernel happens to
/// give, so those rows are not compared.
#[test]
fn logits_of_left_padded_rows_equal_the_official_ones() {
    let (model, goldens) = (load("dream"), forward_goldens("dream"));
    let mask = &goldens["case1.attention_mask"];
    let positions = &goldens["case1.position_ids"];
    let input = &goldens["case1.input_ids"];
    let got = logits(&*model, input, Some(positions), &valid_pairs(mask));
    assert_close_where(&bits(mask), &got, &goldens["case1.logits"], "case1");
}

#[test]
fn logits_at_shifted_positions_equal_the_official_ones() {
    let (model, goldens) = (load("dream"), forward_goldens("dream"));
    let positions = &goldens["case3.position_ids"];
    let got = logits(
        &*model,
        &goldens["case3.input_ids"],
        Some(positions),
        &[None],
    );
    assert_close(&got, &goldens["case3.logits"], "case3");
}

#[test]
fn logits_with_an_attention_pattern_equal_the_official_ones() {
    let (model, goldens) = (load("dream"), forward_goldens("dream"));
    let allowed = bits(&goldens["case4.attention_mask_4d"]);
    let got = logits(&*model, &goldens["case4.input_ids"], None, &[Some(allowed)]);
    assert_close(&got, &goldens["case4.logits"], "case4");
}

#[test]
fn logits_with_a_cached_prefix_equal_the_official_prefix_cache() {
    let (model, goldens) = (load("dream"), forward_goldens("dream"));
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
    let (model, goldens) = (load("dream"), forward_goldens("dream"));
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
