//! What the kernel `kernels/categorical.cu` is given and what it finds, laid out as its structs.

use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::{
    Basis, FilterOrder, Logprobs, MAX_TOP_LOGPROBS, RowParams, RowSample, SamplingError, TokenSet,
    guidance,
};
use crate::canvas::TokenId;

/// No token, no row, no range.
pub const NONE: u32 = u32::MAX;

/// Room for the most probable tokens of a row.
pub const MOST_TOP: usize = MAX_TOP_LOGPROBS;

/// The excluded token has no probability at all.
pub const EXCLUDED_IS_IMPOSSIBLE: u32 = 1;
/// Top-p before top-k.
pub const TOP_P_FIRST: u32 = 2;
/// The numbers of the row are by [`Basis::Sampling`].
pub const BASIS_SAMPLING: u32 = 4;
/// Report log-probabilities.
pub const LOG_PROBABILITIES: u32 = 8;

/// How to draw from one row of logits.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Row {
    /// Key of the noise.
    pub seed: u64,
    /// Denoise steps taken.
    pub step: u32,
    /// Slot on the canvas.
    pub slot: u32,
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// ln of the least probability, relative to the best token's; −∞ is off.
    pub log_min_p: f32,
    /// A token that is never drawn, or [`NONE`].
    pub excluded: u32,
    /// Any of the flags of this module.
    pub flags: u32,
    /// w + 1 of classifier-free guidance u + (w + 1)(c − u).
    pub guidance: f32,
    /// Row of u in the unconditional logits; [`NONE`] without guidance.
    pub unconditional: u32,
    /// First of its adjustments.
    pub first_adjustment: u32,
    /// Number of its adjustments.
    pub adjustments: u32,
    /// First word of its bits of allowed tokens, or [`NONE`] if all are.
    pub allowed: u32,
    /// How many of the most probable tokens to report, at most [`MOST_TOP`].
    pub top: u32,
    /// First of the tokens whose log-probabilities are asked for.
    pub first_of: u32,
    /// Number of those tokens.
    pub of: u32,
}

/// A change to one token's logit: a repetition penalty divides a positive logit and multiplies a negative
/// one, then the bias is added. Ascending by token within a row, each token once.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Adjustment {
    /// Which token.
    pub token: TokenId,
    /// Repetition penalty; 1 is none.
    pub penalty: f32,
    /// Added afterwards.
    pub bias: f32,
}

/// What is found for one row.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Found {
    /// 0, or why the row is no distribution.
    pub status: u32,
    /// The drawn token.
    pub token: TokenId,
    /// As [`RowSample::probability`].
    pub probability: f32,
    /// As [`RowSample::best`].
    pub best: f32,
    /// As [`RowSample::second`].
    pub second: f32,
    /// As [`RowSample::entropy`].
    pub entropy: f32,
    /// As [`RowSample::uniform`].
    pub uniform: f32,
    /// ln p of the token under the distribution that it is drawn from.
    pub log_probability_sampled: f32,
    /// ln p of the token under the model, if log-probabilities were asked for.
    pub log_probability: f32,
    /// The most probable token.
    pub best_token: TokenId,
    /// ln p of that under the model, if log-probabilities were asked for.
    pub best_log_probability: f32,
}

/// One of a row's most probable tokens.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Top {
    /// Which token.
    pub token: TokenId,
    /// Its ln p under the model.
    pub log_probability: f32,
}

impl Row {
    /// The parameters of a row without guidance, adjustments and reports.
    fn new(params: &RowParams) -> Self {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        Self {
            seed: params.seed,
            step: params.step as u32,
            slot: params.slot as u32,
            temperature: params.temperature,
            top_k: params.top_k.map_or(0, |k| u32::try_from(k).unwrap_or(NONE)),
            top_p: params.top_p.unwrap_or(1.0),
            log_min_p: params.min_p.map_or(f32::NEG_INFINITY, f32::ln),
            excluded: params.excluded,
            flags: flag(params.excluded_is_impossible, EXCLUDED_IS_IMPOSSIBLE)
                | flag(params.filter_order == FilterOrder::TopPFirst, TOP_P_FIRST)
                | flag(params.basis == Basis::Sampling, BASIS_SAMPLING),
            guidance: 1.0,
            unconditional: NONE,
            first_adjustment: 0,
            adjustments: 0,
            allowed: NONE,
            top: 0,
            first_of: 0,
            of: 0,
        }
    }
}

