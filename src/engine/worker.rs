//! The worker thread: admits sequences, steps them, retires them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::cache::{CacheMemory, SequenceCache};
use super::phases::{Phases, Stopwatch};
use super::queue::Queue;
use super::scheduler::{Clock, Part, RowBudget, Schedule, schedule};
use super::sequence::Running;
use super::step::{StepCost, step};
use super::{EngineConfig, EngineStatus, Event, GenerationError, StepSummary};
use crate::models::{Denoiser, ModelError};

/// Told of every denoise step.
pub(super) type Observer = Box<dyn Fn(&StepSummary) + Send + Sync>;

/// What the worker counts for others to read.
pub(super) struct Counters {
    started: Instant,
    /// When the worker last went on, in nanoseconds since `started`.
    progress_nanos: AtomicU64,
    observers: RwLock<Vec<Observer>>,
    running: AtomicUsize,
    steps: AtomicU64,
    rows: AtomicU64,
    kept: AtomicU64,
    scored: AtomicU64,
    committed: AtomicU64,
    reused: AtomicU64,
    kv_used: AtomicUsize,
    /// Nanoseconds of each phase.
    phases: [AtomicU64; 5],
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
            kept: AtomicU64::new(0),
            scored: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            kv_used: AtomicUsize::new(0),
            phases: Default::default(),
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

    fn phases(&self) -> Phases {
        let nanos = |phase: &AtomicU64| Duration::from_nanos(phase.load(Ordering::Relaxed));
        Phases::of(self.phases.each_ref().map(nanos))
    }

    pub fn status(&self, queued: usize, kv_slots: usize) -> EngineStatus {
        EngineStatus {
            queued,
            running: self.running.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            kept: self.kept.load(Ordering::Relaxed),
            scored: self.scored.load(Ordering::Relaxed),
            committed: self.committed.load(Ordering::Relaxed),
            reused: self.reused.load(Ordering::Relaxed),
            kv_slots,
            kv_used: self.kv_used.load(Ordering::Relaxed),
            phases: self.phases(),
        }
    }

    fn count(&self, cost: StepCost, reused: usize, waited: Vec<Duration>) {
        let add = |counter: &AtomicU64, count: u64| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        add(&self.steps, 1);
        add(&self.rows, cost.rows as u64);
        add(&self.kept, cost.kept as u64);
        add(&self.scored, cost.scored as u64);
        add(&self.committed, cost.committed as u64);
        add(&self.reused, reused as u64);
        for (counter, duration) in self.phases.iter().zip(cost.phases.durations()) {
            add(counter, duration.as_nanos() as u64);
        }
        let observers = self
            .observers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let summary = StepSummary {
            rows: cost.rows,
            kept: cost.kept,
            scored: cost.scored,
            committed: cost.committed,
            waited,
            phases: cost.phases,
        };
        for observer in observers.iter() {
            observer(&summary);
        }
    }
}

pub(super) struct Worker {
    model: Box<dyn Denoiser>,
    memory: CacheMemory,
    config: EngineConfig,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    running: Vec<Running>,
    clock: Clock,
    arrivals: u64,
    /// How long those waited for their first step that took it since the last count.
    waited: Vec<Duration>,
    /// Runs since the last step, or since there is work.
    stopwatch: Stopwatch,
}

/// Closes a queue when it is dropped, and drops what still waits in it.
struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
        while self.0.pop_if(|_| true).is_some() {}
    }
}

