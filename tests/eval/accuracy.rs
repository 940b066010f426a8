//! Infill accuracy and speed of a model that knows the text.

use unmask::canvas::TokenId;
use unmask::decode::{DecodePlan, EarlyStop, preset};
use unmask::diffusion::Schedule;
use unmask::engine::{Engine, EngineConfig};
use unmask::eval::{Corpus, Selection, infill, speed};
use unmask::models::{Corruption, Parameterisation, RaggedBatch};
use unmask::text::ByteTokenizer;

use crate::oracle::Oracle;

fn oracle_corpus(model: &Oracle) -> Corpus {
    let text = String::from_utf8(model.text.iter().map(|token| *token as u8).collect()).unwrap();
    let selection = Selection {
        documents: 8,
        windows: 1,
        context: None,
        refuse_long_documents: false,
        seed: 0,
    };
    let texts = vec![text.clone(), text.clone(), text];
    Corpus::new(&texts, &ByteTokenizer::default(), &model.spec, &selection).unwrap()
}

const TEXT: &[u8] = b"forty-eight characters that a model knows by heart";

#[test]
fn a_model_that_knows_the_text_has_every_span_and_one_that_does_not_has_none() {
    for (knows, share) in [(true, 1.0), (false, 0.0)] {
        let text = if knows { TEXT } else { &[b'~'; TEXT.len()] };
        let corpus = oracle_corpus(&Oracle::new(TEXT, 0.0, 0));
        let settings = infill::Settings {
            mask_rates: vec![0.05, 0.5, 0.95],
            span: 3,
            decode_windows: 2,
            seed: 1,
        };
        let model = Oracle::new(text, 9.0, 0);
        let one_forward = infill::one_forward(&model, &corpus, &settings, &mut |_| ()).unwrap();
        let engine = Engine::start(Box::new(model), EngineConfig::default()).unwrap();
        let decoded = infill::decoded(&engine, &corpus, &settings, &mut |_| ()).unwrap();
        for (one, decoded) in one_forward.iter().zip(&decoded) {
            assert_eq!((one.windows, decoded.windows), (3, 2));
            assert_eq!(one.token_accuracy.value, share);
            assert_eq!(decoded.token_accuracy.value, share);
            assert_eq!(decoded.span_exact_match.value, share);
            assert_eq!(decoded.tokens, 3 * decoded.spans);
            assert_eq!(decoded.forwards, decoded.tokens, "one token a step");
            assert!((one.masked_share - one.mask_rate).abs() < 0.04);
        }
    }
}

/// As the plan that fills the spans tells it: at its first step, and in a single forward, the schedule's last.
#[test]
fn a_model_that_is_told_the_noise_level_fills_spans_at_that_of_the_share_that_is_masked() {
    for parameterisation in [Parameterisation::LogScore, Parameterisation::Subs] {
        let corpus = oracle_corpus(&Oracle::new(TEXT, 0.0, 0));
        let mut model = Oracle::new(TEXT, 9.0, 0);
        model.spec.parameterisation = parameterisation;
        model.spec.noise_conditioned = true;
        model.spec.noise_schedule = Some(Schedule::table(&[1.0, 1e-3]).unwrap());
        let (spec, seen) = (model.spec.clone(), model.seen.clone());
        let levels = || -> Vec<Option<f32>> {
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            let segments = seen.iter().flat_map(RaggedBatch::segments);
            segments.map(|segment| segment.sigma).collect()
        };
        let settings = infill::Settings {
            mask_rates: vec![0.1, 0.5],
            span: 4,
            decode_windows: 1,
            seed: 1,
        };
        let one = infill::one_forward(&model, &corpus, &settings, &mut |_| ()).unwrap();
        assert!(one.iter().all(|one| one.token_accuracy.value == 1.0));
        assert_eq!(levels(), [spec.sigma(1.0); 6], "three windows at two rates");

        let engine = Engine::start(Box::new(model), EngineConfig::default()).unwrap();
        levels();
        let decoded = infill::decoded(&engine, &corpus, &settings, &mut |_| ()).unwrap();
        let mut expected = Vec::new();
        for decoded in decoded {
            assert_eq!(decoded.token_accuracy.value, 1.0);
            let slots = decoded.tokens as f64;
            let masked = (1..=decoded.tokens).rev();
            expected.extend(masked.map(|masked| spec.sigma_of_masked(masked as f64 / slots)));
        }
        assert_eq!(levels(), expected, "one token a step");

        let settings = speed::Settings {
            thresholds: vec![0.9],
            mask_rate: 0.5,
            span: 4,
            decode_windows: 3,
            seed: 1,
        };
        let points = speed::evaluate(&engine, &corpus, &settings, &mut |_| ()).unwrap();
        // Against 255 others, the mask token not among them: e⁹ / (e⁹ + 255) = 0.97.
        assert_eq!(
            (points[0].forwards, points[0].token_accuracy.value),
            (3, 1.0)
        );
        assert_eq!(levels(), [spec.sigma(1.0); 3]);
    }
}