/// The rows of a batch, with the lists that they name parts of.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// A row each.
    pub rows: Vec<Row>,
    /// Changes to logits, of all rows.
    pub adjustments: Vec<Adjustment>,
    /// Bits of allowed tokens, of all rows.
    pub allowed: Vec<u32>,
    /// Tokens whose log-probabilities are asked for, of all rows.
    pub of: Vec<TokenId>,
}

impl Batch {
    /// For logits of `vocab` tokens.
    pub fn new(params: &[RowParams], vocab: usize) -> Self {
        let mut batch = Self::default();
        // The rows of a request share one bias, and many of them a set of allowed tokens.
        let mut biases: HashMap<*const (TokenId, f32), (u32, u32)> = HashMap::new();
        let mut sets: HashMap<*const TokenSet, u32> = HashMap::new();
        for params in params {
            let mut row = Row::new(params);
            let entries = params.bias.entries();
            if !entries.is_empty() {
                let range = biases.entry(entries.as_ptr()).or_insert_with(|| {
                    let first = batch.adjustments.len();
                    let inside = entries
                        .iter()
                        .filter(|(token, _)| (*token as usize) < vocab);
                    batch
                        .adjustments
                        .extend(inside.map(|&(token, bias)| Adjustment {
                            token,
                            penalty: 1.0,
                            bias,
                        }));
                    (first as u32, (batch.adjustments.len() - first) as u32)
                });
                (row.first_adjustment, row.adjustments) = *range;
            }
            if let Some(set) = &params.allowed {
                row.allowed = *sets.entry(Arc::as_ptr(set)).or_insert_with(|| {
                    let first = batch.allowed.len();
                    batch.allowed.extend(set.words());
                    batch.allowed.resize(first + vocab.div_ceil(32), 0);
                    first as u32
                });
            }
            if let Some(asked) = &params.logprobs {
                row.flags |= LOG_PROBABILITIES;
                row.top = asked.top.min(MOST_TOP).min(vocab) as u32;
                row.first_of = batch.of.len() as u32;
                row.of = asked.of.len() as u32;
                batch.of.extend(asked.of.iter());
            }
            batch.rows.push(row);
        }
        batch
    }

    /// Leads each row with a scale w away from the unconditional row of the same number.
    pub fn guide(&mut self, scales: &[Option<f32>]) {
        for (i, (row, scale)) in self.rows.iter_mut().zip(scales).enumerate() {
            row.guidance = guidance::weight(*scale);
            row.unconditional = scale.map_or(NONE, |_| i as u32);
        }
    }

    /// The samples of `params`, as the twin gives them, from what the kernel found: `[rows]`, `[rows,
    /// MOST_TOP]`, and a log-probability for each of [`Self::of`].
    ///
    /// # Errors
    /// For each row that was no distribution.
    pub fn samples(
        &self,
        params: &[RowParams],
        found: &[Found],
        top: &[Top],
        of: &[f32],
    ) -> Vec<Result<RowSample, SamplingError>> {
        let rows = self
            .rows
            .iter()
            .zip(params)
            .zip(found)
            .zip(top.chunks(MOST_TOP));
        rows.map(|(((row, params), found), top)| {
            let mut sample = found.sample(params)?;
            sample.logprobs = (row.flags & LOG_PROBABILITIES != 0).then(|| Logprobs {
                token: found.log_probability,
                most_probable: found.best_log_probability,
                top: top[..row.top as usize]
                    .iter()
                    .map(|top| (top.token, top.log_probability))
                    .filter(|(_, p)| *p > f32::NEG_INFINITY)
                    .collect(),
                of: of[row.first_of as usize..][..row.of as usize].to_vec(),
            });
            Ok(sample)
        })
        .collect()
    }
}

impl Found {
    /// The sample without log-probabilities.
    fn sample(&self, params: &RowParams) -> Result<RowSample, SamplingError> {
        let what = match self.status {
            0 => {
                return Ok(RowSample {
                    token: self.token,
                    probability: self.probability,
                    most_probable: self.best_token,
                    best: self.best,
                    second: self.second,
                    entropy: self.entropy,
                    uniform: self.uniform,
                    logprobs: None,
                });
            }
            1 => "NaN",
            2 => "+∞",
            _ => "no token that could be drawn",
        };
        Err(SamplingError::NotADistribution {
            slot: params.slot,
            step: params.step,
            what,
        })
    }
}
