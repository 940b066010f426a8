//! The decode plan: how a canvas is to be denoised.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::{Blank, Canvas, TokenId};
use crate::decode::{
    BlockEntry, BlockOrigin, Budget, Cache, CachePolicy, Revision, Score, TemperatureSchedule,
};
use crate::sampling::philox::{Draws, Stream};
use crate::sampling::{Basis, FilterOrder, LogitBias};

/// The most steps of a plan: above any published sampler's.
pub const MAX_STEPS: usize = 10_000;

/// The most tokens that a plan commits last: a model has a few that end a text.
const MAX_COMMIT_LAST: usize = 64;

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
        for (field, steps) in [
            ("steps", self.steps),
            ("steps_per_block", self.steps_per_block),
        ] {
            if let Some(steps) = steps
                && !(1..=MAX_STEPS).contains(&steps)
            {
                return out_of_range(field, steps.to_string(), "1 to 10000");
            }
        }
        if self.block_length == Some(0) {
            return out_of_range("block_length", "0".into(), "at least 1");
        }
        let score_temperature = self.score_temperature;
        if !(score_temperature.is_finite() && score_temperature >= 0.0) {
            let given = score_temperature.to_string();
            return out_of_range("score_temperature", given, "at least 0");
        }
        if self.commit_last.len() > MAX_COMMIT_LAST {
            let given = format!("a list of {} tokens", self.commit_last.len());
            return out_of_range("commit_last", given, "at most 64 tokens");
        }
        self.cache.validate()?;
        self.budget.validate()?;
        self.revision.validate()?;
        self.validate_combination()?;
        let Sampling {
            temperature,
            temperature_schedule,
            top_k,
            top_p,
            min_p,
            filter_order: _,
            basis: _,
            ref logit_bias,
            stop_tokens: _,
            guidance_scale,
            negative_prompt: _,
            seed: _,
        } = self.sampling;
        temperature_schedule.validate()?;
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
        if let Some(min_p) = min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return out_of_range("min_p", min_p.to_string(), "0 to 1");
        }
        if let Some((token, bias)) = logit_bias.entries().iter().find(|(_, b)| !b.is_finite()) {
            let given = format!("{bias} for token {token}");
            return out_of_range("logit_bias", given, "finite numbers");
        }
        if !(0.0..=MAX_GUIDANCE_SCALE).contains(&guidance_scale) {
            let given = guidance_scale.to_string();
            return out_of_range("guidance_scale", given, "0 to 1000");
        }
        Ok(())
    }

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

    /// Checks a score and a finish that were asked for by themselves, beside what the plan already has: a preset may
    /// have one that plays no part, while one that was asked for is not to be ignored.
    ///
    /// # Errors
    /// If the budget chooses without a score, or follows no noise schedule that could end.
    pub fn check_asked(
        &self,
        score: Option<Score>,
        finish: Option<Finish>,
    ) -> Result<(), PlanError> {
        if finish.is_some() && self.budget.last_time().is_none() {
            return Err(PlanError::Invalid {
                field: "finish",
                reason: format!(
                    "the budget {} follows no noise schedule; allowed with schedule, ancestral, analytic and euler",
                    self.budget
                ),
            });
        }
        if score.is_some() && self.budget.is_by_chance() {
            return Err(PlanError::Invalid {
                field: "score",
                reason: format!(
                    "the budget {} unmasks slots by chance and chooses without a score; allowed with another \
                     budget, such as even",
                    self.budget
                ),
            });
        }
        Ok(())
    }

    fn validate_combination(&self) -> Result<(), PlanError> {
        let invalid = |field, reason: &str| {
            Err(PlanError::Invalid {
                field,
                reason: reason.to_owned(),
            })
        };
        if self.steps_per_block.is_some() && self.block_length.is_none() {
            return invalid("steps_per_block", "needs block_length");
        }
        if self.steps_per_block.is_some() && self.steps.is_some() {
            return invalid(
                "steps_per_block",
                "is given in the place of steps; give one of them",
            );
        }
        if matches!(self.revision, Revision::Edit { .. }) && self.budget.is_by_chance() {
            return invalid(
                "revision",
                "editing does not go with a budget that unmasks slots by chance",
            );
        }
        if self.block_entry == BlockEntry::FirstSlot && self.budget.is_by_chance() {
            return invalid(
                "block_entry",
                "`first_slot` does not go with a budget that unmasks slots by chance",
            );
        }
        if self.score_temperature > 0.0 && self.budget.is_by_chance() {
            return invalid(
                "score_temperature",
                "this budget unmasks slots by chance and chooses without a score",
            );
        }
        if !self.commit_last.is_empty() && self.budget.is_by_chance() {
            return invalid(
                "commit_last",
                "this budget unmasks slots by chance and ranks none",
            );
        }
        if !self.commit_last.is_empty() && self.block_entry == BlockEntry::FirstSlot {
            return invalid(
                "commit_last",
                "does not go with the block entry `first_slot`, which ranks none",
            );
        }
        if self.at_least > 0 && self.budget.last_time().is_some() {
            return invalid(
                "at_least",
                "this budget follows a noise schedule, which may commit nothing in a step",
            );
        }
        if matches!(self.revision, Revision::Remask(_))
            && !matches!(self.budget, Budget::Ancestral { .. })
        {
            return invalid("revision", "re-masking needs the budget `ancestral`");
        }
        if matches!(self.revision, Revision::Remask(_)) && self.early_stop == EarlyStop::AtOnce {
            return invalid(
                "early_stop",
                "where slots are masked again no token is final before its block is; allowed: never, \
                 after_block",
            );
        }
        if let Revision::Resize(_) = self.revision {
            self.validate_resizing()?;
        }
        if self.sampling.temperature_schedule != TemperatureSchedule::Constant
            && !self.knows_steps()
        {
            return invalid(
                "temperature_schedule",
                "it needs to know the number of steps, which this plan does not say; allowed: constant, or give \
                 steps or steps_per_block",
            );
        }
        if self.sampling.negative_prompt.is_some() {
            if self.sampling.guidance_scale == 0.0 {
                return invalid(
                    "negative_prompt",
                    "only guidance leads away from it; allowed with a guidance_scale above 0",
                );
            }
            if matches!(self.cache.policy, CachePolicy::Prefix | CachePolicy::Dual) {
                return invalid(
                    "cache.policy",
                    "a canvas with another prompt beside it is not cached; allowed with negative_prompt: auto, none",
                );
            }
        }
        if let Revision::RenoiseRest { .. } = self.revision {
            self.validate_renoising_of_the_rest()?;
        }
        if self.revision == Revision::Renoise {
            if self.budget.ends_at_zero() && self.finish != Finish::WithLastInterval {
                return invalid(
                    "budget",
                    "the last step looks at the last time, and at 0 a slot is certain to hold its clean \
                     token; allowed: an eps above 0",
                );
            }
            if !self.budget.is_by_chance() {
                return invalid(
                    "revision",
                    "`renoise` needs the budget `ancestral`, or for a model of log-scores `analytic` or `euler`",
                );
            }
            if self.early_stop == EarlyStop::AtOnce {
                return invalid(
                    "early_stop",
                    "with `renoise` no token is final before its block is; allowed: never, after_block",
                );
            }
            if self.sampling.guidance_scale > 0.0 {
                return invalid(
                    "guidance_scale",
                    "with `renoise` there is no mask to hide the fixed text behind; allowed: 0",
                );
            }
        }
        Ok(())
    }

    /// Whether the plan says how many steps it has at most.
    fn knows_steps(&self) -> bool {
        let is_even = self.budget == Budget::Even || self.budget.last_time().is_some();
        !self.is_resizing() && (self.steps.or(self.steps_per_block).is_some() || is_even)
    }

    fn validate_renoising_of_the_rest(&self) -> Result<(), PlanError> {
        let (field, reason) = match self.budget {
            Budget::Even
            | Budget::Schedule { .. }
            | Budget::Ancestral { .. }
            | Budget::Analytic { .. }
            | Budget::Euler { .. } => (
                "budget",
                "with `renoise_rest` the candidates decide how many a step accepts; allowed: threshold, factor, \
                 entropy_bound",
            ),
            _ if self.steps.or(self.steps_per_block).is_none() => (
                "revision",
                "`renoise_rest` ends with a block's steps; give steps or steps_per_block",
            ),
            _ if self.block_entry != BlockEntry::Budget => (
                "block_entry",
                "with `renoise_rest` no slot of a block is before the others; allowed: budget",
            ),
            _ if self.early_stop == EarlyStop::AtOnce => (
                "early_stop",
                "with `renoise_rest` no token is final before its block is; allowed: never, after_block",
            ),
            _ if self.sampling.guidance_scale > 0.0 => (
                "guidance_scale",
                "with `renoise_rest` there is no mask to hide the fixed text behind; allowed: 0",
            ),
            _ => return Ok(()),
        };
        Err(PlanError::Invalid {
            field,
            reason: reason.to_owned(),
        })
    }

    /// Checks that nothing in the plan depends on the number of slots, which changes while gaps are resized.
    fn validate_resizing(&self) -> Result<(), PlanError> {
        let slots_move = |field, allowed: &str| {
            Err(PlanError::Invalid {
                field,
                reason: format!(
                    "gaps that are resized change the number of slots while they are denoised; allowed with \
                     `resize`: {allowed}"
                ),
            })
        };
        if self.block_length.is_some() {
            return slots_move("block_length", "none, the whole canvas at once");
        }
        if self.steps.is_some() {
            return slots_move("steps", "none, as many as the budget takes");
        }
        if self.budget.last_time().is_some() {
            return slots_move("budget", "even, threshold, factor, entropy_bound");
        }
        if matches!(self.cache.policy, CachePolicy::Prefix | CachePolicy::Dual) {
            return slots_move(
                "cache.policy",
                "auto, none, as what is cached is of the slot it was",
            );
        }
        Ok(())
    }

    /// Checks that gaps that are denoised by the plan can be held to a constraint.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if their slots change in number.
    pub fn check_constrained(&self) -> Result<(), PlanError> {
        match self.is_resizing() {
            true => Err(PlanError::Invalid {
                field: "revision",
                reason: "`resize` changes the length of gaps, which a constraint needs to know; allowed with a \
                         constraint: none"
                    .to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// Checks that the plan denoises canvases whose gaps begin as `blank`.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if it is of the other process.
    pub fn check_blank(&self, blank: Blank) -> Result<(), PlanError> {
        let reason = match (blank, self.revision) {
            (Blank::Noise { .. }, Revision::Renoise | Revision::RenoiseRest { .. }) => {
                return Ok(());
            }
            (Blank::Noise { .. }, _) => {
                "this model was trained on the uniform process and has no mask token to fill; allowed: \
                 renoise, as in the presets uniform-ancestral and, for log-scores, sedd-analytic; of a model that \
                 denoises encoded blocks, renoise_rest, as in diffusion-gemma"
            }
            (Blank::Mask(_), Revision::Renoise | Revision::RenoiseRest { .. }) => {
                "`renoise` and `renoise_rest` are for models of the uniform process, and this one fills masks"
            }
            (Blank::Mask(_), _) => return Ok(()),
        };
        Err(PlanError::Invalid {
            field: "revision",
            reason: reason.to_owned(),
        })
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
