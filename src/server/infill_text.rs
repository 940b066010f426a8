//! The gaps of an infilling, read back from its canvas.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::completion_text::CompletionText;
use super::state::AppState;
use super::wire::{Alternative, Provenance};
use crate::canvas::{Canvas, TokenId};
use crate::sampling::Logprobs;
use crate::text::Tokenizer;

/// The texts of tokens in gaps: stop tokens have none there, whether or not the tokenizer calls them special.
pub(super) struct GapVocabulary {
    tokenizer: Arc<dyn Tokenizer>,
    stop_tokens: Vec<TokenId>,
}

impl GapVocabulary {
    /// The served model's.
    pub fn new(state: &AppState) -> Self {
        Self {
            tokenizer: state.tokenizer.clone(),
            stop_tokens: state.engine.spec().stop_tokens.clone(),
        }
    }

    fn is_stop(&self, token: TokenId) -> bool {
        self.stop_tokens.contains(&token)
    }

    /// The bytes that `token` stands for, maybe part of a character; empty for tokens without text.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        match self.is_stop(token) {
            true => &[],
            false => self.tokenizer.bytes(token),
        }
    }

    /// The text of `token` by itself; U+FFFD stands for part of a character.
    pub fn text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.bytes(token)).into_owned()
    }
}

/// Where the text of a gap ends before the gap does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends<'a> {
    /// Strings before which it ends.
    pub strings: &'a Arc<[String]>,
    /// Whether it ends at a stop token.
    pub at_stop_token: bool,
}

/// The text of a gap, up to where it ends.
pub(super) struct CutText {
    /// The text.
    pub text: String,
    /// How many tokens begin in it.
    pub tokens: usize,
    /// How many tokens it was read from, the stop token or those of the stop string among them.
    pub read: usize,
    /// The stop string that came.
    pub stop: Option<String>,
}

impl CutText {
    /// Reads `tokens`.
    pub fn of(tokens: &[TokenId], ends: Ends, vocabulary: &GapVocabulary) -> Self {
        let mut reading = CompletionText::new(ends.strings.clone());
        let mut text = String::new();
        let mut offsets = Vec::with_capacity(tokens.len());
        let mut stop_tokens = 0;
        for token in tokens {
            if ends.at_stop_token && vocabulary.is_stop(*token) {
                stop_tokens = 1;
                break;
            }
            let bytes = vocabulary.bytes(*token);
            offsets.push(reading.offset_of(bytes));
            text.push_str(&reading.push(bytes));
            if reading.is_stopped() {
                break;
            }
        }
        text.push_str(&reading.finish());
        let kept = match reading.is_stopped() {
            true => {
                let end = text.chars().count();
                offsets.partition_point(|offset| *offset < end)
            }
            false => offsets.len(),
        };
        Self {
            text,
            tokens: kept,
            read: offsets.len() + stop_tokens,
            stop: reading.stop().map(str::to_owned),
        }
    }
}

/// How each token of `slots` came to be; `logprobs` holds those that are to be reported.
pub(super) fn provenance(
    canvas: &Canvas,
    slots: Range<usize>,
    logprobs: Option<&HashMap<usize, Logprobs>>,
    vocabulary: &GapVocabulary,
) -> Vec<Provenance> {
    slots
        .filter_map(|slot| {
            let logprobs = logprobs.and_then(|logprobs| logprobs.get(&slot));
            let slot = canvas.gap_slot(slot)?;
            let commit = slot.provenance()?;
            Some(Provenance {
                token: commit.token,
                text: vocabulary.text(commit.token),
                probability: commit.probability,
                score: commit.score,
                step: commit.step,
                remasked: slot.remasked(),
                edited: slot.edited(),
                logprob: logprobs.map(|logprobs| logprobs.token),
                top_logprobs: logprobs.map(|logprobs| alternatives(logprobs, vocabulary)),
            })
        })
        .collect()
}

fn alternatives(logprobs: &Logprobs, vocabulary: &GapVocabulary) -> Vec<Alternative> {
    let top = logprobs.top.iter();
    top.map(|&(token, logprob)| Alternative {
        token,
        text: vocabulary.text(token),
        logprob,
    })
    .collect()
}
