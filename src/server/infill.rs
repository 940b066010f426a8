//! `POST /v1/infill`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::extract::Body;
use super::infill_text::{GapTokenizer, gap_answers};
use super::metrics::Metrics;
use super::random;
use super::run::{Cost, Reader, Run, Update, answers, updates};
use super::sse::{self, Frame};
use super::state::{AppState, unix_time};
use super::validate::{self, InfillJob, nth_plan};
use super::wire::{
    CommittedSlot, GapAnswer, GapPosition, INFILL_OBJECT, Infill, InfillChoice, InfillRequest,
    InfillStep, STEP_OBJECT, Usage,
};
use crate::canvas::{Canvas, Commit};
use crate::engine::{LogprobRequest, StepReport};
use crate::sampling::Logprobs;
use crate::text::{Layout, Tokenizer};

/// Fills the gaps of a text.
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Body(request): Body<InfillRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, request, validate::infill).await?;
    let head = Head {
        id: format!("infill-{}", random::identifier()?),
        created: unix_time(),
        model: state.model_name.clone(),
        seed: job.plan.sampling.seed,
        prompt_tokens: job.canvas.len() - job.canvas.masked(),
        metrics: state.metrics.clone(),
    };
    let stream = job.stream;
    let runs = start(job, &state)?;
    if stream {
        let mut frames = Frames {
            head,
            running: runs.len(),
            choices: Vec::with_capacity(runs.len()),
            cost: Cost::default(),
        };
        let render = move |update| frames.render(update);
        let updates = updates(runs, state.limits.request_timeout);
        return Ok(sse::respond(updates, state.limits.keep_alive, render));
    }
    let (answers, cost) = answers(runs, state.limits.request_timeout).await?;
    let choices = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| answer.choice(index))
        .collect();
    Ok(Json(head.answer(choices, cost)).into_response())
}

/// Queues every sequence; if one cannot be, none is.
fn start(job: InfillJob, state: &AppState) -> Result<Vec<Run<InfillReader>>, ApiError> {
    let tokenizer = Arc::new(GapTokenizer {
        inner: state.tokenizer.clone(),
        silent: state.engine.spec().stop_tokens.clone(),
    });
    let gaps: Arc<[Range<usize>]> = job.canvas.gaps().into();
    let layout = Arc::new(job.layout);
    let names: Arc<[Option<String>]> = job.names.into();
    (0..job.n)
        .map(|index| {
            let logprobs = job.top_logprobs.map(|top| LogprobRequest {
                top,
                ..LogprobRequest::default()
            });
            let plan = nth_plan(&job.plan, index);
            let canvas = job.canvas.clone();
            let generation = state.engine.submit_reporting(canvas, &plan, logprobs)?;
            let reader = InfillReader {
                tokenizer: tokenizer.clone(),
                gaps: gaps.clone(),
                layout: layout.clone(),
                names: names.clone(),
                logprobs: HashMap::new(),
            };
            Ok(Run::new(index, &job.canvas, generation, reader))
        })
        .collect()
}

/// Reads the gaps of a canvas.
struct InfillReader {
    tokenizer: Arc<GapTokenizer>,
    gaps: Arc<[Range<usize>]>,
    layout: Arc<Layout>,
    names: Arc<[Option<String>]>,
    /// Those of each slot's last commit, if they were asked for.
    logprobs: HashMap<usize, Logprobs>,
}

/// The whole text and its gaps.
struct Answer {
    text: String,
    gaps: Vec<GapAnswer>,
}

impl Answer {
    fn choice(self, index: usize) -> InfillChoice {
        InfillChoice {
            index,
            text: self.text,
            gaps: self.gaps,
        }
    }
}

/// What a step changed.
struct Step {
    step: usize,
    committed: Vec<CommittedSlot>,
    remasked: Vec<GapPosition>,
}

impl InfillReader {
    fn position(&self, slot: usize) -> Option<GapPosition> {
        let gap = self.gaps.iter().position(|gap| gap.contains(&slot))?;
        Some(GapPosition {
            gap,
            position: slot - self.gaps[gap].start,
        })
    }

    fn committed(&self, slot: usize, commit: &Commit) -> Option<CommittedSlot> {
        Some(CommittedSlot {
            position: self.position(slot)?,
            token: commit.token,
            text: self.tokenizer.decode(&[commit.token]),
            probability: commit.probability,
        })
    }
}

impl Reader for InfillReader {
    type Frame = Step;
    type Answer = Answer;

    fn step(&mut self, report: &StepReport) -> (Option<Step>, Option<Answer>) {
        self.logprobs.extend(report.logprobs.iter().cloned());
        let committed = report.committed.iter();
        let remasked = report.remasked.iter();
        let step = Step {
            step: report.step,
            committed: committed
                .filter_map(|(slot, commit)| self.committed(*slot, commit))
                .collect(),
            remasked: remasked.filter_map(|slot| self.position(*slot)).collect(),
        };
        (Some(step), None)
    }

    fn finish(&mut self, canvas: &Canvas) -> (Option<Step>, Answer) {
        let mut reading = self.layout.read(canvas, &*self.tokenizer);
        let text = std::mem::take(&mut reading.text);
        let gaps = gap_answers(
            canvas,
            reading,
            &self.names,
            &self.logprobs,
            &*self.tokenizer,
        );
        (None, Answer { text, gaps })
    }
}

/// What an answer and its frames have in common.
struct Head {
    id: String,
    created: u64,
    model: String,
    seed: u64,
    prompt_tokens: usize,
    metrics: Arc<Metrics>,
}

impl Head {
    /// The whole answer, which is counted.
    fn answer(&self, choices: Vec<InfillChoice>, cost: Cost) -> Infill<'_> {
        let filled = choices
            .iter()
            .flat_map(|choice| &choice.gaps)
            .map(|gap| gap.tokens.len())
            .sum();
        let per_forward = cost.tokens_per_forward();
        self.metrics
            .count_answer(self.prompt_tokens, filled, per_forward);
        Infill {
            id: &self.id,
            object: INFILL_OBJECT,
            created: self.created,
            model: &self.model,
            choices,
            usage: Usage::new(self.prompt_tokens, filled),
            diffusion: cost.report(self.seed),
        }
    }
}

/// Makes the frames of a stream: the steps as they are taken, then the answer.
struct Frames {
    head: Head,
    /// Sequences without an answer yet.
    running: usize,
    choices: Vec<InfillChoice>,
    cost: Cost,
}

impl Frames {
    fn render(&mut self, update: Update<Step, Answer>) -> Vec<Frame> {
        let mut frames = Vec::new();
        if let Some(step) = update.frame {
            frames.push(sse::frame(&InfillStep {
                id: &self.head.id,
                object: STEP_OBJECT,
                index: update.index,
                step: step.step,
                committed: step.committed,
                remasked: step.remasked,
            }));
        }
        if let Some((answer, cost)) = update.answer {
            self.running -= 1;
            self.cost.add(cost);
            self.choices.push(answer.choice(update.index));
            if self.running == 0 {
                let mut choices = std::mem::take(&mut self.choices);
                choices.sort_by_key(|choice| choice.index);
                frames.push(sse::frame(&self.head.answer(choices, self.cost)));
            }
        }
        frames
    }
}
