//! The decode plan: how a canvas is to be denoised.

mod checks;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::{Blank, Canvas, TokenId};
use crate::decode::{BlockEntry, BlockOrigin, Budget, Cache, Revision, Score, TemperatureSchedule};
use crate::sampling::philox::{Draws, Stream};
use crate::sampling::{Basis, FilterOrder, LogitBias};

/// The most steps of a plan: above any published sampler's.
pub const MAX_STEPS: usize = 10_000;

/// The largest guidance scale, which errors name as well: far above any that is of use, and low enough that no logit
/// overflows.
pub const MAX_GUIDANCE_SCALE: f32 = 1000.0;

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
    /// Choices that do not go together, or a parameter that a formula does not allow.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of the plan.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
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
            PlanError::UnknownName { field, .. }
            | PlanError::OutOfRange { field, .. }
            | PlanError::Invalid { field, .. } => field,
            PlanError::TooFewSteps { .. } => "steps",
        }
    }
}

/// When a canvas is left before every slot is committed, because a stop token was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStop {
    /// Never.
    #[default]
    Never,
    /// After the block that holds it.
    AfterBlock,
    /// At once, if no slot before it is masked.
    AtOnce,
}

/// What becomes of the slots that are still masked at the last time of a noise schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The step to the last time commits all of them (Dream).
    #[default]
    WithLastInterval,
    /// The step to the last time is one like the others. Another one after it commits all of them to their
    /// most probable tokens (MDLM's noise removal).
    MostProbable,
    /// As `MostProbable`, but their tokens are drawn (SEDD's denoiser).
    Drawn,
    /// As `Drawn`, and the steps before it fall short of the next one's time: of T steps that begin at T times
    /// from 1 to the last, each goes 1/T of the way (BD3-LM's `_ddpm_caching_update`).
    DrawnAfterShortSteps,
}

/// Where a stop token may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopTokens {
    /// In every gap.
    #[default]
    Anywhere,
    /// Only in a gap that no fixed text follows: one with text after it is to be filled to its end.
    AtEnd,
}

/// How a token is drawn from a slot's distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the most probable token; otherwise logits are divided by it. At least 0.
    pub temperature: f32,
    /// How the temperature changes over the steps.
    pub temperature_schedule: TemperatureSchedule,
    /// Keeps the k most probable tokens.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens with at least this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Keeps the tokens whose probability is at least this share of the most probable one's, in [0, 1]; 0 is off.
    pub min_p: Option<f32>,
    /// Which of top-k and top-p comes first.
    pub filter_order: FilterOrder,
    /// Which distribution the candidates' numbers are of.
    pub basis: Basis,
    /// Added to the logits before all else, in every slot.
    #[serde(skip_deserializing, skip_serializing_if = "LogitBias::is_empty")]
    #[schema(ignore)]
    pub logit_bias: LogitBias,
    /// Where a stop token may be drawn.
    pub stop_tokens: StopTokens,
    /// Classifier-free guidance w: logits become u + (w + 1)(c − u), with u those of the canvas
    /// whose fixed slots are masked, or hold the negative prompt. 0 is off.
    pub guidance_scale: f32,
    /// The tokens that u has in the place of the fixed slots before the first gap, as many as there are; all other
    /// slots are then the canvas's. With `None` u has its fixed slots masked.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub negative_prompt: Option<Vec<TokenId>>,
    /// Seed of the request's random draws.
    #[serde(skip_deserializing)]
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            temperature_schedule: TemperatureSchedule::Constant,
            top_k: None,
            top_p: None,
            min_p: None,
            filter_order: FilterOrder::TopKFirst,
            basis: Basis::Model,
            logit_bias: LogitBias::default(),
            stop_tokens: StopTokens::Anywhere,
            guidance_scale: 0.0,
            negative_prompt: None,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Draws tokens at `temperature` in every step: a schedule that led from another one is dropped.
    pub fn set_temperature(&mut self, temperature: f32) {
        self.temperature = temperature;
        self.temperature_schedule = TemperatureSchedule::Constant;
    }

    /// Keeps the `top_k` most probable tokens, or all of them with -1 or 0, as callers of other servers and libraries
    /// say it.
    ///
    /// # Errors
    /// If it is below -1.
    pub fn set_top_k(&mut self, top_k: i64) -> Result<(), PlanError> {
        self.top_k = match top_k {
            -1 | 0 => None,
            given => Some(usize::try_from(given).map_err(|_| PlanError::OutOfRange {
                field: "top_k",
                given: given.to_string(),
                allowed: "-1 or 0 for all tokens, otherwise at least 1",
            })?),
        };
        Ok(())
    }

    /// Whether a stop token may be drawn in the `gap`th gap of `canvas`.
    ///
    /// # Panics
    /// If the canvas has no such gap.
    pub fn may_stop_in(&self, canvas: &Canvas, gap: usize) -> bool {
        let mut after = canvas.gaps()[gap].end..canvas.len();
        self.stop_tokens == StopTokens::Anywhere || !after.any(|slot| canvas.is_fixed(slot))
    }
}

