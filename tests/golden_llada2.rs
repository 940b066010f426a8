//! LLaDA2.0 and 2.1 against the official implementation: logits.

mod support;

use support::{assert_close, bits, block_cache_logits, forward_goldens, load, logits, scalar};
use unmask::decode::BlockOrigin;
use unmask::models::AttentionPattern;

const NAMES: [&str; 2] = ["llada2_moe", "llada21"];

#[test]
fn the_spec_is_block_causal_in_the_official_default_length() {
    for name in NAMES {
        let model = load(name);
        let spec = model.spec();
        assert_eq!(spec.family, "llada2_moe");
        let block_length = 32;
        assert_eq!(
            spec.attention,
            AttentionPattern::BlockCausal { block_length }
        );
        assert_eq!(spec.default_plan.block_length, Some(block_length));
        assert_eq!(spec.default_plan.block_origin, BlockOrigin::Canvas);
        assert_eq!(spec.logit_shift, 0);
        assert_eq!(spec.mask_token(), Some(504));
        assert_eq!(spec.stop_tokens, [501]);
    }
}

/// The official code without a mask is bidirectional.
#[test]
fn logits_without_a_mask_equal_the_official_ones() {
    for name in NAMES {
        let (model, goldens) = (load(name), forward_goldens(name));
        for case in ["case0", "case2"] {
            let input = &goldens[&format!("{case}.input_ids")];
            let got = logits(&*model, input, None, &[None]);
            assert_close(&got, &goldens[&format!("{case}.logits")], case);
        }
    }
}

#[test]
fn block_causal_logits_equal_the_official_ones() {
    for name in NAMES {
        let (model, goldens) = (load(name), forward_goldens(name));
        let input = &goldens["case1.input_ids"];
        let block_length = scalar(&goldens, "case1.block_length");
        let pattern = AttentionPattern::BlockCausal { block_length };
        let allowed = pattern.allowed(input.dim(1).unwrap());
        assert_eq!(allowed, Some(bits(&goldens["case1.allowed_mask_4d"])));
        let got = logits(&*model, input, None, &[allowed.clone(), allowed]);
        assert_close(&got, &goldens["case1.logits"], name);
    }
}

#[test]
fn logits_with_cached_blocks_equal_the_official_cache() {
    for name in NAMES {
        let (model, goldens) = (load(name), forward_goldens(name));
        let block_length = scalar(&goldens, "cache0.block_length");
        let [prefix, block] = block_cache_logits(&*model, &goldens, block_length);
        assert_close(&prefix, &goldens["cache0.prefix_logits"], name);
        assert_close(&block, &goldens["cache0.block_logits"], name);
    }
}
