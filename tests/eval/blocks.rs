//! Likelihoods of block-causal models.

use candle_core::{D, DType, Device};
use candle_nn::ops::log_softmax;
use unmask::canvas::TokenId;
use unmask::eval::likelihood::{Draw, Estimator, Settings, estimate, losses};
use unmask::eval::{EvalError, Target};
use unmask::models::{
    AttentionPattern, Checkpoint, Denoiser, Parameterisation, RaggedBatch, Segment,
};

use crate::oracle::Oracle;
use crate::support::golden;

fn load(family: &str) -> Box<dyn Denoiser> {
    let checkpoint = Checkpoint::open(&golden(family)).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

/// Prompt and answer begin and end within blocks, which are of four.
fn target() -> Target {
    Target::after_prompt(
        &[255, 155, 108, 401, 9],
        &[259, 33, 300, 7, 12, 91, 44, 45, 203],
    )
}

/// −ln p of the masked slots of one block of `tokens`, by the text up to its end alone, as when it is denoised.
fn block_losses(model: &dyn Denoiser, tokens: &[TokenId], masked: &[usize]) -> Vec<f64> {
    let (spec, pattern) = (model.spec(), model.spec().attention);
    let block = pattern.block_of(masked[0]);
    let end = (0..tokens.len())
        .take_while(|slot| pattern.block_of(*slot) <= block)
        .count();
    let mask = spec.mask_token().unwrap();
    let seen: Vec<TokenId> = (0..end)
        .map(|slot| {
            if masked.contains(&slot) {
                mask
            } else {
                tokens[slot]
            }
        })
        .collect();
    let positions: Vec<u32> = (0..end as u32).collect();
    let mut batch = RaggedBatch::new();
    let segment = Segment {
        allowed: pattern.allowed(end),
        ..Segment::default()
    };
    batch.push_segment(&seen, &positions, segment);
    let hidden = model.hidden(&batch, None).unwrap();
    let logits = model.head(&hidden).unwrap().to_dtype(DType::F64).unwrap();
    let mut logits: Vec<Vec<f64>> = logits.to_vec2().unwrap();
    if spec.parameterisation == Parameterisation::Subs {
        for row in &mut logits {
            row[mask as usize] = f64::NEG_INFINITY;
        }
    }
    let logits = candle_core::Tensor::new(logits, &Device::Cpu).unwrap();
    let log_probabilities: Vec<Vec<f64>> =
        log_softmax(&logits, D::Minus1).unwrap().to_vec2().unwrap();
    masked
        .iter()
        .map(|slot| -log_probabilities[*slot][tokens[*slot] as usize])
        .collect()
}

#[test]
fn every_block_is_scored_after_clean_blocks_and_by_nothing_after_it() {
    for family in ["sdar", "llada2_moe", "bd3lm"] {
        let (model, target) = (load(family), target());
        let pattern = model.spec().attention;
        let draws = Estimator::ExactCount.draws(&target, pattern, 6, 3, 0, 0);
        let draws: Vec<Draw> = draws.collect();
        let got = losses(&*model, &target, &draws, 0.0).unwrap();
        for (draw, got) in draws.iter().zip(got) {
            let mut weights = draw.weights().iter();
            let blocks = draw
                .masked()
                .chunk_by(|a, b| pattern.block_of(*a) == pattern.block_of(*b));
            let expected: f64 = blocks
                .flat_map(|masked| block_losses(&*model, &target.tokens, masked))
                .map(|loss| weights.next().unwrap() * loss)
                .sum();
            assert!(
                (got / expected - 1.0).abs() < 1e-5,
                "{family}: {got} {expected}"
            );
        }
    }
}

/// The NELBO without noise: every set of masked slots of each block, of size x with weight 1 / (x · C(L, x)).
fn exact_nelbo(model: &dyn Denoiser, target: &Target) -> f64 {
    let pattern = model.spec().attention;
    let blocks = target
        .slots
        .chunk_by(|a, b| pattern.block_of(*a) == pattern.block_of(*b));
    let draws: Vec<Draw> = blocks
        .flat_map(|block| {
            let length = block.len();
            (1u32..1 << length).map(move |set| {
                let x = set.count_ones() as usize;
                let subsets = (0..x).fold(1, |product, i| product * (length - i) / (i + 1));
                let masked = (0..length).filter(|bit| set >> bit & 1 == 1);
                Draw::new(masked.map(|bit| block[bit]), 1.0 / (x * subsets) as f64)
            })
        })
        .collect();
    losses(model, target, &draws, 0.0).unwrap().iter().sum()
}

#[test]
fn both_estimators_agree_with_exact_enumeration_block_by_block() {
    let (model, target) = (load("sdar"), target());
    let exact = exact_nelbo(&*model, &target);
    for estimator in Estimator::ALL {
        let settings = Settings {
            estimator,
            groups: 64,
            strata: 8,
            ..Settings::default()
        };
        let got = estimate(&*model, &[&target], &settings, &mut |_| ()).unwrap()[0];
        let (apart, error) = (got.nelbo - exact, got.standard_error.unwrap());
        let name = estimator.name();
        assert!(error < 0.05 * exact, "{name}: {error} of {exact}");
        assert!(
            apart.abs() < 4.0 * error,
            "{name}: off by {apart} ± {error}"
        );
    }
}

#[test]
fn logits_that_are_shifted_out_of_a_block_are_read_in_the_clean_one_before_it() {
    let text = b"shifted by one";
    for logit_shift in [0, 1] {
        let mut model = Oracle::new(text, 40.0, logit_shift);
        model.spec.attention = AttentionPattern::BlockCausal { block_length: 3 };
        let target = Target::after_prompt(&model.text[..1], &model.text[1..]);
        let draws = Estimator::ExactCount.draws(&target, model.spec.attention, 8, 0, 0, 0);
        let draws: Vec<Draw> = draws.collect();
        let losses = losses(&model, &target, &draws, 0.0).unwrap();
        for (draw, loss) in draws.iter().zip(losses) {
            // The mask token's logit is 1 more: −ln p = ln(1 + e).
            let expected = draw.weights().iter().sum::<f64>() * (1.0 + 1f64.exp()).ln();
            assert!((loss - expected).abs() < 1e-4, "{loss} {expected}");
        }
        // Twice as many rows as slots, the second half clean.
        let seen = model.seen.lock().unwrap();
        for segment in seen.iter().flat_map(|batch| {
            let tokens = batch.tokens();
            batch.segments().iter().map(|s| &tokens[s.rows.clone()])
        }) {
            assert_eq!(segment.len(), 2 * text.len());
            assert_eq!(segment[text.len()..], model.text);
        }
    }
}

#[test]
fn a_guided_likelihood_of_blocks_is_refused() {
    let (model, target) = (load("sdar"), target());
    let error = losses(&*model, &target, &[], 1.0).unwrap_err();
    assert!(
        matches!(&error, EvalError::Unsupported { reason, .. } if reason.contains("guidance")),
        "{error}"
    );
}
