//! The canvas that guidance leads away from.

use std::ops::Range;

use crate::canvas::{Canvas, TokenId};

/// What differs from the canvas that is denoised.
pub(super) enum Twin<'a> {
    /// Its fixed slots are masked.
    Masked(TokenId),
    /// The slots before its first gap are these, as many as there are.
    Prompted(&'a [TokenId]),
}

impl Twin<'_> {
    /// The twin's slot of a slot of `canvas`, of one before the first gap the one as far before it.
    pub fn slot(&self, canvas: &Canvas, slot: usize) -> usize {
        match self {
            Self::Masked(_) => slot,
            Self::Prompted(prompt) => (slot + prompt.len()).saturating_sub(prompt_slots(canvas)),
        }
    }

    /// The twin's slots of some slots of `canvas`; where it has another prompt they have to begin with the first.
    pub fn slots(&self, canvas: &Canvas, slots: &Range<usize>) -> Range<usize> {
        match self {
            Self::Masked(_) => slots.clone(),
            Self::Prompted(_) => slots.start..self.slot(canvas, slots.end),
        }
    }

    /// The tokens of the twin's slots of some slots of `canvas`, as of [`Self::slots`].
    pub fn tokens(&self, canvas: &Canvas, slots: &Range<usize>) -> Vec<TokenId> {
        match self {
            Self::Masked(mask) => {
                let token = |slot| match canvas.is_fixed(slot) {
                    true => *mask,
                    false => canvas.token(slot),
                };
                slots.clone().map(token).collect()
            }
            Self::Prompted(prompt) => {
                let others = (prompt_slots(canvas)..slots.end).map(|slot| canvas.token(slot));
                prompt.iter().copied().chain(others).collect()
            }
        }
    }
}

/// Slots before the first gap.
pub(super) fn prompt_slots(canvas: &Canvas) -> usize {
    canvas.gaps().first().map_or(canvas.len(), |gap| gap.start)
}
