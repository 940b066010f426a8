//! `POST /infill`: filling the gap at an editor's cursor, for plug-ins that speak to llama.cpp's server.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::TryFutureExt;
use serde_json::{Map, Value};

use super::completion_reader::{CompletionAnswer, TextPiece};
use super::completions::start;
use super::deadline::Deadline;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::ledger::Ledger;
use super::run::{Cost, Update, answers, updates};
use super::sse::{self, End, Frame, ServerEvent};
use super::state::AppState;
use super::validate::{self, LlamaInfillJob};
use super::wire::{self, GenerationSettings, LlamaChunk, LlamaInfill, LlamaInfillRequest, Timings};

/// There are no slots in llama.cpp's sense.
const NO_SLOT: i32 = -1;

/// Fills the gap.
#[utoipa::path(
    post,
    path = "/infill",
    tag = "Denoising",
    operation_id = "llama_infill",
    request_body(content = LlamaInfillRequest, example = json!({"input_prefix": "fn main() {\n", "input_suffix": "}\n", "prompt": "    ", "n_predict": 8, "input_extra": [{"filename": "a.rs", "text": "mod b;"}]})),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events", content((LlamaInfill = "application/json"), (ServerEvent = "text/event-stream"))),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<LlamaInfillRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, deadline.clone(), request, validate::llama_infill).await?;
    let head = Head::new(&job, &state);
    let runs = start(&job.completion, &state)?;
    // Where the filling ends by its indent is known only when the whole of it is.
    let shows_text = job.completion.streaming.stream && job.n_indent == 0;
    if shows_text && !runs.is_empty() {
        let mut has_new_line = false;
        let render = move |update| head.render(update, &mut has_new_line);
        let updates = updates(runs, deadline);
        let keep_alive = state.limits.keep_alive;
        return Ok(sse::respond(updates, keep_alive, End::Nothing, render));
    }
    let answer = async move {
        let (mut answers, cost) = answers(runs, deadline).await?;
        head.selected(&head.answer(answers.pop(), cost))
    };
    if job.completion.streaming.stream {
        let frame = answer.map_ok(|answer| sse::frame(&answer).telling(true));
        return Ok(sse::respond_once(
            frame,
            state.limits.keep_alive,
            End::Nothing,
        ));
    }
    Ok(Json(answer.await?).into_response())
}

/// The named fields of an answer under the names by which they were asked for; all if none is named. What is
/// not there is left out.
fn selected(answer: Value, fields: &[String]) -> Value {
    if fields.is_empty() {
        return answer;
    }
    let selected = fields.iter().filter_map(|path| {
        let value = path
            .split('/')
            .try_fold(&answer, |value, name| value.get(name))?;
        Some((path.clone(), value.clone()))
    });
    Value::Object(selected.collect::<Map<_, _>>())
}

/// What an answer holds that is known beforehand.
struct Head {
    model: String,
    prompt_tokens: usize,
    n_indent: usize,
    truncated: bool,
    return_tokens: bool,
    response_fields: Vec<String>,
    settings: GenerationSettings,
    ledger: Ledger,
}

impl Head {
    fn new(job: &LlamaInfillJob, state: &AppState) -> Self {
        let sampling = &job.completion.plan.sampling;
        Self {
            model: state.model_name.clone(),
            prompt_tokens: job.completion.prompt_tokens(),
            n_indent: job.n_indent,
            truncated: job.truncated,
            return_tokens: job.return_tokens,
            response_fields: job.response_fields.clone(),
            settings: GenerationSettings {
                n_predict: job.n_predict,
                seed: sampling.seed,
                temperature: sampling.temperature,
                top_k: sampling.top_k.unwrap_or(0),
                top_p: sampling.top_p.unwrap_or(1.0),
                min_p: sampling.min_p.unwrap_or(0.0),
                stop: job.completion.stops.to_vec(),
                stream: job.completion.streaming.stream,
            },
            ledger: Ledger::open(state),
        }
    }

