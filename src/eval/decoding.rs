//! Masked sequences denoised by the engine.

use std::collections::VecDeque;

use super::EvalError;
use super::spans::MaskedWindow;
use crate::canvas::Canvas;
use crate::decode::{DecodePlan, EarlyStop, Sampling};
use crate::engine::{Engine, Event, Generation, GenerationError};

/// Canvases that are submitted before the first is awaited.
const IN_FLIGHT: usize = 32;

/// Checks how many windows are denoised.
///
/// # Errors
/// [`EvalError::Setting`].
pub(super) fn check_windows(windows: usize) -> Result<(), EvalError> {
    match windows {
        0 => Err(EvalError::setting("decode_windows", 0, "at least 1")),
        _ => Ok(()),
    }
}

/// `plan` with the most probable tokens, no filters, and candidates ranked by their scores alone; guidance
/// stays. What fills the gaps is compared slot by slot, so that they keep their length and every slot is filled.
/// Random draws that are the sampler itself remain: scores that are random, slots that a reverse process masks
/// again or draws anew.
pub(super) fn greedy(plan: &DecodePlan) -> DecodePlan {
    DecodePlan {
        score_temperature: 0.0,
        revision: plan.revision.at_fixed_length(),
        early_stop: EarlyStop::Never,
        sampling: Sampling {
            guidance_scale: plan.sampling.guidance_scale,
            ..Sampling::default()
        },
        ..plan.clone()
    }
}

/// Denoises every window by `plan` with the window's own seed; each finished canvas with the number of its
/// forwards, in order.
pub(super) fn denoise(
    engine: &Engine,
    windows: &[MaskedWindow],
    plan: &DecodePlan,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<(Canvas, usize)>, EvalError> {
    let mut finished = Vec::new();
    let mut waiting: VecDeque<Generation> = VecDeque::new();
    let mut plan = plan.clone();
    for window in windows {
        if waiting.len() == IN_FLIGHT
            && let Some(generation) = waiting.pop_front()
        {
            finished.push(finish(generation)?);
            progress(1);
        }
        plan.sampling.seed = window.seed;
        waiting.push_back(engine.submit(window.canvas(engine.blank())?, &plan)?);
    }
    for generation in waiting {
        finished.push(finish(generation)?);
        progress(1);
    }
    Ok(finished)
}

fn finish(mut generation: Generation) -> Result<(Canvas, usize), EvalError> {
    loop {
        match generation.next_blocking() {
            Some(Event::Step(_)) => {}
            Some(Event::Finished(canvas, statistics)) => return Ok((canvas, statistics.nfe)),
            Some(Event::Failed(error)) => return Err(error.into()),
            None => return Err(GenerationError::Stopped.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_plan_keeps_the_sampler_and_drops_what_makes_its_choices_random() {
        let plan = DecodePlan {
            steps: Some(7),
            score_temperature: 0.4,
            sampling: Sampling {
                temperature: 0.9,
                top_k: Some(5),
                guidance_scale: 1.5,
                ..Sampling::default()
            },
            ..DecodePlan::default()
        };
        let greedy = greedy(&plan);
        assert_eq!((greedy.steps, greedy.score_temperature), (Some(7), 0.0));
        assert_eq!(greedy.sampling.guidance_scale, 1.5);
        assert_eq!(
            (greedy.sampling.temperature, greedy.sampling.top_k),
            (0.0, None)
        );
    }
}
