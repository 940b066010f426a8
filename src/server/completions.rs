//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::completion_reader::{CompletionAnswer, CompletionReader, TextPiece};
use super::deadline::Deadline;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::frames::CanvasView;
use super::head::{Head, Tally};
use super::infill_text::GapVocabulary;
use super::logprobs::completion_logprobs;
use super::run::{Run, Update, answers, updates};
use super::sse::{self, End, Frame, ServerEvent};
use super::state::AppState;
use super::validate::{self, CompletionJob, nth_plan};
use super::wire::{Answer, COMPLETION_OBJECT, CompletionChoice, CompletionRequest};
use crate::canvas::TokenId;
use crate::engine::{LogprobRequest, Submission};
use crate::text::Layout;
use crate::text::gaps::Piece;

/// Completes prompts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "Denoising",
    operation_id = "completions",
    request_body(content = CompletionRequest, example = json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.7, "seed": 1, "logprobs": 2, "stop": ["\n"], "diffusion": {"steps": 4}})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", content((Answer<CompletionChoice> = "application/json"), (ServerEvent = "text/event-stream"))),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, deadline.clone(), request, validate::completion).await?;
    let head = Head::of("cmpl", &state, &job)?;
    let runs = start(&job, &state)?;
    if job.streaming.stream {
        let mut chunks = Chunks {
            head,
            include_usage: job.streaming.include_usage,
            tally: Tally::of(runs.len()),
        };
        let render = move |update| chunks.render(update);
        let updates = updates(runs, deadline);
        let keep_alive = state.limits.keep_alive;
        return Ok(sse::respond(updates, keep_alive, End::Done, render));
    }
    let (answers, cost) = answers(runs, deadline).await?;
    let completion_tokens = answers.iter().map(|answer| answer.tokens).sum();
    let (usage, diffusion) = head.end(completion_tokens, &cost);
    let choices = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| choice(&head, index, answer.piece, Some(answer.finish_reason)))
        .collect();
    Ok(Json(Answer {
        usage: Some(Some(usage)),
        diffusion: Some(diffusion),
        ..head.answer(COMPLETION_OBJECT, choices)
    })
    .into_response())
}

/// Queues every sequence; if one cannot be, none is.
pub(super) fn start(
    job: &CompletionJob,
    state: &AppState,
) -> Result<Vec<Run<CompletionReader>>, ApiError> {
    let stop_tokens: Arc<[TokenId]> = state.engine.spec().stop_tokens.as_slice().into();
    let vocabulary = Arc::new(GapVocabulary::new(state));
    let mut runs = Vec::with_capacity(job.prompts.len() * job.n);
    for prompt in &job.prompts {
        for number in 0..job.n {
            let plan = nth_plan(&job.plan, number);
            let logprobs = job.top_logprobs.map(|top| LogprobRequest {
                top,
                ..LogprobRequest::default()
            });
            let canvas = plan.noised(prompt.canvas.clone());
            let generation = state.engine.enqueue(Submission {
                canvas,
                plan: &plan,
                logprobs,
                constraint: prompt.constraint.clone(),
            })?;
            let mut reader = CompletionReader::new(
                state.tokenizer.clone(),
                stop_tokens.clone(),
                job.stops.clone(),
                prompt.gap.clone(),
            )
            .within(job.time_limit);
            if prompt.constraint.is_some() {
                reader = reader.of_whole_text();
            }
            if job.top_logprobs.is_some() {
                reader = reader.with_logprobs();
            }
            if let Some(echo) = &prompt.echo {
                reader = reader.after(echo);
            }
            let mut run = Run::new(runs.len(), generation, reader);
            if job.streaming.frames {
                let layout = Layout::of(vec![Piece::Gap(prompt.gap.len())]);
                let canvas = plan.noised(prompt.canvas.clone());
                let view = CanvasView::new(canvas, layout, vocabulary.clone());
                run = run.showing(view, state.limits.frame_interval);
            }
            runs.push(run);
        }
    }
    Ok(runs)
}

fn choice(
    head: &Head,
    index: usize,
    piece: TextPiece,
    finish_reason: Option<&'static str>,
) -> CompletionChoice {
    let tokenizer = head.logprobs.as_deref();
    CompletionChoice {
        index,
        logprobs: tokenizer.map(|tokenizer| completion_logprobs(&piece.tokens, tokenizer)),
        text: piece.text,
        finish_reason,
    }
}

/// Makes the chunks of a stream.
struct Chunks {
    head: Head,
    include_usage: bool,
    tally: Tally,
}

impl Chunks {
    fn render(&mut self, update: Update<TextPiece, CompletionAnswer>) -> Vec<Frame> {
        let head = &self.head;
        let mut frames = Vec::new();
        if let Some(canvas) = update.canvas {
            frames.push(sse::frame(&canvas.frame(&head.id, update.index)));
        }
        let piece = TextPiece::joined(update.frames);
        if piece.is_none() && update.answer.is_none() {
            return frames;
        }
        let (finish_reason, end) = match update.answer {
            Some((answer, cost)) => (
                Some(answer.finish_reason),
                self.tally.add(answer.tokens, cost, head),
            ),
            None => (None, None),
        };
        let piece = piece.unwrap_or_default();
        let has_text = !piece.text.is_empty();
        let mut next = head.answer(
            COMPLETION_OBJECT,
            vec![choice(head, update.index, piece, finish_reason)],
        );
        if self.include_usage {
            next.usage = Some(None);
        } else {
            next.diffusion = end.map(|(_, diffusion)| diffusion);
        }
        frames.push(sse::frame(&next).telling(has_text));
        if let Some((usage, diffusion)) = end.filter(|_| self.include_usage) {
            frames.push(sse::frame(&Answer {
                usage: Some(Some(usage)),
                diffusion: Some(diffusion),
                ..head.answer(COMPLETION_OBJECT, Vec::<CompletionChoice>::new())
            }));
        }
        frames
    }
}
