//! What a network is told of the noise level, and how log-scores are read.

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use unmask::canvas::{Canvas, TokenId};
use unmask::constraint::{ByteDfa, CanvasConstraint, GapConstraint, TokenDfa, Vocabulary};
use unmask::decode::{
    BlockEntry, Budget, Cache, CachePolicy, DecodePlan, Finish, Remasking, Revision, Rounding,
    Score,
};
use unmask::diffusion::Schedule;
use unmask::engine::{Engine, EngineConfig, Event, Generation, StepReport, Submission};
use unmask::models::{
    Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation, RaggedBatch, RowInput,
};

use crate::finish;
use crate::support::denoise;
use crate::support::mock::MockModel;

const MASK: TokenId = 12;
/// 1 − α(1) of the official log-linear schedule.
const MOST: f64 = 0.999;

/// The σ of each segment, forward by forward.
type Told = Arc<Mutex<Vec<Vec<f32>>>>;

/// A network without weights that notes what it is told. Its log-scores are numbers made of a row's slot, the masked rows
/// beside it and a token, which do not depend on σ, and a constant a row, which does.
struct Listener {
    spec: ModelSpec,
    told: Told,
    shift: f32,
}

impl Listener {
    fn new(schedule: Schedule, parameterisation: Parameterisation, shift: f32) -> Self {
        Self {
            spec: ModelSpec {
                vocab_size: MASK as usize + 1,
                corruption: Corruption::Absorbing { mask_token: MASK },
                parameterisation,
                noise_conditioned: true,
                noise_schedule: Some(schedule),
                ..MockModel::new().spec().clone()
            },
            told: Told::default(),
            shift,
        }
    }
}

fn log_linear() -> Schedule {
    Schedule::table(&[1.0, 1.0 - MOST]).unwrap()
}

impl Denoiser for Listener {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn is_batch_invariant(&self) -> bool {
        true
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        let segments = batch.segments().iter();
        let told = segments.map(|segment| segment.sigma.expect("a noise level"));
        self.told.lock().unwrap().push(told.collect());
        let mut seen = Vec::with_capacity(batch.rows());
        for segment in batch.segments() {
            let tokens = &batch.tokens()[segment.rows.clone()];
            let masked = tokens.iter().filter(|token| **token == MASK).count();
            let slots = &batch.positions()[segment.rows.clone()];
            seen.extend(slots.iter().map(|slot| *slot as f32 + 0.37 * masked as f32));
        }
        Ok(Tensor::from_vec(seen, (batch.rows(), 1), &Device::Cpu)?)
    }

    fn head(&self, _: &Tensor) -> Result<Tensor, ModelError> {
        unreachable!("the output depends on the row's noise level")
    }

    fn head_rows(&self, hidden: &Tensor, rows: &[RowInput]) -> Result<Tensor, ModelError> {
        let seen: Vec<f32> = hidden.flatten_all()?.to_vec1()?;
        let mut scores = Vec::new();
        for (seen, row) in seen.into_iter().zip(rows) {
            let shift = self.shift * (1.0 + row.sigma.expect("a noise level"));
            scores.extend((0..=MASK).map(|token| match token == row.token {
                true => 0.0,
                false => shift + 4.0 * ((seen + 1.0) * (token as f32 + 2.0) * 0.618).sin(),
            }));
        }
        let shape = (rows.len(), self.spec.vocab_size);
        Ok(Tensor::from_vec(scores, shape, &Device::Cpu)?)
    }
}

fn start(model: Listener) -> (Engine, Told) {
    let told = model.told.clone();
    let engine = Engine::start(Box::new(model), EngineConfig::unshared()).unwrap();
    told.lock().unwrap().clear();
    (engine, told)
}

/// A prompt, a gap, text, and a gap of five: all gaps have `gap` + 5 slots.
fn canvas(prompt: usize, gap: usize) -> Canvas {
    Canvas::builder(MASK)
        .fixed(&vec![3; prompt])
        .gap(gap)
        .fixed(&[4, 5])
        .gap(5)
        .build()
        .unwrap()
}

