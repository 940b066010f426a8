//! BD3-LM against the official implementation: scoring, sampling, and sampling with cached blocks.

#[path = "support/dit.rs"]
mod dit;
mod support;

use candle_core::{DType, Device, Tensor};
use dit::{
    TOLERANCE, assert_same_log_probabilities, load, load_edited, numbers, outputs, rows, sequences,
    subs, tensors,
};
use support::max_difference;
use unmask::canvas::TokenId;
use unmask::models::{AttentionPattern, Denoiser, KvPool, RaggedBatch, Segment};

fn block_length(model: &dyn Denoiser) -> usize {
    match model.spec().attention {
        AttentionPattern::BlockCausal { block_length } => block_length,
        other => panic!("{other:?}"),
    }
}

/// Segments of [x_t ; x_0], one a sequence of `input`, of which the second half is x_0.
fn scoring_batch(model: &dyn Denoiser, input: &[Vec<TokenId>], sigmas: &[f32]) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for (tokens, sigma) in input.iter().zip(sigmas) {
        let length = tokens.len() / 2;
        let positions: Vec<u32> = (0..length as u32).collect();
        let segment = Segment {
            allowed: Some(model.spec().attention.allowed_in_scoring(length)),
            sigma: Some(*sigma),
            ..Segment::default()
        };
        batch.push_segment(tokens, &positions.repeat(2), segment);
    }
    batch
}

/// The outputs of the rows of x_t, `[B · n, V]`.
fn scoring_outputs(model: &dyn Denoiser, batch: &RaggedBatch) -> Tensor {
    let all = outputs(model, batch);
    let halves: Vec<Tensor> = batch
        .segments()
        .iter()
        .map(|segment| {
            all.narrow(0, segment.rows.start, segment.rows.len() / 2)
                .unwrap()
        })
        .collect();
    Tensor::cat(&halves, 0).unwrap()
}

/// Segments that see their own block and those before it.
fn block_causal_batch(model: &dyn Denoiser, input: &[Vec<TokenId>], sigmas: &[f32]) -> RaggedBatch {
    let block = block_length(model);
    let mut batch = RaggedBatch::new();
    for (tokens, sigma) in input.iter().zip(sigmas) {
        let slots = 0..tokens.len();
        let sees = |slot: usize| {
            slots
                .clone()
                .map(move |other| other / block <= slot / block)
        };
        let segment = Segment {
            allowed: Some(slots.clone().flat_map(sees).collect()),
            sigma: Some(*sigma),
            ..Segment::default()
        };
        let positions: Vec<u32> = slots.clone().map(|slot| slot as u32).collect();
        batch.push_segment(tokens, &positions, segment);
    }
    batch
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
    let prefixes = sequences(&goldens["cache0.prefix_input_ids"]);
    let blocks = sequences(&goldens["cache0.block_input_ids"]);
    let sigmas = numbers(&goldens["cache0.timesteps"]);
    let (length, block) = (prefixes[0].len(), block_length(&*model));
    let slots = length * prefixes.len();
    let pool = KvPool::new(model.spec(), slots, DType::F32, &Device::Cpu).unwrap();
    // Cached slots need not be in order, nor next to each other.
    let slot_of =
        |sequence: usize, place: usize| (slots - 1 - (place * prefixes.len() + sequence)) as u32;
    let segment = |sequence: usize, start: usize| Segment {
        context: (0..start).map(|place| slot_of(sequence, place)).collect(),
        sigma: Some(sigmas[sequence]),
        ..Segment::default()
    };
    let positions = |start: usize| (start as u32..(start + block) as u32).collect::<Vec<_>>();
    for start in (0..length).step_by(block) {
        let mut batch = RaggedBatch::new();
        for (sequence, prefix) in prefixes.iter().enumerate() {
            let kept = start..start + block;
            let segment = Segment {
                store: kept.clone().map(|place| slot_of(sequence, place)).collect(),
                ..segment(sequence, start)
            };
            batch.push_segment(&prefix[kept], &positions(start), segment);
        }
        model.hidden(&batch, Some(&pool)).unwrap();
    }
    let mut batch = RaggedBatch::new();
    for (sequence, tokens) in blocks.iter().enumerate() {
        batch.push_segment(tokens, &positions(length), segment(sequence, length));
    }
    let got = model
        .head(&model.hidden(&batch, Some(&pool)).unwrap())
        .unwrap();
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