    /// The whole answer, which is counted; empty if nothing was filled.
    fn answer(&self, answer: Option<CompletionAnswer>, cost: Cost) -> LlamaInfill<'_> {
        let predicted = answer.as_ref().map_or(0, |answer| answer.tokens);
        self.ledger.answer(self.prompt_tokens, predicted, &cost);
        let (stop_type, stopping_word) = match &answer {
            Some(CompletionAnswer {
                stop: Some(stop), ..
            }) => ("word", stop.clone()),
            Some(answer) if answer.finish_reason == "stop" => ("eos", String::new()),
            _ => ("limit", String::new()),
        };
        let piece = answer.map(|answer| answer.piece).unwrap_or_default();
        let piece = indented(piece, self.n_indent);
        let content = piece.text;
        let tokens = match self.return_tokens {
            true => piece.tokens.iter().map(|token| token.token).collect(),
            false => Vec::new(),
        };
        LlamaInfill {
            index: 0,
            has_new_line: content.contains('\n'),
            content,
            tokens,
            id_slot: NO_SLOT,
            stop: true,
            model: &self.model,
            tokens_predicted: predicted,
            tokens_evaluated: self.prompt_tokens,
            tokens_cached: 0,
            generation_settings: self.settings.clone(),
            truncated: self.truncated,
            stop_type,
            stopping_word,
            timings: timings(self.prompt_tokens, predicted, cost.denoising()),
        }
    }

    /// The fields of an answer that were asked for.
    fn selected(&self, answer: &LlamaInfill) -> Result<Value, ApiError> {
        let answer = wire::as_written(answer).map_err(|error| {
            ApiError::internal(format!("the answer cannot be written: {error}"))
        })?;
        Ok(selected(answer, &self.response_fields))
    }

    /// The frames of an update; `has_new_line` is carried from one to the next.
    fn render(
        &self,
        update: Update<TextPiece, CompletionAnswer>,
        has_new_line: &mut bool,
    ) -> Vec<Frame> {
        let piece = TextPiece::joined(update.frames);
        let text = piece.map(|piece| piece.text).unwrap_or_default();
        *has_new_line |= text.contains('\n');
        let has_text = !text.is_empty();
        match update.answer {
            Some((answer, cost)) => {
                let last = LlamaInfill {
                    content: text,
                    has_new_line: *has_new_line,
                    ..self.answer(Some(answer), cost)
                };
                vec![match self.selected(&last) {
                    Ok(answer) => sse::frame(&answer).telling(has_text),
                    Err(error) => sse::failure(error),
                }]
            }
            None if text.is_empty() => Vec::new(),
            None => {
                let chunk = sse::frame(&LlamaChunk {
                    index: 0,
                    content: text,
                    tokens: Vec::new(),
                    stop: false,
                    id_slot: NO_SLOT,
                });
                vec![chunk.telling(true)]
            }
        }
    }
}

fn timings(prompt: usize, predicted: usize, denoising: Duration) -> Timings {
    let seconds = denoising.as_secs_f64();
    let rate = match seconds > 0.0 {
        true => predicted as f64 / seconds,
        false => 0.0,
    };
    Timings {
        prompt_n: prompt,
        predicted_n: predicted,
        predicted_ms: seconds * 1e3,
        predicted_per_token_ms: seconds * 1e3 / predicted.max(1) as f64,
        predicted_per_second: rate,
        ..Timings::default()
    }
}

/// `piece` up to the first line after its first that is indented by fewer than `least` blanks and is not
/// empty, with the tokens that begin before it.
fn indented(mut piece: TextPiece, least: usize) -> TextPiece {
    let text = &mut piece.text;
    let ends_before = |line: &str| {
        let indent = line.chars().take_while(|c| matches!(c, ' ' | '\t')).count();
        !line.trim().is_empty() && indent < least
    };
    let breaks = text.match_indices('\n').map(|(at, _)| at);
    let end = breaks.into_iter().find(|at| {
        let line = text[at + 1..].split('\n').next().unwrap_or_default();
        ends_before(line)
    });
    if let Some(end) = end {
        text.truncate(end);
        let characters = text.chars().count();
        piece.tokens.retain(|token| token.offset < characters);
    }
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filling_ends_before_a_line_that_is_indented_less() {
        let cut = |text: &str, least| {
            let piece = TextPiece {
                text: text.to_owned(),
                tokens: Vec::new(),
            };
            indented(piece, least).text
        };
        assert_eq!(cut("a\n    b\n\n    c\nd", 4), "a\n    b\n\n    c");
        assert_eq!(cut("a\n    b\n  c\n", 4), "a\n    b");
        assert_eq!(cut("a\nb", 0), "a\nb");
        assert_eq!(cut("a\n\t\tb\n", 2), "a\n\t\tb\n");
    }
}
