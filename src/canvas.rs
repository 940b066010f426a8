//! The canvas: a sequence of token slots, some fixed, the others part of a gap.
//!
//! The text around gaps (the prompt, for one) is never written: slots are written by [`Canvas::gap_slot_mut`], which
//! hands out nothing for a fixed one, and by [`Canvas::settle`], by which a slot of a gap takes a token that stays, and is
//! fixed from then on. Each slot that was written keeps its provenance.
//!
//! A gap begins as masks, or for models of the uniform process as noise.
//!
//! A gap may grow or shrink while it is denoised: [`Canvas::splice`] moves fixed slots, and changes none.
//!
//! A canvas may end in scratch slots: masked slots that belong to no gap. They are denoised with the
//! others and not read, for networks that know whole blocks only.

mod splice;

use std::fmt;
use std::ops::Range;

pub use splice::Splice;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// Why a canvas could not be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanvasError {
    /// There is nothing to denoise.
    #[error("the canvas has no gap: nothing to denoise")]
    NoGap,
    /// A gap of no slots.
    #[error("gap {gap} has no slots: a gap needs at least one")]
    EmptyGap {
        /// Index of the gap, from 0.
        gap: usize,
    },
    /// More slots than any model's context.
    #[error("the canvas has more than {limit} slots")]
    TooLong {
        /// The most slots of a canvas.
        limit: usize,
    },
    /// A fixed slot holds the mask token, which the model would take for a gap.
    #[error("slot {slot} is fixed but holds the mask token {mask}: mark it as a gap instead")]
    FixedMask {
        /// Index of the slot.
        slot: usize,
        /// The mask token.
        mask: TokenId,
    },
}

/// The most slots of a canvas: above every model's context, and a bound on what a canvas takes.
const MAX_SLOTS: usize = 1 << 24;

/// What a slot of a gap holds before a token is committed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blank {
    /// The mask token: for models of the absorbing process.
    Mask(TokenId),
    /// A random token, which [`Canvas::noised`] draws: for models of the uniform process.
    Noise {
        /// Size of the vocabulary.
        vocab: usize,
    },
}

impl Blank {
    /// The mask token, if there is one.
    pub fn mask(self) -> Option<TokenId> {
        match self {
            Self::Mask(mask) => Some(mask),
            Self::Noise { .. } => None,
        }
    }
}

impl fmt::Display for Blank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mask(mask) => write!(f, "the mask token {mask}"),
            Self::Noise { vocab } => write!(f, "random ones of {vocab} tokens"),
        }
    }
}

impl From<TokenId> for Blank {
    fn from(mask: TokenId) -> Self {
        Self::Mask(mask)
    }
}

/// What was known of a token when it was committed to its slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Commit {
    /// The token.
    pub token: TokenId,
    /// The probability of the token at that step, in [0, 1]: by the plan's basis, with the bias and among the
    /// allowed tokens.
    pub probability: f32,
    /// The score by which the decode policy chose it; higher was better.
    pub score: f32,
    /// The denoise step, from 1.
    pub step: usize,
}

/// A slot of a gap, or a scratch slot: masked, or committed. "Masked" is a slot without a committed token,
/// also where it holds noise instead of the mask token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GapSlot {
    commit: Option<Commit>,
    /// What it holds while it is masked.
    blank: TokenId,
    remasked: usize,
    edited: usize,
}

impl GapSlot {
    /// The slot's provenance; `None` while it is masked.
    pub fn provenance(&self) -> Option<&Commit> {
        self.commit.as_ref()
    }

    /// How often the slot was masked again.
    pub fn remasked(&self) -> usize {
        self.remasked
    }

    /// How often a committed token was replaced by another.
    pub fn edited(&self) -> usize {
        self.edited
    }

    /// Writes a token to the slot.
    pub fn commit(&mut self, commit: Commit) {
        self.edited += usize::from(self.commit.is_some());
        self.commit = Some(commit);
    }

