//! A completion: a canvas of prompt, gap and suffix for each prompt.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::super::completion_reader::Echo;
use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{
    CompletionRequest, Object, Prompt, PromptItem, StreamOptions, Texts, Whole,
};
use super::constraint::{FormFields, form, of_completion};
use super::decoding::{
    DecodeFields, NEGATIVE_PROMPT, frames, plan, repetitions, size, stream_options,
};
use super::logits::completion_logprobs;
use super::neutral::neutral;
use super::{Place, Use, check_model, check_seen_ahead, check_token, encode};
use crate::canvas::{Canvas, TokenId};
use crate::constraint::{CanvasConstraint, TokenDfa};
use crate::decode::DecodePlan;

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request for completions that can be queued.
pub struct CompletionJob {
    /// One a prompt.
    pub prompts: Vec<PromptJob>,
    /// Sequences a prompt.
    pub n: usize,
    /// How they are denoised.
    pub plan: DecodePlan,
    /// Strings that end a completion; none is empty.
    pub stops: Arc<[String]>,
    /// How many of the most probable tokens are reported with each; `None` if no log-probabilities are.
    pub top_logprobs: Option<usize>,
    /// After how long of denoising a completion ends with what is certain of it, if that has a line break.
    pub time_limit: Option<Duration>,
    /// How the answer is sent.
    pub streaming: Streaming,
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy)]
pub struct Streaming {
    /// Whether as server-sent events.
    pub stream: bool,
    /// Whether the last of them carries the usage.
    pub include_usage: bool,
    /// Whether they bring frames of the canvas.
    pub frames: bool,
}

impl CompletionJob {
    /// Tokens of the prompts and suffixes.
    pub fn prompt_tokens(&self) -> usize {
        let prompts = self.prompts.iter();
        prompts
            .map(|prompt| prompt.canvas.scratch().start - prompt.gap.len())
            .sum()
    }
}

/// A prompt that can be queued.
pub struct PromptJob {
    /// Prompt, gap and suffix, and the scratch slots that the model needs after them.
    pub canvas: Canvas,
    /// The slots of the gap.
    pub gap: Range<usize>,
    /// What the gap may be filled with.
    pub constraint: Option<CanvasConstraint>,
    /// The prompt, if it is to come back.
    pub echo: Option<Echo>,
}

/// A prompt as it was given.
pub(super) struct Given {
    /// How an error names it.
    pub path: String,
    /// Its text, if it was given as text.
    pub text: Option<String>,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
}

/// Checks a request for completions.
pub fn completion(request: CompletionRequest, state: &AppState) -> Result<CompletionJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    refuse_unsupported(&request)?;
    let streaming = streaming(request.stream, request.stream_options, request.diffusing)?;
    let stops = stops(request.stop, "stop", state)?;
    let top_logprobs = completion_logprobs(request.logprobs)?;
    let prompt = request.prompt.ok_or_else(|| {
        ApiError::missing(
            "prompt",
            "a string, or a list of strings, of token ids or of lists of token ids",
        )
    })?;
    // Counted before the texts are encoded, which is the costly part.
    let n = repetitions(request.n, count(&prompt), state)?;
    let max_tokens = request.max_tokens.map_or(DEFAULT_MAX_TOKENS, size);
    check_size("max_tokens", max_tokens, state)?;
    let fields = DecodeFields {
        temperature: request.temperature,
        top_p: request.top_p,
        min_p: request.min_p,
        top_k: request.top_k,
        seed: request.seed,
        logit_bias: request.logit_bias,
        diffusion: request.diffusion,
        prompt_place: Place::Start,
    };
    let plan = plan(fields, state)?;
    let suffix = match &request.suffix {
        Some(suffix) => encode(suffix, Place::Later, "suffix", state)?,
        None => Vec::new(),
    };
    let echo = request.echo.unwrap_or(false);
    let prompts = prompts(prompt, state)?;
    // Last, as it may take a while.
    let fields = FormFields {
        response_format: request.response_format,
        grammar: request.grammar,
        json_schema: None,
    };
    let language = form(fields, state)?;
    check_stops(&stops, language.is_some())?;
    let outline = Outline {
        size_param: "max_tokens",
        max_tokens,
        suffix_param: "suffix",
        suffix: &suffix,
        echo,
        plan: &plan,
        language: language.as_ref(),
    };
    let prompts = prompts
        .into_iter()
        .map(|prompt| outline.lay_out(prompt, state))
        .collect::<Result<_, _>>()?;
    Ok(CompletionJob {
        prompts,
        n,
        plan,
        stops,
        top_logprobs,
        time_limit: None,
        streaming,
    })
}

/// Whether to stream, and what.
pub(super) fn streaming(
    stream: Option<bool>,
    options: Option<Object<StreamOptions>>,
    diffusing: Option<bool>,
) -> Result<Streaming, ApiError> {
    let stream = stream.unwrap_or(false);
    let options = stream_options(options, stream)?;
    if options.include_obfuscation == Some(true) {
        return Err(ApiError::unsupported(
            "stream_options.include_obfuscation",
            true,
            "chunks are not padded; allowed: false",
        ));
    }
    Ok(Streaming {
        stream,
        include_usage: options.include_usage.unwrap_or(false),
        frames: frames(options.diffusion, diffusing, stream)?,
    })
}

