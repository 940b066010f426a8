//! Follows the generations of a request until each one's answer is known.

use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};

use super::error::ApiError;
use super::wire::DiffusionReport;
use crate::canvas::Canvas;
use crate::engine::{CacheScheme, Event, Generation, GenerationError, Statistics, StepReport};

/// Reads one canvas while it is denoised.
pub(super) trait Reader: Send + 'static {
    /// What a stream reports of a step.
    type Frame: Send;
    /// What the canvas holds in the end.
    type Answer: Send;

    /// Takes in a step: what there is to report of it, and the answer if it is known already. With
    /// an answer the generation is dropped, whatever is still masked.
    fn step(&mut self, report: &StepReport) -> (Option<Self::Frame>, Option<Self::Answer>);

    /// Takes in that the canvas is finished.
    fn finish(&mut self, canvas: &Canvas) -> (Option<Self::Frame>, Self::Answer);
}

/// A generation and its reader.
pub(super) struct Run<R> {
    index: usize,
    generation: Generation,
    reader: R,
    /// Slots from here on are scratch and do not count.
    scratch: usize,
    cost: Cost,
}

impl<R: Reader> Run<R> {
    /// The `index`th sequence of a request, on `canvas`.
    pub fn new(index: usize, canvas: &Canvas, generation: Generation, reader: R) -> Self {
        Self {
            index,
            generation,
            reader,
            scratch: canvas.scratch().start,
            cost: Cost::default(),
        }
    }
}

/// News of one sequence.
pub(super) struct Update<F, A> {
    /// Which sequence.
    pub index: usize,
    /// What a stream reports.
    pub frame: Option<F>,
    /// The answer, if this is the sequence's last update.
    pub answer: Option<(A, Cost)>,
}

/// What sequences took: steps and slots (but scratch slots) of all together, times of the longest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    steps: usize,
    nfe: usize,
    cache: CacheScheme,
    committed: usize,
    queued: Duration,
    denoising: Duration,
}

impl Cost {
    fn count(&mut self, report: &StepReport, scratch: usize) {
        let committed = report.committed.iter();
        self.committed += committed.filter(|(slot, _)| *slot < scratch).count();
        self.set(report.statistics);
    }

    fn set(&mut self, statistics: Statistics) {
        self.steps = statistics.steps;
        self.nfe = statistics.nfe;
        self.cache = statistics.cache;
        self.queued = statistics.queued;
        self.denoising = statistics.denoising;
    }

    /// Revision writes some slots more than once: in the end each counts once.
    fn finish(&mut self, canvas: &Canvas, statistics: Statistics) {
        self.set(statistics);
        let slots = canvas.gaps().iter().cloned().flatten();
        self.committed = slots
            .filter(|slot| canvas.provenance(*slot).is_some())
            .count();
    }

    /// Adds another sequence's.
    pub fn add(&mut self, other: Cost) {
        self.steps += other.steps;
        self.nfe += other.nfe;
        self.cache = other.cache;
        self.committed += other.committed;
        self.queued = self.queued.max(other.queued);
        self.denoising = self.denoising.max(other.denoising);
    }

    /// What the answer says of it.
    pub fn report(&self, seed: u64) -> DiffusionReport {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        DiffusionReport {
            steps: self.steps,
            nfe: self.nfe,
            tokens_per_forward: self.committed as f64 / self.nfe.max(1) as f64,
            queued_ms: milliseconds(self.queued),
            denoise_ms: milliseconds(self.denoising),
            cache: self.cache,
            seed,
        }
    }
}

type Item<R> = Result<Update<<R as Reader>::Frame, <R as Reader>::Answer>, ApiError>;

/// The updates of all sequences as they come; after an error nothing follows of that sequence.
/// Dropping the stream drops the generations that still run.
pub(super) fn updates<R: Reader>(runs: Vec<Run<R>>) -> impl Stream<Item = Item<R>> + Send {
    stream::select_all(
        runs.into_iter()
            .map(|run| Box::pin(stream::unfold(Some(run), next))),
    )
}

async fn next<R: Reader>(run: Option<Run<R>>) -> Option<(Item<R>, Option<Run<R>>)> {
    let mut run = run?;
    let index = run.index;
    match run.generation.next().await {
        Some(Event::Step(report)) => {
            run.cost.count(&report, run.scratch);
            let (frame, answer) = run.reader.step(&report);
            let cost = run.cost;
            let rest = answer.is_none().then_some(run);
            let answer = answer.map(|answer| (answer, cost));
            let update = Update {
                index,
                frame,
                answer,
            };
            Some((Ok(update), rest))
        }
        Some(Event::Finished(canvas, statistics)) => {
            run.cost.finish(&canvas, statistics);
            let (frame, answer) = run.reader.finish(&canvas);
            let update = Update {
                index,
                frame,
                answer: Some((answer, run.cost)),
            };
            Some((Ok(update), None))
        }
        Some(Event::Failed(error)) => Some((Err(error.into()), None)),
        None => Some((Err(GenerationError::Stopped.into()), None)),
    }
}

/// All answers, in order, and what they took together.
///
/// # Errors
/// The first sequence's that fails; the others are dropped with it.
pub(super) async fn answers<R: Reader>(
    runs: Vec<Run<R>>,
) -> Result<(Vec<R::Answer>, Cost), ApiError> {
    let mut total = Cost::default();
    let mut answers = Vec::with_capacity(runs.len());
    let mut updates = std::pin::pin!(updates(runs));
    while let Some(update) = updates.next().await {
        let update = update?;
        if let Some((answer, cost)) = update.answer {
            total.add(cost);
            answers.push((update.index, answer));
        }
    }
    answers.sort_by_key(|(index, _)| *index);
    Ok((
        answers.into_iter().map(|(_, answer)| answer).collect(),
        total,
    ))
}
