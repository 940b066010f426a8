//! Follows the generations of a request until each one's answer is known.

use std::pin::pin;
use std::time::Duration;

use futures::future::{self, Either};
use futures::stream::{self, Stream, StreamExt};
use tokio::time::Instant;

use super::deadline::Deadline;
use super::error::ApiError;
use super::frames::{CanvasSnapshot, CanvasView};
#[cfg(feature = "otel")]
use super::telemetry::SequenceSpans;
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
    cost: Cost,
    shown: Option<Shown>,
    #[cfg(feature = "otel")]
    spans: Option<SequenceSpans>,
}

/// A canvas that is shown.
struct Shown {
    view: CanvasView,
    /// The least time between two updates but the last.
    interval: Duration,
    /// When the next one may come.
    due: Instant,
}

impl<R: Reader> Run<R> {
    /// The `index`th sequence of a request, which has just been submitted.
    pub fn new(index: usize, generation: Generation, reader: R) -> Self {
        Self {
            index,
            generation,
            reader,
            cost: Cost::default(),
            shown: None,
            #[cfg(feature = "otel")]
            spans: SequenceSpans::begin(index),
        }
    }

    /// The same, whose updates show the canvas, `interval` or more apart but for the last. Steps that were
    /// taken meanwhile come as one.
    pub fn showing(self, view: CanvasView, interval: Duration) -> Self {
        let due = Instant::now();
        Self {
            shown: Some(Shown {
                view,
                interval,
                due,
            }),
            ..self
        }
    }
}

/// News of one sequence.
pub(super) struct Update<F, A> {
    /// Which sequence.
    pub index: usize,
    /// What a stream reports of each step.
    pub frames: Vec<F>,
    /// The canvas, if it is shown.
    pub canvas: Option<CanvasSnapshot>,
    /// The answer, if this is the sequence's last update.
    pub answer: Option<(A, Cost)>,
}

/// What sequences took: steps and slots (but scratch slots) of all together, times of the longest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub steps: usize,
    pub nfe: usize,
    cache: CacheScheme,
    committed: usize,
    pub queued: Duration,
    denoising: Duration,
}

impl Cost {
    fn set(&mut self, statistics: Statistics) {
        self.steps = statistics.steps;
        self.nfe = statistics.nfe;
        self.committed = statistics.committed;
        self.cache = statistics.cache;
        self.queued = statistics.queued;
        self.denoising = statistics.denoising;
    }

    /// That of single forwards beside the sequences.
    pub fn of_probes(nfe: usize, denoising: Duration) -> Self {
        Self {
            steps: nfe,
            nfe,
            denoising,
            ..Self::default()
        }
    }

    /// That of a canvas on which nothing was left to denoise.
    pub fn of_finished(canvas: &Canvas) -> Self {
        Self {
            committed: canvas.committed(),
            ..Self::default()
        }
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

    /// Slots committed a network evaluation.
    pub fn tokens_per_forward(&self) -> f64 {
        self.committed as f64 / self.nfe.max(1) as f64
    }

    /// From the first step to the last.
    pub fn denoising(&self) -> Duration {
        self.denoising
    }

    /// What the answer says of it.
    pub fn report(&self, seed: u64) -> DiffusionReport {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        DiffusionReport {
            steps: self.steps,
            nfe: self.nfe,
            tokens_per_forward: self.tokens_per_forward(),
            queued_ms: milliseconds(self.queued),
            denoise_ms: milliseconds(self.denoising),
            cache: self.cache,
            seed,
        }
    }
}

type Item<R> = Result<Update<<R as Reader>::Frame, <R as Reader>::Answer>, ApiError>;

/// The updates of all sequences as they come; after an error nothing follows of that sequence. Once `deadline`
/// is over, the last update is an error. Dropping the stream drops the generations that still
/// run.
pub(super) fn updates<R: Reader>(
    runs: Vec<Run<R>>,
    deadline: Deadline,
) -> impl Stream<Item = Item<R>> + Send {
    let updates = stream::select_all(
        runs.into_iter()
            .map(|run| Box::pin(stream::unfold(Some(run), next))),
    );
    let late = Box::pin(deadline.passed());
    stream::unfold(Some((updates, late)), |state| async {
        let (mut updates, late) = state?;
        match future::select(updates.next(), late).await {
            Either::Left((update, late)) => Some((update?, Some((updates, late)))),
            Either::Right((error, _)) => Some((Err(error), None)),
        }
    })
}

async fn next<R: Reader>(run: Option<Run<R>>) -> Option<(Item<R>, Option<Run<R>>)> {
    let mut run = run?;
    let mut update = Update {
        index: run.index,
        frames: Vec::new(),
        canvas: None,
        answer: None,
    };
    let mut has_stepped = false;
    let mut event = run.generation.next().await;
    loop {
        match event {
            Some(Event::Step(report)) => {
                has_stepped = true;
                run.cost.set(report.statistics);
                #[cfg(feature = "otel")]
                run.spans
                    .iter_mut()
                    .for_each(|spans| spans.took(report.statistics));
                if let Some(shown) = &mut run.shown {
                    shown.view.step(&report);
                }
                let (frame, answer) = run.reader.step(&report);
                update.frames.extend(frame);
                update.answer = answer.map(|answer| (answer, run.cost));
            }
            Some(Event::Finished(canvas, statistics)) => {
                run.cost.set(statistics);
                #[cfg(feature = "otel")]
                run.spans
                    .iter_mut()
                    .for_each(|spans| spans.took(statistics));
                let (frame, answer) = run.reader.finish(&canvas);
                update.frames.extend(frame);
                update.answer = Some((answer, run.cost));
            }
            Some(Event::Failed(error)) => return Some((Err(error.into()), None)),
            None => return Some((Err(GenerationError::Stopped.into()), None)),
        }
        // Where the canvas is shown, its state after the steps that were taken meanwhile is enough.
        let (Some(shown), None) = (&run.shown, &update.answer) else {
            break;
        };
        event = match run.generation.try_next() {
            Some(event) => Some(event),
            None => match tokio::time::timeout_at(shown.due, run.generation.next()).await {
                Ok(event) => event,
                Err(_) => break,
            },
        };
    }
    if let Some(shown) = &mut run.shown
        && has_stepped
    {
        shown.due = Instant::now() + shown.interval;
        update.canvas = Some(shown.view.snapshot());
    }
    let rest = update.answer.is_none().then_some(run);
    Some((Ok(update), rest))
}

/// All answers, in order, and what they took together.
///
/// # Errors
/// The first sequence's that fails, or that `deadline` is over; the others are dropped with it.
pub(super) async fn answers<R: Reader>(
    runs: Vec<Run<R>>,
    deadline: Deadline,
) -> Result<(Vec<R::Answer>, Cost), ApiError> {
    let mut total = Cost::default();
    let mut answers = Vec::with_capacity(runs.len());
    let mut updates = pin!(updates(runs, deadline));
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
