//! Log-probabilities that a step reports are those of the tokens that it commits.

use std::collections::HashMap;

use unmask::canvas::{Canvas, TokenId};
use unmask::engine::{Event, LogprobRequest, Submission};

use crate::support::engine;

/// The last step of a block commits the most probable tokens, which at this temperature are seldom the drawn ones.
#[test]
fn a_token_that_was_not_drawn_has_its_own_log_probability() {
    let engine = engine("diffusion_gemma");
    let spec = engine.spec();
    let mut plan = spec.default_plan.clone();
    plan.steps_per_block = Some(3);
    plan.sampling.set_temperature(4.0);
    let prompt: [TokenId; 4] = [10, 20, 30, 40];
    let canvas = Canvas::builder(engine.blank()).fixed(&prompt).gap(8);
    let canvas = spec.with_scratch(&plan, canvas.build().unwrap());
    let all: Vec<TokenId> = (0..spec.vocab_size as TokenId).collect();
    let slots = prompt.len()..canvas.len();
    let of: HashMap<_, _> = slots.map(|slot| (slot, all.clone().into())).collect();
    let mut generation = engine
        .enqueue(Submission {
            logprobs: Some(LogprobRequest { top: 0, of }),
            ..Submission::new(canvas, &plan)
        })
        .unwrap();
    let mut compared = 0;
    loop {
        match generation.next_blocking().unwrap() {
            Event::Step(report) => {
                assert_eq!(report.logprobs.len(), report.committed.len());
                for ((slot, logprobs), (committed, commit)) in
                    report.logprobs.iter().zip(&report.committed)
                {
                    assert_eq!(slot, committed);
                    let own = logprobs.of[commit.token as usize];
                    assert!((logprobs.token - own).abs() < 1e-5, "slot {slot}");
                    compared += 1;
                }
            }
            Event::Finished(..) => break,
            Event::Failed(error) => panic!("{error}"),
        }
    }
    assert!(compared >= 8);
}
