//! A completion: a canvas of prompt, gap and suffix for each prompt.

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{
    CompletionRequest, Object, Prompt, PromptItem, Stop, StreamOptions, Whole,
};
use super::decoding::{DecodeFields, plan, repetitions, size};
use super::neutral;
use super::{check_model, check_token, encode, encode_continuation};
use crate::canvas::{Canvas, TokenId};
use crate::decode::DecodePlan;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request for completions that can be queued.
#[derive(Debug)]
pub struct CompletionJob {
    /// One a prompt.
    pub prompts: Vec<PromptJob>,
    /// Sequences a prompt.
    pub n: usize,
    /// How they are denoised.
    pub plan: DecodePlan,
    /// Strings that end a completion; none is empty.
    pub stops: Arc<[String]>,
    /// Whether to answer with server-sent events.
    pub stream: bool,
    /// Whether the last of them carries the usage.
    pub include_usage: bool,
}

impl CompletionJob {
    /// Fixed tokens, each prompt's once.
    pub fn prompt_tokens(&self) -> usize {
        let fixed = |prompt: &PromptJob| prompt.canvas.scratch().start - prompt.gap.len();
        self.prompts.iter().map(fixed).sum()
    }
}

/// A prompt that can be queued.
#[derive(Debug)]
pub struct PromptJob {
    /// Prompt, gap and suffix, and the scratch slots that the model needs after them.
    pub canvas: Canvas,
    /// The slots of the gap.
    pub gap: Range<usize>,
    /// The prompt's text, if it is to come back.
    pub echo: Option<String>,
}

/// A prompt as it was given.
pub(super) struct Given {
    pub path: String,
    pub text: Option<String>,
    pub tokens: Vec<TokenId>,
}

/// How many tokens are asked for, and by which field.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub param: &'static str,
    pub tokens: usize,
}

/// Checks a request for completions.
pub fn completion(request: CompletionRequest, state: &AppState) -> Result<CompletionJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    refuse_unsupported(&request)?;
    let limits = &state.limits;
    let (stream, include_usage) = stream(request.stream, request.stream_options)?;
    let stops = stops(request.stop, state)?;
    let prompt = request.prompt.ok_or_else(|| {
        ApiError::missing(
            "prompt",
            "a string, or a list of strings, of token ids or of lists of token ids",
        )
    })?;
    // Counted before the texts are encoded, which is the costly part.
    let n = repetitions(request.n, count(&prompt), limits)?;
    let max_tokens = request.max_tokens.map_or(DEFAULT_MAX_TOKENS, size);
    let asked = Asked {
        param: "max_tokens",
        tokens: max_tokens,
    };
    let fields = DecodeFields {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed,
        diffusion: request.diffusion,
    };
    let plan = plan(fields, state.engine.spec())?;
    let suffix = match &request.suffix {
        Some(suffix) => encode_continuation(suffix, "suffix", state)?,
        None => Vec::new(),
    };
    let echo = request.echo.unwrap_or(false);
    let prompts = prompts(prompt, state)?
        .into_iter()
        .map(|prompt| lay_out(prompt, asked, &suffix, echo, &plan, state))
        .collect::<Result<_, _>>()?;
    Ok(CompletionJob {
        prompts,
        n,
        plan,
        stops,
        stream,
        include_usage,
    })
}

/// Whether to stream, and whether the stream ends with the usage.
pub(super) fn stream(
    stream: Option<bool>,
    options: Option<Object<StreamOptions>>,
) -> Result<(bool, bool), ApiError> {
    let stream = stream.unwrap_or(false);
    if options.is_some() && !stream {
        return Err(ApiError::unsupported(
            "stream_options",
            "given",
            "it is allowed only with stream = true",
        ));
    }
    let include_usage = options.and_then(|options| options.0.include_usage);
    Ok((stream, include_usage.unwrap_or(false)))
}

/// Lays a prompt out with a gap of the tokens asked for.
pub(super) fn lay_out(
    prompt: Given,
    asked: Asked,
    suffix: &[TokenId],
    echo: bool,
    plan: &DecodePlan,
    state: &AppState,
) -> Result<PromptJob, ApiError> {
    let spec = state.engine.spec();
    let Given { path, text, tokens } = prompt;
    let Asked {
        param,
        tokens: max_tokens,
    } = asked;
    if max_tokens == 0 {
        return Err(ApiError::value(
            param,
            0,
            format_args!(
                "at least 1; prompt and completion together at most {}",
                spec.max_canvas
            ),
        ));
    }
    let fixed = tokens.len() + suffix.len();
    let gap_end = tokens.len().saturating_add(max_tokens);
    let slots = spec.canvas_length(plan, gap_end, fixed.saturating_add(max_tokens));
    if slots > spec.max_canvas {
        let at_fault = if fixed < spec.max_canvas {
            param
        } else {
            &path
        };
        let suffix = match suffix.len() {
            0 => String::new(),
            length => format!(", suffix has {length}"),
        };
        let what = format_args!(
            "{path} has {} tokens{suffix} and {param} is {max_tokens}",
            tokens.len()
        );
        return Err(ApiError::canvas_too_long(
            at_fault,
            what,
            slots,
            spec.max_canvas,
        ));
    }
    let canvas = Canvas::builder(state.engine.mask_token())
        .fixed(&tokens)
        .gap(max_tokens)
        .fixed(suffix)
        .build()
        .map_err(|error| ApiError::unusable(&path, error))?
        .with_scratch(slots);
    let echo = echo.then(|| text.unwrap_or_else(|| state.tokenizer.decode(&tokens)));
    Ok(PromptJob {
        canvas,
        gap: tokens.len()..gap_end,
        echo,
    })
}