    /// Masks the slot again.
    pub fn remask(&mut self) {
        self.remasked += usize::from(self.commit.take().is_some());
    }

    /// Masks the slot again with `noise` in the place of the mask token.
    pub fn renoise(&mut self, noise: TokenId) {
        self.remask();
        self.blank = noise;
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Slot {
    Fixed(TokenId),
    Gap(GapSlot),
    /// Of a gap, and fixed as it is.
    Settled(GapSlot),
}

/// A sequence of token slots with at least one gap.
#[derive(Debug, Clone, PartialEq)]
pub struct Canvas {
    blank: Blank,
    slots: Vec<Slot>,
    gaps: Vec<Range<usize>>,
    /// For each gap the fewest and the most slots that it may come to have, if it has limits of its own.
    limits: Vec<Option<(usize, usize)>>,
    /// Scratch slots, at the end.
    scratch: usize,
}

impl Canvas {
    /// Starts laying out a canvas for a model whose gaps begin as `blank`: its mask token, or noise.
    pub fn builder(blank: impl Into<Blank>) -> CanvasBuilder {
        CanvasBuilder {
            blank: blank.into(),
            slots: Vec::new(),
            gaps: Vec::new(),
            limits: Vec::new(),
        }
    }

    /// Lays out a canvas from token ids in which each run of mask tokens is a gap.
    ///
    /// # Errors
    /// [`CanvasError::NoGap`] if no id is the mask token.
    pub fn from_ids(ids: &[TokenId], mask: TokenId) -> Result<Self, CanvasError> {
        let mut builder = Self::builder(mask);
        for run in ids.chunk_by(|a, b| (*a == mask) == (*b == mask)) {
            builder = if run[0] == mask {
                builder.gap(run.len())
            } else {
                builder.fixed(run)
            };
        }
        builder.build()
    }

    /// The same canvas with scratch slots appended until it has `length` slots, if it has fewer.
    pub fn with_scratch(mut self, length: usize) -> Self {
        let added = length.saturating_sub(self.len());
        self.slots
            .extend(std::iter::repeat_n(blank_slot(self.blank), added));
        self.scratch += added;
        self
    }

    /// The same canvas with noise, `draw` of the slot, in every masked slot. Without noise, where blanks are
    /// the mask token, it is left as it is.
    pub fn noised(mut self, draw: impl Fn(usize) -> TokenId) -> Self {
        if self.blank.mask().is_none() {
            for (index, slot) in self.slots.iter_mut().enumerate() {
                if let Slot::Gap(slot) = slot
                    && slot.commit.is_none()
                {
                    slot.blank = draw(index);
                }
            }
        }
        self
    }

    /// Number of slots, scratch slots included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The scratch slots; empty at the canvas's end if there is none.
    pub fn scratch(&self) -> Range<usize> {
        self.len() - self.scratch..self.len()
    }

    /// Whether there are no slots; never true of a built canvas.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What its gaps began as.
    pub fn blank(&self) -> Blank {
        self.blank
    }

    /// The mask token; none where gaps begin as noise.
    pub fn mask(&self) -> Option<TokenId> {
        self.blank.mask()
    }

    /// The gaps in order, each as its range of slots.
    pub fn gaps(&self) -> &[Range<usize>] {
        &self.gaps
    }

    /// The fewest and the most slots that the `gap`th gap may come to have, where it is resized; `None` if it has
    /// no limits of its own.
    pub fn gap_limits(&self, gap: usize) -> Option<(usize, usize)> {
        self.limits.get(gap).copied().flatten()
    }

    /// The token in `slot`; the mask token, or noise, if it is masked. Before [`Canvas::noised`] noise is
    /// token 0.
    ///
    /// # Panics
    /// If `slot` is not on the canvas.
    pub fn token(&self, slot: usize) -> TokenId {
        match &self.slots[slot] {
            Slot::Fixed(token) => *token,
            Slot::Gap(slot) | Slot::Settled(slot) => {
                slot.commit.map_or(slot.blank, |commit| commit.token)
            }
        }
    }

    /// All tokens in slot order, as [`Canvas::token`] gives them.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        (0..self.len()).map(|slot| self.token(slot))
    }

    /// Whether `slot` is part of a gap, or scratch, and not yet committed.
    pub fn is_masked(&self, slot: usize) -> bool {
        matches!(self.slots.get(slot), Some(Slot::Gap(gap_slot)) if gap_slot.commit.is_none())
    }

    /// Whether `slot` is fixed: text around the gaps, or [settled](Canvas::settle).
    pub fn is_fixed(&self, slot: usize) -> bool {
        matches!(
            self.slots.get(slot),
            Some(Slot::Fixed(_) | Slot::Settled(_))
        )
    }

    /// The masked slots within `range`, in order.
    pub fn masked_in(&self, range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        range.filter(|slot| self.is_masked(*slot))
    }

    /// Number of masked slots.
    pub fn masked(&self) -> usize {
        self.masked_in(0..self.len()).count()
    }

    /// The share of the slots to be filled that is still masked, in (0, 1], whatever fixed text is around them: at least
    /// that of one slot, as no mask at all is no noise. Settled slots are such text too, and scratch slots are to be
    /// filled.
    pub fn masked_share(&self) -> f64 {
        let open = (0..self.len()).filter(|slot| !self.is_fixed(*slot));
        let open = open.count().max(1);
        self.masked().max(1) as f64 / open as f64
    }

    /// Number of slots of gaps to which a token is committed; scratch slots do not count.
    pub fn committed(&self) -> usize {
        let slots = self.gaps.iter().cloned().flatten();
        slots
            .filter(|slot| self.provenance(*slot).is_some())
            .count()
    }

    /// The slot, if it is part of a gap, settled ones among them, or scratch.
    pub fn gap_slot(&self, slot: usize) -> Option<&GapSlot> {
        match self.slots.get(slot)? {
            Slot::Fixed(_) => None,
            Slot::Gap(gap_slot) | Slot::Settled(gap_slot) => Some(gap_slot),
        }
    }

    /// The provenance of a committed or settled slot; `None` for a masked one and the text around the gaps.
    pub fn provenance(&self, slot: usize) -> Option<&Commit> {
        self.gap_slot(slot)?.provenance()
    }

    /// The slot for writing, if it is not fixed.
    pub fn gap_slot_mut(&mut self, slot: usize) -> Option<&mut GapSlot> {
        match self.slots.get_mut(slot)? {
            Slot::Fixed(_) | Slot::Settled(_) => None,
            Slot::Gap(gap_slot) => Some(gap_slot),
        }
    }

    /// Writes a token that stays to a slot of a gap: no plan masks it again, edits it or draws it anew. To the other
    /// slots it is text like that around the gaps. A fixed slot is left as it is.
    pub fn settle(&mut self, slot: usize, commit: Commit) {
        if let Some(slot) = self.slots.get_mut(slot)
            && let Slot::Gap(gap_slot) = slot
        {
            gap_slot.commit(commit);
            *slot = Slot::Settled(std::mem::take(gap_slot));
        }
    }

    /// The gap at the canvas's end: the last one, if nothing but scratch slots comes after it.
    pub fn open_gap(&self) -> Option<usize> {
        let last = self.gaps.len().checked_sub(1)?;
        (self.gaps[last].end == self.scratch().start).then_some(last)
    }
}

/// A slot of a gap that nothing is committed to.
fn blank_slot(blank: Blank) -> Slot {
    Slot::Gap(GapSlot {
        blank: blank.mask().unwrap_or_default(),
        ..GapSlot::default()
    })
}

/// Lays out a [`Canvas`] from left to right.
#[derive(Debug, Clone)]
pub struct CanvasBuilder {
    blank: Blank,
    slots: Vec<Slot>,
    gaps: Vec<Range<usize>>,
    limits: Vec<Option<(usize, usize)>>,
}

impl CanvasBuilder {
    /// Appends fixed slots.
    pub fn fixed(mut self, tokens: &[TokenId]) -> Self {
        self.slots.extend(tokens.iter().copied().map(Slot::Fixed));
        self
    }

