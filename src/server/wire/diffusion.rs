//! `diffusion`: how the canvas is to be denoised, in every request alike.

use serde::Deserialize;
use utoipa::ToSchema;

use super::number::{Real, Whole};
use super::object::Object;
use crate::decode::{
    BlockEntry, BlockOrigin, Budget, CachePolicy, EarlyStop, Finish, Revision, Score, StopTokens,
    TemperatureSchedule,
};
use crate::sampling::{Basis, FilterOrder};

/// The `diffusion` object: a preset, and what differs from it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffusionOptions {
    /// A preset's name; the model's default plan if absent.
    pub preset: Option<String>,
    /// Denoise steps.
    pub steps: Option<Whole>,
    /// Slots a block.
    pub block_length: Option<Whole>,
    /// Where the first block begins.
    pub block_origin: Option<BlockOrigin>,
    /// What the first step of a block commits.
    pub block_entry: Option<BlockEntry>,
    /// Denoise steps a block, in the place of `steps`.
    pub steps_per_block: Option<Whole>,
    /// How candidates are ranked.
    pub score: Option<Score>,
    /// Noise on the ranking; 0 is none.
    pub score_temperature: Option<Real>,
    /// Token ids; candidates with these tokens rank below all others.
    pub commit_last: Option<Vec<Whole>>,
    /// How many are committed a step.
    pub budget: Option<Budget>,
    /// How a noise schedule ends.
    pub finish: Option<Finish>,
    /// The fewest that a step commits.
    pub at_least: Option<Whole>,
    /// When a stop token ends the denoising.
    pub early_stop: Option<EarlyStop>,
    /// Where a stop token may be drawn.
    pub stop_tokens: Option<StopTokens>,
    /// Which of `top_k` and `top_p` comes first.
    pub filter_order: Option<FilterOrder>,
    /// Which distribution scores and probabilities are of.
    pub basis: Option<Basis>,
    /// What may happen to a committed slot.
    pub revision: Option<Revision>,
    /// Classifier-free guidance; 0 is off.
    pub guidance_scale: Option<Real>,
    /// What guidance leads away from: the text that stands in the place of the prompt there, in the place of masks.
    /// In a chat it stands in the place of the last message of the user.
    pub negative_prompt: Option<String>,
    /// How the temperature changes over the steps.
    pub temperature_schedule: Option<TemperatureSchedule>,
    /// How keys and values are cached.
    pub cache: Option<Object<CacheOptions>>,
    /// Fills gaps by what precedes the end of their block alone, where the model sees no more.
    pub left_context: Option<bool>,
    /// Denoises canvases longer than the model's context, for models that are sampled so: each block sees as many
    /// slots up to its end as the context has.
    pub sliding_window: Option<bool>,
}

/// The `cache` object of `diffusion`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheOptions {
    /// The scheme.
    pub policy: Option<CachePolicy>,
    /// Steps after which an approximate scheme recomputes everything.
    pub refresh: Option<Whole>,
}
