//! Gaps whose length the network changes: DreamOn's expand and delete tokens (arXiv:2602.01326; `_sample` of its
//! `generation_utils.py`, and `eval/generator.py`).
//!
//! The official code has one gap. Here what it says of its gap holds for each: what is deleted to the right of a
//! deletion ends with the gap, and the length is limited gap by gap.

use super::{BlockSchedule, Decoder};
use crate::canvas::{Canvas, Splice, TokenId};
use crate::decode::{Candidate, DecodePlan, PlanError, ResizeTokens, Resizing, Revision};

/// What a decoder has to know of a model that can change the length of gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resizable {
    /// The tokens by which it does.
    pub tokens: ResizeTokens,
    /// The most slots of a canvas.
    pub max_canvas: usize,
}

/// The same, and how many slots have been expanded.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResizeState {
    model: Resizable,
    /// What the plan allows, if it resizes.
    plan: Option<Resizing>,
    expanded: usize,
}

impl ResizeState {
    /// Slots that may still be expanded.
    fn expansions_left(&self) -> usize {
        let most = self.plan.map_or(0, |plan| plan.expansions);
        most.saturating_sub(self.expanded)
    }

    /// Steps beyond one a masked slot: an expansion is one, and leaves one more masked slot.
    pub fn step_allowance(&self) -> usize {
        2 * self.expansions_left()
    }

    /// How many slots of a gap may be expanded that has come to `length` slots on a canvas of `all` slots.
    fn room(&self, canvas: &Canvas, gap: usize, length: usize, all: usize) -> usize {
        let max_gap = self.plan.map_or(0, |plan| plan.max_gap);
        let most = canvas.gap_limits(gap).map_or(max_gap, |(_, most)| most);
        most.saturating_sub(length)
            .min(self.model.max_canvas.saturating_sub(all))
            .min(self.expansions_left())
    }

    /// How many slots of the `gap`th gap may be removed.
    fn spare(&self, canvas: &Canvas, gap: usize) -> usize {
        let least = canvas.gap_limits(gap).map_or(0, |(least, _)| least);
        canvas.gaps()[gap].len().saturating_sub(least)
    }
}

impl Decoder {
    /// As [`Decoder::new`], for a model that can change the length of gaps. A plan that does not resize leaves
    /// them as they are.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn resizable(
        plan: &DecodePlan,
        canvas: &Canvas,
        stop_tokens: &[TokenId],
        model: Resizable,
    ) -> Result<Self, PlanError> {
        let mut decoder = Self::begin(plan, canvas, stop_tokens)?;
        decoder.resize = Some(ResizeState {
            model,
            plan: match plan.revision {
                Revision::Resize(resizing) => Some(resizing),
                _ => None,
            },
            expanded: 0,
        });
        decoder.skip_idle_steps(canvas);
        Ok(decoder)
    }

    /// The tokens that `slot` may not become in the next step: the expand token where its gap may not grow, and
    /// the delete token where it may not shrink.
    pub fn barred(&self, canvas: &Canvas, slot: usize) -> Vec<TokenId> {
        let (Some(resize), Some(gap)) = (&self.resize, canvas.gap_of(slot)) else {
            return Vec::new();
        };
        let ResizeTokens { expand, delete } = resize.model.tokens;
        let grows = resize.room(canvas, gap, canvas.gaps()[gap].len(), canvas.len()) > 0;
        // Where gaps keep their length, a delete token is one without text, like a stop token.
        let shrinks = resize.plan.is_none() || resize.spare(canvas, gap) > 0;
        let barred = [(expand, !grows), (delete, !shrinks)];
        barred
            .into_iter()
            .filter_map(|(token, is_barred)| is_barred.then_some(token))
            .collect()
    }

    /// Takes those out of `chosen`, in any order, that change the length of their gap. What a step may not
    /// remove, or has no room to expand, stays masked.
    pub(super) fn splices(&mut self, canvas: &Canvas, chosen: &mut Vec<Candidate>) -> Vec<Splice> {
        let Some(resize) = &mut self.resize else {
            return Vec::new();
        };
        let (Some(plan), tokens) = (resize.plan, resize.model.tokens) else {
            return Vec::new();
        };
        let mut splices = Vec::new();
        let mut all = canvas.len();
        for (gap, slots) in canvas.gaps().iter().enumerate() {
            let of_token = |token: TokenId| {
                let of_gap = chosen.iter().filter(|c| slots.contains(&c.slot));
                let mut slots: Vec<usize> = of_gap
                    .filter(|c| c.token == token)
                    .map(|c| c.slot)
                    .collect();
                slots.sort_unstable();
                slots
            };
            let mut removed = of_token(tokens.delete);
            if let (true, Some(first)) = (plan.delete_right, removed.first()) {
                removed = canvas.masked_in(*first..slots.end).collect();
            }
            let kept = removed.len() - removed.len().min(resize.spare(canvas, gap));
            let expanded = of_token(tokens.expand);
            chosen.retain(|c| !removed.contains(&c.slot) && !expanded.contains(&c.slot));
            removed.drain(..kept);
            all -= removed.len();
            let room = resize.room(canvas, gap, slots.len() - removed.len(), all);
            let expanded = expanded.into_iter().filter(|slot| !removed.contains(slot));
            let before = splices.len();
            splices.extend(expanded.take(room).map(|slot| Splice { slot, count: 2 }));
            let added = splices.len() - before;
            resize.expanded += added;
            all += added;
            splices.extend(removed.into_iter().map(|slot| Splice { slot, count: 0 }));
        }
        splices.sort_unstable_by_key(|splice| splice.slot);
        splices
    }

    /// Changes the canvas's length, and with it the current block's, which is the whole canvas.
    pub(super) fn splice(
        &mut self,
        canvas: &mut Canvas,
        mut block: BlockSchedule,
        splices: &[Splice],
    ) -> BlockSchedule {
        if !splices.is_empty() {
            canvas.splice(splices);
            block.slots = Splice::resized(splices, &block.slots);
            self.blocks[self.block].slots = block.slots.clone();
        }
        block
    }
}