    /// Appends a gap of `length` masked slots.
    pub fn gap(mut self, length: usize) -> Self {
        let start = self.slots.len();
        // What goes beyond the limit is refused when the canvas is built.
        let length = length.min((MAX_SLOTS + 1).saturating_sub(start));
        self.slots
            .extend(std::iter::repeat_n(blank_slot(self.blank), length));
        self.gaps.push(start..start + length);
        self.limits.push(None);
        self
    }

    /// Appends a gap of `length` masked slots, which at no time has fewer than `least` or more than `most`
    /// slots where it is resized.
    pub fn gap_between(self, length: usize, least: usize, most: usize) -> Self {
        let mut builder = self.gap(length);
        if let Some(limits) = builder.limits.last_mut() {
            *limits = Some((least, most));
        }
        builder
    }

    /// The finished canvas.
    ///
    /// # Errors
    /// If there is no gap, a gap is empty, a fixed slot holds the mask token, or there are more than 2²⁴
    /// slots.
    pub fn build(self) -> Result<Canvas, CanvasError> {
        if self.slots.len() > MAX_SLOTS {
            return Err(CanvasError::TooLong { limit: MAX_SLOTS });
        }
        if self.gaps.is_empty() {
            return Err(CanvasError::NoGap);
        }
        if let Some(gap) = self.gaps.iter().position(Range::is_empty) {
            return Err(CanvasError::EmptyGap { gap });
        }
        if let Some(mask) = self.blank.mask()
            && let Some(slot) = self
                .slots
                .iter()
                .position(|slot| *slot == Slot::Fixed(mask))
        {
            return Err(CanvasError::FixedMask { slot, mask });
        }
        Ok(Canvas {
            blank: self.blank,
            slots: self.slots,
            gaps: self.gaps,
            limits: self.limits,
            scratch: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: TokenId = 9;

    #[test]
    fn a_fixed_slot_cannot_be_had_for_writing() {
        let mut canvas = Canvas::builder(MASK).fixed(&[1, 2]).gap(1).build().unwrap();
        assert!(canvas.gap_slot_mut(0).is_none());
        assert!(canvas.gap_slot_mut(1).is_none());
        assert!(canvas.gap_slot_mut(2).is_some());
        assert!(canvas.gap_slot_mut(3).is_none());
    }

    #[test]
    fn each_run_of_masks_is_a_gap() {
        let canvas = Canvas::from_ids(&[MASK, 1, MASK, MASK, 2], MASK).unwrap();
        assert_eq!(canvas.gaps(), [0..1, 2..4]);
        assert_eq!(
            canvas.tokens().collect::<Vec<_>>(),
            [MASK, 1, MASK, MASK, 2]
        );
        assert_eq!(canvas.masked(), 3);
    }

    #[test]
    fn a_committed_slot_keeps_its_provenance() {
        let mut canvas = Canvas::from_ids(&[1, MASK], MASK).unwrap();
        let commit = Commit {
            token: 4,
            probability: 0.5,
            score: 0.25,
            step: 3,
        };
        canvas.gap_slot_mut(1).unwrap().commit(commit);
        assert_eq!(canvas.token(1), 4);
        assert_eq!(canvas.provenance(1), Some(&commit));
        assert!(!canvas.is_masked(1));
    }

    #[test]
    fn a_settled_slot_is_fixed_and_keeps_its_provenance() {
        let mut canvas = Canvas::from_ids(&[1, MASK, MASK], MASK).unwrap();
        let commit = Commit {
            token: 4,
            probability: 0.5,
            score: 0.25,
            step: 0,
        };
        canvas.settle(1, commit);
        canvas.settle(1, Commit { token: 5, ..commit });
        canvas.settle(0, commit);
        assert_eq!(canvas.tokens().collect::<Vec<_>>(), [1, 4, MASK]);
        assert!(canvas.is_fixed(1) && canvas.gap_slot_mut(1).is_none());
        assert_eq!(canvas.provenance(1), Some(&commit));
        assert_eq!((canvas.masked(), &canvas.gaps()[0]), (1, &(1..3)));
        canvas.splice(&[Splice { slot: 1, count: 0 }]);
        assert_eq!(canvas.len(), 3);
    }

    #[test]
    fn a_gap_is_open_where_nothing_but_scratch_comes_after_it() {
        let open = |ids: &[TokenId]| Canvas::from_ids(ids, MASK).unwrap().open_gap();
        assert_eq!(open(&[MASK, 1, MASK]), Some(1));
        assert_eq!(open(&[MASK, 1]), None);
        let canvas = Canvas::from_ids(&[1, MASK], MASK).unwrap().with_scratch(5);
        assert_eq!(canvas.open_gap(), Some(0));
    }

    #[test]
    fn gaps_may_begin_as_noise_and_hold_noise_again() {
        let blank = Blank::Noise { vocab: 50 };
        let canvas = Canvas::builder(blank).fixed(&[9]).gap(2).build().unwrap();
        assert_eq!((canvas.mask(), canvas.masked()), (None, 2));
        let mut canvas = canvas.noised(|slot| 10 + slot as TokenId);
        assert_eq!(canvas.tokens().collect::<Vec<_>>(), [9, 11, 12]);
        let commit = Commit {
            token: 4,
            probability: 0.5,
            score: 0.25,
            step: 3,
        };
        canvas.gap_slot_mut(1).unwrap().commit(commit);
        assert_eq!((canvas.token(1), canvas.masked()), (4, 1));
        canvas.gap_slot_mut(1).unwrap().renoise(7);
        assert_eq!((canvas.token(1), canvas.masked()), (7, 2));
        assert_eq!(canvas.gap_slot(1).unwrap().remasked(), 1);
        let masks = Canvas::from_ids(&[1, MASK], MASK).unwrap();
        assert_eq!(masks.clone().noised(|_| 3), masks);
    }

    #[test]
    fn a_slot_counts_how_often_it_was_revised() {
        let mut slot = GapSlot::default();
        let commit = |token| Commit {
            token,
            probability: 0.5,
            score: 0.5,
            step: 1,
        };
        slot.remask();
        slot.commit(commit(1));
        assert_eq!((slot.remasked(), slot.edited()), (0, 0));
        slot.commit(commit(2));
        slot.remask();
        slot.commit(commit(3));
        assert_eq!((slot.remasked(), slot.edited()), (1, 1));
    }

    #[test]
    fn scratch_slots_are_masked_and_part_of_no_gap() {
        let canvas = Canvas::builder(MASK).gap(2).fixed(&[1]).build().unwrap();
        assert_eq!(canvas.scratch(), 3..3);
        assert_eq!(canvas.clone().with_scratch(2), canvas);
        let canvas = canvas.with_scratch(5);
        assert_eq!((canvas.len(), canvas.masked()), (5, 4));
        assert_eq!(canvas.scratch(), 3..5);
        assert_eq!((canvas.gaps().len(), &canvas.gaps()[0]), (1, &(0..2)));
        assert!(canvas.gap_slot(4).is_some());
    }

    #[test]
    fn layouts_that_cannot_be_denoised_are_refused() {
        assert_eq!(
            Canvas::from_ids(&[1, 2], MASK).unwrap_err(),
            CanvasError::NoGap
        );
        assert_eq!(
            Canvas::builder(MASK)
                .fixed(&[1])
                .gap(0)
                .build()
                .unwrap_err(),
            CanvasError::EmptyGap { gap: 0 }
        );
        assert_eq!(
            Canvas::builder(MASK)
                .fixed(&[1, MASK])
                .gap(1)
                .build()
                .unwrap_err(),
            CanvasError::FixedMask {
                slot: 1,
                mask: MASK
            }
        );
    }
}
