//! One request's state in the engine.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;

use super::cache::{CacheScheme, Place, SequenceCache};
use super::reports::ReportSender;
use super::row_params::SequenceRows;
use super::twin::Twin;
use super::{Event, Statistics};
use crate::canvas::Canvas;
use crate::constraint::CanvasConstraint;
use crate::decode::{Cache, Decoder};
use crate::sampling::TokenSet;

/// A canvas to be denoised.
pub(super) struct Sequence {
    pub canvas: Canvas,
    pub decoder: Decoder,
    /// What its gaps may be filled with.
    pub constraint: Option<CanvasConstraint>,
    /// The slots that the next step scores, in slot order, each with the tokens that its constraint allows; none
    /// until they are chosen. A step that is tried again has the same.
    pub scored: Option<Vec<ScoredSlot>>,
    /// What the network is told of its prediction for the block in the step before, `[block, hidden]`; none at a
    /// block's first step, and of networks that are not told.
    pub self_conditioning: Option<Tensor>,
    pub row_params: SequenceRows,
    pub cache: (CacheScheme, Cache),
    /// Slots that a block sees, its own among them, where its attention alone does not say.
    pub window: Option<usize>,
    pub reports: ReportSender,
    pub submitted: Instant,
    pub started: Option<Instant>,
    pub nfe: usize,
}

/// A slot, and the tokens that may be committed to it; none for all.
pub(super) type ScoredSlot = (usize, Option<Arc<TokenSet>>);

/// A sequence that takes steps, and what the scheduler and the cache know of it.
pub(super) struct Running {
    pub sequence: Sequence,
    pub cached: SequenceCache,
    /// Rows that it was given, in the scheduler's account.
    pub work: f64,
    /// Its place in the order of arrival.
    pub arrival: u64,
}

impl Sequence {
    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.reports.is_closed()
    }

    /// Whether a second segment, that of its twin, goes into the batch.
    pub fn is_guided(&self) -> bool {
        self.row_params.guidance_scale() > 0.0
    }

    /// The canvas that guidance leads away from; none without guidance.
    pub fn twin(&self) -> Option<Twin<'_>> {
        if !self.is_guided() {
            return None;
        }
        match self.row_params.negative_prompt() {
            Some(prompt) => Some(Twin::Prompted(prompt)),
            // Plans of canvases without a mask token have no guidance.
            None => self.canvas.mask().map(Twin::Masked),
        }
    }

    /// Chooses the slots that the next step scores: all that the decoder asks for, but for those whose allowed
    /// tokens would take more than a step's share of work to find. Masked slots come first, so that there is one
    /// among them if any is asked for.
    pub fn choose_scored(&mut self) -> &[ScoredSlot] {
        let Self {
            canvas,
            decoder,
            constraint,
            scored,
            ..
        } = self;
        scored.get_or_insert_with(|| {
            let mut slots = decoder.scored_slots(canvas);
            let Some(constraint) = constraint else {
                return slots.into_iter().map(|slot| (slot, None)).collect();
            };
            constraint.begin_step();
            slots.sort_by_key(|slot| !canvas.is_masked(*slot));
            let mut chosen = Vec::with_capacity(slots.len());
            for slot in slots {
                if !chosen.is_empty() && constraint.is_spent() {
                    break;
                }
                chosen.push((slot, constraint.allowed(slot)));
            }
            chosen.sort_by_key(|(slot, _)| *slot);
            chosen
        })
    }

    /// Where the sequence is.
    pub fn place(&self, logit_shift: usize, chunk: usize) -> Place {
        let block = self.decoder.block();
        let scored = self.decoder.scored_slots(&self.canvas);
        Place {
            length: self.canvas.len(),
            first_row: scored
                .first()
                .map_or(block.start, |slot| slot.saturating_sub(logit_shift)),
            block,
            window: self.window,
            chunk,
        }
    }

    /// What the sequence took so far.
    pub fn statistics(&self) -> Statistics {
        let started = self.started.unwrap_or(self.submitted);
        Statistics {
            steps: self.decoder.steps(),
            nfe: self.nfe,
            committed: self.canvas.committed(),
            cache: self.cache.0,
            queued: started - self.submitted,
            denoising: started.elapsed(),
        }
    }

    /// Reports the finished canvas.
    pub fn finish(self) {
        let statistics = self.statistics();
        self.reports.end(Event::Finished(self.canvas, statistics));
    }
}
