//! The engine: a queue, a worker thread that owns the model, and ragged denoise steps.
//!
//! It knows token ids only. Requests join and leave between steps; every step takes one batch made of
//! running sequences: as many as its rows allow, in turn, and of those that need the same keys and values, one
//! that computes them for the others.

mod cache;
mod error;
mod event;
mod failures;
mod phases;
mod queue;
mod reports;
mod row_params;
mod scheduler;
mod sequence;
mod status;
mod step;
mod submission;
mod twin;
mod warm_up;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::canvas::{Blank, Canvas, TokenId};
use crate::decode::{CachePolicy, DecodePlan, Decoder, PlanError};
use crate::models::{AttentionPattern, Corruption, Denoiser, ModelSpec, Parameterisation};

pub use cache::CacheScheme;
use cache::{CacheMemory, Room};
pub use error::{GenerationError, StartError, SubmitError};
pub use event::{Event, Statistics, StepReport};
pub use phases::Phases;
use queue::Queue;
use reports::{ReportReceiver, reports};
pub use row_params::LogprobRequest;
use row_params::SequenceRows;
use sequence::Sequence;
pub use status::{EngineStatus, StepSummary};
pub use submission::Submission;
use worker::{Counters, Worker, panic_message};

/// Limits of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most sequences denoised at a time.
    pub max_sequences: usize,
    /// Most rows a step, and so the most slots of a canvas. A sequence takes as many rows as it recomputes
    /// slots, twice that with guidance; a guided one that needs more by itself runs alone.
    pub max_rows: usize,
    /// Rows after which no more sequences are added to a step, so that short canvases do not wait for
    /// long ones; `None` is 512 on a CPU, where a step's time grows with its rows, and `max_rows` elsewhere.
    pub step_rows: Option<usize>,
    /// Most rows of one sequence in a step that only prepares its cache: longer prompts are split.
    pub prefill_rows: usize,
    /// Bytes of memory for cached keys and values. Taken at the start, less if as much can never be used.
    pub kv_memory: usize,
    /// Most requests that wait for their first step.
    pub max_queue: usize,
    /// Whether what a slow reader has not read becomes one report, so that no more waits than the canvas has
    /// slots for; otherwise every step is reported, however many wait.
    pub coalesces: bool,
    /// Whether some small canvases are denoised before the first request, which would otherwise wait until the device has
    /// compiled its kernels; `None` is on every device but a CPU, which has nothing to compile. Requests do not notice:
    /// it counts as no step, and leaves nothing cached.
    pub warms_up: Option<bool>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_sequences: 64,
            max_rows: 4096,
            step_rows: None,
            prefill_rows: 256,
            kv_memory: 1 << 30,
            max_queue: 256,
            coalesces: true,
            warms_up: None,
        }
    }
}

impl EngineConfig {
    /// For one caller, whose canvases may be as long as the model allows, and who is to see every step.
    pub fn unshared() -> Self {
        Self {
            max_rows: usize::MAX,
            coalesces: false,
            ..Self::default()
        }
    }
}

/// Rows of a step on a CPU after which more only take longer: the matrix rate is reached.
const CPU_STEP_ROWS: usize = 512;

/// A running generation. Dropping it removes its sequence before the sequence's next step.
#[derive(Debug)]
pub struct Generation {
    reports: ReportReceiver,
}

impl Generation {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.reports.next().await
    }

    /// The next event, if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.reports.try_next()
    }

    /// The next event, for callers outside an async runtime; `None` after the last.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.reports.next_blocking()
    }
}

/// A handle to the worker thread that owns a model. Dropping it lets running and queued generations
/// finish and then joins the thread, unless it is [abandoned](Engine::abandon).
pub struct Engine {
    spec: ModelSpec,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    row_limit: Option<usize>,
    max_queue: usize,
    kv_slots: usize,
    kv_block: usize,
    batch_invariant: bool,
    coalesces: bool,
    worker: Option<JoinHandle<()>>,
    /// Nothing is ever sent: it closes when the worker ends.
    ended: watch::Receiver<()>,
    is_abandoned: AtomicBool,
}

