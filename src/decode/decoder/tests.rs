use proptest::prelude::*;

use super::*;
use crate::canvas::Blank;
use crate::decode::{BlockOrigin, Remasking, Score, TemperatureSchedule, preset};

const MASK: TokenId = 0;
const STOP: TokenId = 77;

fn candidates(decoder: &Decoder, canvas: &Canvas) -> Vec<Candidate> {
    let candidate = |slot: usize| {
        let salt = decoder.steps() * 31;
        let probability = ((slot * 7919 + salt) % 101) as f32 / 101.0;
        Candidate {
            slot,
            token: 1 + ((slot + salt) % 50) as TokenId,
            probability,
            most_probable: 99,
            best: probability,
            second: 0.0,
            entropy: 1.0 - probability,
            uniform: ((slot * 104_729 + salt) % 997) as f32 / 997.0,
            unmasking: None,
        }
    };
    let slots = decoder.scored_slots(canvas);
    slots.into_iter().map(candidate).collect()
}

fn run(plan: &DecodePlan, canvas: &mut Canvas) -> Vec<Change> {
    let mut decoder = Decoder::new(plan, canvas, &[STOP]).unwrap();
    let limit = decoder.step_limit();
    let mut changes = Vec::new();
    while !decoder.is_done() {
        let candidates = candidates(&decoder, canvas);
        changes.push(decoder.advance(canvas, &candidates));
        assert!(changes.len() <= limit, "more reports than the limit");
    }
    changes
}

fn counts(changes: &[Change]) -> Vec<usize> {
    changes
        .iter()
        .map(|change| change.committed.len())
        .collect()
}

fn gap_of(length: usize) -> Canvas {
    Canvas::builder(MASK)
        .fixed(&[5])
        .gap(length)
        .build()
        .unwrap()
}

#[test]
fn an_even_split_gives_the_remainder_to_the_first_steps() {
    let plan = DecodePlan {
        steps: Some(4),
        ..DecodePlan::default()
    };
    assert_eq!(counts(&run(&plan, &mut gap_of(10))), [3, 3, 2, 2]);
}

#[test]
fn a_block_is_finished_before_the_next_is_begun() {
    let plan = DecodePlan {
        steps: Some(4),
        block_length: Some(4),
        ..DecodePlan::default()
    };
    let changes = run(&plan, &mut gap_of(6));
    assert_eq!(counts(&changes), [2, 2, 1, 1]);
    let mut first_block = changes[..2].iter().flat_map(|change| &change.committed);
    assert!(first_block.all(|(slot, _)| *slot < 5));
}

#[test]
fn steps_per_block_share_the_block_length_whatever_part_of_it_is_masked() {
    let plan = DecodePlan {
        steps_per_block: Some(3),
        block_length: Some(8),
        block_origin: BlockOrigin::Canvas,
        budget: Budget::Threshold(1.0),
        ..DecodePlan::default()
    };
    // The first block of 8 holds one fixed slot: shares 3, 3 and what is left.
    assert_eq!(counts(&run(&plan, &mut gap_of(9))), [3, 3, 1, 2]);
}

#[test]
fn a_schedule_is_run_through_in_each_block() {
    let plan = DecodePlan {
        steps_per_block: Some(3),
        block_length: Some(8),
        budget: Budget::Schedule {
            rounding: Rounding::Nearest,
            eps: 0.0,
        },
        ..DecodePlan::default()
    };
    assert_eq!(counts(&run(&plan, &mut gap_of(11))), [3, 2, 3, 1, 1, 1]);
}

/// Counts of dllm's `get_num_transfer_tokens` with its linear schedule.
#[test]
fn the_numbers_of_a_nearest_schedule_are_dllms_where_they_lie_halfway() {
    let counts_of = |slots, steps| {
        let plan = DecodePlan {
            steps: Some(steps),
            budget: Budget::Schedule {
                rounding: Rounding::Nearest,
                eps: 0.0,
            },
            ..DecodePlan::default()
        };
        counts(&run(&plan, &mut gap_of(slots)))
    };
    assert_eq!(counts_of(4, 3), [1, 1, 2]);
    assert_eq!(counts_of(5, 3), [2, 1, 2]);
    assert_eq!(counts_of(10, 3), [3, 3, 4]);
    assert_eq!(counts_of(12, 11), [vec![1; 10], vec![2]].concat());
    // All of up to 64 slots in up to 64 steps, end to end as digits of base 31.
    let all = (1..=64).flat_map(|slots| (1..=64).map(move |steps| (slots, steps)));
    let digits = all.flat_map(|(slots, steps)| counts_of(slots, steps));
    let remainder = digits.fold(0, |sum, digit| (sum * 31 + digit) % 1_000_000_007);
    assert_eq!(remainder, 956_138_206);
}

