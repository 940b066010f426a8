//! How much of a step a CUDA device has nothing to do: its launches come late, or the host is at work.
//!
//! The first step of a completion is looked at, which computes all of its slots and scores those of the gap: the time
//! that it takes in the engine, against the time that the device is busy with the same work when the host is far ahead.

use std::sync::{Arc, Mutex, PoisonError};

use unmask::canvas::TokenId;
use unmask::engine::StepSummary;
use unmask::models::{AttentionPattern, Denoiser};

use super::Setup;
use super::report::{Idle, Spread};

/// Milliseconds that the device is busy with a first step, or why that is not measured.
pub type Busy = Result<Vec<f64>, &'static str>;

/// Measures `model` on the canvas of a completion, some `tries`; `None` on a CPU.
pub fn busy(
    model: &dyn Denoiser,
    prompt: &[TokenId],
    gap: usize,
    tries: usize,
) -> anyhow::Result<Option<Busy>> {
    if !model.device().is_cuda() {
        return Ok(None);
    }
    let spec = model.spec();
    let mask = match spec.mask_token() {
        Some(mask)
            if spec.attention == AttentionPattern::Bidirectional && !spec.noise_conditioned =>
        {
            mask
        }
        _ => {
            return Ok(Some(Err(
                "it is for networks that are told no noise level, on masks, where every slot sees every other",
            )));
        }
    };
    if prompt.len() + gap > spec.canvas_limit() {
        // The engine refuses it, and says how long it may be.
        return Ok(Some(Err("the canvas is too long for the model")));
    }
    let canvas = [prompt, &vec![mask; gap]].concat();
    let seconds = seconds(model, &canvas, gap, tries)?;
    let milliseconds = |seconds: Vec<f64>| seconds.iter().map(|seconds| seconds * 1e3).collect();
    Ok(Some(seconds.map(milliseconds).ok_or(
        "the device had done what lay before the step when the host had launched it",
    )))
}

#[cfg(feature = "cuda")]
use super::super::device_time::of_step as seconds;

/// There is no CUDA device.
#[cfg(not(feature = "cuda"))]
fn seconds(
    _: &dyn Denoiser,
    _: &[TokenId],
    _: usize,
    _: usize,
) -> anyhow::Result<Option<Vec<f64>>> {
    Ok(None)
}

/// Milliseconds of the engine's steps of the kind that [`busy`] measures.
pub struct FirstSteps(Arc<Mutex<Vec<f64>>>);

impl FirstSteps {
    /// Records them from now on.
    pub fn record(setup: &Setup) -> Self {
        let (rows, scored) = (setup.prompt_ids.len() + setup.gap, setup.gap);
        let steps = Arc::<Mutex<Vec<f64>>>::default();
        let record = steps.clone();
        setup.engine.on_step(move |step: &StepSummary| {
            if (step.rows, step.scored, step.kept) == (rows, scored, 0) {
                let mut steps = record.lock().unwrap_or_else(PoisonError::into_inner);
                steps.push(step.phases.total().as_secs_f64() * 1e3);
            }
        });
        Self(steps)
    }

    /// The part of those up to now in which a device that is `busy` for so long has nothing to do.
    pub fn idle(&self, busy: Busy) -> Idle {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The first completion warms up.
        let steps = steps.get(1..).unwrap_or_default().to_vec();
        match busy {
            Ok(_) if steps.is_empty() => Idle::NotMeasured {
                not_measured: "by the model's plan no step computes all slots and scores the gap, without keeping \
                               keys and values",
            },
            Ok(busy) => Idle::of(Spread::of(steps), Spread::of(busy)),
            Err(not_measured) => Idle::NotMeasured { not_measured },
        }
    }
}
