//! `POST /v1/completions`.

use std::ops::Range;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::completion_text::CompletionText;
use super::error::ApiError;
use super::extract::Body;
use super::head::{Head, Tally};
use super::run::{Reader, Run, Update, answers, updates};
use super::sse::{self, Frame};
use super::state::AppState;
use super::validate::{self, CompletionJob, nth_plan};
use super::wire::{COMPLETION_OBJECT, Completion, CompletionChoice, CompletionRequest};
use crate::canvas::{Canvas, TokenId};
use crate::engine::StepReport;
use crate::text::Tokenizer;

/// Completes prompts.
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, request, validate::completion).await?;
    let head = Head::new("cmpl", &state, &job.plan, job.prompt_tokens())?;
    let runs = start(&job, &state)?;
    if job.stream {
        let mut chunks = Chunks {
            head,
            include_usage: job.include_usage,
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
        .map(|(index, answer)| choice(index, answer.text, Some(answer.finish_reason)))
        .collect();
    Ok(Json(Completion {
        usage: Some(Some(head.usage(completion_tokens))),
        diffusion: Some(head.diffusion(&cost)),
        ..chunk(&head, choices)
    })
    .into_response())
}

/// Queues every sequence; if one cannot be, none is.
pub(super) fn start(
    job: &CompletionJob,
    state: &AppState,
) -> Result<Vec<Run<CompletionReader>>, ApiError> {
    let stop_tokens: Arc<[TokenId]> = state.engine.spec().stop_tokens.as_slice().into();
    let mut runs = Vec::with_capacity(job.prompts.len() * job.n);
    for prompt in &job.prompts {
        for number in 0..job.n {
            let plan = nth_plan(&job.plan, number);
            let generation = state.engine.submit(prompt.canvas.clone(), &plan)?;
            let reader = CompletionReader {
                tokenizer: state.tokenizer.clone(),
                stop_tokens: stop_tokens.clone(),
                gap: prompt.gap.clone(),
                is_revising: plan.is_revising(),
                slots: vec![None; prompt.gap.len()],
                read: 0,
                text: CompletionText::new(job.stops.clone()),
                unsent: prompt.echo.clone().unwrap_or_default(),
                sent: String::new(),
            };
            runs.push(Run::new(runs.len(), &prompt.canvas, generation, reader));
        }
    }
    Ok(runs)
}

/// Reads the gap of a completion from left to right, as far as it is committed without a hole.
pub(super) struct CompletionReader {
    tokenizer: Arc<dyn Tokenizer>,
    stop_tokens: Arc<[TokenId]>,
    gap: Range<usize>,
    /// Whether committed slots may change, so that nothing is certain before the end.
    is_revising: bool,
    /// The gap's tokens where they are committed.
    slots: Vec<Option<TokenId>>,
    /// How many of them have been read.
    read: usize,
    text: CompletionText,
    /// Text that no frame has brought yet; at first the echoed prompt.
    unsent: String,
    /// Text that frames have brought.
    sent: String,
}

/// A finished completion.
pub(super) struct Answer {
    /// Its text; in a stream the frames together have brought it.
    pub text: String,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// How many tokens it was read from.
    pub tokens: usize,
}

impl CompletionReader {
    /// Reads on up to the first masked slot; whether a stop token or a stop string has come.
    fn read(&mut self) -> bool {
        while let Some(Some(token)) = self.slots.get(self.read) {
            self.read += 1;
            if self.stop_tokens.contains(token) {
                // Nothing after it can complete a stop string.
                let rest = self.text.finish();
                self.unsent.push_str(&rest);
                return true;
            }
            let text = self.text.push(self.tokenizer.bytes(*token));
            self.unsent.push_str(&text);
            if self.text.is_stopped() {
                return true;
            }
        }
        false
    }

    fn frame(&mut self) -> Option<String> {
        let text = std::mem::take(&mut self.unsent);
        self.sent.push_str(&text);
        (!text.is_empty()).then_some(text)
    }

    fn answer(&mut self, finish_reason: &'static str) -> Answer {
        Answer {
            text: std::mem::take(&mut self.sent),
            finish_reason,
            tokens: self.read,
        }
    }
}

impl Reader for CompletionReader {
    type Frame = String;
    type Answer = Answer;

    fn step(&mut self, report: &StepReport) -> (Option<String>, Option<Answer>) {
        if self.is_revising {
            return (None, None);
        }
        for (slot, commit) in &report.committed {
            if self.gap.contains(slot) {
                self.slots[slot - self.gap.start] = Some(commit.token);
            }
        }
        let stopped = self.read();
        let frame = self.frame();
        (frame, stopped.then(|| self.answer("stop")))
    }

    fn finish(&mut self, canvas: &Canvas) -> (Option<String>, Answer) {
        for (at, slot) in self.gap.clone().enumerate() {
            self.slots[at] = canvas.provenance(slot).map(|commit| commit.token);
        }
        let stopped = self.read();
        let rest = self.text.finish();
        self.unsent.push_str(&rest);
        let reason = if stopped || self.text.is_stopped() {
            "stop"
        } else {
            "length"
        };
        (self.frame(), self.answer(reason))
    }
}

fn chunk(head: &Head, choices: Vec<CompletionChoice>) -> Completion<'_> {
    Completion {
        id: &head.id,
        object: COMPLETION_OBJECT,
        created: head.created,
        model: &head.model,
        choices,
        usage: None,
        diffusion: None,
    }
}

fn choice(index: usize, text: String, finish_reason: Option<&'static str>) -> CompletionChoice {
    CompletionChoice {
        index,
        text,
        logprobs: None,
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
    fn render(&mut self, update: Update<String, Answer>) -> Vec<Frame> {
        if update.frame.is_none() && update.answer.is_none() {
            return Vec::new();
        }
        let mut finish_reason = None;
        if let Some((answer, cost)) = update.answer {
            finish_reason = Some(answer.finish_reason);
            self.tally.add(answer.tokens, cost);
        }
        let text = update.frame.unwrap_or_default();
        let mut piece = chunk(&self.head, vec![choice(update.index, text, finish_reason)]);
        let is_last = self.tally.is_complete();
        let diffusion = Some(self.tally.diffusion(&self.head));
        piece.usage = self.include_usage.then_some(None);
        if is_last && !self.include_usage {
            piece.diffusion = diffusion;
        }
        let mut frames = vec![sse::frame(&piece)];
        if is_last && self.include_usage {
            frames.push(sse::frame(&Completion {
                usage: Some(Some(self.tally.usage(&self.head))),
                diffusion,
                ..chunk(&self.head, Vec::new())
            }));
        }
        frames
    }
}