/// How a canvas is denoised: five orthogonal choices, and which keys and values are cached.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecodePlan {
    /// Denoise steps over the whole canvas; `None` is one a masked slot for [`Budget::Even`] and
    /// as many as the budget takes otherwise. When given, each step commits at least its even
    /// share, so that no more steps are taken.
    pub steps: Option<usize>,
    /// Slots a block; `None` denoises the whole canvas at once.
    pub block_length: Option<usize>,
    /// Where the first block begins.
    pub block_origin: BlockOrigin,
    /// What the first step of a block commits.
    pub block_entry: BlockEntry,
    /// Denoise steps a block, in the place of `steps`: those of its noise schedule (dllm's
    /// BD3LMSampler), or for other budgets steps each of which commits at least its share of the block
    /// length, whatever part of the block is masked (SDAR, LLaDA2).
    pub steps_per_block: Option<usize>,
    /// How candidates are ranked.
    pub score: Score,
    /// 0 ranks by score alone; otherwise scores are divided by it and get Gumbel noise, which draws the
    /// candidates without replacement (Dream's `alg_temp`). At least 0.
    pub score_temperature: f32,
    /// Candidates with these tokens rank below all others, whatever their scores, and the budgets that go by the
    /// candidates look at them only where there are no others; at most 64 (`confidence_eos_eot_inf` of LLaDA's
    /// generate.py).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commit_last: Vec<TokenId>,
    /// How many are committed a step.
    pub budget: Budget,
    /// The fewest that a step commits, for the budgets that go by the candidates; 0 counts as 1.
    pub at_least: usize,
    /// What may happen to a committed slot.
    pub revision: Revision,
    /// When a stop token ends the denoising.
    pub early_stop: EarlyStop,
    /// How keys and values are cached.
    pub cache: Cache,
    /// Fills gaps by what precedes the end of their block alone, where the network sees no more.
    /// Without it, a block-causal network is given no canvas with text after a gap.
    pub left_context: bool,
    /// Denoises a canvas longer than the model's context, block after block, each of which sees as many slots up
    /// to its end as the context has. For models that are sampled so.
    pub sliding_window: bool,
    /// How a noise schedule ends; its last step is one of `steps`.
    pub finish: Finish,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

impl DecodePlan {
    /// Takes `budget` in the place of the plan's own, and drops what went with that one and cannot go with this
    /// one: the noise on a ranking where nothing is ranked, the fewest of a step that may commit none.
    pub fn replace_budget(&mut self, budget: Budget) {
        self.budget = budget;
        if budget.is_by_chance() {
            self.score_temperature = 0.0;
            self.commit_last = Vec::new();
        }
        if budget.last_time().is_some() {
            self.at_least = 0;
        }
    }

    /// `canvas` with the noise that its gaps begin as, by the plan's seed and the slot; a canvas of masks is
    /// left as it is.
    pub fn noised(&self, canvas: Canvas) -> Canvas {
        let Blank::Noise { vocab } = canvas.blank() else {
            return canvas;
        };
        canvas.noised(|slot| {
            noise(
                Draws::new(self.sampling.seed, 0, slot, Stream::Noise),
                vocab,
            )
        })
    }

    /// Whether a committed slot may change again, so that nothing is final before its block is.
    pub fn is_revising(&self) -> bool {
        !matches!(self.revision, Revision::None | Revision::Resize(_))
    }

    /// Whether the number of slots may change, so that committed slots move.
    pub fn is_resizing(&self) -> bool {
        matches!(self.revision, Revision::Resize(_))
    }
}

/// A token of a vocabulary of `vocab`, each with the same probability.
pub(super) fn noise(draws: Draws, vocab: usize) -> TokenId {
    let [word, ..] = draws.quad(0);
    ((u64::from(word) * vocab as u64) >> 32) as TokenId
}
