//! MDLM against the official implementation.

#[path = "support/dit.rs"]
mod dit;
mod support;

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use dit::{
    TOLERANCE, assert_same_log_probabilities, batch, load, load_edited, numbers, outputs, rows,
    sequences, subs, tensors,
};
use support::{denoise, max_difference};
use unmask::canvas::Canvas;
use unmask::decode::{Budget, DecodePlan};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Denoiser, KvPool, RaggedBatch, Segment};

/// The golden network, conditioned on the noise level. The golden cases `backbone*` call the official
/// backbone directly, past the place where its caller replaces σ by 0.
fn conditioned() -> Box<dyn Denoiser> {
    load_edited("mdlm", |config, _| {
        config["time_conditioning"] = true.into();
    })
}

#[test]
fn logits_at_noise_level_zero_equal_the_official_ones() {
    let goldens = tensors("mdlm", "forward.safetensors");
    let input = sequences(&goldens["backbone0.input_ids"]);
    // Without time conditioning the noise level is zero whatever a segment says, if anything.
    let mut silent = RaggedBatch::new();
    for tokens in &input {
        silent.push(tokens.iter().copied());
    }
    for batch in [
        batch(&input, &[0.0, 0.0]),
        batch(&input, &[0.3, 2.0]),
        silent,
    ] {
        let got = outputs(&*load("mdlm"), &batch);
        let difference = max_difference(&got, &rows(&goldens["backbone0.logits"]));
        assert!(difference < TOLERANCE, "{difference}");
    }
}

#[test]
fn logits_conditioned_on_the_noise_level_equal_the_official_ones() {
    let (model, goldens) = (conditioned(), tensors("mdlm", "forward.safetensors"));
    for case in ["backbone0", "backbone1", "backbone2"] {
        let golden = |field: &str| &goldens[&format!("{case}.{field}")];
        let batch = batch(&sequences(golden("input_ids")), &numbers(golden("sigma")));
        let difference = max_difference(&outputs(&*model, &batch), &rows(golden("logits")));
        assert!(difference < TOLERANCE, "{case}: {difference}");
    }
}

#[test]
fn log_probabilities_under_subs_equal_the_official_ones() {
    let (model, goldens) = (load("mdlm"), tensors("mdlm", "forward.safetensors"));
    let input = sequences(&goldens["subs0.input_ids"]);
    let batch = batch(&input, &numbers(&goldens["subs0.sigma"]));
    let mask = model.spec().mask_token().unwrap();
    let got = subs(&outputs(&*model, &batch), batch.tokens(), mask);
    assert_same_log_probabilities(&got, &rows(&goldens["subs0.log_probs"]));
}

#[test]
fn segments_of_a_ragged_batch_keep_their_own_noise_level() {
    let model = conditioned();
    let input: Vec<Vec<u32>> = vec![(10..22).collect(), (50..57).collect(), (50..57).collect()];
    let sigmas = [0.4, 3.0, 0.4];
    let together = outputs(&*model, &batch(&input, &sigmas));
    let mut start = 0;
    for (tokens, sigma) in input.iter().zip(sigmas) {
        let alone = outputs(&*model, &batch(std::slice::from_ref(tokens), &[sigma]));
        let part = together.narrow(0, start, tokens.len()).unwrap();
        assert!(max_difference(&part, &alone) < 1e-5);
        start += tokens.len();
    }
}

/// Logits of a block of each of `texts`, each at its own level, with the keys and values of the slots around it as a
/// forward of the whole text at `kept` left them.
fn around_the_block(
    model: &dyn Denoiser,
    texts: &[Vec<u32>],
    block: &Range<usize>,
    kept: &[f32],
    sigmas: &[f32],
) -> Tensor {
    let pool = KvPool::new(model.spec(), 48, DType::F32, &Device::Cpu).unwrap();
    let (mut whole, mut blocks) = (RaggedBatch::new(), RaggedBatch::new());
    for (index, tokens) in texts.iter().enumerate() {
        let slot_of = |slot: usize| (16 * index + 15 - slot) as u32;
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let segment = Segment {
            store: (0..tokens.len()).map(slot_of).collect(),
            sigma: Some(kept[index]),
            ..Segment::default()
        };
        whole.push_segment(tokens, &positions, segment);
        let around = (0..block.start).chain(block.end..tokens.len());
        let segment = Segment {
            context: around.map(slot_of).collect(),
            sigma: Some(sigmas[index]),
            ..Segment::default()
        };
        blocks.push_segment(&tokens[block.clone()], &positions[block.clone()], segment);
    }
    model.hidden(&whole, Some(&pool)).unwrap();
    let hidden = model.hidden(&blocks, Some(&pool)).unwrap();
    model.head_rows(&hidden, &blocks.row_inputs()).unwrap()
}

