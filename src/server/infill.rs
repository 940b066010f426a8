//! `POST /v1/infill`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::TryFutureExt;

use super::choices::{Decision, decide};
use super::deadline::{Deadline, within};
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::head::Head;
use super::infill_reader::{GapHead, InfillAnswer, InfillReader, InfillStep};
use super::infill_text::GapVocabulary;
use super::run::{Cost, Reader, Run, Update, answers, updates};
use super::sse::{self, End, Frame, ServerEvent};
use super::state::AppState;
use super::validate::{self, InfillJob, nth_plan};
use super::wire::{
    INFILL_OBJECT, Infill, InfillChoice, InfillRequest, InfillStep as StepFrame, STEP_OBJECT,
};
use crate::canvas::Canvas;
use crate::constraint::CanvasConstraint;
use crate::decode::DecodePlan;
use crate::engine::{LogprobRequest, Submission};

/// Fills the gaps of a text.
#[utoipa::path(
    post,
    path = "/v1/infill",
    tag = "Denoising",
    operation_id = "infill",
    request_body(content = InfillRequest, example = json!({"segments": ["The cat ", {"gap": {"tokens": 2, "name": "verb"}}, " on the mat. It was ", {"gap": {"choices": ["a", "b"]}}, "."], "seed": 1, "logprobs": true, "top_logprobs": 3})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", content((Infill = "application/json"), (ServerEvent = "text/event-stream"))),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<InfillRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, deadline.clone(), request, validate::infill).await?;
    let head = Head::new("infill", &state, &job.plan, job.prompt_tokens())?;
    let begun = Instant::now();
    let (decisions, nfe) = within(deadline.clone(), decide(&job, &state)).await?;
    let mut cost = Cost::of_probes(nfe, begun.elapsed());
    let job = Arc::new(job);
    let sequences = {
        let (job, state) = (job.clone(), state.clone());
        // To follow what gaps are held to takes a while.
        let background = state.background.clone();
        let work = move || sequences(&job, &decisions, &state);
        background.run(deadline.clone(), work).await?
    };
    let (mut finished, mut runs) = (Vec::new(), Vec::new());
    let shows_steps = job.stream && !job.is_searched();
    for (index, sequence) in sequences.into_iter().enumerate() {
        let Sequence {
            canvas,
            plan,
            constraint,
            mut reader,
        } = sequence;
        if canvas.masked() == 0 {
            cost.add(Cost::of_finished(&canvas));
            finished.push(reader.finish(&canvas).1);
            continue;
        }
        let logprobs = logprobs(&job);
        let generation = state.engine.enqueue(Submission {
            canvas: canvas.clone(),
            plan: &plan,
            logprobs,
            constraint,
        })?;
        let view = (shows_steps && job.frames).then(|| reader.view(&canvas));
        let run = Run::new(index, generation, reader);
        runs.push(match view {
            Some(view) => run.showing(view, state.limits.frame_interval),
            None => run,
        });
    }
    if shows_steps && !runs.is_empty() {
        let mut frames = Frames {
            head,
            running: runs.len(),
            choices: Vec::with_capacity(runs.len()),
            filled: 0,
            cost,
        };
        let render = move |update| frames.render(update);
        let updates = updates(runs, deadline);
        let keep_alive = state.limits.keep_alive;
        return Ok(sse::respond(updates, keep_alive, End::Done, render));
    }
    let is_stream = job.stream;
    let answer = async move {
        let (denoised, of_runs) = answers(runs, deadline).await?;
        cost.add(of_runs);
        finished.extend(denoised);
        let (choices, filled) = choices(&job, finished);
        Ok((head, choices, filled, cost))
    };
    if is_stream {
        let frame = answer.map_ok(|(head, choices, filled, cost)| {
            sse::frame(&whole(&head, choices, filled, cost)).telling(true)
        });
        return Ok(sse::respond_once(frame, state.limits.keep_alive, End::Done));
    }
    let (head, choices, filled, cost) = answer.await?;
    Ok(Json(whole(&head, choices, filled, cost)).into_response())
}

/// The log-probabilities that the engine is asked for: those that are reported, and those by which lengths
/// are chosen.
fn logprobs(job: &InfillJob) -> Option<LogprobRequest> {
    let top = match job.is_searched() {
        true => job.top_logprobs.unwrap_or(0),
        false => job.top_logprobs?,
    };
    Some(LogprobRequest {
        top,
        ..LogprobRequest::default()
    })
}

/// A canvas to be denoised, how, and what reads it.
struct Sequence {
    canvas: Canvas,
    plan: DecodePlan,
    constraint: Option<CanvasConstraint>,
    reader: InfillReader,
}

