//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::completion_reader::{CompletionAnswer, CompletionReader, TextPiece};
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::frames::CanvasView;
use super::infill_text::GapTokenizer;
use super::logprobs::completion_logprobs;
use super::metrics::Metrics;
use super::random;
use super::run::{Cost, Run, Update, answers, updates};
use super::sse::{self, End, Frame};
use super::state::{AppState, unix_time};
use super::validate::{self, CompletionJob, nth_plan};
use super::wire::{COMPLETION_OBJECT, Completion, CompletionChoice, CompletionRequest, Usage};
use crate::canvas::TokenId;
use crate::engine::LogprobRequest;
use crate::text::gaps::Piece;
use crate::text::{Layout, Tokenizer};

/// Completes prompts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "Denoising",
    operation_id = "completions",
    request_body(content = CompletionRequest, example = json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.7, "seed": 1, "logprobs": 2, "stop": ["\n"], "diffusion": {"steps": 4}})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", body = Completion),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, request, validate::completion).await?;
    let head = Head {
        id: format!("cmpl-{}", random::identifier()?),
        created: unix_time(),
        model: state.model_name.clone(),
        seed: job.plan.sampling.seed,
        prompt_tokens: job.prompt_tokens(),
        logprobs: job.top_logprobs.map(|_| state.tokenizer.clone()),
    };
    let runs = start(&job, &state)?;
    if job.stream {
        let mut chunks = Chunks {
            metrics: state.metrics.clone(),
            head,
            include_usage: job.include_usage,
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
    let per_forward = cost.tokens_per_forward();
    state
        .metrics
        .count_answer(head.prompt_tokens, completion_tokens, per_forward);
    let choices = answers
        .into_iter()
        .enumerate()
        .map(|(index, answer)| head.choice(index, answer.piece, Some(answer.finish_reason)))
        .collect();
    Ok(Json(Completion {
        usage: Some(Some(Usage::new(head.prompt_tokens, completion_tokens))),
        diffusion: Some(cost.report(head.seed)),
        ..head.chunk(choices)
    })
    .into_response())
}

/// Queues every sequence; if one cannot be, none is.
pub(super) fn start(
    job: &CompletionJob,
    state: &AppState,
) -> Result<Vec<Run<CompletionReader>>, ApiError> {
    let stop_tokens: Arc<[TokenId]> = state.engine.spec().stop_tokens.as_slice().into();
    let tokenizer = Arc::new(GapTokenizer::new(state));
    let mut runs = Vec::with_capacity(job.prompts.len() * job.n);
    for prompt in &job.prompts {
        for number in 0..job.n {
            let plan = nth_plan(&job.plan, number);
            let logprobs = job.top_logprobs.map(|top| LogprobRequest {
                top,
                ..LogprobRequest::default()
            });
            let canvas = plan.noised(prompt.canvas.clone());
            let generation = state.engine.submit_reporting(canvas, &plan, logprobs)?;
            let mut reader = CompletionReader::new(
                state.tokenizer.clone(),
                stop_tokens.clone(),
                job.stops.clone(),
                prompt.gap.clone(),
                plan.is_revising(),
            );
            if job.top_logprobs.is_some() {
                reader = reader.with_logprobs();
            }
            if let Some(echo) = &prompt.echo {
                reader = reader.after(echo);
            }
            let mut run = Run::new(runs.len(), &prompt.canvas, generation, reader);
            if job.frames {
                let layout = Layout::of(vec![Piece::Gap(prompt.gap.len())]);
                let canvas = plan.noised(prompt.canvas.clone());
                run = run.showing(CanvasView::new(canvas, layout, tokenizer.clone()));
            }
            runs.push(run);
        }
    }
    Ok(runs)
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
}

impl Head {
    fn chunk(&self, choices: Vec<CompletionChoice>) -> Completion<'_> {
        Completion {
            id: &self.id,
            object: COMPLETION_OBJECT,
            created: self.created,
            model: &self.model,
            choices,
            usage: None,
            diffusion: None,
        }
    }

    fn choice(
        &self,
        index: usize,
        piece: TextPiece,
        finish_reason: Option<&'static str>,
    ) -> CompletionChoice {
        let tokenizer = self.logprobs.as_deref();
        CompletionChoice {
            index,
            logprobs: tokenizer.map(|tokenizer| completion_logprobs(&piece.tokens, tokenizer)),
            text: piece.text,
            finish_reason,
        }
    }
}

/// Makes the chunks of a stream.
struct Chunks {
    metrics: Arc<Metrics>,
    head: Head,
    include_usage: bool,
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
        let choice = self.head.choice(update.index, piece, finish_reason);
        let mut chunk = self.head.chunk(vec![choice]);
        let is_last = self.running == 0;
        if is_last {
            let per_forward = self.cost.tokens_per_forward();
            let prompt_tokens = self.head.prompt_tokens;
            self.metrics
                .count_answer(prompt_tokens, self.completion_tokens, per_forward);
        }
        let diffusion = self.cost.report(self.head.seed);
        chunk.usage = self.include_usage.then_some(None);
        if is_last && !self.include_usage {
            chunk.diffusion = Some(diffusion);
        }
        frames.push(sse::frame(&chunk));
        if is_last && self.include_usage {
            frames.push(sse::frame(&Completion {
                usage: Some(Some(Usage::new(
                    self.head.prompt_tokens,
                    self.completion_tokens,
                ))),
                diffusion: Some(diffusion),
                ..self.head.chunk(Vec::new())
            }));
        }
        frames
    }
}
