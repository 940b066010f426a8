//! Single forwards: the log-probabilities of given tokens in the masked slots of given canvases.
//!
//! A probe goes through the engine's queue like any other canvas, as a plan of one step, and shares its
//! batches: however many are asked for, no step takes longer than the engine's limit on rows allows, and
//! what else is being denoised goes on beside them.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::{BoxStream, Stream, StreamExt};

use super::error::ApiError;
use crate::canvas::{Canvas, Commit, TokenId};
use crate::decode::{DecodePlan, Sampling};
use crate::engine::{Engine, Event, GenerationError, LogprobRequest, Submission};

/// The most probes of a request that are queued at a time.
const MOST_IN_FLIGHT: usize = 32;

/// The slots of those that are queued at a time, which are enough to fill the steps that come next.
const SLOTS_IN_FLIGHT: usize = 16_384;

/// One forward.
pub(super) struct Probe {
    /// What the network sees.
    pub canvas: Canvas,
    /// The tokens whose log-probabilities are asked for, by masked slot.
    pub of: HashMap<usize, Arc<[TokenId]>>,
}

/// A token that is taken as given in a slot of a gap.
pub(super) fn given(token: TokenId) -> Commit {
    Commit {
        token,
        probability: 1.0,
        score: 1.0,
        step: 0,
    }
}

/// The log-probabilities that a probe asked for, by slot, in the order of its tokens.
pub(super) type Answer = HashMap<usize, Vec<f32>>;

/// How many probes of a request are queued at a time where the longest has `slots` slots. They are held in memory.
pub(super) fn in_flight(slots: usize) -> usize {
    (SLOTS_IN_FLIGHT / slots.max(1)).clamp(2, MOST_IN_FLIGHT)
}

/// What each of `probes` finds, in their order, with what comes with each. They are taken as their turn comes, so that
/// no more than `in_flight` exist at a time. Dropping the stream drops those that still run.
///
/// The first is refused if the queue is full; later ones wait for a place.
pub(super) fn run<'a, T: Send + 'a>(
    engine: Arc<Engine>,
    probes: BoxStream<'a, Result<(Probe, T), ApiError>>,
    in_flight: usize,
    guidance_scale: f32,
) -> impl Stream<Item = Result<(Answer, T), ApiError>> + Send + use<'a, T> {
    let plan = Arc::new(DecodePlan {
        steps: Some(1),
        sampling: Sampling {
            guidance_scale,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    });
    probes
        .enumerate()
        .map(move |(index, probe)| {
            let (engine, plan) = (engine.clone(), plan.clone());
            async move {
                let (probe, with) = probe?;
                let answer = one(&engine, &plan, probe, index > 0).await?;
                Ok::<_, ApiError>((answer, with))
            }
        })
        .buffered(in_flight)
}

async fn one(
    engine: &Engine,
    plan: &DecodePlan,
    probe: Probe,
    waits: bool,
) -> Result<Answer, ApiError> {
    let submission = Submission {
        logprobs: Some(LogprobRequest {
            top: 0,
            of: probe.of,
        }),
        ..Submission::new(probe.canvas, plan)
    };
    let mut generation = match waits {
        true => engine.enqueue_in_turn(submission).await?,
        false => engine.enqueue(submission)?,
    };
    match generation.next().await {
        Some(Event::Step(report)) => Ok(report
            .logprobs
            .into_iter()
            .map(|(slot, logprobs)| (slot, logprobs.of))
            .collect()),
        Some(Event::Failed(error)) => Err(error.into()),
        Some(Event::Finished(..)) | None => Err(GenerationError::Stopped.into()),
    }
}