/// Every sequence: for each that is returned, one of all lengths of gaps that are tried.
fn sequences(
    job: &InfillJob,
    decisions: &[Option<Decision>],
    state: &AppState,
) -> Result<Vec<Sequence>, ApiError> {
    let spec = state.engine.spec();
    let vocabulary = Arc::new(GapVocabulary::new(state));
    let heads = job.gaps().zip(decisions).map(|(gap, decision)| GapHead {
        name: gap.name.clone(),
        stops: gap.stops.clone(),
        choices: decision.as_ref().map(Decision::probabilities),
        length: gap.length_source(&job.plan),
    });
    let heads: Arc<[GapHead]> = heads.collect();
    let mut sequences = Vec::with_capacity(job.n * job.lengths.len());
    for number in 0..job.n {
        let plan = nth_plan(&job.plan, number);
        let picks = decisions.iter().enumerate().map(|(gap, decision)| {
            let decision = decision.as_ref()?;
            let pick = decision.pick(gap, &plan.sampling);
            Some((gap, decision, pick))
        });
        let picks: Vec<_> = picks.flatten().collect();
        for lengths in &job.lengths {
            let mut lengths = lengths.clone();
            for (gap, decision, pick) in &picks {
                lengths[*gap] = decision.length(*pick);
            }
            let mut canvas = job.canvas(&lengths, spec)?;
            for (gap, decision, pick) in &picks {
                decision.settle(&mut canvas, *gap, *pick);
            }
            let mut reader = InfillReader::new(
                vocabulary.clone(),
                &canvas,
                job.layout(&lengths),
                heads.clone(),
                job.top_logprobs.is_some(),
            );
            if job.stream {
                reader = reader.telling_steps();
            }
            let constraint = job.constraint(&canvas).map_err(|error| {
                ApiError::internal(format!("a checked gap cannot be filled: {error}"))
            })?;
            sequences.push(Sequence {
                canvas: plan.noised(canvas),
                plan: plan.clone(),
                constraint,
                reader,
            });
        }
    }
    Ok(sequences)
}

/// The returned fillings, of each group of lengths the best, and how many tokens they were read from.
fn choices(job: &InfillJob, answers: Vec<InfillAnswer>) -> (Vec<InfillChoice>, usize) {
    let tried = job.lengths.len();
    let mut answers = answers.into_iter();
    let mut filled = 0;
    let mut choices = Vec::with_capacity(job.n);
    for index in 0..job.n {
        let group: Vec<InfillAnswer> = answers.by_ref().take(tried).collect();
        if let Some((answer, candidates)) = InfillAnswer::best_of(group) {
            filled += answer.read();
            choices.push(answer.choice(index, job.is_searched().then_some(candidates)));
        }
    }
    (choices, filled)
}

/// The whole answer, read from so many tokens, which are counted.
fn whole(head: &Head, choices: Vec<InfillChoice>, filled: usize, cost: Cost) -> Infill<'_> {
    let (usage, diffusion) = head.end(filled, &cost);
    Infill {
        id: &head.id,
        object: INFILL_OBJECT,
        created: head.created,
        model: &head.model,
        choices,
        usage,
        diffusion,
    }
}

/// Makes the frames of a stream: the steps as they are taken, then the answer.
struct Frames {
    head: Head,
    /// Sequences without an answer yet.
    running: usize,
    choices: Vec<InfillChoice>,
    /// Tokens that they were read from.
    filled: usize,
    cost: Cost,
}

impl Frames {
    fn render(&mut self, update: Update<InfillStep, InfillAnswer>) -> Vec<Frame> {
        let mut frames = Vec::new();
        // Frames of the canvas say all that those of single steps would.
        let steps = match update.canvas {
            Some(canvas) => {
                frames.push(sse::frame(&canvas.frame(&self.head.id, update.index)));
                Vec::new()
            }
            None => update.frames,
        };
        for step in steps {
            let has_text = !step.committed.is_empty();
            let frame = sse::frame(&StepFrame {
                id: &self.head.id,
                object: STEP_OBJECT,
                index: update.index,
                step: step.step,
                committed: step.committed,
                remasked: step.remasked,
                spliced: step.spliced,
            });
            frames.push(frame.telling(has_text));
        }
        if let Some((answer, cost)) = update.answer {
            self.running -= 1;
            self.cost.add(cost);
            self.filled += answer.read();
            self.choices.push(answer.choice(update.index, None));
            if self.running == 0 {
                let mut choices = std::mem::take(&mut self.choices);
                choices.sort_by_key(|choice| choice.index);
                let answer = sse::frame(&whole(&self.head, choices, self.filled, self.cost));
                frames.push(answer.telling(true));
            }
        }
        frames
    }
}
