//! Tokens that end a text, by what a checkpoint's files say of them.

use serde_json::Value;

use super::{CONFIG, GENERATION_CONFIG};
use crate::canvas::TokenId;
use crate::models::generation_config::GenerationConfig;
use crate::models::{ModelError, ModelSpec};
use crate::text::special_tokens::TOKENIZER_CONFIG;

pub(super) const EOS_TOKEN_ID: &str = "eos_token_id";

/// Adds the stop tokens of generation_config.json to those of config.json, which `spec` has.
///
/// # Errors
/// If either file names what is no token of the vocabulary.
pub(super) fn complete(
    spec: &mut ModelSpec,
    generation_config: &GenerationConfig,
) -> Result<(), ModelError> {
    check(CONFIG, EOS_TOKEN_ID, &spec.stop_tokens, spec.vocab_size)?;
    let ends = token_ids(GENERATION_CONFIG, generation_config.get(EOS_TOKEN_ID))?;
    check(GENERATION_CONFIG, EOS_TOKEN_ID, &ends, spec.vocab_size)?;
    for token in ends {
        if !spec.stop_tokens.contains(&token) {
            spec.stop_tokens.push(token);
        }
    }
    Ok(())
}

/// Makes the tokenizer's end of a text the stop token, if it has one.
///
/// # Errors
/// If it is no token of the vocabulary.
pub(super) fn end_with(
    spec: &mut ModelSpec,
    end_of_text: Option<TokenId>,
) -> Result<(), ModelError> {
    let tokens = end_of_text.as_slice();
    check(TOKENIZER_CONFIG, "eos_token", tokens, spec.vocab_size)?;
    spec.stop_tokens.extend(end_of_text);
    Ok(())
}

/// Checks the stop tokens that `field` of `file` names.
///
/// # Errors
/// If one is none of the vocabulary: no text would ever end at it.
fn check(file: &str, field: &str, tokens: &[TokenId], vocab_size: usize) -> Result<(), ModelError> {
    match tokens.iter().find(|token| **token as usize >= vocab_size) {
        Some(token) => Err(ModelError::Invalid {
            file: file.to_owned(),
            reason: format!("{field} {token} is outside the vocabulary of {vocab_size}"),
        }),
        None => Ok(()),
    }
}

/// The ids of the field `eos_token_id` of `file`: none, one, or a list of them.
///
/// # Errors
/// If it holds what is no id.
pub(in crate::models) fn token_ids(file: &str, value: &Value) -> Result<Vec<TokenId>, ModelError> {
    let ids = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let id = |id: &Value| id.as_u64().and_then(|id| TokenId::try_from(id).ok());
    let ids: Option<Vec<TokenId>> = ids.iter().map(id).collect();
    ids.ok_or_else(|| ModelError::Invalid {
        file: file.to_owned(),
        reason: format!("eos_token_id is {value}; it must be a token id or a list of them"),
    })
}
