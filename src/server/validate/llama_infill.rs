//! Filling the gap at an editor's cursor, as llama.cpp's server is asked for it.

use std::time::Duration;

use serde_json::json;

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{ExtraInput, Integer, LlamaInfillRequest, Object, Whole};
use super::completion::{CompletionJob, Given, Outline, Streaming, check_stops, stops};
use super::constraint::{FormFields, form};
use super::decoding::{DecodeFields, plan, size};
use super::neutral::{neutral, only};
use super::{Place, check_model, encode};
use crate::canvas::TokenId;
use crate::decode::DecodePlan;

/// Slots of a gap whose length is not given.
const DEFAULT_N_PREDICT: usize = 128;

/// A request that can be queued.
pub struct LlamaInfillJob {
    /// The one canvas; none if nothing is to be filled.
    pub completion: CompletionJob,
    /// Slots of the gap.
    pub n_predict: usize,
    /// The filling ends before a line that is indented less.
    pub n_indent: usize,
    /// Whether some of the given text was left out.
    pub truncated: bool,
    /// Whether the answer holds the token ids.
    pub return_tokens: bool,
    /// The only fields that the answer is to hold; all if empty.
    pub response_fields: Vec<String>,
}

/// Checks a request.
pub fn llama_infill(
    request: LlamaInfillRequest,
    state: &AppState,
) -> Result<LlamaInfillJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    refuse_unsupported(&request)?;
    let stream = request.stream.unwrap_or(false);
    let n_indent = request.n_indent.map_or(0, size);
    let seed = match request.seed {
        None | Some(Integer(-1)) => None,
        Some(Integer(seed)) => Some(Whole(u64::try_from(seed).map_err(|_| {
            ApiError::value("seed", seed, "-1 for a random one, otherwise at least 0")
        })?)),
    };
    let fields = DecodeFields {
        temperature: request.temperature,
        top_p: request.top_p,
        min_p: request.min_p,
        top_k: request.top_k,
        seed,
        logit_bias: None,
        diffusion: request.diffusion,
        prompt_place: Place::Later,
    };
    let plan = plan(fields, state)?;
    let stops = stops(request.stop, "stop", state)?;
    let return_tokens = request.return_tokens.unwrap_or(false);
    let fields = FormFields {
        response_format: None,
        grammar: request.grammar.filter(|grammar| !grammar.is_empty()),
        json_schema: request.json_schema,
    };
    let n_predict = request.n_predict.map_or(DEFAULT_N_PREDICT, size);
    let language = form(fields, state)?;
    check_stops(&stops, language.is_some())?;
    if language.is_some() && n_indent > 0 {
        return Err(ApiError::unusable(
            "n_indent",
            format_args!(
                "it is {n_indent}, which might cut short a text of the form that is asked for; allowed: 0"
            ),
        ));
    }
    // A text of a form is whole.
    let time_limit = match (request.t_max_predict_ms, &language) {
        (Some(Integer(limit)), None) if limit > 0 => {
            Some(Duration::from_millis(limit.unsigned_abs()))
        }
        _ => None,
    };
    let mut truncated = false;
    let mut prompts = Vec::new();
    if n_predict > 0 {
        let texts = Texts {
            extra: request.input_extra.unwrap_or_default(),
            prefix: request.input_prefix.unwrap_or_default(),
            prompt: request.prompt.unwrap_or_default(),
            suffix: request.input_suffix.unwrap_or_default(),
        };
        let fitted = texts.fit(n_predict, &plan, state)?;
        truncated = fitted.truncated;
        let given = Given {
            path: "input_prefix".into(),
            text: None,
            tokens: fitted.before,
        };
        let outline = Outline {
            size_param: "n_predict",
            max_tokens: n_predict,
            suffix_param: "input_suffix",
            suffix: &fitted.after,
            echo: false,
            plan: &plan,
            language: language.as_ref(),
        };
        prompts.push(outline.lay_out(given, state)?);
    }
    Ok(LlamaInfillJob {
        completion: CompletionJob {
            prompts,
            n: 1,
            plan,
            stops,
            // Tokens are kept with their log-probabilities.
            top_logprobs: return_tokens.then_some(0),
            time_limit,
            streaming: Streaming {
                stream,
                include_usage: false,
                frames: false,
            },
        },
        n_predict,
        n_indent,
        truncated,
        return_tokens,
        response_fields: request.response_fields.unwrap_or_default(),
    })
}

