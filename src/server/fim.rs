//! `POST /v1/fim/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::completion_reader::{CompletionAnswer, TextPiece};
use super::completions::start;
use super::deadline::Deadline;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::head::{Head, Tally};
use super::logprobs::chat_logprobs;
use super::run::{Update, answers, updates};
use super::sse::{self, End, Frame, ServerEvent};
use super::state::AppState;
use super::validate;
use super::wire::{
    ASSISTANT, Answer, CHAT_CHUNK_OBJECT, CHAT_OBJECT, Delta, DiffusionReport, FimChoice, FimDelta,
    FimMessage, FimRequest, Usage,
};

/// Fills the gap between a prompt and a suffix.
#[utoipa::path(
    post,
    path = "/v1/fim/completions",
    tag = "Denoising",
    operation_id = "fim_completions",
    request_body(content = FimRequest, example = json!({"prompt": "def add(a, b):\n", "suffix": "\n\nprint(add(1, 2))", "max_tokens": 12, "random_seed": 1})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", content((Answer<FimChoice<FimMessage>> = "application/json"), (ServerEvent = "text/event-stream"))),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<FimRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, deadline.clone(), request, validate::fim).await?;
    let head = Head::of("fim", &state, &job)?;
    let runs = start(&job, &state)?;
    if job.streaming.stream {
        let mut chunks = Chunks {
            head,
            tally: Tally::of(runs.len()),
        };
        let render = move |update| chunks.render(update);
        let updates = updates(runs, deadline);
        let keep_alive = state.limits.keep_alive;
        return Ok(sse::respond(updates, keep_alive, End::Done, render));
    }
    let (answers, cost) = answers(runs, deadline).await?;
    let completion_tokens = answers.iter().map(|answer| answer.tokens).sum();
    let end = head.end(completion_tokens, &cost);
    let choices = answers.into_iter().enumerate().map(|(index, given)| {
        let reason = Some(given.finish_reason);
        choice(&head, index, given.piece, reason, |text| FimMessage {
            message: message(text),
        })
    });
    let choices = choices.collect();
    Ok(Json(answer(&head, CHAT_OBJECT, choices, Some(end))).into_response())
}

fn message(content: String) -> Delta {
    Delta {
        role: ASSISTANT,
        content,
    }
}

/// An answer or a chunk; the last brings the end.
fn answer<'a, C>(
    head: &'a Head,
    object: &'static str,
    choices: Vec<FimChoice<C>>,
    end: Option<(Usage, DiffusionReport)>,
) -> Answer<'a, FimChoice<C>> {
    Answer {
        usage: end.map(|(usage, _)| Some(usage)),
        diffusion: end.map(|(_, diffusion)| diffusion),
        ..head.answer(object, choices)
    }
}

fn choice<C>(
    head: &Head,
    index: usize,
    piece: TextPiece,
    finish_reason: Option<&'static str>,
    content: impl Fn(String) -> C,
) -> FimChoice<C> {
    let tokenizer = head.logprobs.as_deref();
    FimChoice {
        index,
        content: content(piece.text),
        logprobs: tokenizer.map(|tokenizer| chat_logprobs(&piece.tokens, tokenizer)),
        finish_reason,
    }
}

/// Makes the chunks of a stream.
struct Chunks {
    head: Head,
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
        let choice = choice(head, update.index, piece, finish_reason, |text| FimDelta {
            delta: message(text),
        });
        let chunk = answer(head, CHAT_CHUNK_OBJECT, vec![choice], end);
        frames.push(sse::frame(&chunk).telling(has_text));
        frames
    }
}
