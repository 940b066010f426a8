//! How the rows of a sequence are drawn from, slot by slot.

use std::collections::HashMap;
use std::sync::Arc;

use crate::canvas::{Canvas, Splice, TokenId};
use crate::decode::{DecodePlan, Sampling, StopTokens};
use crate::models::{ModelSpec, Parameterisation};
use crate::sampling::{LogitBias, RowLogprobs, RowParams, TokenSet};

/// Which log-probabilities are reported of the slots that a step commits, beside the committed token's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogprobRequest {
    /// How many of the most probable tokens, at most
    /// [`MAX_TOP_LOGPROBS`](crate::sampling::MAX_TOP_LOGPROBS).
    pub top: usize,
    /// Further tokens of single slots.
    pub of: HashMap<usize, Arc<[TokenId]>>,
}

/// What the rows of one sequence have in common, and what differs by slot.
pub(super) struct SequenceRows {
    sampling: Sampling,
    /// The bias of slots that fixed text follows.
    bias_before_text: LogitBias,
    /// No slot from here on is fixed.
    text_end: usize,
    mask: TokenId,
    mask_is_impossible: bool,
    logprobs: Option<LogprobRequest>,
}

impl SequenceRows {
    pub fn new(
        plan: &DecodePlan,
        canvas: &Canvas,
        spec: &ModelSpec,
        logprobs: Option<LogprobRequest>,
    ) -> Self {
        let sampling = plan.sampling.clone();
        let bias_before_text = match sampling.stop_tokens {
            StopTokens::Anywhere => sampling.logit_bias.clone(),
            StopTokens::AtEnd => {
                let mut stop_tokens = spec.stop_tokens.clone();
                if let (true, Some(tokens)) = (plan.is_resizing(), spec.resize_tokens) {
                    // It removes its slot, and stops nothing.
                    stop_tokens.retain(|token| *token != tokens.delete);
                }
                sampling.logit_bias.without(&stop_tokens)
            }
        };
        Self {
            sampling,
            bias_before_text,
            text_end: text_end(canvas),
            // Without a mask token no token is excluded.
            mask: canvas.mask().unwrap_or(TokenId::MAX),
            mask_is_impossible: spec.parameterisation != Parameterisation::Logits,
            logprobs,
        }
    }

    /// Classifier-free guidance w; 0 is off.
    pub fn guidance_scale(&self) -> f32 {
        self.sampling.guidance_scale
    }

    /// What the canvas that guidance leads away from begins with, if not with masks.
    pub fn negative_prompt(&self) -> Option<&[TokenId]> {
        self.sampling.negative_prompt.as_deref()
    }

    /// Takes in that `splices` have changed the canvas's length.
    pub fn spliced(&mut self, splices: &[Splice], canvas: &Canvas) {
        if splices.is_empty() {
            return;
        }
        self.text_end = text_end(canvas);
        if let Some(asked) = &mut self.logprobs {
            let of = std::mem::take(&mut asked.of).into_iter();
            let moved = of.filter_map(|(slot, of)| Some((Splice::moved(splices, slot)?, of)));
            asked.of = moved.collect();
        }
    }

    /// The parameters of `slot` after `step` steps, at the `temperature` of the next; it is not to become one
    /// of the `barred` tokens, and only one of the `allowed`.
    pub fn params(
        &self,
        slot: usize,
        step: usize,
        temperature: f32,
        barred: &[TokenId],
        allowed: Option<Arc<TokenSet>>,
    ) -> RowParams {
        let sampling = &self.sampling;
        let bias = match slot < self.text_end {
            true => &self.bias_before_text,
            false => &sampling.logit_bias,
        };
        let logprobs = self.logprobs.as_ref().map(|asked| RowLogprobs {
            top: asked.top,
            of: asked.of.get(&slot).cloned().unwrap_or_default(),
        });
        RowParams {
            bias: match barred {
                [] => bias.clone(),
                barred => bias.without(barred),
            },
            allowed,
            temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            filter_order: sampling.filter_order,
            basis: sampling.basis,
            excluded: self.mask,
            excluded_is_impossible: self.mask_is_impossible,
            seed: sampling.seed,
            step,
            slot,
            logprobs,
        }
    }
}

/// The slot from which on none is fixed.
fn text_end(canvas: &Canvas) -> usize {
    let last_fixed = (0..canvas.len()).rev().find(|slot| canvas.is_fixed(*slot));
    last_fixed.map_or(0, |slot| slot + 1)
}