#[test]
fn steps_in_which_a_schedule_commits_nothing_are_taken_without_the_network() {
    let plan = |steps| DecodePlan {
        steps: Some(steps),
        budget: Budget::Schedule {
            rounding: Rounding::Floor,
            eps: 1e-3,
        },
        ..DecodePlan::default()
    };
    // Dream's counts for 16 slots in 16 steps are none, then one, and two at the last.
    let expected = [vec![1; 14], vec![2]].concat();
    for steps in [16, 512] {
        let mut canvas = gap_of(16);
        assert_eq!(counts(&run(&plan(steps), &mut canvas)), expected);
        let last = (1..17).filter_map(|slot| canvas.provenance(slot));
        assert_eq!(last.map(|commit| commit.step).max(), Some(steps));
    }
}

#[test]
fn candidates_reach_the_budget_or_the_least_number() {
    let plan = |budget, at_least| DecodePlan {
        budget,
        at_least,
        ..DecodePlan::default()
    };
    let never = Budget::Threshold(1.0);
    assert_eq!(counts(&run(&plan(never, 0), &mut gap_of(3))), [1, 1, 1]);
    assert_eq!(counts(&run(&plan(never, 2), &mut gap_of(3))), [2, 1]);
    let always = Budget::Threshold(0.0);
    assert_eq!(counts(&run(&plan(always, 0), &mut gap_of(3))), [3]);
}

/// A gap of four whose candidates' probabilities are given by hand; the stop token is the surest in two slots.
#[test]
fn tokens_to_commit_last_wait_until_no_other_is_left() {
    let hand_made = [(STOP, 0.9f32), (8, 0.3), (STOP, 0.99), (9, 0.6)];
    let order = |budget, commit_last: &[TokenId]| {
        let plan = DecodePlan {
            budget,
            commit_last: commit_last.to_vec(),
            ..DecodePlan::default()
        };
        let mut canvas = gap_of(4);
        let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
        let mut order = Vec::new();
        while !decoder.is_done() {
            let mut candidates = candidates(&decoder, &canvas);
            for candidate in &mut candidates {
                (candidate.token, candidate.probability) = hand_made[candidate.slot - 1];
            }
            let change = decoder.advance(&mut canvas, &candidates);
            let slots = change.committed.iter().map(|(slot, _)| *slot);
            order.push(slots.collect::<Vec<_>>());
        }
        order
    };
    assert_eq!(order(Budget::Even, &[]), [[3], [1], [4], [2]]);
    assert_eq!(order(Budget::Even, &[STOP]), [[4], [2], [3], [1]]);
    let threshold = Budget::Threshold(0.5);
    assert_eq!(order(threshold, &[]), [vec![1, 3, 4], vec![2]]);
    assert_eq!(order(threshold, &[STOP]), [vec![4], vec![2], vec![1, 3]]);
}

#[test]
fn ancestral_sampling_unmasks_each_slot_with_the_probability_of_the_reverse_process() {
    let plan = |seed| {
        let mut plan = DecodePlan {
            steps: Some(4),
            budget: Budget::Ancestral { eps: 0.0 },
            ..DecodePlan::default()
        };
        plan.sampling.seed = seed;
        plan
    };
    let mut by_step = [0usize; 4];
    for seed in 0..200 {
        let mut canvas = gap_of(20);
        run(&plan(seed), &mut canvas);
        for slot in 1..21 {
            by_step[canvas.provenance(slot).unwrap().step - 1] += 1;
        }
    }
    // Each of the four steps unmasks a quarter: 1000 of 4000, standard deviation 27.
    for count in by_step {
        assert!(count.abs_diff(1000) < 110, "{by_step:?}");
    }
}

