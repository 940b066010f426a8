//! The whole text of an infilling: the pieces as they were sent, the gaps from their tokens.

use super::validate::InfillPiece;
use super::wire::{GapAnswer, Provenance};
use crate::canvas::{Commit, TokenId};
use crate::text::Tokenizer;

/// Reads tokens of a gap. Stop tokens and the mask token have no text there, whatever the tokenizer
/// says of them.
pub(super) struct GapTokens<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a dyn Tokenizer,
    /// Tokens without text.
    pub silent: &'a [TokenId],
}

impl GapTokens<'_> {
    fn bytes(&self, token: TokenId) -> &[u8] {
        if self.silent.contains(&token) {
            &[]
        } else {
            self.tokenizer.bytes(token)
        }
    }

    /// A token's text by itself; U+FFFD stands for part of a character.
    pub fn text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.bytes(token)).into_owned()
    }

    /// The text of tokens in a row.
    fn joined(&self, commits: &[Commit]) -> String {
        let bytes: Vec<u8> = commits
            .iter()
            .flat_map(|commit| self.bytes(commit.token))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The whole text and its gaps, with `slots` what is committed on the canvas.
pub(super) fn assemble(
    pieces: &[InfillPiece],
    slots: &[Option<Commit>],
    tokens: &GapTokens<'_>,
) -> (String, Vec<GapAnswer>) {
    let mut text = String::new();
    let mut characters = 0;
    let mut gaps = Vec::new();
    for piece in pieces {
        match piece {
            InfillPiece::Text(fixed) => {
                text.push_str(fixed);
                characters += fixed.chars().count();
            }
            InfillPiece::Gap { name, slots: range } => {
                let commits: Vec<Commit> = slots
                    .get(range.clone())
                    .unwrap_or_default()
                    .iter()
                    .flatten()
                    .copied()
                    .collect();
                let filling = tokens.joined(&commits);
                let (start, start_byte) = (characters, text.len());
                text.push_str(&filling);
                characters += filling.chars().count();
                gaps.push(GapAnswer {
                    index: gaps.len(),
                    name: name.clone(),
                    text: filling,
                    tokens: commits.iter().map(|commit| commit.token).collect(),
                    start,
                    end: characters,
                    start_byte,
                    end_byte: text.len(),
                    provenance: commits
                        .iter()
                        .map(|commit| Provenance {
                            token: commit.token,
                            text: tokens.text(commit.token),
                            probability: commit.probability,
                            score: commit.score,
                            step: commit.step,
                        })
                        .collect(),
                });
            }
        }
    }
    (text, gaps)
}
