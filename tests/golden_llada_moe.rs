//! LLaDA-MoE against the official implementation: logits.

mod support;

use support::{assert_close, forward_goldens, load, logits, valid_keys};
use unmask::models::AttentionPattern;

const NAME: &str = "llada_moe";

#[test]
fn the_mask_token_is_the_one_that_the_tokenizer_declares() {
    let model = load(NAME);
    let spec = model.spec();
    assert_eq!(spec.family, "llada_moe");
    assert_eq!(spec.attention, AttentionPattern::Bidirectional);
    assert_eq!(spec.logit_shift, 0);
    assert_eq!(spec.mask_token(), Some(504));
    assert_eq!(spec.stop_tokens, [501]);
}

#[test]
fn logits_of_a_plain_and_of_a_fully_masked_canvas_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    for case in ["case0", "case2"] {
        let input = &goldens[&format!("{case}.input_ids")];
        let got = logits(&*model, input, None, &[None]);
        assert_close(&got, &goldens[&format!("{case}.logits")], case);
    }
}

#[test]
fn logits_with_padded_keys_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let allowed = valid_keys(&goldens["case1.attention_mask"]);
    let got = logits(&*model, &goldens["case1.input_ids"], None, &allowed);
    assert_close(&got, &goldens["case1.logits"], "case1");
}

#[test]
fn logits_at_shifted_positions_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let positions = &goldens["case3.position_ids"];
    let got = logits(
        &*model,
        &goldens["case3.input_ids"],
        Some(positions),
        &[None, None],
    );
    assert_close(&got, &goldens["case3.logits"], "case3");
}
