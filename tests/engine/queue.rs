//! Places in the queue: who gets one, who waits, who is refused.

use futures::poll;

use crate::support::mock::MockModel;
use crate::{block_on, canvas, finish, start};
use unmask::decode::DecodePlan;
use unmask::engine::{EngineConfig, Submission, SubmitError};

#[test]
fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 1,
        max_queue: 1,
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan::default();
    let running = engine.submit(canvas(1), &plan).unwrap();
    forwards.entered();
    let queued = engine.submit(canvas(1), &plan).unwrap();
    assert_eq!(engine.status().queued, 1);
    let refused = engine.submit(canvas(1), &plan);
    assert_eq!(refused.unwrap_err(), SubmitError::QueueFull);
    forwards.release();
    forwards.entered();
    let again = engine.submit(canvas(1), &plan).unwrap();
    forwards.release();
    forwards.entered();
    forwards.release();
    for generation in [running, queued, again] {
        assert!(finish(generation).is_ok());
    }
}

#[test]
fn requests_whose_clients_are_gone_do_not_fill_the_queue() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 1,
        max_queue: 2,
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan::default();
    let running = engine.submit(canvas(1), &plan).unwrap();
    forwards.entered();
    for _ in 0..2 {
        drop(engine.submit(canvas(9), &plan).unwrap());
    }
    let waiting = engine.submit(canvas(1), &plan).unwrap();
    forwards.release();
    assert_eq!(forwards.entered(), [2], "only the one that is waited for");
    forwards.release();
    for generation in [running, waiting] {
        assert!(finish(generation).is_ok());
    }
}

#[test]
fn requests_whose_clients_are_gone_are_forgotten_at_the_next_step() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 1,
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan::default();
    let running = engine.submit(canvas(2), &plan).unwrap();
    forwards.entered();
    let gone = engine.submit(canvas(9), &plan).unwrap();
    let waiting = engine.submit(canvas(1), &plan).unwrap();
    let also_gone = engine.submit(canvas(9), &plan).unwrap();
    assert_eq!(engine.status().queued, 3);
    drop((gone, also_gone));
    forwards.release();
    // The first still runs, so that none was taken.
    assert_eq!(forwards.entered(), [3]);
    assert_eq!(engine.status().queued, 1);
    forwards.release();
    assert_eq!(forwards.entered(), [2]);
    forwards.release();
    for generation in [running, waiting] {
        assert!(finish(generation).is_ok());
    }
}

#[test]
fn those_who_wait_for_a_place_get_one_in_turn_and_leave_half_of_the_queue_to_others() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 1,
        max_queue: 4,
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan::default();
    let mut generations = vec![engine.submit(canvas(1), &plan).unwrap()];
    assert_eq!(forwards.entered(), [2]);
    let submission = || Submission::new(canvas(1), &plan);
    let mut patient: Vec<_> = (0..3)
        .map(|_| Box::pin(engine.enqueue_in_turn(submission())))
        .collect();
    for (index, one) in patient.iter_mut().enumerate() {
        match block_on(async { poll!(one) }) {
            std::task::Poll::Ready(generation) => generations.push(generation.unwrap()),
            std::task::Poll::Pending => assert_eq!(index, 2),
        }
    }
    assert_eq!(engine.status().queued, 2);
    generations.extend((0..2).map(|_| engine.submit(canvas(1), &plan).unwrap()));
    let refused = engine.submit(canvas(1), &plan);
    assert_eq!(refused.unwrap_err(), SubmitError::QueueFull);
    let last = patient.pop().unwrap();
    let last = std::thread::scope(|scope| {
        let last = scope.spawn(|| block_on(last));
        for _ in 0..5 {
            forwards.release();
            forwards.entered();
        }
        last.join().unwrap().unwrap()
    });
    forwards.release();
    assert_eq!(generations.len(), 5);
    for generation in generations.into_iter().chain([last]) {
        assert!(finish(generation).is_ok());
    }
}

#[test]
fn those_who_wait_for_a_place_of_an_engine_that_closes_are_told() {
    let (model, forwards) = MockModel::gated();
    let config = EngineConfig {
        max_sequences: 1,
        max_queue: 1,
        ..EngineConfig::default()
    };
    let engine = start(model, config);
    let plan = DecodePlan::default();
    let running = engine.submit(canvas(1), &plan).unwrap();
    forwards.entered();
    let queued = engine.submit(canvas(1), &plan).unwrap();
    let mut patient = Box::pin(engine.enqueue_in_turn(Submission::new(canvas(1), &plan)));
    assert!(block_on(async { poll!(&mut patient) }).is_pending());
    engine.close();
    assert_eq!(block_on(patient).unwrap_err(), SubmitError::Stopped);
    let late = engine.submit(canvas(1), &plan);
    assert_eq!(late.unwrap_err(), SubmitError::Stopped);
    drop(forwards);
    for served in [running, queued] {
        assert!(finish(served).is_ok());
    }
    block_on(engine.stopped());
    assert!(!engine.is_running());
}

#[test]
fn dropping_the_engine_finishes_what_was_queued() {
    let engine = start(MockModel::new(), EngineConfig::default());
    let generations: Vec<_> = (1..20)
        .map(|gap| engine.submit(canvas(gap), &DecodePlan::default()).unwrap())
        .collect();
    drop(engine);
    for generation in generations {
        assert!(finish(generation).is_ok());
    }
}
