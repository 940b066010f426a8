//! The reduction over the vocabulary: from logits `[rows, vocab]` to a few numbers a row.
//!
//! Noise is counter-based ([`philox`]), keyed by (request seed, step, slot), so that a row's draw does
//! not depend on what else is in the batch.

mod cpu;
pub mod philox;

use candle_core::Tensor;

use crate::canvas::TokenId;

/// How to draw from one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowParams {
    /// 0 takes the most probable token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keeps the k most probable tokens, at least 1.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens with at least this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// A token that is never drawn: the mask token, which would leave the slot as it was. It keeps its
    /// share of the probabilities.
    pub excluded: TokenId,
    /// Key of the noise.
    pub seed: u64,
    /// Denoise steps that the request has taken.
    pub step: usize,
    /// Slot on the request's canvas.
    pub slot: usize,
}

/// What the reduction finds for one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSample {
    /// The drawn token.
    pub token: TokenId,
    /// The model's probability for `token`, without temperature or filters.
    pub probability: f32,
    /// The probability of the model's most probable token.
    pub best: f32,
    /// The probability of the second most probable token; 0 if there is none.
    pub second: f32,
    /// Entropy of the model's distribution, in nats.
    pub entropy: f32,
    /// A uniform draw in [0, 1) of this seed, step and slot, independent of `token`.
    pub uniform: f32,
}

/// Why a row could not be reduced.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// The network produced something that is no distribution.
    #[error("the model's logits for slot {slot} after {step} steps hold {what}")]
    NotADistribution {
        /// Slot on the canvas.
        slot: usize,
        /// Denoise steps taken before.
        step: usize,
        /// What is wrong with them.
        what: &'static str,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Reduces `logits` `[rows, vocab]`, of any float type, to one sample a row.
///
/// # Errors
/// A row with NaN, with +∞ or with no token to draw fails by itself; the outer error is a device's.
pub fn reduce(
    logits: &Tensor,
    params: &[RowParams],
) -> Result<Vec<Result<RowSample, SamplingError>>, candle_core::Error> {
    cpu::reduce(logits, params)
}
