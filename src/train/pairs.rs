//! Pairs of prompt and answer for supervised fine-tuning: one JSON object a line, with the fields `prompt`
//! and `answer`.
//!
//! As in LLaDA (GUIDELINES.md of ML-GSAI/LLaDA, "SFT"), the prompt is never noised, and the answer, which
//! ends in the end token and is padded with it to the window, is noised with its padding: the model learns
//! where answers end. A pair's loss is the mean over the tokens of its answer, padding included.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::batch::Windows;
use super::error::TrainError;
use super::tokenizer::SpecialTokens;
use crate::canvas::TokenId;
use crate::text::documents::{DocumentsError, read_text};
use crate::text::{TextError, Tokenizer};

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    /// What is given, as it stands before the answer: nothing is put between the two.
    prompt: String,
    /// What is to be learned.
    answer: String,
}

/// The pairs of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    path: PathBuf,
    /// One a line.
    pairs: Vec<Pair>,
}

impl Pairs {
    /// Reads a file, UTF-8 text, plain or zstd.
    ///
    /// # Errors
    /// When the file cannot be read or is empty; [`TrainError::Pair`] names the first line that is no pair.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let text = read_text(path)?;
        let parse = |(index, line): (usize, &str)| {
            let refused = |reason: String| TrainError::Pair {
                path: path.to_path_buf(),
                line: index + 1,
                reason,
            };
            let pair: Pair = serde_json::from_str(line).map_err(|error| {
                // Of serde's place only the column says something: each line is parsed by itself.
                let message = error.to_string();
                let reason = message.split(" at line ").next().unwrap_or_default();
                refused(format!(
                    "{reason} (column {}); a line is {{\"prompt\": \"…\", \"answer\": \"…\"}}",
                    error.column()
                ))
            })?;
            match pair.answer.is_empty() {
                true => Err(refused("answer is empty; there is nothing to learn".into())),
                false => Ok(pair),
            }
        };
        let pairs: Vec<Pair> = text
            .lines()
            .enumerate()
            .map(parse)
            .collect::<Result<_, _>>()?;
        if pairs.is_empty() {
            return Err(DocumentsError::Empty {
                path: path.to_path_buf(),
            }
            .into());
        }
        Ok(Self {
            path: path.to_path_buf(),
            pairs,
        })
    }

    /// Each pair as one text, to train a tokenizer on.
    pub fn texts(&self) -> Vec<String> {
        let pairs = self.pairs.iter();
        pairs
            .map(|pair| format!("{}{}", pair.prompt, pair.answer))
            .collect()
    }

    /// Each pair as a window of `context` tokens: prompt, answer and end tokens. Prompt and answer are
    /// encoded apart and as in serving: special tokens written out in them are recognised.
    ///
    /// # Errors
    /// [`TrainError::Pair`] names the first line that holds the mask token, or does not fit the window: its
    /// prompt alone, or without `truncate` its answer with one end token.
    pub fn windows(
        &self,
        tokenizer: &dyn Tokenizer,
        specials: SpecialTokens,
        context: usize,
        truncate: bool,
    ) -> Result<Windows, TrainError> {
        let encode = |pair: &Pair| encode(pair, tokenizer, specials.mask);
        let encoded: Vec<_> = self.pairs.par_iter().map(encode).collect();
        let mut windows = Windows::new(context);
        for (index, encoded) in encoded.into_iter().enumerate() {
            let refused = |reason: String| TrainError::Pair {
                path: self.path.clone(),
                line: index + 1,
                reason,
            };
            let (mut window, answer) = encoded.map_err(refused)?;
            let prompt = window.len();
            let room = context.saturating_sub(prompt);
            if room == 0 {
                return Err(refused(format!(
                    "the prompt alone has {prompt} tokens, and the window {context}; shorten it or raise --context"
                )));
            }
            if answer.len() >= room && !truncate {
                return Err(refused(format!(
                    "prompt, answer and end token are {} tokens, and the window {context}; shorten them, raise \
                     --context, or pass --truncate-pairs",
                    prompt + answer.len() + 1
                )));
            }
            window.extend(answer.iter().take(room));
            window.resize(context, specials.end);
            windows.push(&window, prompt, &[]);
        }
        Ok(windows)
    }
}

/// The tokens of prompt and answer, or what is wrong with them.
fn encode(
    pair: &Pair,
    tokenizer: &dyn Tokenizer,
    mask: TokenId,
) -> Result<(Vec<TokenId>, Vec<TokenId>), String> {
    let checked = |field: &str, tokens: Result<Vec<TokenId>, TextError>| {
        let tokens = tokens.map_err(|error| format!("{field}: {error}"))?;
        match tokens.contains(&mask) {
            true => Err(format!(
                "{field} holds the mask token {}, which stands for no text; take it out",
                String::from_utf8_lossy(tokenizer.piece(mask))
            )),
            false => Ok(tokens),
        }
    };
    let prompt = checked("prompt", tokenizer.encode(&pair.prompt))?;
    let answer = match prompt.is_empty() {
        true => tokenizer.encode(&pair.answer),
        false => tokenizer.encode_continuation(&pair.answer),
    };
    Ok((prompt, checked("answer", answer)?))
}
