//! SEDD against the official implementation, absorbing and uniform.

#[path = "support/dit.rs"]
mod dit;
mod support;

use candle_core::Tensor;
use dit::{TOLERANCE, batch, load, load_edited, numbers, outputs, rows, sequences, tensors};
use support::max_difference;
use unmask::decode::{Budget, CachePolicy, DecodePlan};
use unmask::diffusion::elbo::score_entropy;
use unmask::diffusion::{NoiseLevel, Process};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Corruption, Parameterisation};
use unmask::sampling::score::{ScoreStep, uniform_reverse};

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
fn score_entropies_equal_the_official_ones() {
    for name in CHECKPOINTS {
        let (model, goldens) = (load(name), tensors(name, "forward.safetensors"));
        let seen = sequences(&goldens["loss0.perturbed"]);
        let clean = sequences(&goldens["loss0.x0"]).concat();
        let sigmas = numbers(&goldens["loss0.sigma"]);
        let vocab = model.spec().vocab_size;
        let process = match model.spec().mask_token() {
            Some(mask) => Process::absorbing(vocab, mask as usize),
            None => Process::uniform(vocab),
        }
        .unwrap();
        let batch = batch(&seen, &sigmas);
        let log_scores: Vec<Vec<f32>> = outputs(&*model, &batch).to_vec2().unwrap();
        let expected = numbers(&goldens["loss0.score_entropy"]);
        for (row, input) in batch.row_inputs().into_iter().enumerate() {
            let level = NoiseLevel::from_beta(-f64::from(-input.sigma.unwrap()).exp_m1()).unwrap();
            let log_scores: Vec<f64> = log_scores[row].iter().map(|s| f64::from(*s)).collect();
            let (x_t, x_0) = (input.token as usize, clean[row] as usize);
            let got = score_entropy(&process, level, x_t, x_0, &log_scores).unwrap();
            let expected = f64::from(expected[row]);
            // Of the uniform process the official code takes the ratio as 1 − K / (K + e^σ − 1), in f32.
            let (alpha, noise) = (level.alpha(), level.one_minus_alpha());
            let lost = match model.spec().mask_token() {
                Some(_) => 0.0,
                None => f64::from(f32::EPSILON) * (noise + vocab as f64 * alpha) / noise,
            };
            let allowed = (1e-3 + lost) * expected.max(1.0);
            assert!(
                (got - expected).abs() < allowed,
                "{name} {row}: {got} {expected} ± {allowed}"
            );
        }
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

/// Probabilities `[rows, vocab]` that sum to one; what is negative is never drawn.
fn normalised(weights: &Tensor) -> Tensor {
    let weights = weights.relu().unwrap();
    let sum = weights.sum_keepdim(1).unwrap();
    weights.broadcast_div(&sum).unwrap()
}

#[test]
fn reverse_steps_of_the_uniform_process_have_the_official_probabilities() {
    let goldens = tensors("sedd_uniform", "forward.safetensors");
    let first = |name: &str| {
        let tensor = &goldens[name];
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    };
    let log_scores = rows(&goldens["predictor0.score"]).log().unwrap();
    let held = sequences(&goldens["predictor0.x"])[0].clone();
    let log_scores = log_scores.narrow(0, 0, held.len()).unwrap();
    let amount = first("predictor0.step_size") * first("predictor0.dsigma_rate");
    for (name, step) in [
        (
            "analytic0.probs",
            ScoreStep::Analytic {
                delta_sigma: first("analytic0.dsigma"),
            },
        ),
        (
            "denoiser0.probs",
            ScoreStep::Analytic {
                delta_sigma: first("predictor0.sigma"),
            },
        ),
        ("euler0.probs", ScoreStep::Euler { amount }),
    ] {
        let reversed = uniform_reverse(&log_scores, &held, &vec![step; held.len()]).unwrap();
        let got = normalised(&reversed.exp().unwrap());
        let expected = normalised(&rows(&goldens[name]));
        let difference = max_difference(&got, &expected);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn scores_beyond_the_range_of_numbers_still_give_a_distribution() {
    let row = Tensor::new(&[[0f32, 200.0, 199.0, -300.0]], &candle_core::Device::Cpu).unwrap();
    for step in [
        ScoreStep::Analytic { delta_sigma: 1e-6 },
        ScoreStep::Analytic { delta_sigma: 20.0 },
        ScoreStep::Euler { amount: 1e-6 },
    ] {
        let reversed = uniform_reverse(&row, &[0], &[step]).unwrap();
        let got: Vec<Vec<f32>> = normalised(&reversed.exp().unwrap()).to_vec2().unwrap();
        assert!(got[0].iter().all(|p| (0.0..=1.0).contains(p)), "{got:?}");
        assert!(got[0][1] > got[0][2] && got[0][0] < 1e-6, "{got:?}");
    }
}

#[test]
fn a_reverse_step_of_no_length_keeps_every_token() {
    let device = candle_core::Device::Cpu;
    let rows = Tensor::new(&[[0f32, 1.0, -2.0], [0.0, 200.0, 199.0]], &device).unwrap();
    for step in [
        ScoreStep::Analytic { delta_sigma: 0.0 },
        ScoreStep::Euler { amount: 0.0 },
    ] {
        let reversed = uniform_reverse(&rows, &[0, 0], &[step; 2]).unwrap();
        let got: Vec<Vec<f32>> = normalised(&reversed.exp().unwrap()).to_vec2().unwrap();
        assert_eq!(got, [[1.0, 0.0, 0.0]; 2], "{step:?}");
        assert_eq!(step.unmasking(3.0), 0.0);
    }
}

#[test]
fn the_engine_denoises_with_models_of_both_processes() {
    for name in CHECKPOINTS {
        assert!(Engine::start(load(name), EngineConfig::default()).is_ok());
    }
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
    let ancestral = DecodePlan {
        budget: Budget::Ancestral { eps: 0.0 },
        ..spec.default_plan.clone()
    };
    assert_eq!(spec.check_plan(&ancestral).unwrap_err().field(), "budget");
    let mut cached = spec.default_plan.clone();
    cached.cache.policy = CachePolicy::Dual;
    assert!(spec.check_plan(&cached).is_ok());
}

/// Of a slot that is masked: the ratios are those of the clean tokens' probabilities at any level.
#[test]
fn log_scores_of_a_masked_slot_differ_from_the_networks_logits_by_a_constant_a_row() {
    let (scaled, unscaled) = (
        load("sedd_absorb"),
        load_edited("sedd_absorb", |config, _| {
            config["model"]["scale_by_sigma"] = false.into();
        }),
    );
    let mask = scaled.spec().mask_token().unwrap();
    let batch = batch(&[vec![mask, 7, mask, 400], vec![mask; 3]], &[0.02, 5.0]);
    let rows = |model| -> Vec<Vec<f32>> { outputs(model, &batch).to_vec2().unwrap() };
    for (row, (scores, logits)) in rows(&*scaled).iter().zip(rows(&*unscaled)).enumerate() {
        if batch.tokens()[row] != mask {
            continue;
        }
        let constant = scores[0] - logits[0];
        assert!(constant.abs() > 1.0, "{constant}");
        for (score, logit) in scores.iter().zip(&logits).take(mask as usize) {
            assert!((score - logit - constant).abs() < TOLERANCE);
        }
    }
}
