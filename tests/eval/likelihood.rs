//! Likelihoods of single sequences.

use candle_core::Tensor;
use serde_json::Value;
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::DecodePlan;
use unmask::eval::likelihood::{Draw, Estimator, Settings, estimate, losses};
use unmask::eval::{EvalError, Target};
use unmask::models::{AttentionPattern, Denoiser};

use crate::load;
use crate::oracle::Oracle;
use crate::support::mock::{MASK, MockModel};
use crate::support::{self, denoise, engine, forward_goldens, golden, ids, json};

/// The attention of the models here that are not block-causal.
const FULL: AttentionPattern = AttentionPattern::Bidirectional;

/// The cases of a family's likelihood.json of one official function.
fn cases(family: &str, function: &str) -> Vec<Value> {
    let Value::Array(cases) = json(&golden(family).join("likelihood.json")) else {
        panic!("likelihood.json holds a list of cases");
    };
    let of = |case: &Value| case["estimator"].as_str().unwrap().ends_with(function);
    cases.into_iter().filter(of).collect()
}

fn masked_slots(tokens: &[TokenId], mask: TokenId) -> Vec<usize> {
    (0..tokens.len())
        .filter(|slot| tokens[*slot] == mask)
        .collect()
}

#[test]
fn recorded_draws_give_the_official_log_likelihood_with_and_without_guidance() {
    for (family, count) in [("llada", 3), ("llada_moe", 2)] {
        let model = support::load(family);
        let cases = cases(family, "get_log_likelihood");
        assert_eq!(cases.len(), count);
        for case in cases {
            let (prompt, answer) = (ids(&case["prompt_ids"]), ids(&case["answer_ids"]));
            let target = Target::after_prompt(&prompt, &answer);
            let mut draws = Vec::new();
            for batch in case["draws"].as_array().unwrap() {
                let rows = batch["perturbed_seq"].as_array().unwrap();
                for (row, ratio) in rows.iter().zip(batch["p_mask_row"].as_array().unwrap()) {
                    draws.push(Draw::new(
                        masked_slots(&ids(row), model.spec().mask_token().unwrap()),
                        1.0 / ratio.as_f64().unwrap(),
                    ));
                }
            }
            let guidance = case["params"]["cfg_scale"].as_f64().unwrap();
            let losses = losses(&*model, &target, &draws, guidance).unwrap();
            let got = -losses.iter().sum::<f64>() / losses.len() as f64;
            let expected = case["log_likelihood"].as_f64().unwrap();
            assert!((got - expected).abs() < 1e-4, "{family}: {got} {expected}");
        }
    }
}

#[test]
fn recorded_draws_give_dreams_own_likelihood_with_and_without_guidance() {
    let model = support::load("dream");
    let mask = model.spec().mask_token().unwrap();
    let cases = cases("dream", "_eval_target_nll_mc");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let (prompt, answer) = (ids(&case["prompt_ids"]), ids(&case["answer_ids"]));
        let target = Target::after_prompt(&prompt, &answer);
        let mut draws = Vec::new();
        for batch in case["draws"].as_array().unwrap() {
            let rows = batch["perturbed_seq"].as_array().unwrap();
            for (row, chances) in rows.iter().zip(batch["p_mask"].as_array().unwrap()) {
                // Slots of the prompt are masked in what is recorded, and put back before the forward.
                let mut masked = masked_slots(&ids(row), mask);
                masked.retain(|slot| *slot >= prompt.len());
                draws.push(Draw::new(masked, 1.0 / chances[0].as_f64().unwrap()));
            }
        }
        // Dream's scale of s stands for u + s (c − u).
        let guidance = case["params"]["classifier_free_guidance"].as_f64().unwrap() - 1.0;
        let losses = losses(&*model, &target, &draws, guidance).unwrap();
        let got = losses.iter().sum::<f64>() / losses.len() as f64;
        let expected = case["nll"].as_f64().unwrap();
        assert!((got / expected - 1.0).abs() < 1e-5, "{got} {expected}");
    }
}

/// The rows of an integer tensor of a golden.
fn token_rows(tensor: &Tensor) -> Vec<Vec<TokenId>> {
    let rows: Vec<Vec<i64>> = tensor.to_vec2().unwrap();
    let row = |row: Vec<i64>| row.into_iter().map(|id| id as TokenId).collect();
    rows.into_iter().map(row).collect()
}