fn schedule(rounding: Rounding, eps: f32) -> Budget {
    Budget::Schedule { rounding, eps }
}

/// A step that commits nothing looks at no logits.
fn took_a_forward(report: &StepReport) -> bool {
    !report.committed.is_empty()
}

/// The steps, and the finished canvas.
fn reports_of(mut generation: Generation) -> (Vec<StepReport>, Canvas) {
    let mut reports = Vec::new();
    loop {
        match generation.next_blocking().expect("a last event") {
            Event::Step(report) => reports.push(report),
            Event::Finished(canvas, _) => return (reports, canvas),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// What was told at each step, one segment a forward.
fn levels(told: &Told) -> Vec<f32> {
    let told = std::mem::take(&mut *told.lock().unwrap());
    let levels = told.into_iter().map(|segments| match segments[..] {
        [sigma] => sigma,
        _ => panic!("{segments:?}"),
    });
    levels.collect()
}

fn assert_near(got: f32, expected: f64, case: &str) {
    let apart = (f64::from(got) - expected).abs();
    assert!(apart <= 1e-6 * expected, "{case}: {got} for {expected}");
}

/// σ = −ln(1 − (1 − α(1)) m / M).
fn expected_levels(reports: &[StepReport], slots: usize) -> Vec<f64> {
    let mut masked = slots;
    let levels = reports.iter().map(|report| {
        let level = -(1.0 - MOST * masked as f64 / slots as f64).ln();
        masked -= report.committed.len();
        level
    });
    levels.collect()
}

#[test]
fn budgets_without_times_tell_the_level_at_which_the_share_of_the_gaps_slots_is_masked() {
    for parameterisation in [Parameterisation::LogScore, Parameterisation::Subs] {
        let (engine, told) = start(Listener::new(log_linear(), parameterisation, 0.0));
        for (budget, steps) in [
            (Budget::Even, Some(7)),
            (Budget::Even, None),
            (Budget::Threshold(0.6), None),
            (Budget::Factor(0.8), None),
            (Budget::EntropyBound(0.9), Some(9)),
            (schedule(Rounding::Nearest, 0.0), Some(6)),
            // Most steps commit nothing, and take no forward.
            (schedule(Rounding::Floor, 1e-3), Some(200)),
        ] {
            for (block_length, policy) in [
                (None, CachePolicy::Auto),
                (Some(4), CachePolicy::None),
                (Some(4), CachePolicy::Prefix),
                (Some(7), CachePolicy::Dual),
            ] {
                for prompt in [0, 1, 30] {
                    let plan = DecodePlan {
                        budget,
                        steps,
                        block_length,
                        cache: Cache {
                            policy,
                            refresh: None,
                        },
                        ..DecodePlan::default()
                    };
                    let case = format!("{budget:?} {steps:?} {block_length:?} {prompt}");
                    let (reports, finished) = denoise(&engine, canvas(prompt, 13), &plan);
                    assert_eq!(finished.masked(), 0);
                    let levels = levels(&told);
                    let reports: Vec<_> = reports.into_iter().filter(took_a_forward).collect();
                    let expected = expected_levels(&reports, 18);
                    assert_eq!(levels.len(), expected.len(), "{case}");
                    assert!(levels.len() > 2, "{case}");
                    for (level, expected) in levels.iter().zip(expected) {
                        assert_near(*level, expected, &case);
                    }
                    assert_eq!(Some(levels[0]), engine.spec().sigma(1.0), "{case}");
                }
            }
        }
    }
}

/// A constraint leaves slots over when the steps of a grid that ends at 0 are spent: steps by scores go on from the time
/// of the last one, others by what is masked.
#[test]
fn slots_that_a_constraint_puts_off_are_of_a_level_with_noise() {
    let (engine, told) = start(Listener::new(log_linear(), Parameterisation::LogScore, 1.0));
    let letters: Vec<[u8; 1]> = (b'a'..b'a' + MASK as u8).map(|letter| [letter]).collect();
    let of = |token: TokenId| letters.get(token as usize).map_or(&[][..], |letter| letter);
    let vocabulary = Arc::new(Vocabulary::new(MASK as usize + 1, &[], of));
    // Four letters in any order: what slots want twice is put off.
    let mut orders = vec![String::new()];
    for _ in 0..4 {
        let next = |order: &String| {
            let left = "abcd".chars().filter(|letter| !order.contains(*letter));
            left.map(|letter| format!("{order}{letter}"))
                .collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(next).collect();
    }
    let orders = ByteDfa::regex(&format!("({}){{10}}", orders.join("|"))).unwrap();
    let language = Arc::new(TokenDfa::new(orders, vocabulary).unwrap());
    let canvas = Canvas::builder(MASK).fixed(&[3]).gap(40).build().unwrap();
    for budget in [
        schedule(Rounding::Nearest, 0.0),
        Budget::Ancestral { eps: 0.0 },
        Budget::Analytic { eps: 0.0 },
    ] {
        let plan = DecodePlan {
            steps: Some(1),
            budget,
            ..DecodePlan::default()
        };
        let constraint = GapConstraint {
            gap: 0,
            language: language.clone(),
            may_end: false,
        };
        let generation = engine.enqueue(Submission {
            constraint: Some(CanvasConstraint::new(&canvas, [constraint]).unwrap()),
            ..Submission::new(canvas.clone(), &plan)
        });
        let (reports, finished) = reports_of(generation.unwrap());
        assert_eq!(finished.masked(), 0);
        let levels = levels(&told);
        assert!(levels.len() > 1, "{budget:?}: {levels:?}");
        let reports: Vec<_> = reports.into_iter().filter(took_a_forward).collect();
        let of_shares = expected_levels(&reports, 40);
        assert_eq!(levels.len(), of_shares.len(), "{budget:?}");
        for (step, (level, of_share)) in levels.into_iter().zip(of_shares).enumerate() {
            let expected = match budget {
                Budget::Analytic { .. } => f64::from(engine.spec().sigma(1.0).unwrap()),
                _ => of_share,
            };
            assert_near(level, expected, &format!("{budget:?}, step {step}"));
        }
    }
}

#[test]
fn remdms_loop_is_told_by_the_share_that_is_masked_and_other_remasking_by_the_time() {
    let (engine, told) = start(Listener::new(log_linear(), Parameterisation::Subs, 0.0));
    let (steps, eps) = (40, 1e-3f32);
    let looped = Remasking::Loop {
        eta: 0.2,
        t_on: 0.55,
        t_off: 0.05,
        alpha_on: 0.9,
    };
    for remasking in [looped, Remasking::Cap(0.05)] {
        let plan = DecodePlan {
            steps: Some(steps),
            budget: Budget::Ancestral { eps },
            finish: Finish::MostProbable,
            revision: Revision::Remask(remasking),
            ..DecodePlan::default()
        };
        let (reports, _) = denoise(&engine, canvas(2, 35), &plan);
        assert!(reports.iter().any(|report| !report.remasked.is_empty()));
        let (mut masked, mut expected) = (40, Vec::new());
        for report in &reports {
            if took_a_forward(report) {
                let time =
                    1.0 - (report.step - 1) as f64 / (steps - 1) as f64 * f64::from(1.0 - eps);
                let share = match remasking {
                    Remasking::Loop { .. } => masked as f64 / 40.0,
                    _ => time,
                };
                expected.push(-(1.0 - MOST * share).ln());
            }
            masked = masked + report.remasked.len() - report.committed.len();
        }
        let levels = levels(&told);
        assert_eq!(levels.len(), expected.len());
        for (level, expected) in levels.into_iter().zip(expected) {
            let apart = (f64::from(level) - expected).abs();
            assert!(
                apart <= 1e-4 * expected,
                "{remasking:?}: {level} for {expected}"
            );
        }
    }
}

/// On the log-linear schedule the share is the time.
#[test]
fn the_level_of_a_share_of_masked_slots_is_the_log_linear_schedules_at_that_time() {
    let spec = Listener::new(log_linear(), Parameterisation::Subs, 0.0).spec;
    for masked in 0..=64 {
        let share = masked as f32 / 64.0;
        assert_eq!(spec.sigma_of_masked(f64::from(share)), spec.sigma(share));
    }
}

#[test]
fn on_a_geometric_schedule_times_of_scores_are_its_own_and_others_are_shares_of_masked_slots() {
    let schedule = Schedule::geometric(1e-2, 4.0).unwrap();
    let most = -(-4.0f64).exp_m1();
    let of_share = |share: f64| -(-(share * most).max(-(-1e-2f64).exp_m1())).ln_1p();
    let (engine, told) = start(Listener::new(schedule, Parameterisation::LogScore, -5.0));
    let plan = |budget| DecodePlan {
        steps: Some(5),
        budget,
        ..DecodePlan::default()
    };
    denoise(
        &engine,
        canvas(2, 15),
        &plan(Budget::Analytic { eps: 1e-5 }),
    );
    let eps = f64::from(1e-5f32);
    let by_scores = levels(&told);
    assert_eq!(by_scores.len(), 5);
    for (step, level) in by_scores.into_iter().enumerate() {
        let time = 1.0 - step as f64 / 5.0 * (1.0 - eps);
        let sigma = 1e-2f64.powf(1.0 - time) * 4f64.powf(time);
        assert!((f64::from(level) - sigma).abs() < 1e-5 * sigma, "{level}");
    }
    denoise(&engine, canvas(2, 15), &plan(Budget::Even));
    let by_shares = levels(&told);
    assert_eq!(by_shares.len(), 5);
    for (level, masked) in by_shares.into_iter().zip([20, 16, 12, 8, 4]) {
        assert_near(level, of_share(masked as f64 / 20.0), "even");
    }
    // The schedule has no lower level than its first.
    let first = engine.spec().sigma_of_masked(0.0).unwrap();
    assert_near(first, 1e-2, "the first level");
}

/// Plans by every budget that reads log-scores as logits, by several scores and temperatures, guided or not.
fn plans() -> Vec<DecodePlan> {
    let budgets = [
        Budget::Even,
        Budget::Threshold(0.55),
        Budget::Factor(0.9),
        Budget::EntropyBound(0.8),
        Budget::Schedule {
            rounding: Rounding::Floor,
            eps: 1e-3,
        },
        Budget::Schedule {
            rounding: Rounding::Nearest,
            eps: 0.0,
        },
        Budget::Ancestral { eps: 1e-5 },
    ];
    let mut plans = Vec::new();
    for (index, budget) in budgets.into_iter().enumerate() {
        for seed in 0..10 {
            let mut plan = DecodePlan {
                steps: [None, Some(6)][seed % 2],
                score: Score::ALL[(index + seed) % Score::ALL.len()],
                budget,
                ..DecodePlan::default()
            };
            plan.sampling.seed = seed as u64;
            plan.sampling.temperature = [0.0, 1.0, 0.7][seed % 3];
            plan.sampling.guidance_scale = [0.0, 1.5][seed / 2 % 2];
            match budget {
                Budget::Ancestral { .. } => {
                    plan.finish = Finish::MostProbable;
                    let remask = Revision::Remask(Remasking::Cap(0.05));
                    plan.revision = [Revision::None, remask][seed % 2];
                }
                Budget::Schedule { .. } => {}
                _ => {
                    plan.block_length = [None, Some(5)][seed % 2];
                    plan.block_entry = [BlockEntry::Budget, BlockEntry::FirstSlot][seed / 2 % 2];
                }
            }
            plans.push(plan);
        }
    }
    plans
}

/// The tokens of each slot with the steps that committed them.
fn outcome(engine: &Engine, plan: &DecodePlan) -> Vec<(TokenId, usize)> {
    let (_, finished) = denoise(engine, canvas(3, 11), plan);
    assert_eq!(finished.masked(), 0);
    let slots = 0..finished.len();
    slots
        .map(|slot| {
            let step = finished.provenance(slot).map_or(0, |commit| commit.step);
            assert_ne!(finished.token(slot), MASK);
            (finished.token(slot), step)
        })
        .collect()
}

/// p(x_0 = y) · α / (1 − α): at a level of its own, each row's scores have a factor of their own.
#[test]
fn log_scores_are_logits_of_the_clean_token_whatever_constant_a_row_has() {
    let engine =
        |parameterisation, shift| start(Listener::new(log_linear(), parameterisation, shift)).0;
    let subs = engine(Parameterisation::Subs, 0.0);
    let shifted = [0.0, 3.0, -7.0].map(|shift| engine(Parameterisation::LogScore, shift));
    for plan in plans() {
        let expected = outcome(&subs, &plan);
        for engine in &shifted {
            assert_eq!(outcome(engine, &plan), expected, "{plan:?}");
        }
    }
}

/// Steps by scores among them, whose totals are of their rows alone.
#[test]
fn each_request_of_a_batch_is_told_its_own_level_and_answered_as_alone() {
    let (engine, told) = start(Listener::new(log_linear(), Parameterisation::LogScore, 1.0));
    let mut plans = plans();
    for seed in 0..20 {
        let mut plan = DecodePlan {
            steps: Some(6),
            budget: Budget::Analytic { eps: 1e-5 },
            finish: Finish::Drawn,
            ..DecodePlan::default()
        };
        (plan.sampling.seed, plan.sampling.temperature) = (seed, 1.0);
        plans.insert(3 * seed as usize, plan);
    }
    let request = |index: usize| canvas(1 + index % 9, 1 + index % 22);
    let expected: Vec<Canvas> = plans
        .iter()
        .enumerate()
        .map(|(index, plan)| denoise(&engine, request(index), plan).1)
        .collect();
    let alone: usize = std::mem::take(&mut *told.lock().unwrap()).len();
    // Nothing is denoised before all are there.
    let waits = told.lock().unwrap();
    let generations: Vec<_> = plans
        .iter()
        .enumerate()
        .map(|(index, plan)| engine.submit(request(index), plan).unwrap())
        .collect();
    drop(waits);
    for (generation, expected) in generations.into_iter().zip(expected) {
        assert_eq!(finish(generation).unwrap(), expected);
    }
    let together = std::mem::take(&mut *told.lock().unwrap());
    assert!(together.len() < alone, "requests shared forwards");
    let differ = |told: &Vec<f32>| told.iter().any(|sigma| *sigma != told[0]);
    assert!(together.iter().any(differ));
}

#[test]
fn plans_that_such_a_network_cannot_follow_are_refused_with_the_reason() {
    let (engine, _) = start(Listener::new(log_linear(), Parameterisation::LogScore, 0.0));
    let ancestral = |eps| DecodePlan {
        budget: Budget::Ancestral { eps },
        finish: Finish::MostProbable,
        ..DecodePlan::default()
    };
    let blocks = DecodePlan {
        block_length: Some(4),
        ..ancestral(1e-5)
    };
    let edited = DecodePlan {
        revision: Revision::Edit {
            threshold: 0.9,
            max_post_steps: 4,
        },
        ..DecodePlan::default()
    };
    let mut guided = DecodePlan {
        budget: Budget::Euler { eps: 1e-5 },
        ..DecodePlan::default()
    };
    guided.sampling.guidance_scale = 1.0;
    for (plan, says) in [
        (blocks, ["block_length", "threshold"]),
        (ancestral(0.0), ["budget", "an eps above 0"]),
        (edited, ["revision", "not masked"]),
        (guided, ["guidance_scale", "another budget"]),
    ] {
        let error = engine.submit(canvas(1, 4), &plan).unwrap_err().to_string();
        assert!(says.iter().all(|word| error.contains(word)), "{error}");
    }
}
