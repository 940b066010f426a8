//! Batches, turns, reports, refusals.

use crate::support::mock::{MASK, MockModel};
use crate::support::{denoise, engine, golden};
use crate::{canvas, finish, start, wait_until};
use unmask::canvas::Canvas;
use unmask::decode::{Budget, DecodePlan, Revision, Score, preset};
use unmask::engine::{EngineConfig, Event, SubmitError};
use unmask::models::Checkpoint;

#[test]
fn sequences_join_and_leave_between_steps_and_share_one_unpadded_batch() {
    let (model, forwards) = MockModel::gated();
    let engine = start(model, EngineConfig::default());
    let plan = DecodePlan::default();
    let first = engine.submit(canvas(3), &plan).unwrap();
    assert_eq!(forwards.entered(), [4]);
    let second = engine.submit(canvas(1), &plan).unwrap();
    forwards.release();
    assert_eq!(forwards.entered(), [4, 2]);
    forwards.release();
    assert_eq!(forwards.entered(), [4]);
    forwards.release();
    assert!(finish(first).is_ok() && finish(second).is_ok());
}

#[test]
fn a_dropped_generation_is_removed_before_its_next_step() {
    let (model, forwards) = MockModel::gated();
    let engine = start(model, EngineConfig::default());
    let plan = DecodePlan::default();
    let dropped = engine.submit(canvas(9), &plan).unwrap();
    assert_eq!(forwards.entered(), [10]);
    let kept = engine.submit(canvas(1), &plan).unwrap();
    drop(dropped);
    forwards.release();
    assert_eq!(forwards.entered(), [2]);
    forwards.release();
    assert!(finish(kept).is_ok());
    wait_until(|| engine.status().running == 0);
}

#[test]
fn a_step_never_takes_more_rows_than_the_limit_and_no_canvas_is_longer() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_rows: 10,
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan {
        steps: Some(1),
        ..DecodePlan::default()
    };
    let generations: Vec<_> = [5, 3, 3, 9]
        .into_iter()
        .map(|gap| engine.submit(canvas(gap), &plan).unwrap())
        .collect();
    let mut batches = Vec::new();
    while batches.iter().map(Vec::len).sum::<usize>() < generations.len() {
        batches.push(forwards.entered());
        forwards.release();
    }
    for batch in &batches {
        assert!(batch.iter().sum::<usize>() <= 10, "{batches:?}");
    }
    let order: Vec<usize> = batches.into_iter().flatten().collect();
    assert_eq!(order, [6, 4, 4, 10], "first come, first served");
    for generation in generations {
        assert!(finish(generation).is_ok());
    }
    let too_long = engine.submit(canvas(10), &plan).unwrap_err();
    assert_eq!(
        too_long,
        SubmitError::CanvasTooLong {
            length: 11,
            limit: 10
        }
    );
}

#[test]
fn a_short_canvas_takes_many_steps_while_a_long_one_takes_one() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        step_rows: Some(16),
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan::default();
    let long = engine.submit(canvas(59), &plan).unwrap();
    assert_eq!(forwards.entered(), [60]);
    let short = engine.submit(canvas(5), &plan).unwrap();
    forwards.release();
    let batches: Vec<_> = (0..5)
        .map(|_| {
            let batch = forwards.entered();
            forwards.release();
            batch
        })
        .collect();
    let long_steps = batches.iter().filter(|batch| batch.contains(&60)).count();
    let short_steps = batches.iter().filter(|batch| batch.contains(&6)).count();
    assert!(short_steps == 5 && long_steps <= 2, "{batches:?}");
    assert!(finish(short).is_ok());
    drop(long);
    drop(forwards);
}

