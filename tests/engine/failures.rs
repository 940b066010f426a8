//! What becomes of the others where a step, an observer or the worker fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::mock::{MASK, MockModel};
use crate::{block_on, canvas, finish, start};
use unmask::canvas::Canvas;
use unmask::decode::DecodePlan;
use unmask::engine::{EngineConfig, StepSummary, SubmitError};

#[test]
fn a_step_without_memory_sheds_the_newest_and_the_others_go_on() {
    let (model, forwards) = MockModel::gated();
    let engine = start(model.with_room_for(5), EngineConfig::default());
    let plan = DecodePlan::default();
    let first = engine.submit(canvas(2), &plan).unwrap();
    assert_eq!(forwards.entered(), [3]);
    let second = engine.submit(canvas(2), &plan).unwrap();
    forwards.release();
    assert_eq!(forwards.entered(), [3, 3]);
    forwards.release();
    assert_eq!(forwards.entered(), [3]);
    forwards.release();
    assert!(finish(first).is_ok());
    let error = finish(second).unwrap_err();
    assert!(error.contains("no memory left"), "{error}");
    let too_large = engine.submit(canvas(9), &plan).unwrap();
    forwards.entered();
    forwards.release();
    assert!(finish(too_large).unwrap_err().contains("no memory left"));
}

#[test]
fn a_panic_fails_the_sequences_of_that_step_and_the_engine_goes_on_with_the_next() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 2,
        ..EngineConfig::default()
    };
    let engine = start(model.panicking_on(7), config);
    let plan = DecodePlan::default();
    let neighbour = engine.submit(canvas(2), &plan).unwrap();
    assert_eq!(forwards.entered(), [3]);
    let poisoned = Canvas::builder(MASK).fixed(&[7]).gap(1).build().unwrap();
    let poisoned = engine.submit(poisoned, &plan).unwrap();
    let next = engine.submit(canvas(1), &plan).unwrap();
    forwards.release();
    assert_eq!(forwards.entered(), [3, 2]);
    forwards.release();
    for failed in [neighbour, poisoned] {
        let error = finish(failed).unwrap_err();
        assert!(error.contains("token 7 was met"), "{error}");
    }
    assert_eq!(forwards.entered(), [2]);
    forwards.release();
    assert!(finish(next).is_ok());
}

#[test]
fn wherever_the_worker_panics_every_sequence_has_an_end_and_the_engine_goes_on() {
    let config = EngineConfig {
        max_sequences: 2,
        ..EngineConfig::default()
    };
    let plan = DecodePlan::default();
    let mut failures = Vec::new();
    for call in 0..40 {
        let engine = start(MockModel::new().panicking_at_call(call), config);
        let generations = [2, 1, 3].map(|gap| engine.submit(canvas(gap), &plan).unwrap());
        let errors = generations.map(|generation| finish(generation).err());
        for error in errors.iter().flatten() {
            assert!(error.contains("the spec was asked for"), "{error}");
        }
        failures.push(errors.iter().flatten().count());
        assert!(engine.is_running());
        // The call may come only now, but it comes once.
        assert!((0..2).any(|_| finish(engine.submit(canvas(2), &plan).unwrap()).is_ok()));
        assert_eq!(engine.status().failing, 0);
    }
    assert!(failures.iter().all(|count| *count < 3), "{failures:?}");
    assert!(failures.iter().filter(|count| **count > 0).count() > 5);
}

#[test]
fn an_observer_that_panics_spoils_neither_answers_nor_what_others_are_told() {
    let engine = start(MockModel::new(), EngineConfig::default());
    let told = Arc::new(AtomicUsize::new(0));
    let count = |told: &Arc<AtomicUsize>| {
        let told = told.clone();
        move |_: &StepSummary| _ = told.fetch_add(1, Ordering::Relaxed)
    };
    engine.on_step(count(&told));
    engine.on_step(|_| panic!("an observer"));
    engine.on_step(count(&told));
    let plan = DecodePlan::default();
    assert!(finish(engine.submit(canvas(3), &plan).unwrap()).is_ok());
    assert_eq!(told.load(Ordering::Relaxed), 2 * 3);
}

#[test]
fn a_worker_that_dies_leaves_nobody_waiting_and_says_so() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 1,
        ..EngineConfig::default()
    };
    let engine = start(model.dying_on(7), config);
    let plan = DecodePlan::default();
    let fatal = Canvas::builder(MASK).fixed(&[7]).gap(1).build().unwrap();
    let fatal = engine.submit(fatal, &plan).unwrap();
    forwards.entered();
    let waiting = engine.submit(canvas(1), &plan).unwrap();
    assert!(engine.is_running());
    forwards.release();
    assert!(finish(fatal).is_err());
    assert!(finish(waiting).is_err());
    block_on(engine.stopped());
    assert!(!engine.is_running());
    let late = engine.submit(canvas(1), &plan);
    assert_eq!(late.unwrap_err(), SubmitError::Stopped);
}

#[test]
fn an_abandoned_engine_is_dropped_while_a_step_goes_on() {
    let (model, forwards) = MockModel::gated();
    let engine = start(model, EngineConfig::default());
    let running = engine.submit(canvas(1), &DecodePlan::default()).unwrap();
    forwards.entered();
    engine.abandon();
    drop(engine);
    forwards.release();
    assert!(finish(running).is_ok());
}

#[test]
fn steps_that_fail_in_a_row_are_counted_until_one_succeeds() {
    let plan = DecodePlan::default();
    let damaged = start(MockModel::new().damaged(), EngineConfig::default());
    for failed in 1..=3 {
        let error = finish(damaged.submit(canvas(2), &plan).unwrap()).unwrap_err();
        assert!(error.contains("NaN"), "{error}");
        assert_eq!(damaged.status().failing, failed);
    }
    let engine = start(MockModel::new().panicking_on(7), EngineConfig::default());
    let poisoned = || Canvas::builder(MASK).fixed(&[7]).gap(1).build().unwrap();
    for failed in 1..=3 {
        assert!(finish(engine.submit(poisoned(), &plan).unwrap()).is_err());
        assert_eq!(engine.status().failing, failed);
    }
    assert!(finish(engine.submit(canvas(1), &plan).unwrap()).is_ok());
    assert_eq!(engine.status().failing, 0);
}
