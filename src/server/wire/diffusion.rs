//! `diffusion`: how the canvas is to be denoised, in every request alike.

use serde::Deserialize;

use super::number::{Real, Whole};
use crate::decode::{BlockOrigin, Budget, Score};

/// The `diffusion` object: a preset, and what differs from it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionOptions {
    /// A preset's name; the model's default plan if absent.
    pub preset: Option<String>,
    /// Denoise steps.
    pub steps: Option<Whole>,
    /// Slots a block.
    pub block_length: Option<Whole>,
    /// Where the first block begins.
    pub block_origin: Option<BlockOrigin>,
    /// How candidates are ranked.
    pub score: Option<Score>,
    /// How many are committed a step.
    pub budget: Option<Budget>,
    /// Classifier-free guidance; 0 is off.
    pub guidance_scale: Option<Real>,
}