#[test]
fn re_masking_masks_committed_slots_again_and_still_fills_every_gap() {
    for remasking in [
        Remasking::Cap(0.1),
        Remasking::Rescale(0.5),
        Remasking::Confidence(1.0),
        Remasking::ConfidenceBalanced(1.0),
        Remasking::Stochastic(4.0),
        Remasking::Corrector(1.0),
        Remasking::Loop {
            eta: 0.1,
            t_on: 0.55,
            t_off: 0.05,
            alpha_on: 0.9,
        },
    ] {
        let mut plan = DecodePlan {
            steps: Some(40),
            budget: Budget::Ancestral { eps: 1e-5 },
            revision: Revision::Remask(remasking),
            ..DecodePlan::default()
        };
        plan.sampling.seed = 3;
        let mut canvas = gap_of(30);
        let changes = run(&plan, &mut canvas);
        assert_eq!(canvas.masked(), 0);
        let remasked = changes.iter().map(|change| {
            let idle: usize = change.idle.iter().map(|(_, slots)| slots.len()).sum();
            change.remasked.len() + idle
        });
        let remasked: usize = remasked.sum();
        let counted: usize = (1..31)
            .map(|slot| canvas.gap_slot(slot).unwrap().remasked())
            .sum();
        assert!(remasked > 0 && counted >= remasked, "{remasking:?}");
    }
}

/// The share of 64 slots that are clean after half of 64 steps of the reverse process, over many seeds.
fn clean_half_way(remasking: Remasking) -> f64 {
    let seeds = 200;
    let clean = (0..seeds).map(|seed| {
        let mut plan = DecodePlan {
            steps: Some(65),
            budget: Budget::Ancestral { eps: 1e-5 },
            finish: Finish::MostProbable,
            revision: Revision::Remask(remasking),
            ..DecodePlan::default()
        };
        plan.sampling.seed = seed;
        let mut clean = 0;
        for change in run(&plan, &mut gap_of(64)) {
            if change.step <= 32 {
                clean += change.committed.len();
                clean -= change.remasked.len();
            }
            let idle = change.idle.iter().filter(|(step, _)| *step <= 32);
            clean -= idle.map(|(_, slots)| slots.len()).sum::<usize>();
        }
        clean
    });
    clean.sum::<usize>() as f64 / (64 * seeds) as f64
}

#[test]
fn re_masking_keeps_the_number_of_clean_slots_but_by_confidence_as_the_official_code_has_it() {
    for remasking in [
        Remasking::Cap(0.05),
        Remasking::Rescale(0.1),
        Remasking::ConfidenceBalanced(1.0),
        Remasking::ConfidenceBalanced(0.2),
    ] {
        let clean = clean_half_way(remasking);
        assert!((clean - 0.5).abs() < 0.03, "{remasking:?}: {clean}");
    }
    let clean = clean_half_way(Remasking::Confidence(1.0));
    assert!(clean < 0.25, "{clean}");
}

#[test]
fn editing_replaces_committed_tokens_and_ends() {
    let plan = DecodePlan {
        budget: Budget::Threshold(0.9),
        revision: Revision::Edit {
            threshold: 0.5,
            max_post_steps: 3,
        },
        ..DecodePlan::default()
    };
    let mut canvas = gap_of(8);
    run(&plan, &mut canvas);
    assert_eq!(canvas.masked(), 0);
    let edits: usize = (1..9)
        .map(|slot| canvas.gap_slot(slot).unwrap().edited())
        .sum();
    assert!(edits > 0);
    assert_eq!(canvas.token(0), 5);
}

#[test]
fn a_stop_token_ends_the_canvas_after_its_block_or_at_once() {
    let committed = |early_stop| {
        let plan = DecodePlan {
            block_length: Some(4),
            early_stop,
            score: Score::LeftToRight,
            ..DecodePlan::default()
        };
        let mut canvas = gap_of(12);
        let mut decoder = Decoder::new(&plan, &canvas, &[STOP]).unwrap();
        while !decoder.is_done() {
            let mut candidates = candidates(&decoder, &canvas);
            for candidate in &mut candidates {
                candidate.token = if candidate.slot == 2 { STOP } else { 1 };
            }
            decoder.advance(&mut canvas, &candidates);
        }
        12 - canvas.masked()
    };
    assert_eq!(committed(EarlyStop::Never), 12);
    assert_eq!(committed(EarlyStop::AfterBlock), 4);
    assert_eq!(committed(EarlyStop::AtOnce), 2);
}

