//! `POST /v1/chat/completions` and `POST /apply-template`.

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
    ASSISTANT, Answer, AnswerMessage, ApplyTemplateRequest, CHAT_CHUNK_OBJECT, CHAT_OBJECT,
    ChatChoice, ChatDelta, ChatLogprobs, ChatRequest, RenderedChat,
};

/// The text of a chat.
#[utoipa::path(
    post,
    path = "/apply-template",
    tag = "Text",
    operation_id = "apply_template",
    request_body(content = ApplyTemplateRequest, example = json!({"messages": [{"role": "user", "content": "Hi"}]})),
    responses(
        (status = 200, description = "The text", body = RenderedChat),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn apply_template(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<ApplyTemplateRequest>,
) -> Result<Json<RenderedChat>, ApiError> {
    let prompt = validate::checked(&state, deadline, request, validate::apply_template).await?;
    Ok(Json(RenderedChat { prompt }))
}

/// Answers a chat.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "Denoising",
    operation_id = "chat_completions",
    request_body(content = ChatRequest, example = json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}], "max_completion_tokens": 64, "seed": 1})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", content((Answer<ChatChoice> = "application/json"), (ServerEvent = "text/event-stream"))),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, deadline.clone(), request, validate::chat).await?;
    let head = Head::of("chatcmpl", &state, &job)?;
    let runs = start(&job, &state)?;
    if job.streaming.stream {
        let mut chunks = Chunks {
            head,
            include_usage: job.streaming.include_usage,
            begun: vec![false; runs.len()],
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
        .map(|(index, answer)| ChatChoice {
            index,
            logprobs: logprobs(&head, &answer.piece),
            message: Some(AnswerMessage {
                role: ASSISTANT,
                content: answer.piece.text,
                refusal: None,
            }),
            delta: None,
            finish_reason: Some(answer.finish_reason),
        })
        .collect();
    Ok(Json(Answer {
        usage: Some(Some(usage)),
        diffusion: Some(diffusion),
        ..head.answer(CHAT_OBJECT, choices)
    })
    .into_response())
}

fn logprobs(head: &Head, piece: &TextPiece) -> Option<ChatLogprobs> {
    let tokenizer = head.logprobs.as_deref()?;
    Some(chat_logprobs(&piece.tokens, tokenizer))
}

/// Makes the chunks of a stream: of each sequence one with the role, those with its text, and one with
/// the reason why it ended.
struct Chunks {
    head: Head,
    include_usage: bool,
    /// Which sequences have had their first chunk.
    begun: Vec<bool>,
    tally: Tally,
}

impl Chunks {
    fn render(&mut self, update: Update<TextPiece, CompletionAnswer>) -> Vec<Frame> {
        let index = update.index;
        let mut frames = Vec::new();
        if let Some(canvas) = update.canvas {
            frames.push(sse::frame(&canvas.frame(&self.head.id, index)));
        }
        if !std::mem::replace(&mut self.begun[index], true) {
            let delta = ChatDelta {
                role: Some(ASSISTANT),
                content: Some(String::new()),
            };
            frames.push(sse::frame(&self.chunk(index, delta, None, None)));
        }
        if let Some(piece) = TextPiece::joined(update.frames) {
            let logprobs = logprobs(&self.head, &piece);
            let has_text = !piece.text.is_empty();
            let delta = ChatDelta {
                content: Some(piece.text),
                ..ChatDelta::default()
            };
            let chunk = sse::frame(&self.chunk(index, delta, logprobs, None));
            frames.push(chunk.telling(has_text));
        }
        let Some((answer, cost)) = update.answer else {
            return frames;
        };
        let end = self.tally.add(answer.tokens, cost, &self.head);
        let reason = Some(answer.finish_reason);
        let mut last = self.chunk(index, ChatDelta::default(), None, reason);
        if !self.include_usage {
            last.diffusion = end.map(|(_, diffusion)| diffusion);
        }
        frames.push(sse::frame(&last));
        if let Some((usage, diffusion)) = end.filter(|_| self.include_usage) {
            frames.push(sse::frame(&Answer {
                usage: Some(Some(usage)),
                diffusion: Some(diffusion),
                ..self
                    .head
                    .answer(CHAT_CHUNK_OBJECT, Vec::<ChatChoice>::new())
            }));
        }
        frames
    }

    fn chunk(
        &self,
        index: usize,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> Answer<'_, ChatChoice> {
        let choice = ChatChoice {
            index,
            message: None,
            delta: Some(delta),
            logprobs,
            finish_reason,
        };
        Answer {
            usage: self.include_usage.then_some(None),
            ..self.head.answer(CHAT_CHUNK_OBJECT, vec![choice])
        }
    }
}
