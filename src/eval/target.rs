//! What is scored.

use super::EvalError;
use crate::canvas::TokenId;
use crate::models::ModelSpec;

/// A token sequence of which some slots are scored; the others are its prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// All tokens, prompt included.
    pub tokens: Vec<TokenId>,
    /// The scored slots, ascending.
    pub slots: Vec<usize>,
}

impl Target {
    /// A sequence all of whose tokens are scored.
    pub fn whole(tokens: Vec<TokenId>) -> Self {
        let slots = (0..tokens.len()).collect();
        Self { tokens, slots }
    }

    /// `answer` is scored, after `prompt`.
    pub fn after_prompt(prompt: &[TokenId], answer: &[TokenId]) -> Self {
        Self {
            tokens: [prompt, answer].concat(),
            slots: (prompt.len()..prompt.len() + answer.len()).collect(),
        }
    }

    /// Checks the target against a model's limits.
    ///
    /// # Errors
    /// [`EvalError::NothingToScore`], [`EvalError::ScoredSlot`], [`EvalError::TooLong`],
    /// [`EvalError::MaskToken`], [`EvalError::UnknownToken`].
    pub fn check(&self, spec: &ModelSpec) -> Result<(), EvalError> {
        let length = self.tokens.len();
        if self.slots.is_empty() {
            return Err(EvalError::NothingToScore);
        }
        let mut next = 0;
        for &slot in &self.slots {
            if !(next..length).contains(&slot) {
                return Err(EvalError::ScoredSlot { slot, length });
            }
            next = slot + 1;
        }
        let limit = super::max_context(spec);
        if length > limit {
            return Err(EvalError::TooLong { length, limit });
        }
        let (mask, vocab_size) = (spec.mask_token(), spec.vocab_size);
        for (slot, &token) in self.tokens.iter().enumerate() {
            if Some(token) == mask {
                return Err(EvalError::MaskToken { slot, mask: token });
            }
            if token as usize >= vocab_size {
                return Err(EvalError::UnknownToken {
                    slot,
                    token,
                    vocab_size,
                });
            }
        }
        Ok(())
    }
}
