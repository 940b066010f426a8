//! `POST /v1/fim/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::completion_reader::{CompletionAnswer, TextPiece};
use super::completions::start;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::logprobs::chat_logprobs;
use super::metrics::Metrics;
use super::random;
use super::run::{Cost, Update, answers, updates};
use super::sse::{self, End, Frame};
use super::state::{AppState, unix_time};
use super::validate;
use super::wire::{
    CHUNK_OBJECT, Delta, FIM_OBJECT, FimAnswer, FimChoice, FimDelta, FimMessage, FimRequest, Usage,
};
use crate::text::Tokenizer;

const ASSISTANT: &str = "assistant";

/// Fills the gap between a prompt and a suffix.
#[utoipa::path(
    post,
    path = "/v1/fim/completions",
    tag = "Denoising",
    operation_id = "fim_completions",
    request_body(content = FimRequest, example = json!({"prompt": "def add(a, b):\n", "suffix": "\n\nprint(add(1, 2))", "max_tokens": 12, "random_seed": 1})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", body = FimAnswer<FimMessage>),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Body(request): Body<FimRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, request, validate::fim).await?;
    let head = Head {
        id: format!("fim-{}", random::identifier()?),
        created: unix_time(),
        model: state.model_name.clone(),
        seed: job.plan.sampling.seed,
        prompt_tokens: job.prompt_tokens(),
        logprobs: job.top_logprobs.map(|_| state.tokenizer.clone()),
        metrics: state.metrics.clone(),
    };
    let runs = start(&job, &state)?;
    if job.stream {
        let mut chunks = Chunks {
            head,
            running: runs.len(),
            completion_tokens: 0,
            cost: Cost::default(),
        };
        let render = move |update| chunks.render(update);
        let updates = updates(runs, state.limits.request_timeout);
        let keep_alive = state.limits.keep_alive;
        return Ok(sse::respond(updates, keep_alive, End::Done, render));
    }
    let (answers, cost) = answers(runs, state.limits.request_timeout).await?;
    let completion_tokens = answers.iter().map(|answer| answer.tokens).sum();
    let choices = answers.into_iter().enumerate().map(|(index, answer)| {
        head.choice(index, answer.piece, Some(answer.finish_reason), |text| {
            FimMessage {
                message: message(text),
            }
        })
    });
    let choices = choices.collect();
    Ok(Json(head.answer(FIM_OBJECT, choices, Some((completion_tokens, cost)))).into_response())
}

fn message(content: String) -> Delta {
    Delta {
        role: ASSISTANT,
        content,
    }
}

/// What all chunks of an answer have in common.
struct Head {
    id: String,
    created: u64,
    model: String,
    seed: u64,
    prompt_tokens: usize,
    /// Writes the tokens of log-probabilities, if they were asked for.
    logprobs: Option<Arc<dyn Tokenizer>>,
    metrics: Arc<Metrics>,
}

impl Head {
    /// An answer or a chunk; `end` brings the tokens of a whole answer, which is counted, and its cost.
    fn answer<C: Serialize>(
        &self,
        object: &'static str,
        choices: Vec<FimChoice<C>>,
        end: Option<(usize, Cost)>,
    ) -> FimAnswer<'_, C> {
        if let Some((tokens, cost)) = end {
            let per_forward = cost.tokens_per_forward();
            self.metrics
                .count_answer(self.prompt_tokens, tokens, per_forward);
        }
        FimAnswer {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage: end.map(|(tokens, _)| Usage::new(self.prompt_tokens, tokens)),
            diffusion: end.map(|(_, cost)| cost.report(self.seed)),
        }
    }

    fn choice<C>(
        &self,
        index: usize,
        piece: TextPiece,
        finish_reason: Option<&'static str>,
        content: impl Fn(String) -> C,
    ) -> FimChoice<C> {
        let tokenizer = self.logprobs.as_deref();
        FimChoice {
            index,
            content: content(piece.text),
            logprobs: tokenizer.map(|tokenizer| chat_logprobs(&piece.tokens, tokenizer)),
            finish_reason,
        }
    }
}

/// Makes the chunks of a stream.
struct Chunks {
    head: Head,
    /// Sequences without an answer yet.
    running: usize,
    completion_tokens: usize,
    cost: Cost,
}

impl Chunks {
    fn render(&mut self, update: Update<TextPiece, CompletionAnswer>) -> Vec<Frame> {
        let mut frames = Vec::new();
        if let Some(canvas) = update.canvas {
            frames.push(sse::frame(&canvas.frame(&self.head.id, update.index)));
        }
        let piece = TextPiece::joined(update.frames);
        if piece.is_none() && update.answer.is_none() {
            return frames;
        }
        let mut finish_reason = None;
        if let Some((answer, cost)) = update.answer {
            finish_reason = Some(answer.finish_reason);
            self.running -= 1;
            self.completion_tokens += answer.tokens;
            self.cost.add(cost);
        }
        let piece = piece.unwrap_or_default();
        let choice = self
            .head
            .choice(update.index, piece, finish_reason, |text| FimDelta {
                delta: message(text),
            });
        let end = (self.running == 0).then_some((self.completion_tokens, self.cost));
        let chunk = self.head.answer(CHUNK_OBJECT, vec![choice], end);
        frames.push(sse::frame(&chunk));
        frames
    }
}
