//! One gap's constraint while it is denoised.

use std::sync::Arc;

use super::state_sets::{SetId, StateSets};
use super::{ConstraintError, TokenDfa};
use crate::canvas::TokenId;
use crate::sampling::TokenSet;

/// What is committed to a gap, and so what may be: there always is a text of the language that has the
/// committed tokens in their places.
#[derive(Debug, Clone)]
pub(super) struct GapStates {
    language: Arc<TokenDfa>,
    sets: StateSets,
    /// What each slot holds; none where it is masked.
    tokens: Vec<Option<TokenId>>,
    /// `[slots + 1]`: the states that the slots before each can lead to.
    forward: Vec<SetId>,
    /// `[slots + 1]`: the states from which the slots from each on can lead to the end.
    backward: Vec<SetId>,
}

impl GapStates {
    /// A gap of `slots` masked slots, in which stop tokens may follow a text if `may_end`.
    ///
    /// # Errors
    /// [`ConstraintError::Empty`] if no text fills it, [`ConstraintError::TooLarge`] if steps would take long.
    pub fn new(
        language: Arc<TokenDfa>,
        slots: usize,
        may_end: bool,
    ) -> Result<Self, ConstraintError> {
        let mut sets = StateSets::new(&language, may_end);
        let mut forward = vec![sets.start()];
        let mut backward = vec![sets.end()];
        for slot in 0..slots {
            forward.push(sets.after_any(&language, forward[slot]));
            backward.push(sets.before_any(&language, backward[slot]));
            sets.check_work(slots)?;
        }
        backward.reverse();
        if !sets.meet(forward[slots], backward[slots]) {
            return Err(ConstraintError::Empty);
        }
        Ok(Self {
            language,
            sets,
            tokens: vec![None; slots],
            forward,
            backward,
        })
    }

    /// The tokens each of which may be committed to a slot, whatever it holds.
    pub fn allowed(&mut self, slot: usize) -> Arc<TokenSet> {
        let (from, to) = (self.forward[slot], self.backward[slot + 1]);
        self.sets.tokens_between(&self.language, from, to)
    }

    /// Commits a token to a slot, whatever it held, if the gap can be completed with it; whether it can.
    pub fn commit(&mut self, slot: usize, token: TokenId) -> bool {
        let after = self.sets.after(&self.language, self.forward[slot], token);
        let fits = self.sets.meet(after, self.backward[slot + 1]);
        if fits {
            self.set(slot, Some(token));
        }
        fits
    }

    /// Masks a slot again.
    pub fn free(&mut self, slot: usize) {
        self.set(slot, None);
    }

    /// Changes what a slot holds, and what follows for the slots around it, as far as anything does.
    fn set(&mut self, slot: usize, token: Option<TokenId>) {
        self.tokens[slot] = token;
        for at in slot..self.tokens.len() {
            let from = self.forward[at];
            let after = match self.tokens[at] {
                Some(token) => self.sets.after(&self.language, from, token),
                None => self.sets.after_any(&self.language, from),
            };
            if std::mem::replace(&mut self.forward[at + 1], after) == after {
                break;
            }
        }
        for at in (0..=slot).rev() {
            let to = self.backward[at + 1];
            let before = match self.tokens[at] {
                Some(token) => self.sets.before(&self.language, to, token),
                None => self.sets.before_any(&self.language, to),
            };
            if std::mem::replace(&mut self.backward[at], before) == before {
                break;
            }
        }
        let mut used: Vec<&mut SetId> = self.forward.iter_mut().collect();
        used.extend(&mut self.backward);
        self.sets.trim(used.into_iter());
    }
}
