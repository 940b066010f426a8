//! Single forwards: the log-probabilities of given tokens in the masked slots of given canvases.
//!
//! A probe goes through the engine's queue like any other canvas, as a plan of one step, and shares its
//! batches: however many are asked for, no step takes longer than the engine's limit on rows allows, and
//! what else is being denoised goes on beside them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};

use super::error::ApiError;
use crate::canvas::{Canvas, Commit, TokenId};
use crate::decode::{DecodePlan, Sampling};
use crate::engine::{Engine, Event, GenerationError, LogprobRequest, Submission, SubmitError};

/// Probes of a request that are queued at a time.
const IN_FLIGHT: usize = 32;

/// How long a request waits before it tries to queue its next probe again.
const RETRY: Duration = Duration::from_millis(5);

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

/// Probes that are made when their turn comes.
pub(super) type Probes<'a> = Box<dyn Iterator<Item = Result<Probe, ApiError>> + Send + 'a>;

/// What each of `probes` finds, in their order. They are taken one by one as their turn comes, so that few
/// exist at a time. Dropping the stream drops those that still run.
///
/// The first is refused if the queue is full; later ones wait for a place.
pub(super) fn run<'a>(
    engine: Arc<Engine>,
    probes: Probes<'a>,
    guidance_scale: f32,
) -> impl Stream<Item = Result<Answer, ApiError>> + Send + use<'a> {
    let plan = Arc::new(DecodePlan {
        steps: Some(1),
        sampling: Sampling {
            guidance_scale,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    });
    stream::iter(probes.enumerate())
        .map(move |(index, probe)| one(engine.clone(), plan.clone(), probe, index > 0))
        .buffered(IN_FLIGHT)
}

async fn one(
    engine: Arc<Engine>,
    plan: Arc<DecodePlan>,
    probe: Result<Probe, ApiError>,
    waits: bool,
) -> Result<Answer, ApiError> {
    let probe = probe?;
    let asked = LogprobRequest {
        top: 0,
        of: probe.of,
    };
    let mut generation = loop {
        let submission = Submission {
            logprobs: Some(asked.clone()),
            ..Submission::new(probe.canvas.clone(), &plan)
        };
        match engine.enqueue(submission) {
            Err(SubmitError::QueueFull) if waits => tokio::time::sleep(RETRY).await,
            submitted => break submitted?,
        }
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
