//! `POST /v1/chat/completions` and `POST /apply-template`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::completions::{Answer, start};
use super::error::ApiError;
use super::extract::Body;
use super::head::{Head, Tally};
use super::run::{Update, answers, updates};
use super::sse::{self, Frame};
use super::state::AppState;
use super::validate;
use super::wire::{
    AnswerMessage, ApplyTemplateRequest, CHAT_CHUNK_OBJECT, CHAT_OBJECT, Chat, ChatChoice,
    ChatRequest, Delta,
};

const ASSISTANT: &str = "assistant";

/// The text of a chat.
pub(super) async fn apply_template(
    State(state): State<Arc<AppState>>,
    Body(request): Body<ApplyTemplateRequest>,
) -> Result<Json<Value>, ApiError> {
    let prompt = validate::checked(&state, request, validate::apply_template).await?;
    Ok(Json(json!({"prompt": prompt})))
}

/// Answers a chat.
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, request, validate::chat).await?;
    let head = Head::new("chatcmpl", &state, &job.plan, job.prompt_tokens())?;
    let runs = start(&job, &state)?;
    if job.stream {
        let mut chunks = Chunks {
            head,
            include_usage: job.include_usage,
            begun: vec![false; runs.len()],
            tally: Tally::of(runs.len()),
        };
        let render = move |update| chunks.render(update);
        return Ok(sse::respond(updates(runs), state.limits.keep_alive, render));
    }
    let (answers, cost) = answers(runs).await?;
    let completion_tokens = answers.iter().map(|answer| answer.tokens).sum();
    let choices = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| ChatChoice {
            index,
            message: Some(AnswerMessage {
                role: ASSISTANT,
                content: answer.text,
                refusal: None,
            }),
            delta: None,
            logprobs: None,
            finish_reason: Some(answer.finish_reason),
        })
        .collect();
    Ok(Json(Chat {
        usage: Some(Some(head.usage(completion_tokens))),
        diffusion: Some(head.diffusion(&cost)),
        ..piece(&head, CHAT_OBJECT, choices)
    })
    .into_response())
}

fn piece<'a>(head: &'a Head, object: &'static str, choices: Vec<ChatChoice>) -> Chat<'a> {
    Chat {
        id: &head.id,
        object,
        created: head.created,
        model: &head.model,
        choices,
        usage: None,
        diffusion: None,
    }
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
    fn render(&mut self, update: Update<String, Answer>) -> Vec<Frame> {
        let index = update.index;
        let mut frames = Vec::new();
        if !std::mem::replace(&mut self.begun[index], true) {
            let delta = Delta {
                role: Some(ASSISTANT),
                content: Some(String::new()),
            };
            frames.push(sse::frame(&self.chunk(index, delta, None)));
        }
        if let Some(text) = update.frame {
            let delta = Delta {
                content: Some(text),
                ..Delta::default()
            };
            frames.push(sse::frame(&self.chunk(index, delta, None)));
        }
        let Some((answer, cost)) = update.answer else {
            return frames;
        };
        self.tally.add(answer.tokens, cost);
        let mut last = self.chunk(index, Delta::default(), Some(answer.finish_reason));
        let diffusion = self.tally.diffusion(&self.head);
        let is_complete = self.tally.is_complete();
        if is_complete && !self.include_usage {
            last.diffusion = Some(diffusion);
        }
        frames.push(sse::frame(&last));
        if is_complete && self.include_usage {
            frames.push(sse::frame(&Chat {
                usage: Some(Some(self.tally.usage(&self.head))),
                diffusion: Some(diffusion),
                ..piece(&self.head, CHAT_CHUNK_OBJECT, Vec::new())
            }));
        }
        frames
    }

    fn chunk(&self, index: usize, delta: Delta, finish_reason: Option<&'static str>) -> Chat<'_> {
        let choice = ChatChoice {
            index,
            message: None,
            delta: Some(delta),
            logprobs: None,
            finish_reason,
        };
        Chat {
            usage: self.include_usage.then_some(None),
            ..piece(&self.head, CHAT_CHUNK_OBJECT, vec![choice])
        }
    }
}