#[test]
fn a_long_canvas_is_not_held_up_by_short_ones_that_keep_coming() {
    const RUNNING: usize = 4;
    const LONG: usize = 60;
    const SHORT: usize = 16;
    // What the scheduler promises: nobody waits longer.
    let longest_wait = 3 * RUNNING * LONG / SHORT + RUNNING;
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: RUNNING,
        step_rows: Some(SHORT),
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let one_step = DecodePlan {
        steps: Some(1),
        ..DecodePlan::default()
    };
    let long = engine
        .submit(canvas(LONG - 1), &DecodePlan::default())
        .unwrap();
    assert_eq!(forwards.entered(), [LONG]);
    let submit = || engine.submit(canvas(SHORT - 1), &one_step).unwrap();
    // More than can run beside it, so that another comes for each that leaves.
    let mut short: Vec<_> = (0..2 * RUNNING).map(|_| submit()).collect();
    forwards.release();
    let (mut waited, mut most_waited) = (0, 0);
    let (mut steps_of_long, mut steps_of_short) = (0, 0);
    for _ in 0..10 * longest_wait {
        let batch = forwards.entered();
        match batch.contains(&LONG) {
            true => (waited, steps_of_long) = (0, steps_of_long + 1),
            false => waited += 1,
        }
        most_waited = most_waited.max(waited);
        let ended = batch.iter().filter(|rows| **rows == SHORT).count();
        steps_of_short += ended;
        short.extend((0..ended).map(|_| submit()));
        forwards.release();
    }
    drop((long, short, forwards));
    assert!(
        most_waited <= longest_wait,
        "waited for {most_waited} steps, and took {steps_of_long}"
    );
    // Nor does it hold them up: it has about its quarter of the rows.
    let rows = (steps_of_long * LONG, steps_of_short * SHORT);
    assert!(3 * rows.0 <= rows.1 + 3 * LONG, "{rows:?}");
}