/// How many prompts there are.
fn count(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(_) => 1,
        Prompt::List(items) => match items.first() {
            Some(PromptItem::Token(_)) => 1,
            _ => items.len(),
        },
    }
}

fn prompts(prompt: Prompt, state: &AppState) -> Result<Vec<Given>, ApiError> {
    let items = match prompt {
        Prompt::Text(text) => return Ok(vec![given_text("prompt".into(), text, state)?]),
        Prompt::List(items) => items,
    };
    let mixed = |i: usize, others: &str| {
        ApiError::unusable(
            &format!("prompt[{i}]"),
            format_args!(
                "is of another kind than prompt[0]; allowed here: {others}, as all entries of a list are alike"
            ),
        )
    };
    match items.first() {
        None => Err(ApiError::value(
            "prompt",
            "an empty list",
            "at least one prompt",
        )),
        Some(PromptItem::Text(_)) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| match item {
                PromptItem::Text(text) => given_text(format!("prompt[{i}]"), text, state),
                _ => Err(mixed(i, "a string")),
            })
            .collect(),
        Some(PromptItem::Tokens(_)) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| match item {
                PromptItem::Tokens(tokens) => given_tokens(format!("prompt[{i}]"), &tokens, state),
                _ => Err(mixed(i, "a list of token ids")),
            })
            .collect(),
        Some(PromptItem::Token(_)) => {
            let tokens = items
                .into_iter()
                .enumerate()
                .map(|(i, item)| match item {
                    PromptItem::Token(token) => Ok(token),
                    _ => Err(mixed(i, "a token id")),
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok(vec![given_tokens("prompt".into(), &tokens, state)?])
        }
    }
}

fn given_text(path: String, text: String, state: &AppState) -> Result<Given, ApiError> {
    Ok(Given {
        tokens: encode(&text, &path, state)?,
        path,
        text: Some(text),
    })
}

fn given_tokens(path: String, tokens: &[u64], state: &AppState) -> Result<Given, ApiError> {
    let tokens = tokens
        .iter()
        .enumerate()
        .map(|(i, token)| check_token(*token, &format!("{path}[{i}]"), state))
        .collect::<Result<_, _>>()?;
    Ok(Given {
        path,
        text: None,
        tokens,
    })
}

/// The stop strings.
pub(super) fn stops(stop: Option<Stop>, state: &AppState) -> Result<Arc<[String]>, ApiError> {
    let limits = &state.limits;
    let (stops, is_list) = match stop {
        None => (Vec::new(), false),
        Some(Stop::One(stop)) => (vec![stop], false),
        Some(Stop::Many(stops)) => (stops, true),
    };
    if stops.len() > limits.stop_strings {
        return Err(ApiError::value(
            "stop",
            format_args!("a list of {} strings", stops.len()),
            format_args!("at most {}", limits.stop_strings),
        ));
    }
    for (i, stop) in stops.iter().enumerate() {
        let longest = limits.stop_string_bytes;
        if !(1..=longest).contains(&stop.len()) {
            let path = if is_list {
                format!("stop[{i}]")
            } else {
                "stop".to_owned()
            };
            return Err(ApiError::value(
                &path,
                format_args!("a string of {} bytes", stop.len()),
                format_args!("1 to {longest} bytes"),
            ));
        }
    }
    Ok(stops.into())
}

/// Fields of OpenAI's API that have no effect here are taken at the value that has none there.
fn refuse_unsupported(request: &CompletionRequest) -> Result<(), ApiError> {
    neutral::penalty("presence_penalty", request.presence_penalty)?;
    neutral::penalty("frequency_penalty", request.frequency_penalty)?;
    neutral::logit_bias(request.logit_bias.as_ref())?;
    let n = request.n.unwrap_or(Whole(1));
    if let Some(best_of) = request.best_of
        && best_of != n
    {
        return Err(ApiError::unsupported(
            "best_of",
            best_of.0,
            format_args!(
                "choosing among more than n is not supported; allowed: n, here {}",
                n.0
            ),
        ));
    }
    match &request.logprobs {
        None | Some(Value::Null) => Ok(()),
        Some(given) => Err(ApiError::unsupported(
            "logprobs",
            given,
            "a token's probability is that of its denoise step, not of the text before it, so that OpenAI's logprobs \
             are not supported; allowed: null (/v1/infill answers with each token's probability and step)",
        )),
    }
}
