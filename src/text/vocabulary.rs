//! Qwen2's tokenizer from the files of a checkpoint that has no tokenizer.json.
//!
//! Dream, DiffuCoder and Dream-Coder are published so: with the files of transformers' slow tokenizers, from
//! which their own class, `DreamTokenizer`, does what `Qwen2Tokenizer` does.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::TextError;
use super::special_tokens::{KINDS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, content, declared};
use crate::canvas::TokenId;

/// The entries of a vocabulary and their ids.
pub const VOCAB: &str = "vocab.json";
/// The merges of a byte-level BPE, the first before the others.
pub const MERGES: &str = "merges.txt";
/// Tokens beside the vocabulary and their ids.
pub const ADDED_TOKENS: &str = "added_tokens.json";

/// Values of `tokenizer_class` that mean Qwen2's tokenizer.
const CLASSES: [&str; 3] = ["Qwen2Tokenizer", "Qwen2TokenizerFast", "DreamTokenizer"];

/// By what Qwen2 cuts a text before it merges: `PRETOKENIZE_REGEX` of `tokenization_qwen2.py`, and letter for
/// letter of `tokenization_dream.py`.
const PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Contents of the files that stand for a tokenizer.json, each if it is there.
#[derive(Debug, Clone, Default)]
pub struct VocabularyFiles {
    /// [`VOCAB`].
    pub vocab: Option<Vec<u8>>,
    /// [`MERGES`].
    pub merges: Option<Vec<u8>>,
    /// [`ADDED_TOKENS`].
    pub added_tokens: Option<Vec<u8>>,
    /// [`TOKENIZER_CONFIG`].
    pub tokenizer_config: Option<Vec<u8>>,
    /// [`SPECIAL_TOKENS_MAP`].
    pub special_tokens_map: Option<Vec<u8>>,
}

