//! The mask token of a checkpoint whose config.json does not give its id.

use serde_json::Value;

use crate::canvas::TokenId;
use crate::models::ModelError;
use crate::models::checkpoint::parse;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The mask token where no file says which it is: that of LLaDA-MoE's and LLaDA2's vocabularies, whose
/// released tokenizers hold it without declaring it (dllm declares it when it loads one of them).
const UNDECLARED: &str = "<|mask|>";

/// The id of the token that the tokenizer's files declare as `mask_token`, or else of the one that is
/// called `<|mask|>`; `None` if there is no such token. `read` gives a file of the checkpoint, if it is
/// there.
///
/// # Errors
/// If a file cannot be read or is not JSON.
pub(super) fn mask_token(
    read: impl Fn(&str) -> Result<Option<Vec<u8>>, ModelError>,
) -> Result<Option<TokenId>, ModelError> {
    let json = |name: &str| {
        let json = read(name)?.map(|bytes| parse(name, &bytes)).transpose()?;
        Ok::<Value, ModelError>(json.unwrap_or_default())
    };
    let tokenizer_config = json(TOKENIZER_CONFIG)?;
    let declared = match text(&tokenizer_config["mask_token"]) {
        Some(declared) => Some(declared.to_owned()),
        None => text(&json("special_tokens_map.json")?["mask_token"]).map(str::to_owned),
    };
    let name = declared.as_deref().unwrap_or(UNDECLARED);
    if let Some(id) = in_decoder(&tokenizer_config["added_tokens_decoder"], name) {
        return Ok(Some(id));
    }
    if let Some(id) = id(&json("added_tokens.json")?[name]) {
        return Ok(Some(id));
    }
    let tokenizer = json("tokenizer.json")?;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let added = added
        .filter(|token| token["content"] == name)
        .find_map(|token| id(&token["id"]));
    Ok(added.or_else(|| id(&tokenizer["model"]["vocab"][name])))
}

/// A special token is a string or an object with its `content`.
fn text(token: &Value) -> Option<&str> {
    token.as_str().or(token["content"].as_str())
}

fn id(value: &Value) -> Option<TokenId> {
    TokenId::try_from(value.as_u64()?).ok()
}

/// `added_tokens_decoder` maps ids to tokens.
fn in_decoder(decoder: &Value, name: &str) -> Option<TokenId> {
    let mut tokens = decoder.as_object()?.iter();
    let (id, _) = tokens.find(|(_, token)| text(token) == Some(name))?;
    id.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Option<TokenId> {
        mask_token(|name| {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, json)| json.as_bytes().to_vec()))
        })
        .unwrap()
    }

    #[test]
    fn a_declared_mask_token_is_found_wherever_its_id_is() {
        let declared = (
            "special_tokens_map.json",
            r#"{"mask_token": {"content": "[M]"}}"#,
        );
        for holder in [
            (
                "tokenizer_config.json",
                r#"{"added_tokens_decoder": {"6": {"content": "<|mask|>"}, "7": {"content": "[M]"}}}"#,
            ),
            ("added_tokens.json", r#"{"<|mask|>": 6, "[M]": 7}"#),
            (
                "tokenizer.json",
                r#"{"added_tokens": [{"id": 6, "content": "<|mask|>"}, {"id": 7, "content": "[M]"}]}"#,
            ),
            (
                "tokenizer.json",
                r#"{"added_tokens": [], "model": {"vocab": {"[M]": 7}}}"#,
            ),
        ] {
            assert_eq!(found(&[declared, holder]), Some(7), "{}", holder.0);
        }
        let config = r#"{"mask_token": "[M]", "added_tokens_decoder": {"7": {"content": "[M]"}}}"#;
        assert_eq!(found(&[("tokenizer_config.json", config)]), Some(7));
    }

    #[test]
    fn an_undeclared_mask_token_is_the_one_called_mask() {
        let tokenizer = r#"{"added_tokens": [{"id": 6, "content": "<|mask|>"}]}"#;
        assert_eq!(found(&[("tokenizer.json", tokenizer)]), Some(6));
        assert_eq!(found(&[("tokenizer.json", "{}")]), None);
        assert_eq!(found(&[]), None);
    }
}
