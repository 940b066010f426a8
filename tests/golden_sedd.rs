//! SEDD against the official implementation, absorbing and uniform.

#[path = "support/dit.rs"]
mod dit;
mod support;

use candle_core::Tensor;
use dit::{TOLERANCE, batch, load, load_edited, numbers, outputs, rows, sequences, tensors};
use support::max_difference;
use unmask::decode::{Budget, CachePolicy, DecodePlan};
use unmask::engine::{Engine, EngineConfig, StartError};
use unmask::models::{Corruption, Parameterisation};

const CHECKPOINTS: [&str; 2] = ["sedd_absorb", "sedd_uniform"];

#[test]
fn log_scores_equal_the_official_ones() {
    for name in CHECKPOINTS {
        let (model, goldens) = (load(name), tensors(name, "forward.safetensors"));
        for case in ["model0", "model1"] {
            let golden = |field: &str| &goldens[&format!("{case}.{field}")];
            let batch = batch(&sequences(golden("input_ids")), &numbers(golden("sigma")));
            let difference = max_difference(&outputs(&*model, &batch), &rows(golden("log_score")));
            assert!(difference < TOLERANCE, "{name} {case}: {difference}");
        }
    }
}

/// Scores are compared by their logarithms: near σ = 0 they are large.
#[test]
fn scores_inside_the_official_predictor_equal_the_official_ones() {
    for name in CHECKPOINTS {
        let (model, goldens) = (load(name), tensors(name, "forward.safetensors"));
        let input = sequences(&goldens["predictor0.x"]);
        let batch = batch(&input, &numbers(&goldens["predictor0.sigma"]));
        let expected = rows(&goldens["predictor0.score"].log().unwrap());
        let difference = max_difference(&outputs(&*model, &batch), &expected);
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn the_score_of_a_rows_own_token_is_one() {
    for name in CHECKPOINTS {
        let model = load(name);
        let batch = batch(&[vec![3, 7, 400]], &[0.8]);
        let scores: Vec<Vec<f32>> = outputs(&*model, &batch).to_vec2().unwrap();
        for (row, token) in scores.iter().zip(batch.tokens()) {
            assert_eq!(row[*token as usize], 0.0);
        }
    }
}

#[test]
fn without_scale_by_sigma_the_log_score_is_the_networks_own_output() {
    let goldens = tensors("sedd_absorb", "forward.safetensors");
    let unscaled = load_edited("sedd_absorb", |config, _| {
        config["model"]["scale_by_sigma"] = false.into();
    });
    let sigmas = numbers(&goldens["model0.sigma"]);
    let batch = batch(&sequences(&goldens["model0.input_ids"]), &sigmas);
    let vocab = unscaled.spec().vocab_size;
    let scaled: Vec<Vec<f32>> = rows(&goldens["model0.log_score"]).to_vec2().unwrap();
    let mut expected = Vec::new();
    for (row, input) in scaled.iter().zip(batch.row_inputs()) {
        let scale = input.sigma.unwrap().exp_m1().ln() + ((vocab - 1) as f32).ln();
        let own = input.token as usize;
        let score = |(token, log_score)| if token == own { 0.0 } else { log_score + scale };
        expected.extend(row.iter().copied().enumerate().map(score));
    }
    let got = outputs(&*unscaled, &batch);
    let expected = Tensor::from_vec(expected, got.shape(), got.device()).unwrap();
    assert!(max_difference(&got, &expected) < TOLERANCE);
}

#[test]
fn a_row_without_a_usable_noise_level_is_refused() {
    let model = load("sedd_absorb");
    let batch = batch(&[vec![1, 2, 3]], &[0.5]);
    let hidden = model.hidden(&batch, None).unwrap();
    let refused = |edit: &dyn Fn(&mut Option<f32>)| {
        let mut rows = batch.row_inputs();
        edit(&mut rows[1].sigma);
        model.head_rows(&hidden, &rows).unwrap_err().to_string()
    };
    assert!(refused(&|sigma| *sigma = None).contains("no sigma"));
    assert!(refused(&|sigma| *sigma = Some(0.0)).contains("sigma is 0"));
    let few = model.head_rows(&hidden, &batch.row_inputs()[..2]);
    assert!(few.unwrap_err().to_string().contains("3 hidden states"));
    let mut silent = unmask::models::RaggedBatch::new();
    silent.push([1, 2]);
    let error = model.hidden(&silent, None).unwrap_err().to_string();
    assert!(error.contains("no sigma"), "{error}");
}

#[test]
fn the_spec_says_what_is_masked_and_what_the_output_is() {
    let (absorbing, uniform) = (load("sedd_absorb"), load("sedd_uniform"));
    let (absorbing, uniform) = (absorbing.spec(), uniform.spec());
    assert_eq!(absorbing.mask_token(), Some(501));
    assert_eq!(
        (uniform.corruption, uniform.mask_token()),
        (Corruption::Uniform, None)
    );
    assert_eq!((absorbing.vocab_size, uniform.vocab_size), (502, 501));
    for spec in [absorbing, uniform] {
        assert_eq!(spec.parameterisation, Parameterisation::LogScore);
        assert!(spec.noise_conditioned);
    }
    let json = serde_json::to_value(absorbing).unwrap();
    assert_eq!(
        (&json["corruption"], &json["mask_token"]),
        (&"absorbing".into(), &501.into())
    );
    let json = serde_json::to_value(uniform).unwrap();
    assert_eq!(
        (&json["corruption"], json.get("mask_token")),
        (&"uniform".into(), None)
    );
}

#[test]
fn the_engine_denoises_with_the_absorbing_model_and_refuses_the_uniform_one() {
    assert!(Engine::start(load("sedd_absorb"), EngineConfig::default()).is_ok());
    let error = Engine::start(load("sedd_uniform"), EngineConfig::default());
    let Err(error @ StartError::Unsupported { .. }) = error else {
        panic!("the engine started");
    };
    assert!(error.to_string().contains("no mask token"), "{error}");
}

#[test]
fn plans_that_a_log_score_model_cannot_follow_to_their_end_are_refused() {
    let spec = load("sedd_absorb").spec().clone();
    assert!(spec.check_plan(&spec.default_plan).is_ok());
    let until_zero = DecodePlan {
        budget: Budget::Analytic { eps: 0.0 },
        ..spec.default_plan.clone()
    };
    assert_eq!(spec.check_plan(&until_zero).unwrap_err().field(), "budget");
    let mut cached = spec.default_plan.clone();
    cached.cache.policy = CachePolicy::Dual;
    assert_eq!(
        spec.check_plan(&cached).unwrap_err().field(),
        "cache.policy"
    );
}