#[test]
fn recorded_noise_gives_the_official_nelbo_of_mdlm_and_bd3lm() {
    for family in ["mdlm", "bd3lm"] {
        let (model, goldens) = (support::load(family), forward_goldens(family));
        let mask = model.spec().mask_token().unwrap();
        let texts = token_rows(&goldens["nelbo0.x0"]);
        let noised = token_rows(&goldens["nelbo0.xt"]);
        let nlls = &goldens["nelbo0.nlls"];
        let official: Vec<Vec<f32>> = nlls.to_vec2().unwrap();
        // One a text, or one a slot and negative.
        let weights = match family {
            "mdlm" => goldens["nelbo0.weight"].unsqueeze(1).unwrap(),
            _ => goldens["nelbo0.loss_scale"].neg().unwrap(),
        };
        let weights = weights.broadcast_as(nlls.shape()).unwrap();
        let weights: Vec<Vec<f32>> = weights.to_vec2().unwrap();
        let mut compared = 0;
        for (row, text) in texts.iter().enumerate() {
            let target = Target::whole(text.clone());
            for slot in masked_slots(&noised[row], mask) {
                if official[row][slot] == 0.0 {
                    continue;
                }
                // All that is masked in the text, one slot weighed: the others at 0.
                let masked = masked_slots(&noised[row], mask);
                let weight = f64::from(weights[row][slot]);
                let before = masked.iter().copied().filter(|other| *other < slot);
                let after = masked.iter().copied().filter(|other| *other > slot);
                let draw = Draw::new(before, 0.0).and([slot], weight).and(after, 0.0);
                let got = losses(&*model, &target, &[draw], 0.0).unwrap()[0];
                let expected = f64::from(official[row][slot]);
                assert!(
                    (got / expected - 1.0).abs() < 1e-4,
                    "{family} {row} {slot}: {got} {expected}"
                );
                compared += 1;
            }
        }
        assert!(compared > 8, "{family}: {compared}");
    }
}

#[test]
fn recorded_draws_mask_as_many_slots_as_our_own_but_for_the_rounding_of_halves() {
    for case in cases("llada", "get_log_likelihood") {
        let length = ids(&case["answer_ids"]).len();
        let target = Target::after_prompt(&ids(&case["prompt_ids"]), &ids(&case["answer_ids"]));
        for batch in case["draws"].as_array().unwrap() {
            let counts: Vec<usize> = batch["p_mask_row"]
                .as_array()
                .unwrap()
                .iter()
                .map(|ratio| (ratio.as_f64().unwrap() * length as f64).round() as usize)
                .collect();
            // Some seed draws the same first count.
            let ours = (0..1000)
                .map(|seed| Estimator::ExactCount.draws(&target, FULL, counts.len(), seed, 0, 0))
                .map(|draws| draws.map(|d| d.masked().len()).collect::<Vec<_>>())
                .find(|ours| ours[0] == counts[0])
                .unwrap();
            for (stratum, (ours, official)) in ours.iter().zip(&counts).enumerate() {
                let half = (2 * stratum * length) % (2 * counts.len()) == counts.len();
                let apart = (ours + length - official) % length;
                assert!(
                    apart == 0 || half && apart == 1,
                    "{ours} {official} of {length}"
                );
            }
        }
    }
}

#[test]
fn greedy_suffixes_are_those_of_the_official_code() {
    let engine = engine("llada");
    let cases = cases("llada", "suffix_greedy_prediction");
    assert_eq!(cases.len(), 2);
    for case in cases {
        for answer in case["cases"].as_array().unwrap() {
            let (prompt, suffix) = (ids(&case["prompt_ids"]), ids(&answer["answer_ids"]));
            let canvas = Canvas::builder(engine.blank())
                .fixed(&prompt)
                .gap(suffix.len())
                .build()
                .unwrap();
            let (_, canvas) = denoise(&engine, canvas, &DecodePlan::default());
            let is_greedy = canvas.tokens().skip(prompt.len()).eq(suffix);
            assert_eq!(is_greedy, answer["is_greedy"].as_bool().unwrap());
        }
    }
}

#[test]
fn with_all_zero_logits_every_draw_of_exact_counts_is_length_times_ln_vocabulary() {
    let model = MockModel::new();
    let target = Target::after_prompt(&[1, 2], &[5; 37]);
    let exact = 37.0 * f64::from(model.spec().vocab_size as u32).ln();
    let draws = Estimator::ExactCount.draws(&target, FULL, 64, 3, 0, 0);
    let draws: Vec<Draw> = draws.collect();
    for loss in losses(&model, &target, &draws, 0.0).unwrap() {
        assert!((loss / exact - 1.0).abs() < 1e-6, "{loss} {exact}");
    }
    let settings = Settings::default();
    let got = estimate(&model, &[&target], &settings, &mut |_| ()).unwrap()[0];
    assert_eq!(got.draws, 128);
    assert!((got.nelbo / exact - 1.0).abs() < 1e-6);
    assert!(got.standard_error.unwrap() < 1e-4);
}