impl Engine {
    /// Starts a worker thread that owns `model`, once the device is warm ([`EngineConfig::warms_up`]).
    ///
    /// # Errors
    /// If the engine cannot denoise with such a network, the device has no room for the keys and values to be cached or
    /// cannot make them, the device cannot denoise or has no memory left to, or the system gives no thread.
    pub fn start(model: Box<dyn Denoiser>, config: EngineConfig) -> Result<Self, StartError> {
        let mut spec = model.spec().clone();
        let row_limit = (spec.canvas_limit() > config.max_rows).then_some(config.max_rows);
        spec.max_canvas = spec.max_canvas.min(config.max_rows);
        if let Some(sliding) = &mut spec.sliding_window {
            sliding.max_canvas = sliding.max_canvas.min(config.max_rows);
        }
        check_served(&spec)?;
        // Every sequence with the longest canvas, its twin, and a first block that is not whole.
        let longest = 2 * (spec.canvas_limit() + 2 * cache::block_slots(&spec));
        let mut memory = CacheMemory::new(
            &*model,
            config.kv_memory,
            config.max_sequences.max(1).saturating_mul(longest),
        )?;
        let is_cpu = model.device().is_cpu();
        let config = EngineConfig {
            step_rows: config.step_rows.or(is_cpu.then_some(CPU_STEP_ROWS)),
            ..config
        };
        let counters = Arc::new(Counters::new());
        let queue = Arc::new(Queue::new(config.max_queue));
        let (lives, ended) = watch::channel(());
        let mut engine = Self {
            spec,
            queue: queue.clone(),
            counters: counters.clone(),
            row_limit,
            max_queue: config.max_queue,
            kv_slots: memory.slots(),
            kv_block: memory.block_slots(),
            batch_invariant: model.is_batch_invariant(),
            coalesces: config.coalesces,
            worker: None,
            ended,
            is_abandoned: AtomicBool::new(false),
        };
        let mut model = model;
        if config.warms_up.unwrap_or(!is_cpu) {
            let warm_up;
            (model, memory, warm_up) = warm_up::warm_up(&engine, model, memory, config)?;
            tracing::info!(
                canvases = warm_up.canvases,
                steps = warm_up.steps,
                seconds = warm_up.took.as_secs_f64(),
                "warmed up"
            );
        }
        let worker = Worker::new(model, memory, config, queue, counters);
        let worker = std::thread::Builder::new()
            .name("unmask-engine".into())
            .spawn(move || {
                let _lives = lives;
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(worker.run()))) {
                    let reason = panic_message(&*panic);
                    tracing::error!(
                        reason,
                        "the engine has stopped: nothing is denoised any more"
                    );
                }
            })?;
        engine.worker = Some(worker);
        Ok(engine)
    }

    /// The model's conventions, and its limits as far as the engine's are not lower.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The most slots of a canvas by the rows of a step ([`EngineConfig::max_rows`]), where the model itself takes more.
    pub fn row_limit(&self) -> Option<usize> {
        self.row_limit
    }

    /// The most sequences that wait for their first step ([`EngineConfig::max_queue`]).
    pub fn max_queue(&self) -> usize {
        self.max_queue
    }

    /// What the gaps of the canvases that the engine denoises begin as.
    pub fn blank(&self) -> Blank {
        self.spec.blank()
    }

    /// The mask token of these canvases; none for a model of the uniform process.
    pub fn mask_token(&self) -> Option<TokenId> {
        self.spec.mask_token()
    }

    /// Queues a canvas to be denoised by `plan`: [`Engine::enqueue`] of no more than that.
    ///
    /// # Errors
    /// Those of [`Engine::enqueue`].
    pub fn submit(&self, canvas: Canvas, plan: &DecodePlan) -> Result<Generation, SubmitError> {
        self.enqueue(Submission::new(canvas, plan))
    }

    /// Queues a canvas to be denoised.
    ///
    /// # Errors
    /// At once, if the canvas, the plan or the constraint does not fit the model, the queue is full, or the worker
    /// has stopped.
    pub fn enqueue(&self, submission: Submission<'_>) -> Result<Generation, SubmitError> {
        submission.check(&self.spec)?;
        // A refusal is to cost little.
        self.queue.check_room()?;
        let (sequence, generation) = self.lay_out(submission)?;
        self.awake();
        self.queue.push(sequence)?;
        Ok(generation)
    }

    /// As [`Engine::enqueue`], but where the queue is full waits for a place. Those who wait leave half of the queue to
    /// those who do not.
    ///
    /// # Errors
    /// Those of [`Engine::enqueue`] but for a full queue.
    pub async fn enqueue_in_turn(
        &self,
        submission: Submission<'_>,
    ) -> Result<Generation, SubmitError> {
        submission.check(&self.spec)?;
        let (sequence, generation) = self.lay_out(submission)?;
        self.awake();
        self.queue.push_in_turn(sequence).await?;
        Ok(generation)
    }

    /// An idle worker, which begins with what is queued now, is not a stalled one.
    fn awake(&self) {
        if self.status().running == 0 {
            self.counters.progress();
        }
    }

    fn lay_out(&self, submission: Submission<'_>) -> Result<(Sequence, Generation), SubmitError> {
        let Submission {
            canvas,
            plan,
            logprobs,
            constraint,
        } = submission;
        let canvas = plan.noised(canvas);
        let scheme = self.cache_scheme(plan)?;
        let decoder = submission::decoder(&self.spec, &canvas, plan)?;
        let scheme = self.affordable_scheme(scheme, plan, &canvas, &decoder)?;
        let (sender, receiver) = reports(self.coalesces.then_some(canvas.len()));
        let row_params = SequenceRows::new(plan, &canvas, &self.spec, logprobs);
        let sequence = Sequence {
            canvas,
            decoder,
            constraint,
            scored: None,
            self_conditioning: None,
            row_params,
            cache: (scheme, plan.cache),
            window: self.spec.window(plan),
            reports: sender,
            submitted: Instant::now(),
            started: None,
            nfe: 0,
        };
        Ok((sequence, Generation { reports: receiver }))
    }

    /// Whether a request with a seed gives the same answer whatever else is denoised at the same time: so of
    /// weights in f32 or q8_0 on a CPU. Elsewhere the order of a sum may depend on the number of rows.
    pub fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// What is cached while a canvas is denoised by `plan`, where there is memory for it.
    ///
    /// # Errors
    /// If the model does not allow the plan's policy.
    pub fn cache_scheme(&self, plan: &DecodePlan) -> Result<CacheScheme, PlanError> {
        match plan.sampling.negative_prompt {
            // Its slots are not those of the canvas.
            Some(_) => Ok(CacheScheme::None),
            None => CacheScheme::of(plan.cache, self.spec.attention),
        }
    }

    /// `scheme`, or where there is no memory for it and the policy is `auto`, recomputing everything.
    fn affordable_scheme(
        &self,
        scheme: CacheScheme,
        plan: &DecodePlan,
        canvas: &Canvas,
        decoder: &Decoder,
    ) -> Result<CacheScheme, SubmitError> {
        let is_guided = plan.sampling.guidance_scale > 0.0;
        let room = Room::of(scheme, &self.spec, canvas, decoder, is_guided);
        let is_encoded = matches!(self.spec.attention, AttentionPattern::EncodedBlocks { .. });
        // Without memory nothing is cached, not even of a canvas whose one block leaves nothing to keep; an encoder
        // that has nothing to read needs none.
        let fewest = usize::from(!is_encoded && scheme != CacheScheme::None);
        let needed = self.kv_block * room.total_blocks().max(fewest);
        if needed <= self.kv_slots {
            return Ok(scheme);
        }
        let limit = self.kv_slots;
        match plan.cache.policy {
            _ if is_encoded => Err(SubmitError::CannotEncode { needed, limit }),
            CachePolicy::Auto => Ok(CacheScheme::None),
            _ => Err(SubmitError::CacheTooLarge { needed, limit }),
        }
    }

    /// Calls `observer` on the worker thread after every denoise step.
    pub fn on_step(&self, observer: impl Fn(&StepSummary) + Send + Sync + 'static) {
        self.counters.observe(Box::new(observer));
    }

    /// Whether the worker thread lives.
    pub fn is_running(&self) -> bool {
        self.ended.has_changed().is_ok()
    }

    /// Waits until the worker thread has ended: after [`Engine::close`], once all that was queued is finished, or for a
    /// defect, of which an error is logged. It does not start again.
    pub async fn stopped(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Takes no more requests; those that run or wait are still served, and then the worker thread ends.
    pub fn close(&self) {
        self.queue.close();
    }

    /// As [`Engine::close`]; dropping the engine no longer waits for what runs or waits, of which a step may never end.
    /// The worker thread is left to itself.
    pub fn abandon(&self) {
        self.close();
        self.is_abandoned.store(true, Ordering::Relaxed);
    }

    /// How long the sequences that run or wait have waited for a step to end; `None` if there are none.
    pub fn stalled_for(&self) -> Option<Duration> {
        let since_progress = self.counters.since_progress();
        let status = self.status();
        (status.running + status.queued > 0).then_some(since_progress)
    }

    /// What the engine is doing.
    pub fn status(&self) -> EngineStatus {
        self.counters.status(self.queue.len(), self.kv_slots)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
        if let Some(worker) = self.worker.take()
            && !*self.is_abandoned.get_mut()
            && worker.join().is_err()
        {
            tracing::error!("the engine's worker thread panicked");
        }
    }
}

/// Checks that the engine can denoise with a model.
fn check_served(spec: &ModelSpec) -> Result<(), StartError> {
    let unsupported = |reason| StartError::Unsupported {
        family: spec.family,
        reason,
    };
    if spec.noise_conditioned && spec.noise_schedule.is_none() {
        return Err(unsupported(
            "it has to be told the noise level, and its noise schedule is not known",
        ));
    }
    if spec.corruption != Corruption::Uniform {
        return Ok(());
    }
    let is_denoised = match spec.parameterisation {
        Parameterisation::Logits => !spec.noise_conditioned,
        Parameterisation::LogScore => true,
        Parameterisation::Subs => false,
    };
    if !is_denoised {
        return Err(unsupported(
            "it was trained on the uniform process and has no mask token to fill, and what it gives are neither \
             log-scores nor logits of the clean token at any noise level, by which random tokens are denoised",
        ));
    }
    if matches!(spec.attention, AttentionPattern::BlockCausal { .. }) {
        return Err(unsupported(
            "it was trained on the uniform process, and its slots do not see the whole canvas",
        ));
    }
    Ok(())
}