#[test]
fn kept_keys_are_of_the_level_that_they_were_computed_at_and_each_segment_of_its_own() {
    let model = conditioned();
    let texts: Vec<Vec<u32>> = vec![(10..22).collect(), (50..61).collect(), (50..61).collect()];
    let block = 4..9;
    let sigmas = [0.4, 3.0, 0.4];
    let same = around_the_block(&*model, &texts, &block, &sigmas, &sigmas);
    let earlier = around_the_block(&*model, &texts, &block, &[4.0, 3.5, 3.0], &sigmas);
    for (index, (tokens, sigma)) in texts.iter().zip(sigmas).enumerate() {
        let whole = outputs(&*model, &batch(std::slice::from_ref(tokens), &[sigma]));
        let whole = whole.narrow(0, block.start, block.len()).unwrap();
        let of = |logits: &Tensor| {
            let first = index * block.len();
            logits.narrow(0, first, block.len()).unwrap()
        };
        assert!(max_difference(&of(&same), &whole) < 1e-5);
        assert!(max_difference(&of(&earlier), &whole) > 1e-4);
        let alone = around_the_block(
            &*model,
            std::slice::from_ref(tokens),
            &block,
            &[[4.0, 3.5, 3.0][index]],
            &[sigma],
        );
        assert!(max_difference(&of(&earlier), &alone) < 1e-5);
    }
}

#[test]
fn a_conditioned_network_refuses_a_segment_without_a_noise_level() {
    let model = conditioned();
    assert!(model.spec().noise_conditioned);
    let mut silent = batch(&[vec![1, 2, 3]], &[0.5]);
    silent.push([4, 5]);
    let error = model.hidden(&silent, None).unwrap_err().to_string();
    assert!(error.contains("segment 1 has no sigma"), "{error}");
    for sigma in [-0.1, f32::NAN, f32::INFINITY] {
        let batch = batch(&[vec![1, 2, 3]], &[sigma]);
        let error = model.hidden(&batch, None).unwrap_err().to_string();
        assert!(error.contains("sigma of segment 0"), "{error}");
    }
}

#[test]
fn the_stored_rotary_frequencies_are_the_ones_that_rotate() {
    let input = [(10..22).collect()];
    let stored = outputs(&*load("mdlm"), &batch(&input, &[0.0]));
    let halved = load_edited("mdlm", |_, weights| {
        let frequencies = weights.get_mut("backbone.rotary_emb.inv_freq").unwrap();
        *frequencies = (&*frequencies * 0.5).unwrap();
    });
    let halved = outputs(&*halved, &batch(&input, &[0.0]));
    assert!(max_difference(&stored, &halved) > 1e-3);
}

/// The logit of the mask token means nothing under SUBS; sampling from it would fill a gap with masks.
#[test]
fn ancestral_sampling_fills_every_gap_with_tokens_and_skips_steps_that_change_nothing() {
    let engine = Engine::start(load("mdlm"), EngineConfig::unshared()).unwrap();
    let mut plan = DecodePlan {
        steps: Some(200),
        budget: Budget::Ancestral { eps: 1e-5 },
        ..DecodePlan::default()
    };
    plan.sampling.temperature = 1.0;
    for seed in 0..5 {
        plan.sampling.seed = seed;
        let canvas = Canvas::builder(engine.mask_token().unwrap())
            .gap(16)
            .build()
            .unwrap();
        let (reports, canvas) = denoise(&engine, canvas, &plan);
        assert_eq!(canvas.masked(), 0);
        assert!(
            canvas
                .tokens()
                .all(|token| token != engine.mask_token().unwrap())
        );
        assert!(reports.len() <= 16, "{} evaluations", reports.len());
    }
}
