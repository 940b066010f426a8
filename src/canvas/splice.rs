//! Changing the length of gaps: a slot of a gap becomes two masked slots, or none.

use std::ops::Range;

use super::{Canvas, blank_slot};

/// A slot of a gap that is replaced by so many masked slots: none where it is removed, two where it is
/// expanded (DreamOn, arXiv:2602.01326).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Splice {
    /// The slot, as it was before any splice of the same step.
    pub slot: usize,
    /// The masked slots in its place.
    pub count: usize,
}

impl Splice {
    /// Where `slot` is after `splices`, which are in slot order; `None` if it was replaced.
    pub fn moved(splices: &[Self], slot: usize) -> Option<usize> {
        let before = splices.partition_point(|splice| splice.slot < slot);
        if splices
            .get(before)
            .is_some_and(|splice| splice.slot == slot)
        {
            return None;
        }
        let added: usize = splices[..before].iter().map(|splice| splice.count).sum();
        Some(slot - before + added)
    }

    /// The slots of `range` after `splices`, which are in slot order, with those that took the place of
    /// its own.
    pub fn resized(splices: &[Self], range: &Range<usize>) -> Range<usize> {
        let bound = |slot: usize| {
            let before = splices.partition_point(|splice| splice.slot < slot);
            let added: usize = splices[..before].iter().map(|splice| splice.count).sum();
            slot - before + added
        };
        bound(range.start)..bound(range.end)
    }

    /// Replaces the items of `items`, one a slot of the canvas from slot `start` on, by `blank` ones.
    pub fn apply<T: Clone>(splices: &[Self], items: &mut Vec<T>, start: usize, blank: &T) {
        for splice in splices.iter().rev() {
            if let Some(at) = splice.slot.checked_sub(start)
                && at < items.len()
            {
                items.splice(at..=at, std::iter::repeat_n(blank.clone(), splice.count));
            }
        }
    }
}

impl Canvas {
    /// Replaces slots of gaps by masked ones; `splices` are in slot order. Slots after them move with their
    /// tokens and provenance. Of a slot that is fixed, or scratch, nothing changes: a fixed slot moves, but it
    /// is never written, removed or doubled.
    pub fn splice(&mut self, splices: &[Splice]) {
        let splices: Vec<Splice> = splices
            .iter()
            .copied()
            .filter(|splice| self.gap_of(splice.slot).is_some() && !self.is_fixed(splice.slot))
            .collect();
        Splice::apply(&splices, &mut self.slots, 0, &blank_slot(self.blank));
        for gap in &mut self.gaps {
            *gap = Splice::resized(&splices, gap);
        }
    }

    /// The index of the gap that `slot` is part of.
    pub fn gap_of(&self, slot: usize) -> Option<usize> {
        let gap = self.gaps.partition_point(|gap| gap.end <= slot);
        let holds = |gap: &Range<usize>| gap.contains(&slot);
        self.gaps.get(gap).is_some_and(holds).then_some(gap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::canvas::{Commit, TokenId};

    const MASK: TokenId = 9;

    #[test]
    fn slots_are_removed_and_doubled_and_the_others_move_with_what_they_hold() {
        let mut canvas = Canvas::from_ids(&[1, MASK, MASK, 2, MASK, 3], MASK).unwrap();
        let commit = Commit {
            token: 5,
            probability: 0.5,
            score: 0.5,
            step: 1,
        };
        canvas.gap_slot_mut(2).unwrap().commit(commit);
        let splice = |slot, count| Splice { slot, count };
        let splices = [splice(1, 2), splice(4, 0)];
        canvas.splice(&splices);
        assert_eq!(
            canvas.tokens().collect::<Vec<_>>(),
            [1, MASK, MASK, 5, 2, 3]
        );
        assert_eq!(canvas.gaps(), [1..4, 5..5]);
        assert_eq!(canvas.provenance(3), Some(&commit));
        let moved: Vec<_> = (0..6).map(|slot| Splice::moved(&splices, slot)).collect();
        assert_eq!(moved, [Some(0), None, Some(3), Some(4), None, Some(5)]);
        canvas.splice(&[splice(0, 0), splice(4, 2)]);
        assert_eq!(
            canvas.tokens().collect::<Vec<_>>(),
            [1, MASK, MASK, 5, 2, 3]
        );
    }

    proptest! {
        #[test]
        fn fixed_slots_keep_their_tokens_and_order_and_gaps_stay_where_they_were_between_them(
            ids in proptest::collection::vec(prop_oneof![Just(MASK), 0u32..5], 1..30),
            choices in proptest::collection::vec(0usize..6, 30),
        ) {
            prop_assume!(ids.contains(&MASK));
            let mut canvas = Canvas::from_ids(&ids, MASK).unwrap();
            let before = canvas.clone();
            let splices: Vec<Splice> = (0..ids.len())
                .filter(|slot| choices[*slot] < 3)
                .map(|slot| Splice { slot, count: choices[slot] })
                .collect();
            canvas.splice(&splices);
            let fixed = |canvas: &Canvas| -> Vec<TokenId> {
                let slots = (0..canvas.len()).filter(|slot| canvas.is_fixed(*slot));
                slots.map(|slot| canvas.token(slot)).collect()
            };
            prop_assert_eq!(fixed(&canvas), fixed(&before));
            let in_gaps: usize = canvas.gaps().iter().map(Range::len).sum();
            prop_assert_eq!(in_gaps + fixed(&canvas).len(), canvas.len());
            for (gap, old) in canvas.gaps().iter().zip(before.gaps()) {
                prop_assert!(gap.clone().all(|slot| !canvas.is_fixed(slot)));
                let left = |canvas: &Canvas, end| (0..end).filter(|slot| canvas.is_fixed(*slot)).count();
                prop_assert_eq!(left(&canvas, gap.start), left(&before, old.start));
            }
        }
    }
}
