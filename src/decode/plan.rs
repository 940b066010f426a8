//! The decode plan: how a canvas is to be denoised.

use serde::Serialize;

use crate::decode::{BlockOrigin, Budget, Score};

/// A plan, or a part of one, that cannot be followed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A name that is not known.
    #[error("{field}: unknown value {given:?}; allowed: {allowed}")]
    UnknownName {
        /// The field of the plan.
        field: &'static str,
        /// What was given.
        given: String,
        /// The known names.
        allowed: String,
    },
    /// A number outside its range.
    #[error("{field} is {given}; allowed: {allowed}")]
    OutOfRange {
        /// The field of the plan.
        field: &'static str,
        /// What was given.
        given: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// Every block needs at least one step.
    #[error(
        "steps is {steps}, but the canvas has {blocks} blocks of block_length {block_length}: allowed: at least one step a block"
    )]
    TooFewSteps {
        /// Steps of the plan.
        steps: usize,
        /// Blocks of the canvas.
        blocks: usize,
        /// Slots a block.
        block_length: usize,
    },
}

impl PlanError {
    /// The field of the plan that is at fault.
    pub fn field(&self) -> &'static str {
        match self {
            PlanError::UnknownName { field, .. } | PlanError::OutOfRange { field, .. } => field,
            PlanError::TooFewSteps { .. } => "steps",
        }
    }
}

/// How a token is drawn from a slot's distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sampling {
    /// 0 takes the most probable token; otherwise logits are divided by it. At least 0.
    pub temperature: f32,
    /// Keeps the k most probable tokens.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens with at least this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Classifier-free guidance w: logits become u + (w + 1)(c − u), with u those of the canvas
    /// whose fixed slots are masked. 0 is off.
    pub guidance_scale: f32,
    /// Seed of the request's random draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            guidance_scale: 0.0,
            seed: 0,
        }
    }
}

/// How a canvas is denoised: five orthogonal choices.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct DecodePlan {
    /// Denoise steps over the whole canvas; `None` is one a masked slot for [`Budget::Even`] and
    /// as many as the budget takes otherwise. When given, each step commits at least its even
    /// share, so that no more steps are taken.
    pub steps: Option<usize>,
    /// Slots a block; `None` denoises the whole canvas at once.
    pub block_length: Option<usize>,
    /// Where the first block begins.
    pub block_origin: BlockOrigin,
    /// How candidates are ranked.
    pub score: Score,
    /// How many are committed a step.
    pub budget: Budget,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

impl DecodePlan {
    /// Checks every field that does not depend on a canvas.
    ///
    /// # Errors
    /// Names the first field out of range.
    pub fn validate(&self) -> Result<(), PlanError> {
        let out_of_range = |field, given: String, allowed| {
            Err(PlanError::OutOfRange {
                field,
                given,
                allowed,
            })
        };
        if self.steps == Some(0) {
            return out_of_range("steps", "0".into(), "at least 1");
        }
        if self.block_length == Some(0) {
            return out_of_range("block_length", "0".into(), "at least 1");
        }
        self.budget.validate()?;
        let Sampling {
            temperature,
            top_k,
            top_p,
            guidance_scale,
            seed: _,
        } = self.sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return out_of_range("temperature", temperature.to_string(), "at least 0");
        }
        if top_k == Some(0) {
            return out_of_range("top_k", "0".into(), "at least 1");
        }
        if let Some(top_p) = top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            return out_of_range("top_p", top_p.to_string(), "more than 0 and at most 1");
        }
        if !(guidance_scale.is_finite() && guidance_scale >= 0.0) {
            return out_of_range("guidance_scale", guidance_scale.to_string(), "at least 0");
        }
        Ok(())
    }
}
