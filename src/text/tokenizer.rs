//! Tokenizers: text to token ids, and each token to its bytes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use crate::canvas::TokenId;
use crate::text::TextError;
use crate::text::pieces::{Spelling, without_prefix};

/// The largest token id that a tokenizer may have. The largest released vocabularies have some 2^18 tokens; the
/// memory that a tokenizer takes grows with its largest id, however few tokens it has.
const LARGEST_TOKEN: TokenId = 1 << 24;

/// A tokenizer whose tokens each stand for the same bytes wherever they appear, so that slots can be
/// committed in any order and the bytes of a text are those of its tokens end to end.
pub trait Tokenizer: Send + Sync {
    /// The tokens of `text` from its beginning; special tokens written out in it are recognised, none are
    /// added.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError>;

    /// The tokens of `text` where other text or a gap comes before it: without the space that some
    /// tokenizers put before the beginning of a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    fn encode_continuation(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode(text)
    }

    /// As [`Tokenizer::encode`], with special tokens that are written out in `text` taken for the text that they
    /// are: every token of the answer has bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    fn encode_as_text(&self, text: &str) -> Result<Vec<TokenId>, TextError>;

    /// As [`Tokenizer::encode`], with the special tokens that the tokenizer puts around a text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    fn encode_with_special(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode(text)
    }

    /// The special tokens that the tokenizer puts before a text: those of [`Tokenizer::encode_with_special`] before the
    /// first of [`Tokenizer::encode`]. A chat template writes them itself.
    fn beginning(&self) -> &[TokenId] {
        &[]
    }

    /// The tokens of a prompt that is no chat: [`Tokenizer::beginning`], unless `text` itself begins with it, then
    /// `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let tokens = self.encode(text)?;
        Ok(match tokens.starts_with(self.beginning()) {
            true => tokens,
            false => [self.beginning(), &tokens].concat(),
        })
    }

    /// The bytes that `token` stands for; empty for special tokens and unknown ids. A token may hold
    /// part of a character.
    fn bytes(&self, token: TokenId) -> &[u8];

    /// How many Unicode characters begin in `token`: summed over tokens wherever a text is cut, those of the
    /// whole.
    fn characters(&self, token: TokenId) -> usize {
        // Bytes 10xxxxxx continue a character.
        let bytes = self.bytes(token).iter();
        bytes.filter(|byte| **byte & 0xC0 != 0x80).count()
    }

    /// The most bytes of text that become one token; `None` if there is no bound. A text of more than n
    /// times as many has more than n tokens.
    fn longest_token(&self) -> Option<usize>;

    /// How `token` is written: its bytes, and a special token as it is called.
    fn piece(&self, token: TokenId) -> &[u8] {
        self.bytes(token)
    }

    /// The text of `tokens` wherever they are; special tokens have none, and bytes that are not UTF-8
    /// become U+FFFD.
    fn decode(&self, tokens: &[TokenId]) -> String {
        text_of(tokens.iter().map(|token| self.bytes(*token)))
    }

    /// The whole text of `tokens`, special tokens as they are called: what [`Tokenizer::encode`] gave back.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    fn decode_whole(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        Ok(text_of(tokens.iter().map(|token| self.piece(*token))))
    }
}

