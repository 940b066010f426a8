//! The reduction over the vocabulary: from logits `[rows, vocab]` to a few numbers a row.
//!
//! Noise is counter-based ([`philox`]), keyed by (request seed, step, slot), so that a row's draw does
//! not depend on what else is in the batch.

mod bias;
pub mod corrupt;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod exact;
mod filter;
mod guidance;
pub mod layout;
mod logprobs;
pub mod philox;
pub mod posterior;
pub mod score;
mod token_set;

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::TokenId;
use filter::mass;

pub use bias::LogitBias;
#[cfg(feature = "cuda")]
pub use cuda::Reduction;
pub use guidance::Guidance;
pub use logprobs::{Logprobs, MAX_TOP_LOGPROBS, RowLogprobs};
pub use token_set::TokenSet;

/// Which distribution a candidate's probability, margin and entropy are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The model's own, without temperature or filters (LLaDA); where logits are biased, with the bias, and
    /// where only some tokens are allowed, among those.
    #[default]
    Model,
    /// The one that the token is drawn from, after temperature, top-k and top-p (Dream, SDAR). At
    /// temperature 0 the filters apply to the model's own.
    Sampling,
}

/// Which of two filters applies to the whole distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FilterOrder {
    /// Top-k, then top-p of the k tokens' renormalised distribution (Hugging Face, LLaDA2, SDAR).
    #[default]
    TopKFirst,
    /// Top-p of the whole distribution, then the k best of what it keeps (Dream).
    TopPFirst,
}

/// How to draw from one row of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct RowParams {
    /// Added to the logits before all else. Log-probabilities are those without it.
    pub bias: LogitBias,
    /// The only tokens that may be drawn; `None` for all. Log-probabilities are of all.
    pub allowed: Option<Arc<TokenSet>>,
    /// 0 takes the most probable token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keeps the k most probable tokens, at least 1.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens with at least this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Keeps the tokens whose probability is at least this share of the most probable one's, in [0, 1].
    pub min_p: Option<f32>,
    /// Whether top-p is taken of the whole distribution, and top-k of what it keeps, or the other way
    /// round.
    pub filter_order: FilterOrder,
    /// Which distribution the numbers of the row are of.
    pub basis: Basis,
    /// A token that is never drawn: the mask token, which would leave the slot as it was.
    pub excluded: TokenId,
    /// Whether the excluded token has no probability at all (SUBS), or keeps its share.
    pub excluded_is_impossible: bool,
    /// Key of the noise.
    pub seed: u64,
    /// Denoise steps that the request has taken.
    pub step: usize,
    /// Slot on the request's canvas.
    pub slot: usize,
    /// Which log-probabilities are reported; `None` for none.
    pub logprobs: Option<RowLogprobs>,
}

impl Default for RowParams {
    /// Takes the most probable token of all, without filters: slot 0 of step 0, by seed 0.
    fn default() -> Self {
        Self {
            bias: LogitBias::default(),
            allowed: None,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            filter_order: FilterOrder::default(),
            basis: Basis::default(),
            excluded: TokenId::MAX,
            excluded_is_impossible: false,
            seed: 0,
            step: 0,
            slot: 0,
            logprobs: None,
        }
    }
}

impl RowParams {
    /// The temperature of the distribution that is drawn from: at 0 the filters apply to the model's own.
    fn effective_temperature(&self) -> f32 {
        match self.temperature {
            0.0 => 1.0,
            temperature => temperature,
        }
    }
}

/// The smallest of `logits` that top-k, top-p and min-p of `params` keep at its temperature; −∞ without any of them. What
/// is drawn from need not be a vocabulary.
pub(crate) fn smallest_kept(logits: &[f32], params: &RowParams) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    filter::cutoff(logits, largest, params)
}

/// What the reduction finds for one row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSample {
    /// The drawn token.
    pub token: TokenId,
    /// The probability of `token`, by the basis asked for.
    pub probability: f32,
    /// The most probable token, the excluded one among all.
    pub most_probable: TokenId,
    /// The probability of the most probable token.
    pub best: f32,
    /// The probability of the second most probable token; 0 if there is none.
    pub second: f32,
    /// Entropy of the distribution, in nats.
    pub entropy: f32,
    /// A uniform draw in [0, 1) of this seed, step and slot, independent of `token`.
    pub uniform: f32,
    /// The log-probabilities asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why a row could not be reduced.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// The network produced something that is no distribution.
    #[error(
        "the model's logits for slot {slot} after {step} steps hold {what}; `unmask inspect --check` looks for \
         damaged weights, and --dtype bf16 or f32 has a wider range than f16"
    )]
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

/// Reduces `logits` `[rows, vocab]`, of any float type, to one sample a row; with `guidance` the logits that it
/// makes of them.
///
/// # Errors
/// A row with NaN, with +∞ or with no token to draw fails by itself; the outer error is a device's.
pub fn reduce(
    logits: &Tensor,
    guidance: Option<&Guidance>,
    params: &[RowParams],
) -> Result<Vec<Result<RowSample, SamplingError>>, candle_core::Error> {
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return cuda::reduce(logits, guidance, params);
    }
    match guidance {
        Some(guidance) => cpu::reduce(&guidance.apply(logits)?, params),
        None => cpu::reduce(logits, params),
    }
}