/// Fields of llama.cpp's API that have no effect here are taken at the value that has none there.
fn refuse_unsupported(request: &LlamaInfillRequest) -> Result<(), ApiError> {
    for (param, given, allowed) in [
        ("repeat_penalty", request.repeat_penalty, 1.0),
        ("presence_penalty", request.presence_penalty, 0.0),
        ("frequency_penalty", request.frequency_penalty, 0.0),
        ("typical_p", request.typical_p, 1.0),
        ("top_n_sigma", request.top_n_sigma, -1.0),
        ("dynatemp_range", request.dynatemp_range, 0.0),
        ("dry_multiplier", request.dry_multiplier, 0.0),
        ("xtc_probability", request.xtc_probability, 0.0),
        ("mirostat", request.mirostat, 0.0),
        ("min_keep", request.min_keep, 0.0),
        ("n_keep", request.n_keep, 0.0),
        ("n_probs", request.n_probs, 0.0),
    ] {
        neutral(param, given, allowed)?;
    }
    let off = || vec![json!(false)];
    for (param, given, allowed) in [
        ("ignore_eos", &request.ignore_eos, off()),
        (
            "logit_bias",
            &request.logit_bias,
            vec![json!([]), json!({})],
        ),
        ("lora", &request.lora, vec![json!([])]),
        ("timings_per_token", &request.timings_per_token, off()),
        ("return_progress", &request.return_progress, off()),
        ("post_sampling_probs", &request.post_sampling_probs, off()),
    ] {
        only(param, given.as_ref(), &allowed)?;
    }
    Ok(())
}

struct Texts {
    extra: Vec<Object<ExtraInput>>,
    prefix: String,
    prompt: String,
    suffix: String,
}

struct Fitted {
    before: Vec<TokenId>,
    after: Vec<TokenId>,
    truncated: bool,
}

impl Texts {
    /// The tokens that fit the model's context beside a gap: of what comes before the gap the end, of what
    /// comes after it the beginning. The suffix has a quarter of the room, and what the prefix leaves; the
    /// extra texts have the rest.
    fn fit(
        self,
        n_predict: usize,
        plan: &DecodePlan,
        state: &AppState,
    ) -> Result<Fitted, ApiError> {
        let spec = state.engine.spec();
        let context = spec.longest_canvas(plan);
        let limit = state.slot_limit(context).of_slots();
        let prompt = encode(&self.prompt, Place::Later, "prompt", state)?;
        if prompt.len() >= context {
            let given = format_args!("a text of {} tokens", prompt.len());
            let allowed = format_args!("fewer; {limit}");
            return Err(ApiError::value("prompt", given, allowed));
        }
        let room = spec.room_before(plan, n_predict);
        let room = room.and_then(|room| room.checked_sub(prompt.len()));
        let room = room.ok_or_else(|| {
            let most = spec.longest_gap(plan, prompt.len(), context);
            let allowed = format_args!("0 to {most}, what prompt leaves; {limit}");
            ApiError::value("n_predict", n_predict, allowed)
        })?;
        let mut prefix = encode_end(&self.prefix, "input_prefix", room, state)?;
        let mut suffix = encode_beginning(&self.suffix, "input_suffix", room, state)?;
        let of_suffix = (room / 4).max(room.saturating_sub(prefix.len()));
        let mut truncated = suffix.len() > of_suffix;
        suffix.truncate(of_suffix);
        let of_prefix = room - suffix.len();
        truncated |= prefix.len() > of_prefix;
        prefix.drain(..prefix.len().saturating_sub(of_prefix));
        let of_extra = of_prefix - prefix.len();
        let mut extra = Vec::new();
        for (index, Object(input)) in self.extra.iter().enumerate().rev() {
            if extra.len() >= of_extra {
                truncated = true;
                break;
            }
            let path = format!("input_extra[{index}].text");
            let name = input.filename.as_deref().unwrap_or_default();
            let text = input.text.as_deref().unwrap_or_default();
            let separator = if name.is_empty() { "" } else { "\n" };
            let text = format!("{name}{separator}{text}\n");
            let tokens = encode_end(&text, &path, of_extra, state)?;
            extra.splice(0..0, tokens);
        }
        truncated |= extra.len() > of_extra;
        extra.drain(..extra.len().saturating_sub(of_extra));
        Ok(Fitted {
            before: [extra, prefix, prompt].concat(),
            after: suffix,
            truncated,
        })
    }
}

/// How many bytes of a text can matter to so many tokens, at most.
fn most_bytes(tokens: usize, state: &AppState) -> usize {
    let longest = state.tokenizer.longest_token();
    longest.map_or(usize::MAX, |longest| {
        tokens.saturating_add(1).saturating_mul(longest)
    })
}

/// The tokens of a text, or of its end where it is far too long for `room`.
fn encode_end(
    text: &str,
    path: &str,
    room: usize,
    state: &AppState,
) -> Result<Vec<TokenId>, ApiError> {
    let start = text.len().saturating_sub(most_bytes(room, state));
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at));
    encode(
        &text[start.unwrap_or(text.len())..],
        Place::Later,
        path,
        state,
    )
}

/// The tokens of a text, or of its beginning where it is far too long for `room`.
fn encode_beginning(
    text: &str,
    path: &str,
    room: usize,
    state: &AppState,
) -> Result<Vec<TokenId>, ApiError> {
    let end = most_bytes(room, state).min(text.len());
    let end = (0..=end).rev().find(|at| text.is_char_boundary(*at));
    encode(&text[..end.unwrap_or(0)], Place::Later, path, state)
}