/// A gap has at least one slot; `param` is the field that gives its length.
pub(super) fn check_size(param: &str, tokens: usize, state: &AppState) -> Result<(), ApiError> {
    let limit = state.slot_limit(state.engine.spec().canvas_limit());
    let limit = limit.of_slots();
    match tokens {
        0 => Err(ApiError::value(
            param,
            0,
            format_args!("at least 1; {limit}, prompt and completion together"),
        )),
        _ => Ok(()),
    }
}

/// What comes after each prompt of a request.
pub(super) struct Outline<'a> {
    /// The field that gives the gap's length.
    pub size_param: &'a str,
    /// Slots of the gap.
    pub max_tokens: usize,
    /// The field that gives what is fixed after the gap.
    pub suffix_param: &'a str,
    /// What is fixed after the gap.
    pub suffix: &'a [TokenId],
    /// Whether the prompt is to come back.
    pub echo: bool,
    /// How the canvas is denoised.
    pub plan: &'a DecodePlan,
    /// What the gap is to hold a text of, if not any.
    pub language: Option<&'a Arc<TokenDfa>>,
}

impl Outline<'_> {
    /// Prompt, gap and suffix on a canvas.
    pub fn lay_out(&self, prompt: Given, state: &AppState) -> Result<PromptJob, ApiError> {
        let Self {
            size_param,
            max_tokens,
            suffix_param,
            suffix,
            echo,
            plan,
            language,
        } = *self;
        let spec = state.engine.spec();
        if !suffix.is_empty() {
            check_seen_ahead(suffix_param, plan, spec)?;
        }
        let Given { path, text, tokens } = prompt;
        let fixed = tokens.len() + suffix.len();
        let gap_end = tokens.len().saturating_add(max_tokens);
        let gap = tokens.len()..gap_end;
        let slots = spec.canvas_length(plan, gap.clone(), fixed.saturating_add(max_tokens));
        let limit = spec.longest_canvas(plan);
        if slots > limit {
            let param = if fixed < limit { size_param } else { &path };
            let suffix = match suffix.len() {
                0 => String::new(),
                length => format!(", suffix has {length}"),
            };
            let what = format_args!(
                "{path} has {} tokens{suffix} and {size_param} is {max_tokens}",
                tokens.len()
            );
            let limit = state.slot_limit(limit);
            return Err(ApiError::canvas_too_long(param, what, slots, limit));
        }
        if let Some(negative) = &plan.sampling.negative_prompt {
            let slots = slots - tokens.len() + negative.len();
            if slots > limit {
                let what = format_args!(
                    "{NEGATIVE_PROMPT} has {} tokens and stands in the place of {path}",
                    negative.len()
                );
                return Err(ApiError::canvas_too_long(
                    NEGATIVE_PROMPT,
                    what,
                    slots,
                    state.slot_limit(limit),
                ));
            }
        }
        let canvas = Canvas::builder(state.engine.blank())
            .fixed(&tokens)
            .gap_between(max_tokens, 0, max_tokens)
            .fixed(suffix)
            .build()
            .map_err(|error| ApiError::unusable(&path, error))?
            .with_scratch(slots);
        let constraint = language
            .map(|language| of_completion(language, size_param, &canvas, plan, state))
            .transpose()?;
        let echo = echo.then(|| Echo {
            text: text.unwrap_or_else(|| state.tokenizer.decode(&tokens)),
            tokens,
        });
        Ok(PromptJob {
            canvas,
            gap,
            constraint,
            echo,
        })
    }
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
        tokens: encode(&text, Place::Start, &path, state)?,
        path,
        text: Some(text),
    })
}

fn given_tokens(path: String, tokens: &[u64], state: &AppState) -> Result<Given, ApiError> {
    let tokens = tokens
        .iter()
        .enumerate()
        .map(|(i, token)| check_token(Use::Fixed, *token, &format!("{path}[{i}]"), state))
        .collect::<Result<_, _>>()?;
    Ok(Given {
        path,
        text: None,
        tokens,
    })
}

/// The stop strings of the field `param`, each of which must be of an allowed length.
pub(super) fn stops(
    stop: Option<Texts>,
    param: &str,
    state: &AppState,
) -> Result<Arc<[String]>, ApiError> {
    let limits = &state.limits;
    let (stops, is_list) = match stop {
        None => (Vec::new(), false),
        Some(Texts::One(stop)) => (vec![stop], false),
        Some(Texts::Many(stops)) => (stops, true),
    };
    if stops.len() > limits.stop_strings {
        return Err(ApiError::value(
            param,
            format_args!("a list of {} strings", stops.len()),
            format_args!("at most {}", limits.stop_strings),
        ));
    }
    for (i, stop) in stops.iter().enumerate() {
        let longest = limits.stop_string_bytes;
        if !(1..=longest).contains(&stop.len()) {
            let path = if is_list {
                format!("{param}[{i}]")
            } else {
                param.to_owned()
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

/// A stop string would cut a constrained text short.
pub(super) fn check_stops(stops: &[String], is_constrained: bool) -> Result<(), ApiError> {
    match is_constrained && !stops.is_empty() {
        true => Err(ApiError::unusable(
            "stop",
            "a stop string might cut short a text of the form that is asked for as well; allowed: one of them",
        )),
        false => Ok(()),
    }
}

/// Fields of OpenAI's API that have no effect here are taken at the value that has none there.
fn refuse_unsupported(request: &CompletionRequest) -> Result<(), ApiError> {
    neutral("presence_penalty", request.presence_penalty, 0.0)?;
    neutral("frequency_penalty", request.frequency_penalty, 0.0)?;
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
    Ok(())
}
