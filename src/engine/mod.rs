//! The engine: a queue, a worker thread that owns the model, and ragged denoise steps.
//!
//! It knows token ids only. Requests join and leave between steps; every step takes one batch made of
//! all running sequences.

mod error;
mod sequence;
mod step;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::canvas::{Canvas, Commit, TokenId};
use crate::decode::{DecodePlan, Decoder, PlanError};
use crate::models::{AttentionPattern, Corruption, Denoiser, ModelSpec, Parameterisation};

pub use error::{GenerationError, StartError, SubmitError};
use sequence::Sequence;
use worker::{Counters, Worker};

/// Limits of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most sequences denoised at a time.
    pub max_sequences: usize,
    /// Most rows a denoise step. A sequence takes as many rows as its canvas has slots, twice that
    /// with guidance; one that needs more than this by itself still runs, alone.
    pub max_rows: usize,
    /// Most requests that wait for their first step.
    pub max_queue: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_sequences: 64,
            max_rows: 4096,
            max_queue: 256,
        }
    }
}

/// What one denoise step changed on a canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step, from 1.
    pub step: usize,
    /// The slots that were committed or edited, in slot order.
    pub committed: Vec<(usize, Commit)>,
    /// The slots that were masked again after that, in slot order.
    pub remasked: Vec<usize>,
    /// What the generation took so far, this step included.
    pub statistics: Statistics,
}

/// What a generation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Denoise steps of the plan.
    pub steps: usize,
    /// Network evaluations (NFE), of the canvas and with guidance of its unconditional twin: fewer than
    /// steps where the noise schedule changes nothing in a step.
    pub nfe: usize,
    /// From submission to the first step.
    pub queued: Duration,
    /// From the beginning of the first step to the end of the last.
    pub denoising: Duration,
}

/// What a generation reports.
#[derive(Debug)]
pub enum Event {
    /// A step was taken.
    Step(StepReport),
    /// Every gap is filled. Nothing follows.
    Finished(Canvas, Statistics),
    /// The generation ended early. Nothing follows.
    Failed(GenerationError),
}

/// A running generation. Dropping it removes its sequence before the sequence's next step.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
}

impl Generation {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event, for callers outside an async runtime; `None` after the last.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

/// What an engine is doing, and has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStatus {
    /// Requests that wait for their first step.
    pub queued: usize,
    /// Sequences being denoised.
    pub running: usize,
    /// Denoise steps taken; each is one batch.
    pub steps: u64,
    /// Rows computed in them.
    pub rows: u64,
    /// Slots committed in them.
    pub committed: u64,
    /// Time spent in them.
    pub busy: Duration,
    /// The part of `busy` spent in the model.
    pub model: Duration,
}

/// A handle to the worker thread that owns a model. Dropping it lets running and queued generations
/// finish and then joins the thread.
pub struct Engine {
    spec: ModelSpec,
    mask_token: TokenId,
    queue: Option<SyncSender<Sequence>>,
    counters: Arc<Counters>,
    worker: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts a worker thread that owns `model`.
    ///
    /// # Errors
    /// If the engine cannot denoise with such a network, or the system gives no thread.
    pub fn start(model: Box<dyn Denoiser>, config: EngineConfig) -> Result<Self, StartError> {
        let spec = model.spec().clone();
        let mask_token = served_mask(&spec)?;
        let counters = Arc::new(Counters::default());
        let (queue, requests) = sync_channel(config.max_queue);
        let worker = Worker::new(model, config, requests, counters.clone());
        let worker = std::thread::Builder::new()
            .name("unmask-engine".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            spec,
            mask_token,
            queue: Some(queue),
            counters,
            worker: Some(worker),
        })
    }

    /// The model's conventions and limits.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The mask token of the canvases that the engine denoises.
    pub fn mask_token(&self) -> TokenId {
        self.mask_token
    }

    /// Queues a canvas to be denoised by `plan`.
    ///
    /// # Errors
    /// At once, if the canvas or the plan does not fit the model, the queue is full, or the worker
    /// has stopped.
    pub fn submit(&self, canvas: Canvas, plan: &DecodePlan) -> Result<Generation, SubmitError> {
        if canvas.len() > self.spec.max_canvas {
            return Err(SubmitError::CanvasTooLong {
                length: canvas.len(),
                limit: self.spec.max_canvas,
            });
        }
        if canvas.mask() != self.mask_token {
            return Err(SubmitError::MaskToken {
                given: canvas.mask(),
                model: self.mask_token,
            });
        }
        if let Some(token) = canvas
            .tokens()
            .find(|token| *token as usize >= self.spec.vocab_size)
        {
            return Err(SubmitError::UnknownToken {
                token,
                vocab_size: self.spec.vocab_size,
            });
        }
        if let AttentionPattern::BlockCausal { block_length } = self.spec.attention
            && plan.block_length != Some(block_length)
        {
            return Err(SubmitError::Plan(PlanError::Invalid {
                field: "block_length",
                reason: format!(
                    "this model denoises blocks of {block_length} slots and no others; allowed: \
                     {block_length}"
                ),
            }));
        }
        let decoder = Decoder::new(plan, &canvas, &self.spec.stop_tokens)?;
        // Room for every event that there can be, so that the worker never waits for a reader.
        let (events, receiver) = mpsc::channel(decoder.step_limit().saturating_add(1));
        let sequence = Sequence {
            canvas,
            decoder,
            sampling: plan.sampling,
            events,
            submitted: Instant::now(),
            started: None,
            nfe: 0,
        };
        let queue = self.queue.as_ref().ok_or(SubmitError::Stopped)?;
        self.counters.queued.fetch_add(1, Ordering::Relaxed);
        queue.try_send(sequence).map_err(|error| {
            self.counters.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => SubmitError::QueueFull,
                TrySendError::Disconnected(_) => SubmitError::Stopped,
            }
        })?;
        Ok(Generation { events: receiver })
    }

    /// What the engine is doing.
    pub fn status(&self) -> EngineStatus {
        self.counters.status()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the engine's worker thread panicked");
        }
    }
}

/// The mask token of a model that the engine can denoise with: one that fills masked slots from logits
/// of the clean token, without being told the noise level.
fn served_mask(spec: &ModelSpec) -> Result<TokenId, StartError> {
    let unsupported = |reason| StartError::Unsupported {
        family: spec.family,
        reason,
    };
    let Corruption::Absorbing { mask_token } = spec.corruption else {
        return Err(unsupported(
            "it was trained on the uniform process and has no mask token to fill",
        ));
    };
    match spec.parameterisation {
        Parameterisation::Logits | Parameterisation::Subs => {}
        Parameterisation::LogScore => {
            return Err(unsupported("its output is a log-score, not logits"));
        }
    }
    if spec.noise_conditioned {
        return Err(unsupported("it has to be told the noise level"));
    }
    Ok(mask_token)
}