#[test]
fn windows_are_decoded_from_all_places_and_compared_with_single_forwards_of_the_same() {
    // The model expects nothing but a: half of the windows, the first of each document, are foreseen.
    let model = || Oracle::new(&[b'a'; 8], 9.0, 0);
    let selection = Selection {
        documents: 8,
        windows: 2,
        context: Some(8),
        refuse_long_documents: false,
        seed: 0,
    };
    let texts = vec!["aaaaaaaabbbbbbbb".to_owned(); 8];
    let corpus = Corpus::new(&texts, &ByteTokenizer::default(), &model().spec, &selection).unwrap();
    let engine = Engine::start(Box::new(model()), EngineConfig::default()).unwrap();
    let mut accuracies = Vec::new();
    for seed in 0..8 {
        let settings = infill::Settings {
            mask_rates: vec![0.5],
            span: 2,
            decode_windows: 4,
            seed,
        };
        let one = infill::one_forward(&model(), &corpus, &settings, &mut |_| ()).unwrap();
        let decoded = infill::decoded(&engine, &corpus, &settings, &mut |_| ()).unwrap();
        assert_eq!((one[0].windows, decoded[0].windows), (16, 4));
        assert_eq!(one[0].token_accuracy.value, 0.5);
        assert_eq!(one[0].token_accuracy_of_decoded, decoded[0].token_accuracy);
        accuracies.push(decoded[0].token_accuracy.value);

        let settings = speed::Settings {
            thresholds: vec![0.5],
            mask_rate: 0.5,
            span: 2,
            decode_windows: 4,
            seed,
        };
        let points = speed::evaluate(&engine, &corpus, &settings, &mut |_| ()).unwrap();
        assert_eq!(points[0].token_accuracy, decoded[0].token_accuracy);
    }
    let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
    // The share of 32 windows that are first ones: standard deviation 0.09.
    assert!((0.2..0.8).contains(&mean), "{accuracies:?}");
    assert!(accuracies.iter().any(|accuracy| *accuracy != accuracies[0]));
}

#[test]
fn the_threshold_decides_how_many_tokens_a_forward_commits() {
    let corpus = oracle_corpus(&Oracle::new(TEXT, 0.0, 0));
    // Against the mask token and 255 others: e⁹ / (e⁹ + e¹⁰ + 255) = 0.267.
    let model = Oracle::new(TEXT, 9.0, 0);
    let engine = Engine::start(Box::new(model), EngineConfig::default()).unwrap();
    let settings = speed::Settings {
        thresholds: vec![0.2, 0.5],
        mask_rate: 0.5,
        span: 4,
        decode_windows: 3,
        seed: 1,
    };
    let points = speed::evaluate(&engine, &corpus, &settings, &mut |_| ()).unwrap();
    assert_eq!(points[0].forwards, 3, "all at once");
    assert_eq!(
        points[0].tokens_per_forward.value,
        points[0].tokens as f64 / 3.0
    );
    assert_eq!(points[1].tokens_per_forward.value, 1.0);
    assert!(points.iter().all(|point| point.token_accuracy.value == 1.0));
}

