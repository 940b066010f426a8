//! Tokenizers: text to token ids, and each token to its bytes.

use std::collections::HashMap;
use std::path::Path;

use crate::canvas::TokenId;
use crate::text::TextError;

/// A byte-level tokenizer: each token stands for the same bytes wherever it appears, so that slots
/// can be committed in any order and the bytes of a text are those of its tokens end to end.
pub trait Tokenizer: Send + Sync {
    /// The tokens of `text`; special tokens written out in it are recognised, none are added.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError>;

    /// The bytes that `token` stands for; empty for special tokens and unknown ids. A token may hold
    /// part of a character.
    fn bytes(&self, token: TokenId) -> &[u8];

    /// The most bytes of text that become one token; `None` if there is no bound. A text of more than n
    /// times as many has more than n tokens.
    fn longest_token(&self) -> Option<usize>;

    /// The text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| self.bytes(*token))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A tokenizer read from a Hugging Face `tokenizer.json`.
pub struct HfTokenizer {
    inner: tokenizers::Tokenizer,
    bytes: Vec<Box<[u8]>>,
    longest: Option<usize>,
}

impl HfTokenizer {
    /// Reads a `tokenizer.json` file.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a byte-level tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let json = std::fs::read(path)
            .map_err(|error| TextError::Tokenizer(format!("{}: {error}", path.display())))?;
        Self::from_bytes(&json)
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// If it is not a byte-level tokenizer.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TextError> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        let byte_of_char = byte_level_alphabet();
        let added = inner.get_added_tokens_decoder();
        let vocabulary = inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let mut bytes = vec![Box::<[u8]>::default(); size];
        for (piece, id) in vocabulary {
            bytes[id as usize] = match added.get(&id) {
                Some(token) if token.special => Box::default(),
                Some(token) => token.content.as_bytes().into(),
                None => piece
                    .chars()
                    .map(|c| byte_of_char.get(&c).copied())
                    .collect::<Option<Box<[u8]>>>()
                    .ok_or_else(|| {
                        TextError::Tokenizer(format!(
                            "token {id} ({piece:?}) is not byte-level; only byte-level tokenizers are supported"
                        ))
                    })?,
            };
        }
        // A normaliser may shorten the text, and an added token may take in the spaces around it.
        let is_exact = inner.get_normalizer().is_none()
            && added.values().all(|token| !token.lstrip && !token.rstrip);
        let added = added.values().map(|token| token.content.len());
        let lengths = bytes.iter().map(|bytes| bytes.len()).chain(added);
        let longest = lengths.max().filter(|_| is_exact);
        Ok(Self {
            inner,
            bytes,
            longest,
        })
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.inner
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TextError::Encode(error.to_string()))
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    fn longest_token(&self) -> Option<usize> {
        self.longest
    }
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

/// A tokenizer without a vocabulary: token n is byte n, larger ids are special.
#[derive(Debug, Clone)]
pub struct ByteTokenizer {
    bytes: Vec<u8>,
}

impl Default for ByteTokenizer {
    fn default() -> Self {
        Self {
            bytes: (0..=u8::MAX).collect(),
        }
    }
}

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        Ok(text.bytes().map(TokenId::from).collect())
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        self.bytes.get(index..=index).unwrap_or(&[])
    }

    fn longest_token(&self) -> Option<usize> {
        Some(1)
    }
}
