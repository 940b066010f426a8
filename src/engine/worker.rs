//! The worker thread: admits sequences, steps them, retires them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::sequence::Sequence;
use super::step::{StepCost, step};
use super::{EngineConfig, EngineStatus, Event, GenerationError, StepSummary};
use crate::models::Denoiser;

/// Told of every denoise step.
pub(super) type Observer = Box<dyn Fn(StepSummary) + Send + Sync>;

/// What the worker counts for others to read.
pub(super) struct Counters {
    started: Instant,
    /// When the worker last went on, in nanoseconds since `started`.
    progress_nanos: AtomicU64,
    observers: RwLock<Vec<Observer>>,
    running: AtomicUsize,
    steps: AtomicU64,
    rows: AtomicU64,
    committed: AtomicU64,
    busy_nanos: AtomicU64,
    model_nanos: AtomicU64,
}

impl Counters {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            progress_nanos: AtomicU64::new(0),
            observers: RwLock::default(),
            running: AtomicUsize::new(0),
            steps: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            model_nanos: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, observer: Observer) {
        let mut observers = self
            .observers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        observers.push(observer);
    }

    /// Notes that the worker goes on.
    pub fn progress(&self) {
        let now = self.started.elapsed().as_nanos() as u64;
        self.progress_nanos.store(now, Ordering::Relaxed);
    }

    /// Since when it has not.
    pub fn since_progress(&self) -> Duration {
        let last = Duration::from_nanos(self.progress_nanos.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    pub fn status(&self, queued: usize) -> EngineStatus {
        EngineStatus {
            queued,
            running: self.running.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            committed: self.committed.load(Ordering::Relaxed),
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed)),
            model: Duration::from_nanos(self.model_nanos.load(Ordering::Relaxed)),
        }
    }

    fn count(&self, cost: StepCost, busy: Duration) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(cost.rows as u64, Ordering::Relaxed);
        self.committed
            .fetch_add(cost.committed as u64, Ordering::Relaxed);
        self.busy_nanos
            .fetch_add(busy.as_nanos() as u64, Ordering::Relaxed);
        self.model_nanos
            .fetch_add(cost.model.as_nanos() as u64, Ordering::Relaxed);
        let observers = self
            .observers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for observer in observers.iter() {
            observer(StepSummary {
                rows: cost.rows,
                committed: cost.committed,
                duration: busy,
            });
        }
    }
}

pub(super) struct Worker {
    model: Box<dyn Denoiser>,
    config: EngineConfig,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    running: Vec<Sequence>,
}

impl Worker {
    pub fn new(
        model: Box<dyn Denoiser>,
        config: EngineConfig,
        queue: Arc<Queue>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            model,
            config,
            queue,
            counters,
            running: Vec::new(),
        }
    }

    /// Serves until the queue is closed and all that was queued is finished.
    pub fn run(mut self) {
        loop {
            self.running.retain(|sequence| !sequence.is_cancelled());
            self.publish_running();
            if self.running.is_empty() && !self.queue.wait() {
                return;
            }
            self.counters.progress();
            self.admit();
            self.publish_running();
            if !self.running.is_empty() {
                self.step();
            }
        }
    }

    /// Takes requests, first come first served, while they fit into the next step.
    fn admit(&mut self) {
        let mut rows: usize = self.running.iter().map(Sequence::rows).sum();
        while self.running.len() < self.config.max_sequences.max(1) {
            let is_first = self.running.is_empty();
            let limit = self.config.max_rows;
            let next = self
                .queue
                .pop_if(|sequence| is_first || rows + sequence.rows() <= limit);
            let Some(mut sequence) = next else { return };
            rows += sequence.rows();
            sequence.started = Some(Instant::now());
            self.running.push(sequence);
        }
    }

    /// Steps every running sequence and retires those that are done or failed. A panic or an error of
    /// the whole step fails the sequences of that step only.
    fn step(&mut self) {
        let begun = Instant::now();
        let (model, running) = (&*self.model, &mut self.running);
        let result = catch_unwind(AssertUnwindSafe(|| step(model, running)));
        let outcomes = match result {
            Ok(Ok((outcomes, cost))) => {
                self.counters.count(cost, begun.elapsed());
                outcomes
            }
            Ok(Err(error)) => return self.fail_all(&error.to_string()),
            Err(panic) => return self.fail_all(&panic_message(&*panic)),
        };
        let stepped: VecDeque<Sequence> = std::mem::take(&mut self.running).into();
        for (sequence, outcome) in stepped.into_iter().zip(outcomes) {
            match outcome {
                Err(error) => sequence.end(Event::Failed(error)),
                Ok(()) if sequence.decoder.is_done() => sequence.finish(),
                Ok(()) => self.running.push(sequence),
            }
        }
    }

    fn fail_all(&mut self, reason: &str) {
        tracing::error!(
            reason,
            sequences = self.running.len(),
            "a denoise step failed"
        );
        for sequence in self.running.drain(..) {
            sequence.end(Event::Failed(GenerationError::Step(reason.to_owned())));
        }
    }

    fn publish_running(&self) {
        self.counters
            .running
            .store(self.running.len(), Ordering::Relaxed);
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", message.unwrap_or("without a message"))
}
