//! The gaps of an infilling, read back from its canvas.

use std::collections::HashMap;
use std::sync::Arc;

use super::wire::{Alternative, GapAnswer, Provenance};
use crate::canvas::{Canvas, TokenId};
use crate::sampling::Logprobs;
use crate::text::{Reading, TextError, Tokenizer};

/// The model's tokenizer as gaps are read with it: stop tokens have no text there, whether or not the
/// tokenizer calls them special.
pub(super) struct GapTokenizer {
    /// The model's tokenizer.
    pub inner: Arc<dyn Tokenizer>,
    /// Tokens without text.
    pub silent: Vec<TokenId>,
}

impl Tokenizer for GapTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.inner.encode(text)
    }

    fn bytes(&self, token: TokenId) -> &[u8] {
        if self.silent.contains(&token) {
            &[]
        } else {
            self.inner.bytes(token)
        }
    }

    fn longest_token(&self) -> Option<usize> {
        self.inner.longest_token()
    }
}

/// What fills each gap of a finished canvas; `names` holds one entry a gap, `logprobs` one a slot if
/// log-probabilities were asked for.
pub(super) fn gap_answers(
    canvas: &Canvas,
    reading: Reading,
    names: &[Option<String>],
    logprobs: &HashMap<usize, Logprobs>,
    tokenizer: &dyn Tokenizer,
) -> Vec<GapAnswer> {
    let gaps = canvas.gaps().iter().zip(reading.gaps).zip(names);
    gaps.enumerate()
        .map(|(index, ((slots, gap), name))| {
            let provenance: Vec<Provenance> = slots
                .clone()
                .filter_map(|slot| {
                    let logprobs = logprobs.get(&slot);
                    let slot = canvas.gap_slot(slot)?;
                    let commit = slot.provenance()?;
                    Some(Provenance {
                        token: commit.token,
                        text: tokenizer.decode(&[commit.token]),
                        probability: commit.probability,
                        score: commit.score,
                        step: commit.step,
                        remasked: slot.remasked(),
                        edited: slot.edited(),
                        logprob: logprobs.map(|logprobs| logprobs.token),
                        top_logprobs: logprobs.map(|logprobs| alternatives(logprobs, tokenizer)),
                    })
                })
                .collect();
            GapAnswer {
                index,
                name: name.clone(),
                text: gap.text,
                tokens: provenance.iter().map(|token| token.token).collect(),
                start: gap.characters.start,
                end: gap.characters.end,
                start_byte: gap.bytes.start,
                end_byte: gap.bytes.end,
                provenance,
            }
        })
        .collect()
}

fn alternatives(logprobs: &Logprobs, tokenizer: &dyn Tokenizer) -> Vec<Alternative> {
    let top = logprobs.top.iter();
    top.map(|&(token, logprob)| Alternative {
        token,
        text: tokenizer.decode(&[token]),
        logprob,
    })
    .collect()
}
