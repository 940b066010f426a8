//! `logit_bias`, and how many log-probabilities are reported.

use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::Whole;
use super::check_known;
use super::decoding::size;
use crate::sampling::{LogitBias, MAX_TOP_LOGPROBS};

/// The bias of `logit_bias`: token ids as keys, numbers from −100 to 100.
pub(super) fn logit_bias(
    given: Option<Map<String, Value>>,
    state: &AppState,
) -> Result<LogitBias, ApiError> {
    let given = given.unwrap_or_default();
    let most = state.limits.logit_bias_entries;
    if given.len() > most {
        return Err(ApiError::value(
            "logit_bias",
            format_args!("an object of {} entries", given.len()),
            format_args!("at most {most}"),
        ));
    }
    let entries = given.into_iter().map(|(key, value)| {
        let path = format!("logit_bias.{key}");
        // One spelling each, so that no token has two entries, which would add up.
        let token = key
            .parse()
            .ok()
            .filter(|token: &u64| token.to_string() == key);
        let token = token.ok_or_else(|| {
            ApiError::unusable(
                &path,
                "the key is no token id; allowed: a whole number without sign and leading zeros",
            )
        })?;
        let token = check_known(token, &path, state)?;
        if Some(token) == state.engine.mask_token() {
            return Err(ApiError::unusable(
                &path,
                format_args!("token {token} is the mask token, which is never drawn"),
            ));
        }
        let bias = value
            .as_f64()
            .filter(|bias| bias.abs() <= f64::from(LogitBias::LARGEST))
            .ok_or_else(|| ApiError::value(&path, &value, "a number from -100 to 100"))?;
        Ok((token, bias as f32))
    });
    Ok(LogitBias::new(
        entries.collect::<Result<Vec<_>, ApiError>>()?,
    ))
}

/// `logprobs` of a completion: how many of the most probable tokens are reported.
pub(super) fn completion_logprobs(logprobs: Option<Whole>) -> Result<Option<usize>, ApiError> {
    logprobs
        .map(|top| top_logprobs("logprobs", top))
        .transpose()
}

/// `logprobs` and `top_logprobs`, as chat completions have them: how many of the most probable tokens are
/// reported; `None` if no log-probabilities are.
pub(super) fn chat_logprobs(
    logprobs: Option<bool>,
    top: Option<Whole>,
) -> Result<Option<usize>, ApiError> {
    match (logprobs.unwrap_or(false), top) {
        (false, Some(top)) if top.0 > 0 => Err(ApiError::unsupported(
            "top_logprobs",
            top.0,
            "it is allowed only with logprobs = true",
        )),
        (false, _) => Ok(None),
        (true, top) => top_logprobs("top_logprobs", top.unwrap_or(Whole(0))).map(Some),
    }
}

fn top_logprobs(param: &str, top: Whole) -> Result<usize, ApiError> {
    match size(top) {
        top if top <= MAX_TOP_LOGPROBS => Ok(top),
        _ => Err(ApiError::value(
            param,
            top.0,
            format_args!("0 to {MAX_TOP_LOGPROBS}"),
        )),
    }
}
