//! Additions to logits.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::canvas::TokenId;

/// What is added to the logits of some tokens before anything is drawn or scored: a sparse list, with one
/// entry a token in ascending order. −∞ keeps a token from being drawn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitBias {
    entries: Arc<[(TokenId, f32)]>,
}

impl LogitBias {
    /// The largest bias of a request either way, as OpenAI has it.
    pub const LARGEST: f32 = 100.0;

    /// Adds each entry's number to its token's logit; of several entries for a token, all.
    pub fn new(entries: impl IntoIterator<Item = (TokenId, f32)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by_key(|(token, _)| *token);
        entries.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                kept.1 += later.1;
            }
            is_same
        });
        Self {
            entries: entries.into(),
        }
    }

    /// The entries, ascending by token.
    pub fn entries(&self) -> &[(TokenId, f32)] {
        &self.entries
    }

    /// Whether no logit changes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same, and none of `tokens` is ever drawn.
    pub fn without(&self, tokens: &[TokenId]) -> Self {
        let banned = tokens.iter().map(|token| (*token, f32::NEG_INFINITY));
        Self::new(self.entries.iter().copied().chain(banned))
    }

    /// `logits` of the whole vocabulary with the bias added; entries outside it change nothing.
    pub(super) fn add_to(&self, logits: &mut [f32]) {
        for (token, bias) in self.entries.iter() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }
}

impl Serialize for LogitBias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_ascending_and_those_of_one_token_add_up() {
        let bias = LogitBias::new([(7, 1.0), (2, -3.0), (7, 0.5)]);
        assert_eq!(bias.entries(), [(2, -3.0), (7, 1.5)]);
        let banned = bias.without(&[7, 9]);
        let infinite = f32::NEG_INFINITY;
        assert_eq!(banned.entries(), [(2, -3.0), (7, infinite), (9, infinite)]);
        assert!(LogitBias::default().is_empty() && !banned.is_empty());
    }
}
