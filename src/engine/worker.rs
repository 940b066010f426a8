//! The worker thread: admits sequences, steps them, retires them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::cache::{CacheMemory, Room, SequenceCache};
use super::failures::Failures;
use super::phases::{Phases, Stopwatch};
use super::queue::Queue;
use super::scheduler::{Clock, Part, RowBudget, Schedule, schedule};
use super::sequence::Running;
use super::step::{Outcome, StepCost, step};
use super::{EngineConfig, EngineStatus, Event, GenerationError, StepSummary};
use crate::kernels;
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
    failing: AtomicUsize,
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
            failing: AtomicUsize::new(0),
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
            failing: self.failing.load(Ordering::Relaxed),
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
        self.tell(&StepSummary {
            rows: cost.rows,
            kept: cost.kept,
            scored: cost.scored,
            committed: cost.committed,
            waited,
            phases: cost.phases,
        });
    }

    /// Tells the observers of a step. One that panics is told of nothing more; what is denoised does not suffer for it.
    fn tell(&self, summary: &StepSummary) {
        let observers = self
            .observers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut broken = Vec::new();
        for (index, observer) in observers.iter().enumerate() {
            let told = catch_unwind(AssertUnwindSafe(|| observer(summary)));
            if let Err(panic) = told {
                let reason = panic_message(&*panic);
                tracing::error!(
                    reason,
                    "an observer of the steps is told of no more of them"
                );
                broken.push(index);
            }
        }
        drop(observers);
        if broken.is_empty() {
            return;
        }
        let mut observers = self
            .observers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Others are only ever added at the end.
        for index in broken.into_iter().rev() {
            drop(observers.remove(index));
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
    failures: Failures,
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
            failures: Failures::default(),
        }
    }

    /// Serves until the queue is closed and all that was queued is finished; gives model and memory back.
    pub fn run(mut self) -> (Box<dyn Denoiser>, CacheMemory) {
        // Whatever ends this thread, nobody is to wait for it.
        let _gone = CloseOnDrop(self.queue.clone());
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => return (self.model, self.memory),
                Err(panic) => self.start_over(&panic_message(&*panic)),
            }
        }
    }

    /// Takes a step with what there is; false if there will be nothing any more.
    fn turn(&mut self) -> bool {
        self.drop_cancelled();
        self.publish();
        if self.running.is_empty() {
            if !self.queue.wait() {
                return false;
            }
            self.stopwatch = Stopwatch::start();
        }
        self.counters.progress();
        self.admit();
        self.publish();
        if !self.running.is_empty() {
            self.step();
        }
        true
    }

    /// Goes on after a panic outside the model: the accounts of the running sequences and the books on the cache may be
    /// half written, so that what runs fails, and the books begin anew.
    fn start_over(&mut self, reason: &str) {
        let running = std::mem::take(&mut self.running);
        self.failures.note(Instant::now(), running.len(), reason);
        self.note_progress(false);
        for Running { sequence, .. } in running {
            let error = GenerationError::Step(reason.to_owned());
            sequence.reports.end(Event::Failed(error));
        }
        self.memory.forget_all();
        self.clock = Clock::default();
        self.waited.clear();
        self.stopwatch = Stopwatch::start();
    }

    /// Notes whether a step brought any of its sequences on.
    fn note_progress(&mut self, is_progress: bool) {
        let failing = &self.counters.failing;
        match is_progress {
            true => failing.store(0, Ordering::Relaxed),
            false => _ = failing.fetch_add(1, Ordering::Relaxed),
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
            let (model, memory) = (&*self.model, &mut self.memory);
            let mut cached = Ok(None);
            let next = self.queue.pop_if(|sequence| {
                cached = catch_unwind(AssertUnwindSafe(|| {
                    let (spec, (scheme, cache)) = (model.spec(), sequence.cache);
                    let room = Room::of(
                        scheme,
                        spec,
                        &sequence.canvas,
                        &sequence.decoder,
                        sequence.is_guided(),
                    );
                    SequenceCache::admit(memory, cache, spec, room)
                }));
                !matches!(cached, Ok(None))
            });
            let Some(sequence) = next else {
                return;
            };
            let cached = match cached {
                Ok(Some(cached)) => cached,
                Ok(None) => return,
                Err(panic) => {
                    // Left in the queue it would be the next again.
                    let error = GenerationError::Step(panic_message(&*panic));
                    sequence.reports.end(Event::Failed(error));
                    resume_unwind(panic);
                }
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

    /// Steps those whose turn it is and retires those that are done or failed. A panic of the model or an error of
    /// the whole step fails the sequences of that step only.
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
        self.note_outcomes(&parts, &outcomes);
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
        let mut released = Vec::with_capacity(ended.len());
        for (running, error) in ended.into_iter().zip(errors) {
            let Running {
                sequence, cached, ..
            } = running;
            released.push(cached);
            match error {
                Some(error) => sequence.reports.end(Event::Failed(error)),
                None => sequence.finish(),
            }
        }
        // Each has its end by now, whatever becomes of the memory.
        for cached in released {
            cached.release(&mut self.memory);
        }
    }

    /// Notes what became of the sequences that a step denoised; of those whose cache it prepared there is nothing to
    /// say yet.
    fn note_outcomes(&mut self, parts: &[Part], outcomes: &[Outcome]) {
        let denoised = parts.iter().zip(outcomes);
        let denoised = denoised.filter(|(part, _)| part.window.denoises);
        let (mut failed, mut succeeded, mut reason) = (0, 0, None);
        for (_, outcome) in denoised {
            match outcome {
                Ok(()) => succeeded += 1,
                Err(error) => {
                    failed += 1;
                    reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
        if let Some(reason) = reason {
            self.failures.note(Instant::now(), failed, &reason);
        }
        if succeeded + failed > 0 {
            self.note_progress(succeeded > 0);
        }
    }

    /// Ends the sequences of a failed step.
    fn fail(&mut self, parts: &[Part], error: &GenerationError) {
        self.failures
            .note(Instant::now(), parts.len(), &error.to_string());
        self.note_progress(false);
        self.stopwatch = Stopwatch::start();
        let failed = |index, _: &mut Running| parts.iter().any(|part| part.index == index);
        let failed = self.take_where(failed);
        self.end(failed, error);
        if matches!(error, GenerationError::OutOfMemory) {
            self.release_unused();
        }
    }

    /// Ends sequences with an error and takes back their memory.
    fn end(&mut self, sequences: Vec<Running>, error: &GenerationError) {
        let mut released = Vec::with_capacity(sequences.len());
        for running in sequences {
            let reports = running.sequence.reports;
            reports.end(Event::Failed(error.clone()));
            released.push(running.cached);
        }
        for cached in released {
            cached.release(&mut self.memory);
        }
    }

    /// Ends the newer half of the sequences of a step that the device has no memory for; the others try again.
    fn shed_newest(&mut self, parts: &[Part], error: &ModelError) {
        self.stopwatch = Stopwatch::start();
        let mut newest: Vec<_> = parts.iter().map(|part| part.index).collect();
        newest.sort_by_key(|index| self.running[*index].arrival);
        let shed = newest.split_off(newest.len().div_ceil(2));
        tracing::warn!(%error, sequences = shed.len(), "out of memory: the newest sequences are ended");
        let shed = self.take_where(|index, _| shed.contains(&index));
        self.end(shed, &GenerationError::OutOfMemory);
        self.release_unused();
    }

    /// Gives unused memory back to a device that lacks some.
    fn release_unused(&self) {
        if let Err(error) = kernels::release_unused(self.model.device()) {
            tracing::warn!(%error, "memory that is not used cannot be given back to the device");
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

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", message.unwrap_or("without a message"))
}
