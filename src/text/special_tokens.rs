//! The special tokens that a checkpoint's files declare.

use serde_json::Value;

/// Where tokenizers keep their settings, their template and their special tokens.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Where older tokenizers keep their special tokens.
pub const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// The special tokens that have a name of their own in those files.
pub const KINDS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The special token `kind`, such as `eos_token`, that [`TOKENIZER_CONFIG`] declares, or else
/// [`SPECIAL_TOKENS_MAP`]. A file that is not there is null.
pub fn declared<'a>(
    kind: &str,
    tokenizer_config: &'a Value,
    special_tokens_map: &'a Value,
) -> Option<&'a str> {
    content(&tokenizer_config[kind]).or_else(|| content(&special_tokens_map[kind]))
}

/// The text of a special token: a string, or an object with its `content`.
pub fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}