#[test]
fn a_reader_that_does_not_read_while_a_plan_revises_loses_nothing_and_holds_little() {
    let engine = start(MockModel::new(), EngineConfig::default());
    let mut plan = DecodePlan {
        budget: Budget::Threshold(0.0),
        revision: Revision::Edit {
            threshold: 0.0,
            max_post_steps: 2500,
        },
        ..DecodePlan::default()
    };
    plan.sampling.temperature = 1.0;
    let mut seen = canvas(8);
    let mut generation = engine.submit(seen.clone(), &plan).unwrap();
    wait_until(|| engine.status().steps > 0 && engine.status().running == 0);
    let (mut reports, mut entries, mut last) = (0, 0, 0);
    let finished = loop {
        match generation.next_blocking() {
            Some(Event::Step(report)) => {
                reports += 1;
                entries += report.committed.len() + report.remasked.len();
                assert!(report.step > last, "{} after {last}", report.step);
                last = report.step;
                for (slot, commit) in report.committed {
                    seen.gap_slot_mut(slot).unwrap().commit(commit);
                }
            }
            Some(Event::Finished(finished, statistics)) => {
                assert!(statistics.steps > 2000, "{}", statistics.steps);
                assert_eq!(last, statistics.steps);
                break finished;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(
        reports + entries < 300,
        "{reports} reports, {entries} slots"
    );
    for slot in 1..finished.len() {
        assert_eq!(seen.provenance(slot), finished.provenance(slot), "{slot}");
    }
    assert!(generation.next_blocking().is_none());
}

#[test]
fn what_does_not_fit_the_model_is_refused_at_once() {
    let engine = start(MockModel::new(), EngineConfig::default());
    let plan = DecodePlan::default();
    let too_long = engine.submit(canvas(64), &plan).unwrap_err();
    assert_eq!(
        too_long,
        SubmitError::CanvasTooLong {
            length: 65,
            limit: 64
        }
    );
    let unknown = Canvas::builder(MASK).fixed(&[300]).gap(1).build().unwrap();
    assert!(matches!(
        engine.submit(unknown, &plan).unwrap_err(),
        SubmitError::UnknownToken { token: 300, .. }
    ));
    let other_mask = Canvas::builder(5).gap(1).build().unwrap();
    assert!(matches!(
        engine.submit(other_mask, &plan).unwrap_err(),
        SubmitError::Blank { .. }
    ));
}

#[test]
fn a_model_that_does_not_see_the_text_after_a_gap_is_not_asked_to_infill() {
    let engine = engine("sdar");
    let plan = engine.spec().default_plan.clone();
    let mask = engine.mask_token().unwrap();
    let infill = Canvas::from_ids(&[3, mask, mask, 4], mask).unwrap();
    assert!(matches!(
        engine.submit(infill, &plan).unwrap_err(),
        SubmitError::CannotSeeAhead { gap: 0, .. }
    ));
    let infill = Canvas::from_ids(&[3, mask, mask, 4], mask).unwrap();
    let left_context = DecodePlan {
        left_context: true,
        ..plan.clone()
    };
    let filled = finish(engine.submit(infill, &left_context).unwrap()).unwrap();
    assert!(filled.masked() == 0 && filled.token(3) == 4);
    let completion = Canvas::from_ids(&[3, 4, mask, mask], mask).unwrap();
    assert!(finish(engine.submit(completion, &plan).unwrap()).is_ok());
}

#[test]
fn random_scores_and_temperature_follow_the_seed() {
    let engine = engine("llada");
    let run = |seed| {
        let mut plan = DecodePlan {
            score: Score::Random,
            ..DecodePlan::default()
        };
        plan.sampling.seed = seed;
        let canvas = Canvas::builder(engine.mask_token().unwrap())
            .fixed(&[3, 4])
            .gap(24)
            .build()
            .unwrap();
        let (steps, canvas) = denoise(&engine, canvas, &plan);
        let order: Vec<usize> = steps.iter().map(|step| step.committed[0].0).collect();
        (order, canvas)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn a_checkpoint_that_is_not_what_its_config_says_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        std::fs::copy(golden("llada").join(name), folder.path().join(name)).unwrap();
    };
    let open = || {
        let device = candle_core::Device::Cpu;
        Checkpoint::open(folder.path())
            .and_then(|checkpoint| checkpoint.load(candle_core::DType::F32, &device))
            .map(|_| ())
    };
    let message = |error: unmask::models::ModelError| format!("{:#}", anyhow::Error::from(error));
    assert!(message(open().unwrap_err()).contains("config.json"));
    copy("config.json");
    assert!(message(open().unwrap_err()).contains("model.safetensors"));
    std::fs::write(folder.path().join("model.safetensors"), [0xFF; 64]).unwrap();
    assert!(message(open().unwrap_err()).contains("not a valid safetensors file"));
    copy("model.safetensors");
    open().unwrap();

    let config = std::fs::read_to_string(golden("llada").join("config.json")).unwrap();
    for (from, to, expected) in [
        (
            "\"n_layers\": 2",
            "\"n_layers\": 3",
            "blocks.2.attn_norm.weight [64] is missing",
        ),
        (
            "\"n_layers\": 2",
            "\"n_layers\": 1",
            "blocks.1.attn_norm.weight is not part",
        ),
        (
            "\"mlp_hidden_size\": 128",
            "\"mlp_hidden_size\": 96",
            "config.json asks for [64, 96]",
        ),
        (
            "\"mask_token_id\": 505",
            "\"mask_token_id\": 600",
            "mask_token_id 600 is outside",
        ),
        (
            "\"include_bias\": false",
            "\"include_bias\": true",
            "include_bias is true",
        ),
        ("LLaDAModelLM\"", "OtherModel\"", "known: LLaDAModelLM"),
        ("\"n_heads\": 4,", "", "n_heads is missing"),
        ("{", "", "not valid JSON"),
    ] {
        assert!(config.contains(from), "{from}");
        let broken = config.replacen(from, to, 1);
        std::fs::write(folder.path().join("config.json"), broken).unwrap();
        let message = message(open().unwrap_err());
        assert!(message.contains(expected), "{to}: {message}");
    }
}

/// Of 256 steps of a short gap most change nothing, and many that mask a slot again need no network.

#[test]
fn reports_name_the_step_that_changed_a_canvas_where_steps_are_skipped() {
    let engine = engine("mdlm");
    for name in ["mdlm-ancestral", "remdm-cap"] {
        let mut plan = preset::by_name(name).unwrap().plan().clone();
        (plan.steps, plan.sampling.seed) = (Some(256), 1);
        let canvas = || {
            let builder = Canvas::builder(engine.blank()).fixed(&[7, 8]);
            builder.gap(12).build().unwrap()
        };
        let (reports, finished) = denoise(&engine, canvas(), &plan);
        let mut followed = canvas();
        let mut last = 0;
        for report in &reports {
            assert!(report.step > last && report.step <= 256, "{name}");
            last = report.step;
            assert_eq!(report.statistics.steps, report.step, "{name}");
            assert!(!(report.committed.is_empty() && report.remasked.is_empty()));
            for (slot, commit) in &report.committed {
                assert_eq!(commit.step, report.step, "{name}");
                assert!(!report.remasked.contains(slot), "{name}");
                followed.gap_slot_mut(*slot).unwrap().commit(*commit);
            }
            for slot in &report.remasked {
                followed.gap_slot_mut(*slot).unwrap().remask();
            }
        }
        assert_eq!(followed, finished, "{name}");
        let forwards = reports.last().unwrap().statistics.nfe;
        let committing = reports.iter().filter(|report| !report.committed.is_empty());
        assert_eq!(committing.count(), forwards, "{name}");
        let is_remasking = name == "remdm-cap";
        assert_eq!(reports.len() > forwards, is_remasking, "{name}");
    }
}
