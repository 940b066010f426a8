//! The template and the special tokens in a checkpoint's files.

use serde_json::{Map, Value};

use super::ChatTemplateError;
use crate::text::special_tokens::{KINDS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, declared};

/// A template in a file of its own; it goes before the one in [`TOKENIZER_CONFIG`].
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The template that is used where there are several.
const DEFAULT: &str = "default";

/// Special tokens by the names of their variables.
pub(super) type SpecialTokens = Vec<(&'static str, String)>;

/// Contents of the files of a checkpoint that are about chats, each if it is there.
#[derive(Debug, Clone, Default)]
pub struct ChatFiles {
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `chat_template.jinja`.
    pub chat_template: Option<Vec<u8>>,
}

impl ChatFiles {
    /// Reads the files by their names; `read` gives a file's contents if it is there.
    ///
    /// # Errors
    /// The first of `read`.
    pub fn read<E>(read: impl Fn(&str) -> Result<Option<Vec<u8>>, E>) -> Result<Self, E> {
        Ok(Self {
            tokenizer_config: read(TOKENIZER_CONFIG)?,
            special_tokens_map: read(SPECIAL_TOKENS_MAP)?,
            chat_template: read(CHAT_TEMPLATE)?,
        })
    }

    /// The template's source and the special tokens by their names, if there is a template.
    pub(super) fn source(&self) -> Result<Option<(String, SpecialTokens)>, ChatTemplateError> {
        let config = object(TOKENIZER_CONFIG, self.tokenizer_config.as_deref())?;
        let Some(template) = self.template(&config)? else {
            return Ok(None);
        };
        let map = object(SPECIAL_TOKENS_MAP, self.special_tokens_map.as_deref())?;
        let tokens = KINDS
            .into_iter()
            .filter_map(|name| Some((name, declared(name, &config, &map)?.to_owned())));
        Ok(Some((template, tokens.collect())))
    }

    fn template(&self, config: &Value) -> Result<Option<String>, ChatTemplateError> {
        if let Some(template) = &self.chat_template {
            return match String::from_utf8(template.clone()) {
                Ok(template) => Ok(Some(template)),
                Err(_) => Err(invalid(CHAT_TEMPLATE, "not UTF-8".into())),
            };
        }
        match &config["chat_template"] {
            Value::Null => Ok(None),
            Value::String(template) => Ok(Some(template.clone())),
            Value::Array(templates) => {
                let default = templates
                    .iter()
                    .find(|entry| entry["name"] == DEFAULT)
                    .and_then(|entry| entry["template"].as_str());
                match default {
                    Some(template) => Ok(Some(template.to_owned())),
                    None => Err(invalid(
                        TOKENIZER_CONFIG,
                        format!(
                            "none of the entries of chat_template has the name {DEFAULT:?} and a template"
                        ),
                    )),
                }
            }
            _ => Err(invalid(
                TOKENIZER_CONFIG,
                "chat_template must be a string, or a list of objects with name and template"
                    .into(),
            )),
        }
    }
}

fn invalid(file: &'static str, reason: String) -> ChatTemplateError {
    ChatTemplateError::File { file, reason }
}

fn object(file: &'static str, json: Option<&[u8]>) -> Result<Value, ChatTemplateError> {
    let object: Map<String, Value> = match json {
        None => Map::new(),
        Some(json) => serde_json::from_slice(json)
            .map_err(|error| invalid(file, format!("not a JSON object: {error}")))?,
    };
    Ok(Value::Object(object))
}
