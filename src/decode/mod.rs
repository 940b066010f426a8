//! The decode policy: what to commit at a denoise step, from a few numbers a slot.
//!
//! Pure functions without a model or a tensor. A [`DecodePlan`] is made of orthogonal choices (blocks,
//! score, budget, revision, sampling) and of how keys and values are cached; a [`preset`](preset::by_name) is a plan under the name of a published
//! sampler. A [`Decoder`] follows a plan over one canvas.

mod blocks;
mod budget;
mod cache;
mod decoder;
mod plan;
pub mod preset;
mod revision;
mod score;
mod temperature;

pub use blocks::{BlockEntry, BlockOrigin};
pub use budget::{Budget, Rounding};
pub use cache::{Cache, CachePolicy};
pub use decoder::{Change, Decoder, Resizable};
pub use plan::{
    DecodePlan, EarlyStop, Finish, MAX_GUIDANCE_SCALE, MAX_STEPS, PlanError, Sampling, StopTokens,
};
pub use revision::{Remasking, ResizeTokens, Resizing, Revision};
pub use score::{Candidate, Score};
pub use temperature::TemperatureSchedule;