#[test]
fn a_batch_is_of_no_more_rows_than_its_bound_with_and_without_guidance() {
    const BOUND: usize = 2048;
    let text = [b'a'; 60];
    let answer: Vec<TokenId> = text[2..].iter().map(|byte| TokenId::from(*byte)).collect();
    let target = Target::after_prompt(&[97, 97], &answer);
    let draws = Estimator::ExactCount.draws(&target, FULL, 80, 3, 0, 0);
    let draws: Vec<Draw> = draws.collect();
    for (guidance, rows) in [(0.0, 60), (1.0, 120)] {
        let model = Oracle::new(&text, 1.0, 0);
        losses(&model, &target, &draws, guidance).unwrap();
        let batches = model.seen.lock().unwrap();
        assert_eq!(
            batches.iter().map(|batch| batch.rows()).sum::<usize>(),
            80 * rows
        );
        let most = batches.iter().map(|batch| batch.rows()).max();
        assert_eq!(most, Some(BOUND / rows * rows), "guidance {guidance}");
    }
}

/// The NELBO without noise: every set of masked slots, of size x with weight 1 / (x · C(L, x)).
fn exact_nelbo(model: &dyn Denoiser, target: &Target) -> f64 {
    let length = target.slots.len();
    let draws: Vec<Draw> = (1u32..1 << length)
        .map(|set| {
            let x = set.count_ones() as usize;
            let subsets = (0..x).fold(1, |product, i| product * (length - i) / (i + 1));
            let masked = (0..length).filter(|bit| set >> bit & 1 == 1);
            Draw::new(
                masked.map(|bit| target.slots[bit]),
                1.0 / (x * subsets) as f64,
            )
        })
        .collect();
    losses(model, target, &draws, 0.0).unwrap().iter().sum()
}

#[test]
fn both_estimators_agree_with_exact_enumeration_as_often_as_their_intervals_say() {
    let model = load();
    let target = Target::after_prompt(&[255, 155, 108], &[401, 259, 33, 300, 7]);
    let exact = exact_nelbo(&*model, &target);
    // With the 97.5 % quantiles of Student's t with 11 and 15 degrees of freedom.
    // A single group's error is approximate, above all where rare draws weigh much.
    let layouts = [(12, 4, 2.201, 87), (1, 16, 2.131, 80)];
    for (estimator, (groups, strata, quantile, enough)) in Estimator::ALL
        .into_iter()
        .flat_map(|estimator| layouts.map(|layout| (estimator, layout)))
    {
        let runs = 100;
        let estimates: Vec<_> = (0..runs)
            .map(|seed| {
                let settings = Settings {
                    estimator,
                    groups,
                    strata,
                    seed,
                    ..Settings::default()
                };
                let got = estimate(&*model, &[&target], &settings, &mut |_| ()).unwrap()[0];
                (got.nelbo - exact, got.standard_error.unwrap())
            })
            .collect();
        let covers = |(apart, error): &&(f64, f64)| apart.abs() <= quantile * error;
        let covered = estimates.iter().filter(covers).count();
        let case = format!("{} in {groups} groups of {strata}", estimator.name());
        // Binomial(100, 0.95): mean 95, standard deviation 2.2.
        assert!(covered >= enough, "{case}: {covered} of {runs}");
        let bias = estimates.iter().map(|(apart, _)| apart).sum::<f64>() / runs as f64;
        let variance: f64 = estimates.iter().map(|(_, error)| error.powi(2)).sum();
        let error = variance.sqrt() / runs as f64;
        assert!(bias.abs() < 4.0 * error, "{case}: off by {bias} ± {error}");
    }
}

