//! Files of pairs of prompt and answer: one JSON object a line, with the fields `prompt` and `answer`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::documents::{DocumentsError, read_text};
use super::{TextError, Tokenizer};
use crate::canvas::TokenId;

/// Why a file of pairs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    /// The file cannot be read, or is empty.
    #[error(transparent)]
    File(#[from] DocumentsError),
    /// A line cannot be used.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// What is given, as it stands before the answer: nothing is put between the two.
    pub prompt: String,
    /// What is learned or scored; not empty.
    pub answer: String,
}

/// The tokens of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// Those of the prompt.
    pub prompt: Vec<TokenId>,
    /// Those of the answer.
    pub answer: Vec<TokenId>,
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
    /// When the file cannot be read or is empty; [`PairsError::Line`] names the first line that is no pair.
    pub fn read(path: &Path) -> Result<Self, PairsError> {
        let text = read_text(path)?;
        let parse = |(index, line): (usize, &str)| {
            let refused = |reason: String| PairsError::Line {
                path: path.to_path_buf(),
                line: index + 1,
                reason,
            };
            // serde would take a list for the fields of a pair.
            if line.trim_start().starts_with('[') {
                return Err(refused(
                    "it is a list; a line is {\"prompt\": \"…\", \"answer\": \"…\"}".into(),
                ));
            }
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

    /// The pairs, one a line.
    pub fn as_slice(&self) -> &[Pair] {
        &self.pairs
    }

    /// What is wrong with the pair at `index`, from 0.
    pub fn refused(&self, index: usize, reason: String) -> PairsError {
        PairsError::Line {
            path: self.path.clone(),
            line: index + 1,
            reason,
        }
    }

    /// The tokens of the pair at `index`, from 0. Prompt and answer are encoded apart and as in serving: special
    /// tokens written out in them are recognised.
    ///
    /// # Errors
    /// [`PairsError::Line`] if one cannot be encoded or holds `mask`, the mask token of the model if it has one.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn encode(
        &self,
        index: usize,
        tokenizer: &dyn Tokenizer,
        mask: Option<TokenId>,
    ) -> Result<EncodedPair, PairsError> {
        let pair = &self.pairs[index];
        let checked = |field: &str, tokens: Result<Vec<TokenId>, TextError>| {
            let tokens =
                tokens.map_err(|error| self.refused(index, format!("{field}: {error}")))?;
            match mask.filter(|mask| tokens.contains(mask)) {
                Some(mask) => {
                    let piece = String::from_utf8_lossy(tokenizer.piece(mask));
                    let reason = format!(
                        "{field} holds the mask token {piece}, which stands for no text; take it out"
                    );
                    Err(self.refused(index, reason))
                }
                None => Ok(tokens),
            }
        };
        let prompt = checked("prompt", tokenizer.encode(&pair.prompt))?;
        let answer = match prompt.is_empty() {
            true => tokenizer.encode(&pair.answer),
            false => tokenizer.encode_continuation(&pair.answer),
        };
        let answer = checked("answer", answer)?;
        Ok(EncodedPair { prompt, answer })
    }
}
