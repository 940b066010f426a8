//! What the entries of a vocabulary stand for, as tokenizer.json's `decoder` says.

use std::collections::HashMap;

use serde_json::Value;

use crate::text::TextError;

/// How the entries of a vocabulary are spelled. Whatever the spelling, an entry stands for the same bytes
/// wherever it is: without that, slots could not be committed in any order.
pub(super) enum Spelling {
    /// GPT-2's: one character a byte.
    ByteLevel(HashMap<char, u8>),
    /// sentencepiece's: text, after steps of the decoder that look at one piece at a time.
    Plain(Vec<Step>),
}

/// A step of a decoder.
pub(super) enum Step {
    /// Every `pattern` becomes `content`; `▁` for a space, as a rule.
    Replace { pattern: String, content: String },
    /// `<0x0A>` is a byte.
    ByteFallback,
}

impl Spelling {
    /// The spelling of the vocabulary in a tokenizer.json.
    ///
    /// # Errors
    /// If a token's bytes depend on the tokens around it, or are not said.
    pub fn of(tokenizer: &Value) -> Result<Self, TextError> {
        let decoder = &tokenizer["decoder"];
        let steps = match kind(decoder) {
            Some("Sequence") => decoder["decoders"]
                .as_array()
                .map_or(&[][..], Vec::as_slice),
            Some(_) => std::slice::from_ref(decoder),
            None if contains(&tokenizer["pre_tokenizer"], "ByteLevel") => {
                return Ok(Self::byte_level());
            }
            None => return Err(unsupported("none")),
        };
        let mut plain = Vec::new();
        for step in steps {
            match kind(step) {
                Some("ByteLevel") => return Ok(Self::byte_level()),
                Some("Replace") => plain.push(replace(step)?),
                Some("Metaspace") => plain.push(Step::Replace {
                    pattern: step["replacement"].as_str().unwrap_or("▁").to_owned(),
                    content: " ".into(),
                }),
                Some("ByteFallback") => plain.push(Step::ByteFallback),
                // The text before is one by now: what follows strips its beginning, which is the caller's.
                Some("Fuse") => break,
                other => return Err(unsupported(other.unwrap_or("of no type"))),
            }
        }
        if plain.is_empty() {
            return Err(unsupported("empty"));
        }
        Ok(Self::Plain(plain))
    }

    fn byte_level() -> Self {
        Self::ByteLevel(byte_level_alphabet())
    }

    /// Whether every byte of a text is spelled, so that none is taken in by an unknown token.
    pub fn is_byte_level(&self) -> bool {
        matches!(self, Self::ByteLevel(_))
    }

    /// The bytes of a piece; `None` if it is not spelled so.
    pub fn bytes(&self, piece: &str) -> Option<Box<[u8]>> {
        let steps = match self {
            Self::ByteLevel(alphabet) => {
                return piece.chars().map(|c| alphabet.get(&c).copied()).collect();
            }
            Self::Plain(steps) => steps,
        };
        let mut text = piece.to_owned();
        for step in steps {
            match step {
                Step::Replace { pattern, content } => text = text.replace(pattern, content),
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return Some([byte].into());
                    }
                }
            }
        }
        Some(text.into_bytes().into())
    }
}

fn kind(part: &Value) -> Option<&str> {
    part["type"].as_str()
}

/// Whether a part of a tokenizer.json is of this type, or has one among its parts.
fn contains(part: &Value, wanted: &str) -> bool {
    let parts = part["pretokenizers"].as_array();
    kind(part) == Some(wanted)
        || parts.is_some_and(|parts| parts.iter().any(|p| contains(p, wanted)))
}

fn replace(step: &Value) -> Result<Step, TextError> {
    match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
        (Some(pattern), Some(content)) if !pattern.is_empty() => Ok(Step::Replace {
            pattern: pattern.to_owned(),
            content: content.to_owned(),
        }),
        _ => Err(unsupported("Replace of a regular expression")),
    }
}

fn unsupported(decoder: &str) -> TextError {
    TextError::Tokenizer(format!(
        "the decoder is {decoder}; a token must stand for the same bytes wherever it is, which those of \
         ByteLevel, Metaspace, and Replace with ByteFallback and Fuse do"
    ))
}

fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's alphabet: the character by which a byte-level vocabulary writes each byte. Printable
/// Latin-1 characters stand for themselves, the other bytes for U+0100 onwards in order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| {
            let character = match byte {
                b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
                _ => {
                    next += 1;
                    // U+0100 to U+0143 are all characters.
                    char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
            };
            (character, byte)
        })
        .collect()
}

/// The tokenizer.json of the same tokenizer without the space that it puts before a text, for text that
/// is not the beginning; `None` if it puts none.
pub(super) fn without_prefix(tokenizer: &Value) -> Option<Value> {
    let mut edited = tokenizer.clone();
    if let Some(normalizer) = edited.get_mut("normalizer") {
        drop_prepend(normalizer);
    }
    if let Some(pre_tokenizer) = edited.get_mut("pre_tokenizer") {
        drop_prefix_space(pre_tokenizer);
    }
    (edited != *tokenizer).then_some(edited)
}

fn drop_prepend(normalizer: &mut Value) {
    if kind(normalizer) == Some("Prepend") {
        *normalizer = Value::Null;
    } else if let Some(Value::Array(parts)) = normalizer.get_mut("normalizers") {
        parts.iter_mut().for_each(drop_prepend);
        parts.retain(|part| !part.is_null());
    }
}

fn drop_prefix_space(pre_tokenizer: &mut Value) {
    if let Some(Value::Array(parts)) = pre_tokenizer.get_mut("pretokenizers") {
        parts.iter_mut().for_each(drop_prefix_space);
    }
    if let Some(scheme) = pre_tokenizer.get_mut("prepend_scheme") {
        *scheme = "never".into();
    }
    if let Some(adds) = pre_tokenizer.get_mut("add_prefix_space") {
        *adds = false.into();
    }
}