#[test]
fn an_estimate_is_the_mean_of_its_draws_however_many_there_are() {
    let model = load();
    let tokens = [255, 155, 108, 401, 259, 33, 300, 7, 12];
    let targets = [
        Target::after_prompt(&tokens[..3], &tokens[3..]),
        Target::whole(tokens[..5].to_vec()),
        Target::whole(tokens.to_vec()),
    ];
    let (groups, strata, seed) = (3, 67, 4);
    for estimator in Estimator::ALL {
        let settings = Settings {
            estimator,
            groups,
            strata,
            seed,
            ..Settings::default()
        };
        let mut done = 0;
        let all: Vec<&Target> = targets.iter().collect();
        let estimates = estimate(&*model, &all, &settings, &mut |more| done += more).unwrap();
        assert_eq!(done, targets.len() * groups * strata);
        for (index, (target, estimate)) in targets.iter().zip(estimates).enumerate() {
            let draws: Vec<Draw> = (0..groups)
                .flat_map(|group| estimator.draws(target, FULL, strata, seed, group, index))
                .collect();
            let losses = losses(&*model, target, &draws, 0.0).unwrap();
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            assert!((estimate.nelbo / mean - 1.0).abs() < 1e-6, "{mean}");
        }
    }
}

#[test]
fn prompt_tokens_are_never_masked() {
    let text = b"a prompt and what follows it";
    let model = Oracle::new(text, 3.0, 0);
    let (prompt, answer) = model.text.split_at(9);
    let target = Target::after_prompt(prompt, answer);
    for estimator in Estimator::ALL {
        let settings = Settings {
            estimator,
            ..Settings::default()
        };
        estimate(&model, &[&target], &settings, &mut |_| ()).unwrap();
    }
    let seen = model.seen.lock().unwrap();
    let mut masked_answers = 0;
    for batch in seen.iter() {
        for segment in batch.segments() {
            let tokens = &batch.tokens()[segment.rows.clone()];
            assert_eq!(tokens[..9], *prompt);
            masked_answers += usize::from(tokens[9..].iter().all(|token| *token == MASK));
        }
    }
    assert!(masked_answers > 0, "the whole answer is masked at times");
}

#[test]
fn logits_are_read_at_the_row_that_the_model_says() {
    let text = b"shifted by one";
    for logit_shift in [0, 1] {
        let model = Oracle::new(text, 40.0, logit_shift);
        let target = Target::after_prompt(&model.text[..1], &model.text[1..]);
        let draws = Estimator::ExactCount.draws(&target, FULL, 8, 0, 0, 0);
        let draws: Vec<Draw> = draws.collect();
        for (draw, loss) in draws
            .iter()
            .zip(losses(&model, &target, &draws, 0.0).unwrap())
        {
            // The mask token's logit is 1 more: −ln p = ln(1 + e).
            let expected = draw.weights().iter().sum::<f64>() * (1.0 + 1f64.exp()).ln();
            assert!((loss - expected).abs() < 1e-4, "{loss} {expected}");
        }
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_the_reason() {
    let model = MockModel::new();
    let refuse = |target: &Target| losses(&model, target, &[], 0.0).unwrap_err();
    assert!(matches!(
        refuse(&Target::after_prompt(&[1], &[])),
        EvalError::NothingToScore
    ));
    assert!(matches!(
        refuse(&Target::whole(vec![1; 65])),
        EvalError::TooLong {
            length: 65,
            limit: 64
        }
    ));
    assert!(matches!(
        refuse(&Target::whole(vec![1, MASK])),
        EvalError::MaskToken { slot: 1, .. }
    ));
    let out_of_order = Target {
        tokens: vec![1, 2, 3],
        slots: vec![2, 1],
    };
    assert!(matches!(
        refuse(&out_of_order),
        EvalError::ScoredSlot { slot: 1, .. }
    ));
    let target = Target::after_prompt(&[1], &[2]);
    for masked in [vec![0], vec![1, 1]] {
        let draw = Draw::new(masked.clone(), 1.0);
        let error = losses(&model, &target, &[draw], 0.0).unwrap_err();
        assert!(matches!(error, EvalError::MaskedSlot { slot } if slot == masked[0]));
    }
    let no_draws = Settings {
        strata: 0,
        ..Settings::default()
    };
    let error = estimate(&model, &[&target], &no_draws, &mut |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "draws is 0; allowed: 1 to 4096");
    let unknown = Target::after_prompt(&[999], &[1]);
    let error = estimate(&*load(), &[&unknown], &Settings::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(
        error,
        EvalError::UnknownToken {
            slot: 0,
            token: 999,
            vocab_size: 512
        }
    ));
    let nothing = Oracle::new(b"ab", f32::INFINITY, 0);
    let draws = Estimator::ExactCount.draws(&target, FULL, 1, 0, 0, 0);
    let draws: Vec<Draw> = draws.collect();
    assert!(matches!(
        losses(&nothing, &target, &draws, 0.0).unwrap_err(),
        EvalError::NotFinite { .. }
    ));
}
