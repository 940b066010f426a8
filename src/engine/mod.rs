//! The engine: a queue, a worker thread that owns the model, and ragged denoise steps.
//!
//! It knows token ids only. Requests join and leave between steps; every step takes one batch made of
//! all running sequences.

mod error;
mod queue;
mod sequence;
mod step;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::canvas::{Canvas, Commit, TokenId};
use crate::decode::{Budget, DecodePlan, Decoder, MAX_STEPS, PlanError};
use crate::models::{AttentionPattern, Corruption, Denoiser, ModelSpec, Parameterisation};

pub use error::{GenerationError, StartError, SubmitError};
use queue::Queue;
use sequence::{MAX_PENDING, Sequence};
use worker::{Counters, Worker};

/// Limits of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most sequences denoised at a time.
    pub max_sequences: usize,
    /// Most rows a denoise step, and so the most slots of a canvas. A sequence takes as many rows as its
    /// canvas has slots, twice that with guidance; a guided one that needs more by itself runs alone.
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
    /// Network evaluations (NFE); with guidance, the canvas and its unconditional twin count as one. Fewer
    /// than steps where the noise schedule changed nothing in a step.
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
    /// Nothing is left to do: every gap is filled, or the plan stopped early. Nothing follows.
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
    /// Slots committed or edited in them.
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
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    worker: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts a worker thread that owns `model`.
    ///
    /// # Errors
    /// If the engine cannot denoise with such a network, or the system gives no thread.
    pub fn start(model: Box<dyn Denoiser>, config: EngineConfig) -> Result<Self, StartError> {
        let mut spec = model.spec().clone();
        spec.max_canvas = spec.max_canvas.min(config.max_rows);
        let mask_token = served_mask(&spec)?;
        let counters = Arc::new(Counters::default());
        let queue = Arc::new(Queue::new(config.max_queue));
        let worker = Worker::new(model, config, queue.clone(), counters.clone());
        let worker = std::thread::Builder::new()
            .name("unmask-engine".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            spec,
            mask_token,
            queue,
            counters,
            worker: Some(worker),
        })
    }

    /// The model's conventions, and its limits as far as the engine's are not lower.
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
        if matches!(self.spec.attention, AttentionPattern::BlockCausal { .. })
            && let Some(gap) = canvas
                .gaps()
                .iter()
                .position(|gap| (gap.end..canvas.len()).any(|slot| canvas.is_fixed(slot)))
        {
            return Err(SubmitError::CannotSeeAhead {
                gap,
                family: self.spec.family,
            });
        }
        check_noise(&self.spec, plan)?;
        let decoder = Decoder::new(plan, &canvas, &self.spec.stop_tokens)?;
        let most = MAX_STEPS.max(canvas.len());
        if decoder.step_limit() > most {
            return Err(SubmitError::Plan(PlanError::OutOfRange {
                field: "steps",
                given: format!(
                    "up to {}, all blocks and post steps together",
                    decoder.step_limit()
                ),
                allowed: "at most 10000, or one a slot",
            }));
        }
        let pending = match plan.is_revising() {
            true => decoder.step_limit().min(MAX_PENDING),
            false => decoder.step_limit(),
        };
        // One more place is for the end.
        let (events, receiver) = mpsc::channel(pending + 1);
        let sequence = Sequence {
            canvas,
            decoder,
            sampling: plan.sampling,
            events,
            submitted: Instant::now(),
            started: None,
            nfe: 0,
        };
        self.queue.push(sequence)?;
        Ok(Generation { events: receiver })
    }

    /// What the engine is doing.
    pub fn status(&self) -> EngineStatus {
        self.counters.status(self.queue.len())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the engine's worker thread panicked");
        }
    }
}

/// Checks that `plan` tells a network what it has to know of the noise, and reads its output as what it is.
fn check_noise(spec: &ModelSpec, plan: &DecodePlan) -> Result<(), PlanError> {
    let invalid = |field, reason: &str| {
        Err(PlanError::Invalid {
            field,
            reason: reason.to_owned(),
        })
    };
    let is_analytic = matches!(plan.budget, Budget::Analytic { .. });
    match spec.parameterisation {
        Parameterisation::LogScore if !is_analytic => {
            return invalid(
                "budget",
                "this model gives log-scores, by which only `analytic` (preset sedd-analytic) can denoise",
            );
        }
        Parameterisation::LogScore if plan.sampling.guidance_scale > 0.0 => {
            return invalid("guidance_scale", "log-scores cannot be guided; allowed: 0");
        }
        Parameterisation::Logits | Parameterisation::Subs if is_analytic => {
            return invalid(
                "budget",
                "`analytic` needs a model of log-scores, and this one gives logits; use `ancestral`",
            );
        }
        _ => {}
    }
    if spec.noise_conditioned && plan.budget.last_time().is_none() {
        return invalid(
            "budget",
            "this model is told the noise level, which only budgets of a noise schedule have",
        );
    }
    if spec.noise_conditioned && plan.block_length.is_some() {
        return invalid(
            "block_length",
            "this model is told the noise level, which is that of the whole canvas; leave it out",
        );
    }
    Ok(())
}

/// The mask token of a model that the engine can denoise with: one that fills masked slots.
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
    if spec.noise_conditioned && spec.noise_schedule.is_none() {
        return Err(unsupported(
            "it has to be told the noise level, and its noise schedule is not known",
        ));
    }
    Ok(mask_token)
}