impl VocabularyFiles {
    /// Reads the files by their names; `read` gives a file's contents if it is there. `None` if neither a
    /// vocabulary nor merges are there.
    ///
    /// # Errors
    /// The first of `read`.
    pub fn read<E>(read: impl Fn(&str) -> Result<Option<Vec<u8>>, E>) -> Result<Option<Self>, E> {
        let (vocab, merges) = (read(VOCAB)?, read(MERGES)?);
        if vocab.is_none() && merges.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            vocab,
            merges,
            added_tokens: read(ADDED_TOKENS)?,
            tokenizer_config: read(TOKENIZER_CONFIG)?,
            special_tokens_map: read(SPECIAL_TOKENS_MAP)?,
        }))
    }

    /// The tokenizer.json of the same tokenizer.
    ///
    /// # Errors
    /// If `tokenizer_class` does not say that the tokenizer is Qwen2's, or a file is missing or does not hold what
    /// it should.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, TextError> {
        let config = object(TOKENIZER_CONFIG, self.tokenizer_config.as_deref())?;
        let class = &config["tokenizer_class"];
        if !CLASSES.iter().any(|known| class == known) {
            return Err(invalid(
                TOKENIZER_CONFIG,
                format!(
                    "tokenizer_class is {class}; without a tokenizer.json, {VOCAB} and {MERGES} are read as a \
                     tokenizer of the classes {} only; save one with `tokenizer.save_pretrained` of transformers",
                    CLASSES.join(", ")
                ),
            ));
        }
        let vocab = self.vocab()?;
        let added = self.added(&config, &vocab)?;
        let document = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            ]},
            "post_processor": null,
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": self.merges()?,
            },
        });
        Ok(document.to_string().into_bytes())
    }

    /// The vocabulary, whose ids are checked to be 0, 1, … without a hole: added tokens are numbered on from there.
    fn vocab(&self) -> Result<HashMap<String, TokenId>, TextError> {
        let json = self.vocab.as_deref().ok_or_else(|| missing(VOCAB))?;
        let vocab: HashMap<String, TokenId> =
            serde_json::from_slice(json).map_err(|error| invalid(VOCAB, error.to_string()))?;
        let mut named = vec![false; vocab.len()];
        for (piece, id) in &vocab {
            match named.get_mut(*id as usize) {
                Some(named) if !*named => *named = true,
                _ => {
                    return Err(invalid(
                        VOCAB,
                        format!(
                            "{piece:?} has the id {id}; {} entries must have the ids from 0 on, each once",
                            vocab.len()
                        ),
                    ));
                }
            }
        }
        Ok(vocab)
    }

    /// The merges, each of two pieces.
    fn merges(&self) -> Result<Vec<[&str; 2]>, TextError> {
        let bytes = self.merges.as_deref().ok_or_else(|| missing(MERGES))?;
        let text = std::str::from_utf8(bytes).map_err(|_| invalid(MERGES, "not UTF-8".into()))?;
        let lines = text.lines().enumerate().filter(|(index, line)| {
            let is_version = *index == 0 && line.starts_with("#version:");
            !is_version && !line.trim().is_empty()
        });
        lines
            .map(|(index, line)| match line.trim().split_once(' ') {
                Some((left, right)) if !right.contains(' ') => Ok([left, right]),
                _ => Err(invalid(
                    MERGES,
                    format!("line {} is {line:?}; it must be two pieces", index + 1),
                )),
            })
            .collect()
    }

    /// The entries of `added_tokens`, by their ids: those of `added_tokens_decoder`, of [`ADDED_TOKENS`], and the
    /// declared special tokens that the vocabulary holds.
    fn added(
        &self,
        config: &Value,
        vocab: &HashMap<String, TokenId>,
    ) -> Result<Vec<Value>, TextError> {
        let map = object(SPECIAL_TOKENS_MAP, self.special_tokens_map.as_deref())?;
        let mut specials: Vec<&str> = KINDS
            .iter()
            .filter_map(|kind| declared(kind, config, &map))
            .collect();
        for file in [config, &map] {
            let more = file["additional_special_tokens"].as_array();
            specials.extend(more.into_iter().flatten().filter_map(content));
        }
        let mut added = Added::default();
        for (id, token) in config["added_tokens_decoder"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let text = content(token);
            let (Ok(id), Some(text)) = (id.parse(), text) else {
                let reason = format!(
                    "added_tokens_decoder.{id} is {token}; it must be a token with its content"
                );
                return Err(invalid(TOKENIZER_CONFIG, reason));
            };
            added.insert(TOKENIZER_CONFIG, id, text, token)?;
        }
        let unlisted = object(ADDED_TOKENS, self.added_tokens.as_deref())?;
        for (text, id) in unlisted.as_object().into_iter().flatten() {
            let number = id.as_u64().and_then(|id| TokenId::try_from(id).ok());
            let number = number.ok_or_else(|| {
                invalid(
                    ADDED_TOKENS,
                    format!("{text:?} is {id}; it must be a token id"),
                )
            })?;
            let is_special = specials.contains(&text.as_str());
            let flags = json!({"special": is_special, "normalized": !is_special});
            added.insert(ADDED_TOKENS, number, text, &flags)?;
        }
        for text in specials {
            if let Some(id) = vocab.get(text) {
                added.insert(TOKENIZER_CONFIG, *id, text, &json!({"special": true}))?;
            }
        }
        // The tokenizer numbers what the vocabulary does not hold from its end on, whatever its id is said to be.
        let mut next = vocab.len();
        for (id, token) in &added.by_id {
            let text = content(token).unwrap_or_default();
            let numbered = match vocab.get(text) {
                Some(id) => *id as usize,
                None => next,
            };
            if *id as usize != numbered {
                return Err(invalid(
                    TOKENIZER_CONFIG,
                    format!("the added token {text:?} has the id {id}, where {numbered} is next"),
                ));
            }
            next += usize::from(!vocab.contains_key(text));
        }
        Ok(added.by_id.into_values().collect())
    }
}

/// Added tokens, of which each has one id and one text.
#[derive(Default)]
struct Added {
    by_id: BTreeMap<TokenId, Value>,
    ids: HashMap<String, TokenId>,
}

impl Added {
    /// Takes a token with its `flags`, unless it is there already.
    fn insert(
        &mut self,
        file: &'static str,
        id: TokenId,
        text: &str,
        flags: &Value,
    ) -> Result<(), TextError> {
        let there = self.by_id.get(&id).and_then(content);
        match (there, self.ids.get(text)) {
            (Some(there), Some(_)) if there == text => return Ok(()),
            (None, None) => {}
            _ => {
                let reason =
                    format!("{text:?} has the id {id}, which contradicts another added token");
                return Err(invalid(file, reason));
            }
        }
        let flag = |name: &str| flags[name] == true;
        let token = json!({
            "id": id,
            "content": text,
            "single_word": flag("single_word"),
            "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"),
            "normalized": flag("normalized"),
            "special": flag("special"),
        });
        self.by_id.insert(id, token);
        self.ids.insert(text.to_owned(), id);
        Ok(())
    }
}

fn invalid(file: &'static str, reason: String) -> TextError {
    TextError::File { file, reason }
}

fn missing(file: &'static str) -> TextError {
    invalid(file, "it is missing, and there is no tokenizer.json".into())
}

/// The JSON object in a file; an empty one if it is not there.
fn object(file: &'static str, json: Option<&[u8]>) -> Result<Value, TextError> {
    let object: Map<String, Value> = match json {
        None => Map::new(),
        Some(json) => {
            serde_json::from_slice(json).map_err(|error| invalid(file, error.to_string()))?
        }
    };
    Ok(Value::Object(object))
}
