//! BD3-LM against the official implementation: scoring, sampling, and sampling with cached blocks.

#[path = "support/dit.rs"]
mod dit;
mod support;

use candle_core::{Device, Tensor};
use dit::{
    TOLERANCE, assert_same_log_probabilities, load, load_edited, numbers, outputs, rows, sequences,
    subs, tensors,
};
use support::max_difference;
use unmask::canvas::TokenId;
use unmask::models::{AttentionPattern, Denoiser, RaggedBatch};
use unmask::selftest::goldens::forward::{self, scoring_batch};

fn block_length(model: &dyn Denoiser) -> usize {
    match model.spec().attention {
        AttentionPattern::BlockCausal { block_length } => block_length,
        other => panic!("{other:?}"),
    }
}

fn scoring_outputs(model: &dyn Denoiser, batch: &RaggedBatch) -> Tensor {
    forward::scoring_outputs(model, batch).unwrap()
}

/// Segments that see their own block and those before it.
fn block_causal_batch(model: &dyn Denoiser, input: &[Vec<TokenId>], sigmas: &[f32]) -> RaggedBatch {
    forward::block_causal_batch(block_length(model), input, sigmas)
}

#[test]
fn logits_of_the_scoring_input_equal_the_official_ones() {
    let (model, goldens) = (load("bd3lm"), tensors("bd3lm", "forward.safetensors"));
    let input = sequences(&goldens["train0.input_ids"]);
    let batch = scoring_batch(&*model, &input, &numbers(&goldens["train0.timesteps"]));
    let got = scoring_outputs(&*model, &batch);
    let difference = max_difference(&got, &rows(&goldens["train0.logits"]));
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn log_probabilities_of_the_scoring_input_equal_the_official_ones() {
    let (model, goldens) = (load("bd3lm"), tensors("bd3lm", "forward.safetensors"));
    let input = sequences(&goldens["subs0.input_ids"]);
    let batch = scoring_batch(&*model, &input, &numbers(&goldens["subs0.sigma"]));
    let noised: Vec<TokenId> = input
        .iter()
        .flat_map(|row| &row[..row.len() / 2])
        .copied()
        .collect();
    let mask = model.spec().mask_token().unwrap();
    let got = subs(&scoring_outputs(&*model, &batch), &noised, mask);
    assert_same_log_probabilities(&got, &rows(&goldens["subs0.log_probs"]));
}

#[test]
fn logits_of_block_causal_sampling_equal_the_official_ones() {
    let (model, goldens) = (load("bd3lm"), tensors("bd3lm", "forward.safetensors"));
    let input = sequences(&goldens["sample_nocache0.input_ids"]);
    let sigmas = numbers(&goldens["sample_nocache0.timesteps"]);
    let got = outputs(&*model, &block_causal_batch(&*model, &input, &sigmas));
    let difference = max_difference(&got, &rows(&goldens["sample_nocache0.logits"]));
    assert!(difference < TOLERANCE, "{difference}");
}

#[test]
fn logits_of_a_block_behind_cached_blocks_equal_the_official_cache() {
    let (model, goldens) = (load("bd3lm"), tensors("bd3lm", "forward.safetensors"));
    let got = forward::noised_block_cache_outputs(&*model, &goldens, block_length(&*model));
    let got = got.unwrap();
    let difference = max_difference(&got, &rows(&goldens["cache0.block_logits"]));
    assert!(difference < TOLERANCE, "{difference}");
}

/// Without adaLN norms are plain and branches are not gated: what shift 0, scale 0 and gate 1 amount to.
#[test]
fn a_network_without_adaln_is_one_whose_modulation_is_neutral() {
    let is_modulation = |name: &str| name.contains("adaLN_modulation");
    let neutral = load_edited("bd3lm", |config, weights| {
        config["time_conditioning"] = true.into();
        for (name, tensor) in weights.iter_mut().filter(|(name, _)| is_modulation(name)) {
            *tensor = tensor.zeros_like().unwrap();
            if name.contains("blocks") && name.ends_with("bias") {
                let hidden = tensor.dim(0).unwrap() / 6;
                let (zeros, ones) = (vec![0f32; 2 * hidden], vec![1f32; hidden]);
                let parts = [zeros.clone(), ones.clone(), zeros, ones].concat();
                *tensor = Tensor::new(parts, &Device::Cpu).unwrap();
            }
        }
    });
    let plain = load_edited("bd3lm", |config, weights| {
        config["adaln"] = false.into();
        config["time_conditioning"] = true.into();
        weights.retain(|name, _| !is_modulation(name) && !name.contains("sigma_map"));
    });
    assert!(neutral.spec().noise_conditioned && !plain.spec().noise_conditioned);
    let input = [(10..26).collect::<Vec<TokenId>>()];
    let with_sigma = block_causal_batch(&*neutral, &input, &[0.7]);
    let expected = outputs(&*neutral, &with_sigma);
    let got = outputs(&*plain, &block_causal_batch(&*plain, &input, &[2.0]));
    assert!(max_difference(&got, &expected) < 1e-5);
}

#[test]
fn a_checkpoint_without_a_trained_noise_range_has_no_tensors_for_it() {
    let without = load_edited("bd3lm", |config, weights| {
        config["var_min"] = false.into();
        weights.retain(|name, _| !name.starts_with("sampling_eps"));
    });
    assert_eq!(without.spec(), load("bd3lm").spec());
}
