//! Tokens that config.json leaves to the tokenizer's files to name.

use std::cell::OnceCell;

use serde_json::Value;

use super::{TOKENIZER, parse};
use crate::canvas::TokenId;
use crate::models::ModelError;
use crate::text::special_tokens::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, content, declared};
use crate::text::vocabulary::{ADDED_TOKENS, VOCAB};

/// Names of the mask token where no file says which it is: that of LLaDA-MoE's and LLaDA2's vocabularies,
/// of SDAR's, and of iLLaDA's. Released tokenizers hold it without declaring it.
const UNDECLARED: [&str; 3] = ["<|mask|>", "<|MASK|>", "<[MASK]>"];

/// The tokenizer's files of a checkpoint. `read` gives a file, if it is there.
pub(super) struct SpecialTokens<F> {
    read: F,
    tokenizer_config: Value,
    special_tokens_map: Value,
    /// Large, and seldom needed.
    tokenizer: OnceCell<Value>,
}

impl<F: Fn(&str) -> Result<Option<Vec<u8>>, ModelError>> SpecialTokens<F> {
    /// Reads what declares special tokens.
    ///
    /// # Errors
    /// If a file cannot be read or is not JSON.
    pub fn read(read: F) -> Result<Self, ModelError> {
        Ok(Self {
            tokenizer_config: json(&read, TOKENIZER_CONFIG)?,
            special_tokens_map: json(&read, SPECIAL_TOKENS_MAP)?,
            tokenizer: OnceCell::new(),
            read,
        })
    }

    /// The token that is declared as `mask_token`, or else the one that is called as mask tokens are; `None`
    /// if there is no such token.
    ///
    /// # Errors
    /// If a file cannot be read or is not JSON.
    pub fn mask_token(&self) -> Result<Option<TokenId>, ModelError> {
        if let Some(name) = self.declared("mask_token") {
            return self.id(name);
        }
        for name in UNDECLARED {
            if let Some(id) = self.id(name)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The token that is declared as `eos_token`, if one is.
    ///
    /// # Errors
    /// If a file cannot be read or is not JSON.
    pub fn end_of_text(&self) -> Result<Option<TokenId>, ModelError> {
        match self.declared("eos_token") {
            Some(name) => self.id(name),
            None => Ok(None),
        }
    }

    fn declared(&self, kind: &str) -> Option<&str> {
        declared(kind, &self.tokenizer_config, &self.special_tokens_map)
    }

    /// The token that is called `name`, if there is one.
    ///
    /// # Errors
    /// If a file cannot be read or is not JSON.
    pub fn id(&self, name: &str) -> Result<Option<TokenId>, ModelError> {
        if let Some(id) = in_decoder(&self.tokenizer_config["added_tokens_decoder"], name) {
            return Ok(Some(id));
        }
        if let Some(id) = id(&json(&self.read, ADDED_TOKENS)?[name]) {
            return Ok(Some(id));
        }
        let tokenizer = match self.tokenizer.get() {
            Some(tokenizer) => tokenizer,
            None => {
                let tokenizer = json(&self.read, TOKENIZER)?;
                self.tokenizer.get_or_init(|| tokenizer)
            }
        };
        let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
        let added = added
            .filter(|token| token["content"] == name)
            .find_map(|token| id(&token["id"]));
        if let Some(id) = added.or_else(|| id(&tokenizer["model"]["vocab"][name])) {
            return Ok(Some(id));
        }
        match tokenizer {
            Value::Null => Ok(id(&json(&self.read, VOCAB)?[name])),
            _ => Ok(None),
        }
    }
}

/// The JSON of a file; null if it is not there.
fn json(
    read: impl Fn(&str) -> Result<Option<Vec<u8>>, ModelError>,
    name: &str,
) -> Result<Value, ModelError> {
    let json = read(name)?.map(|bytes| parse(name, &bytes)).transpose()?;
    Ok(json.unwrap_or_default())
}

fn id(value: &Value) -> Option<TokenId> {
    TokenId::try_from(value.as_u64()?).ok()
}

/// `added_tokens_decoder` maps ids to tokens.
fn in_decoder(decoder: &Value, name: &str) -> Option<TokenId> {
    let mut tokens = decoder.as_object()?.iter();
    let (id, _) = tokens.find(|(_, token)| content(token) == Some(name))?;
    id.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mask token and the end of a text.
    fn both(files: &[(&str, &str)]) -> [Option<TokenId>; 2] {
        let tokens = SpecialTokens::read(|name| {
            let file = files.iter().find(|(file, _)| *file == name);
            Ok(file.map(|(_, json)| json.as_bytes().to_vec()))
        });
        let tokens = tokens.unwrap();
        [tokens.mask_token().unwrap(), tokens.end_of_text().unwrap()]
    }

    fn found(files: &[(&str, &str)]) -> Option<TokenId> {
        both(files)[0]
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
            ("vocab.json", r#"{"<|mask|>": 6, "[M]": 7}"#),
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

    #[test]
    fn the_end_of_a_text_is_the_one_that_is_declared_and_no_other() {
        let vocabulary = ("vocab.json", r#"{"<|endoftext|>": 3, "</s>": 4}"#);
        let declared = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
        assert_eq!(both(&[vocabulary, declared])[1], Some(4));
        assert_eq!(both(&[vocabulary])[1], None);
    }
}
