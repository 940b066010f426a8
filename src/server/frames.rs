//! The canvas of a sequence, kept while it is denoised for streams that show it.

use std::sync::Arc;

use super::infill_text::GapVocabulary;
use super::wire::{CanvasFrame, FRAME_OBJECT, GapFrame, SlotFrame};
use crate::canvas::{Canvas, TokenId};
use crate::engine::{Statistics, StepReport};
use crate::text::Layout;

/// Stands for a masked slot in a text, unless it holds noise, which is shown as it is.
const MASKED: &str = "▒";

/// A canvas as its step reports leave it.
pub(super) struct CanvasView {
    canvas: Canvas,
    layout: Layout,
    vocabulary: Arc<GapVocabulary>,
    statistics: Statistics,
}

/// The state of a canvas at a time.
pub(super) struct CanvasSnapshot {
    step: usize,
    nfe: usize,
    masked: usize,
    text: String,
    gaps: Vec<GapFrame>,
}

impl CanvasSnapshot {
    /// As a frame of sequence `index` of the answer `id`.
    pub fn frame(self, id: &str, index: usize) -> CanvasFrame<'_> {
        CanvasFrame {
            id,
            object: FRAME_OBJECT,
            index,
            step: self.step,
            nfe: self.nfe,
            masked: self.masked,
            text: self.text,
            gaps: self.gaps,
        }
    }
}

impl CanvasView {
    /// `canvas` before any step, as `layout` reads it.
    pub fn new(canvas: Canvas, layout: Layout, vocabulary: Arc<GapVocabulary>) -> Self {
        Self {
            canvas,
            layout,
            vocabulary,
            statistics: Statistics::default(),
        }
    }

    /// Takes a step in.
    pub fn step(&mut self, report: &StepReport) {
        for (slot, commit) in &report.committed {
            if let Some(slot) = self.canvas.gap_slot_mut(*slot) {
                slot.commit(*commit);
            }
        }
        for slot in &report.remasked {
            if let Some(slot) = self.canvas.gap_slot_mut(*slot) {
                slot.remask();
            }
        }
        for (slot, noise) in &report.noise {
            if let Some(slot) = self.canvas.gap_slot_mut(*slot)
                && slot.provenance().is_none()
            {
                slot.renoise(*noise);
            }
        }
        self.canvas.splice(&report.spliced);
        self.statistics = report.statistics;
    }

    /// Its state now.
    pub fn snapshot(&self) -> CanvasSnapshot {
        let reading = self
            .layout
            .read_with(&self.canvas, |_, tokens| self.text(tokens));
        let gaps = self.canvas.gaps().iter().map(|gap| {
            let tokens: Vec<TokenId> = gap.clone().map(|slot| self.canvas.token(slot)).collect();
            GapFrame {
                text: self.text(&tokens),
                slots: gap.clone().map(|slot| self.slot(slot)).collect(),
            }
        });
        let scratch = self.canvas.scratch();
        CanvasSnapshot {
            step: self.statistics.steps,
            nfe: self.statistics.nfe,
            masked: self.canvas.masked_in(0..scratch.start).count(),
            text: reading.text,
            gaps: gaps.collect(),
        }
    }

    fn slot(&self, slot: usize) -> SlotFrame {
        match self.canvas.provenance(slot) {
            None => SlotFrame::Masked,
            Some(commit) => SlotFrame::Committed {
                token: commit.token,
                text: self.vocabulary.text(commit.token),
                probability: commit.probability,
                step: commit.step,
            },
        }
    }

    fn text(&self, tokens: &[TokenId]) -> String {
        let mask = self.canvas.mask();
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| match Some(*token) == mask {
                true => MASKED.as_bytes(),
                false => self.vocabulary.bytes(*token),
            })
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
