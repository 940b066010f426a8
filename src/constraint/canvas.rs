//! The constraints of a canvas while it is denoised.

use std::ops::Range;
use std::sync::Arc;

use super::gap::GapStates;
use super::state_sets::STEP_WORK;
use super::{ConstraintError, TokenDfa};
use crate::canvas::{Canvas, TokenId};
use crate::sampling::TokenSet;

/// What a gap may be filled with.
#[derive(Debug, Clone)]
pub struct GapConstraint {
    /// Which gap of the canvas.
    pub gap: usize,
    /// The texts that may fill it.
    pub language: Arc<TokenDfa>,
    /// Whether a text may be followed by stop tokens up to the gap's end; otherwise it is as long as the gap.
    pub may_end: bool,
}

/// The constraints of a canvas's gaps, which can be met at every time: whatever was committed, there are tokens
/// for the masked slots with which every constrained gap holds a text of its language.
///
/// The work is counted by the step: what a step may take is [`STEP_WORK`], and whoever asks is to put off the rest
/// once it [is spent](Self::is_spent). The count follows from what was asked before, and from nothing else.
#[derive(Debug, Clone)]
pub struct CanvasConstraint {
    /// The constrained gaps, each with its slots.
    gaps: Vec<(Range<usize>, GapStates)>,
    /// The work up to the current step.
    before: usize,
}

impl CanvasConstraint {
    /// Constrains gaps of `canvas`, with what is committed to them already.
    ///
    /// # Errors
    /// [`ConstraintError::Empty`] if no text of a gap's language fills it, [`ConstraintError::TooLarge`] if one
    /// token alone may take long, some tenths of a second.
    ///
    /// # Panics
    /// If the canvas has no such gap.
    pub fn new(
        canvas: &Canvas,
        constraints: impl IntoIterator<Item = GapConstraint>,
    ) -> Result<Self, ConstraintError> {
        let gaps = constraints.into_iter().map(|constraint| {
            let slots = canvas.gaps()[constraint.gap].clone();
            let mut states = GapStates::new(constraint.language, slots.len(), constraint.may_end)?;
            for (at, slot) in slots.clone().enumerate() {
                if let Some(commit) = canvas.provenance(slot)
                    && !states.commit(at, commit.token)
                {
                    return Err(ConstraintError::Empty);
                }
            }
            Ok((slots, states))
        });
        let mut constraint = Self {
            gaps: gaps.collect::<Result<_, _>>()?,
            before: 0,
        };
        constraint.begin_step();
        Ok(constraint)
    }

    /// Counts the work anew.
    pub fn begin_step(&mut self) {
        self.before += self.work();
    }

    /// The work since the step began, in states, edges and words of sets that were looked at.
    pub fn work(&self) -> usize {
        let all: usize = self.gaps.iter().map(|(_, states)| states.work()).sum();
        all - self.before
    }

    /// Whether a step's share of work is spent.
    pub fn is_spent(&self) -> bool {
        self.work() >= STEP_WORK
    }

    fn gap(&mut self, slot: usize) -> Option<(&mut GapStates, usize)> {
        let mut gaps = self.gaps.iter_mut();
        let (slots, states) = gaps.find(|(slots, _)| slots.contains(&slot))?;
        Some((states, slot - slots.start))
    }

    /// The tokens each of which may be committed to `slot`, while nothing else is; `None` for all.
    pub fn allowed(&mut self, slot: usize) -> Option<Arc<TokenSet>> {
        let (states, at) = self.gap(slot)?;
        Some(states.allowed(at))
    }

    /// Notes that `token` is committed to `slot`, in the place of what it held, if every gap can be completed
    /// with it; whether it can.
    pub fn commit(&mut self, slot: usize, token: TokenId) -> bool {
        self.gap(slot)
            .is_none_or(|(states, at)| states.commit(at, token))
    }

    /// Notes that `slot` is masked again.
    pub fn free(&mut self, slot: usize) {
        if let Some((states, at)) = self.gap(slot) {
            states.free(at);
        }
    }
}