/// The text of pieces end to end.
fn text_of<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> String {
    let bytes: Vec<u8> = pieces.flatten().copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A tokenizer read from a Hugging Face `tokenizer.json`.
pub struct HfTokenizer {
    inner: tokenizers::Tokenizer,
    /// For text that is not the beginning, where that makes a difference.
    continuation: Option<tokenizers::Tokenizer>,
    /// For text in which special tokens are text; made when first needed, since it takes as much memory.
    as_text: OnceLock<tokenizers::Tokenizer>,
    beginning: Vec<TokenId>,
    bytes: Vec<Box<[u8]>>,
    special: HashMap<TokenId, String>,
    longest: Option<usize>,
}

impl HfTokenizer {
    /// Reads a `tokenizer.json` file.
    ///
    /// # Errors
    /// If the file cannot be read, or a token does not stand for the same bytes wherever it is.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let json = std::fs::read(path)
            .map_err(|error| TextError::Tokenizer(format!("{}: {error}", path.display())))?;
        Self::from_bytes(&json)
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`HfTokenizer::from_file`].
    pub fn from_bytes(json: &[u8]) -> Result<Self, TextError> {
        let document: Value = serde_json::from_slice(json)
            .map_err(|error| TextError::Tokenizer(format!("not valid JSON: {error}")))?;
        let inner = read(json)?;
        let continuation = without_prefix(&document)
            .map(|edited| read(edited.to_string().as_bytes()))
            .transpose()?;
        let beginning = beginning(&inner);
        let spelling = Spelling::of(&document)?;
        let added = inner.get_added_tokens_decoder();
        let vocabulary = inner.get_vocab(true);
        let largest = vocabulary.iter().max_by_key(|(_, id)| **id);
        if let Some((piece, id)) = largest.filter(|(_, id)| **id > LARGEST_TOKEN) {
            return Err(TextError::Tokenizer(format!(
                "token {piece:?} has the id {id}; allowed: at most {LARGEST_TOKEN}"
            )));
        }
        let size = largest.map_or(0, |(_, id)| *id as usize + 1);
        let mut bytes = vec![Box::<[u8]>::default(); size];
        let mut special = HashMap::new();
        for (piece, id) in vocabulary {
            bytes[id as usize] = match added.get(&id) {
                Some(token) if token.special => {
                    special.insert(id, token.content.clone());
                    Box::default()
                }
                Some(token) => token.content.as_bytes().into(),
                None => spelling.bytes(&piece).ok_or_else(|| {
                    TextError::Tokenizer(format!(
                        "token {id} ({piece:?}) is not byte-level, which the decoder says that it is"
                    ))
                })?,
            };
        }
        // A normaliser may shorten the text, an added token may take in the spaces around it, and an unknown
        // token any text.
        let is_exact = spelling.is_byte_level()
            && inner.get_normalizer().is_none()
            && added.values().all(|token| !token.lstrip && !token.rstrip);
        let added = added.values().map(|token| token.content.len());
        let lengths = bytes.iter().map(|bytes| bytes.len()).chain(added);
        let longest = lengths.max().filter(|_| is_exact);
        Ok(Self {
            inner,
            continuation,
            as_text: OnceLock::new(),
            beginning,
            bytes,
            special,
            longest,
        })
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }
}

/// The tokenizer of a file, without the truncation and the padding that are in force where it was saved: they
/// would cut prompts short and fill them up, and say nothing.
fn read(json: &[u8]) -> Result<tokenizers::Tokenizer, TextError> {
    let refused = |error: tokenizers::Error| TextError::Tokenizer(error.to_string());
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(refused)?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(refused)?;
    Ok(tokenizer)
}

/// The special tokens that `tokenizer` puts before a text.
fn beginning(tokenizer: &tokenizers::Tokenizer) -> Vec<TokenId> {
    // Of a letter, since a file may put other tokens behind the text; a tokenizer may have no token for it.
    let encoded = |add_special| ids(tokenizer, "a", add_special).unwrap_or_default();
    let (mut with, without) = (encoded(true), encoded(false));
    let mut parts = with.windows(without.len().max(1));
    let text = parts.position(|part| part == without);
    with.truncate(text.unwrap_or(0));
    with
}

fn ids(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    add_special: bool,
) -> Result<Vec<TokenId>, TextError> {
    tokenizer
        .encode_fast(text, add_special)
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| TextError::Encode(error.to_string()))
}

impl Tokenizer for HfTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        ids(&self.inner, text, false)
    }

    fn encode_continuation(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        ids(
            self.continuation.as_ref().unwrap_or(&self.inner),
            text,
            false,
        )
    }

    fn encode_as_text(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let tokenizer = self.as_text.get_or_init(|| {
            let mut tokenizer = self.inner.clone();
            tokenizer.set_encode_special_tokens(true);
            tokenizer
        });
        ids(tokenizer, text, false)
    }

    fn encode_with_special(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        ids(&self.inner, text, true)
    }

    fn beginning(&self) -> &[TokenId] {
        &self.beginning
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    fn longest_token(&self) -> Option<usize> {
        self.longest
    }

    fn piece(&self, token: TokenId) -> &[u8] {
        match self.special.get(&token) {
            Some(content) => content.as_bytes(),
            None => self.bytes(token),
        }
    }

    fn decode_whole(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        // The library's decoder knows what its tokenizer put before the text.
        match &self.continuation {
            Some(_) => self
                .inner
                .decode(tokens, false)
                .map_err(|error| TextError::Decode(error.to_string())),
            None => Ok(text_of(tokens.iter().map(|token| self.piece(*token)))),
        }
    }
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

    fn encode_as_text(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode(text)
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        self.bytes.get(index..=index).unwrap_or(&[])
    }

    fn longest_token(&self) -> Option<usize> {
        Some(1)
    }
}
