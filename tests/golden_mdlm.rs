//! MDLM against the official implementation.

#[path = "support/dit.rs"]
mod dit;
mod support;

use dit::{
    TOLERANCE, assert_same_log_probabilities, batch, load, load_edited, numbers, outputs, rows,
    sequences, subs, tensors,
};
use support::{denoise, max_difference};
use unmask::canvas::Canvas;
use unmask::decode::{Budget, DecodePlan};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Denoiser, RaggedBatch};

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
