//! From what was sent to what will be done, checked once: a request that comes out of here can be
//! queued as it is.

mod chat;
mod choices;
mod completion;
mod constraint;
mod decoding;
mod fim;
mod gaps;
mod infill;
mod llama_infill;
mod logits;
mod neutral;
mod score;
mod tokens;

use std::sync::Arc;

pub(super) use chat::{apply_template, chat};
pub(super) use choices::Forward;
pub(super) use completion::{CompletionJob, completion};
pub(super) use decoding::nth_plan;
pub(super) use fim::fim;
pub(super) use gaps::{Choice, Length};
pub(super) use infill::{InfillJob, infill};
pub(super) use llama_infill::{LlamaInfillJob, llama_infill};
pub(super) use score::{ScoreJob, score};
pub(super) use tokens::{detokenize, tokenize};

use super::deadline::Deadline;
use super::error::ApiError;
use super::state::AppState;
use crate::canvas::TokenId;
use crate::decode::DecodePlan;
use crate::models::{AttentionPattern, ModelSpec};

/// Runs a check outside the async runtime: encoding a long text takes a while.
///
/// # Errors
/// Those of the check, or that `deadline` is over before.
pub(super) async fn checked<T, U>(
    state: &Arc<AppState>,
    deadline: Deadline,
    request: T,
    check: fn(T, &AppState) -> Result<U, ApiError>,
) -> Result<U, ApiError>
where
    T: Send + 'static,
    U: Send + 'static,
{
    let shared = state.clone();
    let check = move || check(request, &shared);
    state.background.run(deadline, check).await
}

/// The model that is asked for, if one is, must be the one that is served.
fn check_model(given: Option<&str>, state: &AppState) -> Result<(), ApiError> {
    match given {
        Some(given) if given != state.model_name => {
            Err(ApiError::no_such_model(given, &state.model_name))
        }
        _ => Ok(()),
    }
}

/// A text, or a gap, that comes after a gap must be seen by the model; `param` is the field that gives it.
fn check_seen_ahead(param: &str, plan: &DecodePlan, spec: &ModelSpec) -> Result<(), ApiError> {
    let family = spec.family;
    match spec.attention {
        AttentionPattern::BlockCausal { .. } if !plan.left_context => Err(ApiError::unsupported(
            param,
            "given",
            format_args!(
                "a {family} model does not see beyond a gap's block, as its attention is block-causal; allowed: nothing \
                 after a gap, or diffusion.left_context = true, by which gaps are filled by what precedes them alone"
            ),
        )),
        AttentionPattern::EncodedBlocks { .. } => Err(ApiError::unsupported(
            param,
            "given",
            format_args!(
                "a {family} model only goes on from a text, whose encoder reads what comes before a block; allowed: one \
                 gap with nothing after it"
            ),
        )),
        _ => Ok(()),
    }
}

/// Where in a text a piece of it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At its beginning, after the special tokens that the tokenizer puts there.
    Start,
    /// At its beginning, as it is: what belongs there a chat template wrote, or it is scored without.
    Bare,
    /// After text or a gap.
    Later,
}

/// What becomes of a text, and why the mask token has no part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It stands in fixed slots.
    Fixed,
    /// It may be chosen to fill a gap.
    Choice,
    /// It is scored, or stands before what is.
    Score,
}

impl Use {
    fn reason_against_mask(self) -> &'static str {
        match self {
            Self::Fixed => {
                "gaps are written to /v1/infill, in text as {{8}} and in segments as {\"gap\": {\"tokens\": 8}}"
            }
            Self::Choice => "a choice is a whole text, without gaps",
            Self::Score => "it stands for a slot without a token, and what is scored has none",
        }
    }
}

/// The tokens of a fixed text.
fn encode(
    text: &str,
    place: Place,
    path: &str,
    state: &AppState,
) -> Result<Vec<TokenId>, ApiError> {
    encode_for(Use::Fixed, text, place, path, state)
}

/// The tokens of a text. One that cannot fit the model's context, however few tokens it becomes, is
/// refused before it is encoded, which takes long.
fn encode_for(
    purpose: Use,
    text: &str,
    place: Place,
    path: &str,
    state: &AppState,
) -> Result<Vec<TokenId>, ApiError> {
    let context = state.engine.spec().canvas_limit();
    if let Some(longest) = state.tokenizer.longest_token()
        && text.len() > context.saturating_mul(longest)
    {
        let limit = state.slot_limit(context);
        return Err(ApiError::text_too_long(path, text.len(), limit));
    }
    let tokens = state.encode(text, |tokenizer| match place {
        Place::Start => tokenizer.encode_prompt(text),
        Place::Bare => tokenizer.encode(text),
        Place::Later => tokenizer.encode_continuation(text),
    });
    let tokens = tokens.map_err(|error| ApiError::unusable(path, error))?;
    for token in &tokens {
        check_token(purpose, u64::from(*token), path, state)?;
    }
    Ok(tokens)
}

/// A token of a text.
fn check_token(
    purpose: Use,
    token: u64,
    path: &str,
    state: &AppState,
) -> Result<TokenId, ApiError> {
    let token = check_known(token, path, state)?;
    if Some(token) == state.engine.mask_token() {
        let reason = purpose.reason_against_mask();
        return Err(ApiError::unusable(
            path,
            format_args!("holds the mask token {token}; {reason}"),
        ));
    }
    Ok(token)
}

/// A token of the vocabulary.
fn check_known(token: u64, path: &str, state: &AppState) -> Result<TokenId, ApiError> {
    let size = state.engine.spec().vocab_size;
    TokenId::try_from(token)
        .ok()
        .filter(|token| (*token as usize) < size)
        .ok_or_else(|| {
            ApiError::unusable(
                path,
                format!(
                    "token {token} is not in the vocabulary; allowed: 0 to {}",
                    size.saturating_sub(1)
                ),
            )
        })
}
