//! Frames of a canvas that is being denoised.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::TokenId;

/// `stream_options.diffusion`: what a stream brings beside what is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamedDiffusion {
    /// The state of every gap after the steps taken so far.
    Frames,
}

/// The `object` of a frame.
pub const FRAME_OBJECT: &str = "diffusion.frame";

/// The state of a canvas. A client that reads slowly gets fewer of them, never an old one.
#[derive(Debug, Serialize, ToSchema)]
pub struct CanvasFrame<'a> {
    /// Identifier of the answer.
    pub id: &'a str,
    /// `diffusion.frame`.
    pub object: &'static str,
    /// Which sequence.
    pub index: usize,
    /// Denoise steps taken.
    pub step: usize,
    /// Network evaluations taken.
    pub nfe: usize,
    /// Slots that are masked.
    pub masked: usize,
    /// The text with `▒` for every masked slot: of an infilling the whole text, of a completion its gap.
    pub text: String,
    /// The gaps in order.
    pub gaps: Vec<GapFrame>,
}

/// The state of a gap.
#[derive(Debug, Serialize, ToSchema)]
pub struct GapFrame {
    /// Its text with `▒` for every masked slot.
    pub text: String,
    /// Its slots.
    pub slots: Vec<SlotFrame>,
}

/// The state of a slot.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SlotFrame {
    /// Nothing is committed to it.
    Masked,
    /// A token is.
    Committed {
        /// The token.
        token: TokenId,
        /// Its text by itself; U+FFFD stands for part of a character.
        text: String,
        /// Its probability then, in [0, 1], as in `provenance` of an infilling.
        probability: f32,
        /// The denoise step that committed it, from 1; 0 for a choice.
        step: usize,
    },
}
