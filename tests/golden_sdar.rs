//! SDAR against the official implementation: logits.

mod support;

use support::{assert_close, bits, block_cache_logits, forward_goldens, load, logits, scalar};
use unmask::decode::BlockOrigin;
use unmask::models::AttentionPattern;

#[test]
fn the_spec_takes_blocks_mask_and_stop_tokens_from_the_checkpoint() {
    let model = load("sdar");
    let spec = model.spec();
    assert_eq!(spec.family, "sdar");
    let block_length = 4;
    assert_eq!(
        spec.attention,
        AttentionPattern::BlockCausal { block_length }
    );
    assert_eq!(spec.default_plan.block_length, Some(block_length));
    assert_eq!(spec.default_plan.block_origin, BlockOrigin::Canvas);
    assert_eq!(spec.logit_shift, 0);
    assert_eq!(spec.mask_token(), Some(507));
    // config.json names the first, generation_config.json both.
    assert_eq!(spec.stop_tokens, [500, 502]);
}

#[test]
fn block_causal_logits_equal_the_official_ones() {
    let (model, goldens) = (load("sdar"), forward_goldens("sdar"));
    let block_length = scalar(&goldens, "case0.block_length");
    let pattern = AttentionPattern::BlockCausal { block_length };
    assert_eq!(
        pattern.allowed(16),
        Some(bits(&goldens["case0.allowed_mask"]))
    );
    for case in ["case0", "case1"] {
        let input = &goldens[&format!("{case}.input_ids")];
        let allowed = Some(bits(&goldens[&format!("{case}.allowed_mask")]));
        let rows = input.dim(0).unwrap();
        let got = logits(&*model, input, None, &vec![allowed; rows]);
        assert_close(&got, &goldens[&format!("{case}.logits")], case);
    }
}

#[test]
fn logits_with_cached_blocks_equal_the_official_cache() {
    let (model, goldens) = (load("sdar"), forward_goldens("sdar"));
    let block_length = scalar(&goldens, "cache0.block_length");
    let [prefix, block] = block_cache_logits(&*model, &goldens, block_length);
    assert_close(&prefix, &goldens["cache0.prefix_logits"], "prefix");
    assert_close(&block, &goldens["cache0.block_logits"], "block");
}