impl Worker {
    pub fn new(
        model: Box<dyn Denoiser>,
        memory: CacheMemory,
        config: EngineConfig,
        queue: Arc<Queue>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            model,
            memory,
            config,
            queue,
            counters,
            running: Vec::new(),
            clock: Clock::default(),
            arrivals: 0,
            waited: Vec::new(),
            stopwatch: Stopwatch::start(),
        }
    }

    /// Serves until the queue is closed and all that was queued is finished.
    pub fn run(mut self) {
        // Whatever ends this thread, nobody is to wait for it.
        let _gone = CloseOnDrop(self.queue.clone());
        loop {
            self.drop_cancelled();
            self.publish();
            if self.running.is_empty() {
                if !self.queue.wait() {
                    return;
                }
                self.stopwatch = Stopwatch::start();
            }
            self.counters.progress();
            self.admit();
            self.publish();
            if !self.running.is_empty() {
                self.step();
            }
        }
    }

    fn drop_cancelled(&mut self) {
        self.queue.drop_cancelled();
        let cancelled = |_: usize, running: &mut Running| running.sequence.is_cancelled();
        for running in self.take_where(cancelled) {
            running.cached.release(&mut self.memory);
        }
    }

    /// Takes requests, first come first served, while there is a place and memory for them.
    fn admit(&mut self) {
        while self.running.len() < self.config.max_sequences.max(1) {
            let spec = self.model.spec();
            let memory = &mut self.memory;
            let mut cached = None;
            let next = self.queue.pop_if(|sequence| {
                cached = SequenceCache::admit(
                    memory,
                    sequence.cache,
                    spec,
                    &sequence.canvas,
                    sequence.decoder.block().start,
                    sequence.is_guided(),
                );
                cached.is_some()
            });
            let (Some(sequence), Some(cached)) = (next, cached) else {
                return;
            };
            let work = self.clock.newcomer(&self.running);
            self.running.push(Running {
                sequence,
                cached,
                work,
                arrival: self.arrivals,
            });
            self.arrivals += 1;
        }
    }

    /// Steps those whose turn it is and retires those that are done or failed. A panic or an error of the
    /// whole step fails the sequences of that step only.
    fn step(&mut self) {
        let budget = RowBudget {
            most: self.config.max_rows,
            target: self
                .config
                .step_rows
                .unwrap_or(usize::MAX)
                .min(self.config.max_rows),
            chunk: self.config.prefill_rows,
        };
        let shift = self.model.spec().logit_shift;
        let Schedule { parts, reused } = schedule(
            &mut self.running,
            &mut self.clock,
            &mut self.memory,
            shift,
            budget,
        );
        let now = Instant::now();
        for part in &parts {
            let sequence = &mut self.running[part.index].sequence;
            if sequence.started.is_none() {
                sequence.started = Some(now);
                self.waited.push(now - sequence.submitted);
            }
        }
        let blocks: Vec<_> = parts
            .iter()
            .map(|part| self.running[part.index].sequence.decoder.block())
            .collect();
        let (model, pool, running) = (&*self.model, self.memory.pool(), &mut self.running);
        let stopwatch = &mut self.stopwatch;
        let result = catch_unwind(AssertUnwindSafe(|| {
            step(model, pool, running, &parts, stopwatch)
        }));
        let (outcomes, mut cost) = match result {
            Ok(Ok(stepped)) => stepped,
            Ok(Err(error)) if error.is_out_of_memory() && parts.len() > 1 => {
                return self.shed_newest(&parts, &error);
            }
            Ok(Err(error)) => return self.fail(&parts, &failure(&error)),
            Err(panic) => {
                let reason = panic_message(&*panic);
                return self.fail(&parts, &GenerationError::Step(reason));
            }
        };
        for (part, block) in parts.iter().zip(&blocks) {
            let Running {
                sequence, cached, ..
            } = &mut self.running[part.index];
            cached.stepped(&mut self.memory, &part.window, &sequence.canvas, block);
        }
        cost.phases.decode += self.stopwatch.lap();
        let waited = std::mem::take(&mut self.waited);
        self.counters.count(cost, reused, waited);
        let mut outcomes: Vec<_> = parts.iter().map(|part| part.index).zip(outcomes).collect();
        outcomes.sort_by_key(|(index, _)| *index);
        let mut outcomes = outcomes.into_iter().peekable();
        let mut errors = Vec::new();
        let ended = self.take_where(|index, running| {
            match outcomes.next_if(|(stepped, _)| *stepped == index) {
                Some((_, Err(error))) => {
                    errors.push(Some(error));
                    true
                }
                _ if running.sequence.decoder.is_done() => {
                    errors.push(None);
                    true
                }
                _ => false,
            }
        });
        for (running, error) in ended.into_iter().zip(errors) {
            running.cached.release(&mut self.memory);
            match error {
                Some(error) => running.sequence.reports.end(Event::Failed(error)),
                None => running.sequence.finish(),
            }
        }
    }

    /// Ends the sequences of a failed step.
    fn fail(&mut self, parts: &[Part], error: &GenerationError) {
        tracing::error!(%error, sequences = parts.len(), "a step failed");
        self.stopwatch = Stopwatch::start();
        let failed = |index, _: &mut Running| parts.iter().any(|part| part.index == index);
        for running in self.take_where(failed) {
            running.cached.release(&mut self.memory);
            running.sequence.reports.end(Event::Failed(error.clone()));
        }
    }

    /// Ends the newer half of the sequences of a step that the device has no memory for; the others try again.
    fn shed_newest(&mut self, parts: &[Part], error: &ModelError) {
        self.stopwatch = Stopwatch::start();
        let mut newest: Vec<_> = parts.iter().map(|part| part.index).collect();
        newest.sort_by_key(|index| self.running[*index].arrival);
        let shed = newest.split_off(newest.len().div_ceil(2));
        tracing::warn!(%error, sequences = shed.len(), "out of memory: the newest sequences are ended");
        for running in self.take_where(|index, _| shed.contains(&index)) {
            running.cached.release(&mut self.memory);
            let reason = GenerationError::OutOfMemory;
            running.sequence.reports.end(Event::Failed(reason));
        }
    }

    /// Takes out the running sequences that a condition on index and sequence holds for, in order.
    fn take_where(
        &mut self,
        mut condition: impl FnMut(usize, &mut Running) -> bool,
    ) -> Vec<Running> {
        let mut index = 0;
        let taken = self.running.extract_if(.., |running| {
            index += 1;
            condition(index - 1, running)
        });
        taken.collect()
    }

    fn publish(&self) {
        let (running, used) = (self.running.len(), self.memory.used_slots());
        self.counters.running.store(running, Ordering::Relaxed);
        self.counters.kv_used.store(used, Ordering::Relaxed);
    }
}

fn failure(error: &ModelError) -> GenerationError {
    match error.is_out_of_memory() {
        true => GenerationError::OutOfMemory,
        false => GenerationError::Step(error.to_string()),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", message.unwrap_or("without a message"))
}
