//! Masked sequences denoised by the engine.

use std::collections::VecDeque;

use super::scorer::MaskedTarget;
use super::{EvalError, Target};
use crate::canvas::Canvas;
use crate::decode::{DecodePlan, Sampling};
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

/// `plan` without randomness: the most probable tokens, no filters; guidance stays.
pub(super) fn greedy(plan: &DecodePlan) -> DecodePlan {
    DecodePlan {
        sampling: Sampling {
            guidance_scale: plan.sampling.guidance_scale,
            ..Sampling::default()
        },
        ..plan.clone()
    }
}

/// Denoises every canvas by `plan`; each finished canvas with the number of its forwards, in order.
pub(super) fn denoise(
    engine: &Engine,
    canvases: impl IntoIterator<Item = Result<Canvas, EvalError>>,
    plan: &DecodePlan,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<(Canvas, usize)>, EvalError> {
    let mut finished = Vec::new();
    let mut waiting: VecDeque<Generation> = VecDeque::new();
    for canvas in canvases {
        if waiting.len() == IN_FLIGHT
            && let Some(generation) = waiting.pop_front()
        {
            finished.push(finish(generation)?);
            progress(1);
        }
        waiting.push_back(engine.submit(canvas?, plan)?);
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

/// Whether greedy denoising of all scored slots of `target`, one a step in order of confidence, gives
/// exactly its tokens (`suffix_greedy_prediction` of ML-GSAI/LLaDA's eval_llada.py, but the mask token
/// is never predicted).
///
/// # Errors
/// If the target does not fit the model, or the engine fails.
pub fn is_greedy(engine: &Engine, target: &Target, guidance_scale: f32) -> Result<bool, EvalError> {
    let spec = engine.spec();
    target.check(spec)?;
    let sequence = MaskedTarget {
        target,
        masked: &target.slots,
        seed: 0,
    };
    let canvas = sequence.canvas(engine.blank())?;
    let mut plan = DecodePlan::default();
    plan.sampling.guidance_scale = guidance_scale;
    let finished = denoise(engine, [Ok(canvas)], &plan, &mut |_| ())?;
    Ok(finished
        .iter()
        .all(|(canvas, _)| canvas.tokens().eq(target.tokens.iter().copied())))
}