#[test]
fn what_else_a_models_own_plan_says_does_not_change_what_a_threshold_measures() {
    let corpus = oracle_corpus(&Oracle::new(TEXT, 0.0, 0));
    let mut model = Oracle::new(TEXT, 9.0, 0);
    model.spec.stop_tokens = vec![u32::from(b'e')];
    let own = DecodePlan {
        block_length: Some(48),
        steps_per_block: Some(2),
        at_least: 8,
        early_stop: EarlyStop::AtOnce,
        ..model.spec.default_plan.clone()
    };
    model.spec.default_plan = own;
    let engine = Engine::start(Box::new(model), EngineConfig::default()).unwrap();
    let settings = speed::Settings {
        thresholds: vec![0.5],
        mask_rate: 0.5,
        span: 4,
        decode_windows: 3,
        seed: 1,
    };
    let points = speed::evaluate(&engine, &corpus, &settings, &mut |_| ()).unwrap();
    assert_eq!(points[0].tokens_per_forward.value, 1.0);
    assert_eq!(points[0].token_accuracy.value, 1.0);
}

/// Forwards that the uniform model below takes a canvas.
const STEPS: usize = 4;

/// A model of the uniform process.
fn uniform() -> Oracle {
    let mut model = Oracle::new(TEXT, 9.0, 0);
    model.spec.corruption = Corruption::Uniform;
    let preset = preset::by_name("uniform-ancestral").unwrap();
    model.spec.default_plan = preset.plan().clone();
    model.spec.default_plan.steps = Some(STEPS);
    model
}

/// Three equal windows, nine tenths of each masked, twice.
fn uniform_settings(seed: u64) -> infill::Settings {
    infill::Settings {
        mask_rates: vec![0.9, 0.9],
        span: 3,
        decode_windows: 3,
        seed,
    }
}

/// The tokens of every sequence of the batches.
fn sequences<'a>(batches: impl IntoIterator<Item = &'a RaggedBatch>) -> Vec<Vec<TokenId>> {
    let of_batch = |batch: &'a RaggedBatch| {
        let segments = batch.segments().iter();
        segments.map(|segment| batch.tokens()[segment.rows.clone()].to_vec())
    };
    batches.into_iter().flat_map(of_batch).collect()
}

/// No two of the sequences, each of which is [`TEXT`] with noise, have the same noise.
fn assert_noise_is_never_the_same(sequences: &[Vec<TokenId>]) {
    let noise = |token: TokenId, text: u8| token != TokenId::from(text);
    for (place, a) in sequences.iter().enumerate() {
        for b in &sequences[..place] {
            let both = a.iter().zip(b).zip(TEXT);
            let both = both.filter(|((a, b), text)| noise(**a, **text) && noise(**b, **text));
            let (same, apart): (Vec<_>, Vec<_>) = both.partition(|((a, b), _)| a == b);
            assert!(apart.len() > 20 && same.len() < 5, "{a:?} {b:?}");
        }
    }
}

#[test]
fn every_window_of_the_uniform_process_has_noise_of_its_own_at_every_mask_rate() {
    let model = uniform();
    let corpus = oracle_corpus(&model);
    for seed in [1, 2] {
        infill::one_forward(&model, &corpus, &uniform_settings(seed), &mut |_| ()).unwrap();
    }
    let seen = sequences(model.seen.lock().unwrap().iter());
    assert_eq!(seen.len(), 3 * 2 * 2, "windows, mask rates, seeds");
    assert_noise_is_never_the_same(&seen);
}

#[test]
fn the_seed_decides_what_denoising_draws_in_every_window() {
    let run = |seed| {
        let model = uniform();
        let corpus = oracle_corpus(&model);
        let seen = model.seen.clone();
        let config = EngineConfig {
            max_sequences: 1,
            ..EngineConfig::default()
        };
        let engine = Engine::start(Box::new(model), config).unwrap();
        infill::decoded(&engine, &corpus, &uniform_settings(seed), &mut |_| ()).unwrap();
        let seen = seen.lock().unwrap();
        // A canvas begins as noise.
        sequences(seen.iter().step_by(STEPS))
    };
    let (first, second) = (run(1), run(2));
    assert_eq!(first.len(), 3 * 2, "windows, mask rates");
    assert_eq!(first, run(1));
    assert_noise_is_never_the_same(&[first, second].concat());
}
