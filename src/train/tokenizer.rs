//! The byte-level BPE tokenizer of a trained model.

use std::collections::BTreeSet;
use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::{AddedToken, Tokenizer};

use super::error::TrainError;
use crate::text::{HfTokenizer, Tokenizer as _};

/// The text of the mask token.
pub const MASK: &str = "<|mask|>";
/// The text of the end-of-text token, which also separates documents.
pub const END: &str = "<|endoftext|>";
/// The text of the padding token.
pub const PAD: &str = "<|pad|>";
/// The smallest vocabulary: all bytes and the special tokens.
pub const MIN_VOCABULARY: usize = 256 + 3;

/// The ids of the special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SpecialTokens {
    /// [`MASK`].
    pub mask: u32,
    /// [`END`].
    pub end: u32,
    /// [`PAD`].
    pub pad: u32,
}

/// Trains a byte-level BPE with exactly `size` tokens; the special tokens have the first ids.
///
/// The pre-tokenizer adds no prefix space and every byte is in the alphabet, so that decoding an
/// encoded text gives the text back, whatever it is.
///
/// # Errors
/// [`TrainError::VocabularyTooLarge`] when the text does not yield that many tokens.
pub fn train(documents: &[String], size: usize) -> Result<Tokenizer, TrainError> {
    let specials = [MASK, END, PAD]
        .map(|text| AddedToken::from(text, true))
        .to_vec();
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials)
        .build();
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level));
    tokenizer
        .train(
            &mut TrainerWrapper::BpeTrainer(trainer),
            documents.iter().map(String::as_str),
        )
        .map_err(|error| TrainError::Tokenizer(error.to_string()))?;
    let reached = tokenizer.get_vocab_size(true);
    if reached != size {
        return Err(TrainError::VocabularyTooLarge {
            requested: size,
            reached,
        });
    }
    Ok(tokenizer)
}

/// Reads a byte-level tokenizer whose ids are 0, 1, …, as the rows of an embedding are.
///
/// # Errors
/// When the file cannot be read or is no such tokenizer; [`TrainError::TokenizerIds`] when ids are left
/// out or used twice.
pub fn load(path: &Path) -> Result<Tokenizer, TrainError> {
    let invalid = |reason: String| TrainError::Tokenizer(format!("{}: {reason}", path.display()));
    let json = std::fs::read(path).map_err(TrainError::io("read", path))?;
    let tokenizer = Tokenizer::from_bytes(&json).map_err(|error| invalid(error.to_string()))?;
    let vocabulary = tokenizer.get_vocab(true);
    let ids: BTreeSet<u32> = vocabulary.values().copied().collect();
    let largest_id = ids.last().copied().unwrap_or_default();
    // As many distinct ids as tokens, and as many as the largest allows: each of 0..tokens once.
    if ids.len() != vocabulary.len() || ids.len() != largest_id as usize + 1 {
        return Err(TrainError::TokenizerIds {
            path: path.to_path_buf(),
            tokens: vocabulary.len(),
            largest_id,
        });
    }
    let bytes = HfTokenizer::from_bytes(&json).map_err(|error| invalid(error.to_string()))?;
    let alphabet: BTreeSet<&[u8]> = ids.iter().map(|&id| bytes.bytes(id)).collect();
    let missing = (0..=u8::MAX).find(|byte| in_utf8(*byte) && !alphabet.contains(&[*byte][..]));
    if let Some(byte) = missing {
        return Err(invalid(format!(
            "it has no token for the byte {byte:#04x}; a byte-level tokenizer has one for each"
        )));
    }
    Ok(tokenizer)
}

/// Whether UTF-8 text can have the byte.
fn in_utf8(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf5..)
}

/// Finds the special tokens.
///
/// # Errors
/// When the tokenizer lacks one.
pub fn special_tokens(tokenizer: &Tokenizer) -> Result<SpecialTokens, TrainError> {
    let id = |text: &str| {
        tokenizer.token_to_id(text).ok_or_else(|| {
            TrainError::Tokenizer(format!(
                "it has no token {text}; {MASK}, {END} and {PAD} are needed"
            ))
        })
    };
    Ok(SpecialTokens {
        mask: id(MASK)?,
        end: id(END)?,
        pad: id(PAD)?,
    })
}

/// Encodes documents into one stream, each followed by the end token. Text that spells a special
/// token is encoded as text.
///
/// # Errors
/// When the tokenizer fails.
pub fn encode(tokenizer: &Tokenizer, documents: &[String]) -> Result<Vec<u32>, TrainError> {
    let end = special_tokens(tokenizer)?.end;
    let mut tokens = Vec::new();
    encode_each(tokenizer, documents, |document| {
        tokens.extend_from_slice(document);
        tokens.push(end);
    })?;
    Ok(tokens)
}

/// Encodes texts by themselves and hands out the tokens of each, in order. Text that spells a special
/// token is encoded as text.
///
/// # Errors
/// When the tokenizer fails.
fn encode_each(
    tokenizer: &Tokenizer,
    texts: &[String],
    mut take: impl FnMut(&[u32]),
) -> Result<(), TrainError> {
    let mut tokenizer = tokenizer.clone();
    tokenizer.set_encode_special_tokens(true);
    for texts in texts.chunks(256) {
        let encodings = tokenizer
            .encode_batch_fast(texts.iter().map(String::as_str).collect(), false)
            .map_err(|error| TrainError::Tokenizer(error.to_string()))?;
        for encoding in encodings {
            take(encoding.get_ids());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let text = "the cat sat on the mat and the hat; that is what the cat did. ".repeat(20);
        train(&[text], 280).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn every_text_comes_back(text in any::<String>(), tail in "[ a-z\\n<|>]{0,20}") {
            let text = text + &tail + MASK;
            let tokenizer = tokenizer();
            let tokens = encode(&tokenizer, std::slice::from_ref(&text)).unwrap();
            let (end, tokens) = tokens.split_last().unwrap();
            let specials = special_tokens(&tokenizer).unwrap();
            prop_assert_eq!(*end, specials.end);
            prop_assert!(!tokens.contains(&specials.mask));
            prop_assert_eq!(tokenizer.decode(tokens, false).unwrap(), text);
        }
    }

    #[test]
    fn the_vocabulary_has_the_size_asked_for() {
        assert_eq!(tokenizer().get_vocab_size(true), 280);
        let error = train(&["ab".into()], 400).unwrap_err();
        assert!(
            matches!(
                error,
                TrainError::VocabularyTooLarge {
                    requested: 400,
                    reached: 259
                }
            ),
            "{error}"
        );
    }
}