#[test]
fn plans_that_contradict_themselves_are_refused_by_the_field() {
    let canvas = gap_of(8);
    let plan = DecodePlan {
        block_length: Some(4),
        ..DecodePlan::default()
    };
    let remask = Revision::Remask(Remasking::Cap(0.1));
    let refused = [
        (
            "steps",
            DecodePlan {
                steps: Some(1),
                ..plan.clone()
            },
        ),
        (
            "steps",
            DecodePlan {
                steps: Some(0),
                ..plan.clone()
            },
        ),
        (
            "revision",
            DecodePlan {
                revision: remask,
                ..plan.clone()
            },
        ),
        (
            "steps_per_block",
            DecodePlan {
                steps: Some(8),
                steps_per_block: Some(2),
                ..plan.clone()
            },
        ),
        (
            "steps_per_block",
            DecodePlan {
                steps_per_block: Some(2),
                block_length: None,
                ..plan.clone()
            },
        ),
        (
            "score_temperature",
            DecodePlan {
                score_temperature: -1.0,
                ..plan
            },
        ),
    ];
    for (field, plan) in refused {
        assert_eq!(
            Decoder::new(&plan, &canvas, &[]).unwrap_err().field(),
            field
        );
    }
}

fn any_budget() -> impl Strategy<Value = Budget> {
    prop_oneof![
        Just(Budget::Even),
        (0.0f32..=1.0).prop_map(Budget::Threshold),
        (0.0f32..4.0).prop_map(Budget::Factor),
        (0.0f32..4.0).prop_map(Budget::EntropyBound),
        (0.0f32..0.1, proptest::bool::ANY).prop_map(|(eps, floor)| Budget::Schedule {
            eps,
            rounding: if floor {
                Rounding::Floor
            } else {
                Rounding::Nearest
            },
        }),
        (0.0f32..0.1).prop_map(|eps| Budget::Ancestral { eps }),
    ]
}

proptest! {
    #[test]
    fn every_plan_fills_every_gap_and_leaves_fixed_slots_alone(
        ids in proptest::collection::vec(0u32..3, 1..60),
        budget in any_budget(),
        score in proptest::sample::select(&Score::ALL[..]),
        score_temperature in prop_oneof![Just(0.0f32), Just(0.5)],
        block_length in proptest::option::of(1usize..40),
        extra_steps in proptest::option::of(0usize..30),
        origin in proptest::sample::select(vec![BlockOrigin::Gap, BlockOrigin::Canvas]),
        seed in 0u64..1000,
        revise in proptest::bool::ANY,
    ) {
        let Ok(mut canvas) = Canvas::from_ids(&ids, MASK) else { return Ok(()) };
        let masked = canvas.masked();
        let revision = match (revise, budget) {
            (false, _) => Revision::None,
            (true, Budget::Ancestral { .. }) => Revision::Remask(Remasking::Rescale(0.3)),
            (true, _) => Revision::Edit { threshold: 0.4, max_post_steps: 2 },
        };
        let score_temperature = match budget {
            Budget::Ancestral { .. } => 0.0,
            _ => score_temperature,
        };
        let mut plan = DecodePlan {
            block_length, block_origin: origin, score, score_temperature, budget, revision,
            ..DecodePlan::default()
        };
        plan.sampling.seed = seed;
        let blocks = blocks(&canvas, block_length, origin).len();
        plan.steps = extra_steps.map(|extra| blocks + extra);
        let changes = run(&plan, &mut canvas);
        prop_assert_eq!(canvas.masked(), 0);
        if !plan.is_revising() {
            prop_assert_eq!(counts(&changes).iter().sum::<usize>(), masked);
            if let Some(limit) = plan.steps {
                prop_assert!(changes.len() <= limit);
            }
        }
        for (slot, id) in ids.iter().enumerate().filter(|(_, id)| **id != MASK) {
            prop_assert_eq!(canvas.token(slot), *id);
        }
    }
}

#[test]
fn renoising_scores_every_slot_at_every_step_and_ends_at_the_last_guess() {
    let noise = Blank::Noise { vocab: 60 };
    let plan = DecodePlan {
        steps: Some(9),
        ..preset::uniform_ancestral()
    };
    let canvas = Canvas::builder(noise)
        .fixed(&[5])
        .gap(4)
        .fixed(&[6])
        .gap(2)
        .build();
    let mut canvas = plan.noised(canvas.unwrap());
    assert!(canvas.tokens().skip(1).take(4).any(|token| token != 0));
    let mut decoder = Decoder::new(&plan, &canvas, &[STOP]).unwrap();
    assert_eq!(
        decoder.own_token_bias(&canvas),
        Some(0.0),
        "pure noise says nothing"
    );
    let mut bias = 0.0;
    let mut last = Vec::new();
    for step in 1..=9 {
        assert_eq!(decoder.scored_slots(&canvas), [1, 2, 3, 4, 6, 7]);
        assert!(decoder.step_limit() >= 10 - step);
        let held = decoder.own_token_bias(&canvas).unwrap();
        assert!(
            step == 1 || held > bias,
            "what a slot holds is worth more and more"
        );
        bias = held;
        last = candidates(&decoder, &canvas);
        let before: Vec<_> = canvas.tokens().collect();
        let change = decoder.advance(&mut canvas, &last);
        for (slot, token) in canvas.tokens().enumerate() {
            let told = change
                .committed
                .iter()
                .any(|(committed, _)| *committed == slot)
                || change.noise.contains(&(slot, token))
                || before[slot] == token;
            assert!(told, "slot {slot} changed untold");
        }
        assert_eq!(decoder.is_done(), step == 9);
    }
    for guess in last {
        assert_eq!(canvas.provenance(guess.slot).unwrap().token, guess.token);
    }
    assert_eq!((canvas.token(0), canvas.token(5)), (5, 6));
}

#[test]
fn a_plan_of_the_other_process_is_refused() {
    let noise = Canvas::builder(Blank::Noise { vocab: 60 })
        .gap(2)
        .build()
        .unwrap();
    for (plan, canvas) in [
        (DecodePlan::default(), &noise),
        (preset::uniform_ancestral(), &gap_of(2)),
    ] {
        let error = Decoder::new(&plan, canvas, &[]).unwrap_err();
        assert_eq!(error.field(), "revision");
        assert!(error.to_string().contains("uniform process"), "{error}");
    }
    type Change = fn(&mut DecodePlan);
    let changes: [(&str, Change); 4] = [
        ("revision", |plan| plan.budget = Budget::Even),
        ("early_stop", |plan| plan.early_stop = EarlyStop::AtOnce),
        ("guidance_scale", |plan| plan.sampling.guidance_scale = 1.0),
        ("budget", |plan| {
            plan.budget = Budget::Ancestral { eps: 0.0 };
            plan.finish = Finish::MostProbable;
        }),
    ];
    for (field, change) in changes {
        let mut plan = preset::uniform_ancestral();
        change(&mut plan);
        assert_eq!(plan.validate().unwrap_err().field(), field);
    }
}

#[test]
fn the_temperature_follows_its_schedule_over_the_steps_of_all_blocks() {
    for (budget, block_length) in [
        (Budget::Even, None),
        (Budget::Even, Some(4)),
        (Budget::Threshold(2.0f32.powi(-9)), None),
        (Budget::Ancestral { eps: 0.001 }, Some(4)),
    ] {
        let mut plan = DecodePlan {
            steps: Some(6),
            budget,
            block_length,
            ..DecodePlan::default()
        };
        plan.sampling.temperature = 1.25;
        plan.sampling.temperature_schedule = TemperatureSchedule::Linear(0.25);
        let mut canvas = gap_of(8);
        let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
        let mut temperatures = Vec::new();
        while !decoder.is_done() {
            // Steps that commit nothing are skipped.
            let step = temperatures.len();
            temperatures.push(decoder.temperature());
            let of_step = |step: usize| 1.25 - step as f32 / 5.0;
            let is_by_chance = budget.is_by_chance();
            assert!(
                (temperatures[step] - of_step(step)).abs() < 1e-6 || is_by_chance,
                "{budget:?}: {temperatures:?}"
            );
            let candidates = candidates(&decoder, &canvas);
            decoder.advance(&mut canvas, &candidates);
        }
        assert!(temperatures.is_sorted_by(|a, b| a > b), "{temperatures:?}");
        assert!(temperatures.iter().all(|t| (0.25..=1.25).contains(t)));
    }
}

#[test]
fn a_temperature_schedule_needs_a_number_of_steps() {
    let mut plan = DecodePlan {
        budget: Budget::Threshold(0.9),
        ..DecodePlan::default()
    };
    plan.sampling.temperature_schedule = TemperatureSchedule::Linear(0.0);
    assert_eq!(plan.validate().unwrap_err().field(), "temperature_schedule");
    plan.steps = Some(4);
    plan.validate().unwrap();
    plan.sampling.temperature_schedule = TemperatureSchedule::Linear(-1.0);
    assert_eq!(plan.validate().unwrap_err().field(), "temperature_schedule");
}
