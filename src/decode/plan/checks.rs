//! What a plan must hold to be followed: by itself, and with what it is used for.

use super::{DecodePlan, Finish, MAX_GUIDANCE_SCALE, MAX_STEPS, PlanError, Sampling};
use crate::canvas::Blank;
use crate::decode::{
    BlockEntry, Budget, CachePolicy, EarlyStop, Revision, Score, TemperatureSchedule,
};

/// The most tokens that a plan commits last: a model has a few that end a text.
const MAX_COMMIT_LAST: usize = 64;

/// The most numbers that are drawn in a row, on average, for steps that unmask nothing.
const MAX_IDLE_DRAWS: f32 = 1e6;

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

    /// Checks that chance unmasks something often enough in `steps` steps of a block: the ones before it are taken without
    /// the network, but a number is drawn for each slot in each of them, about steps / (1 − eps) numbers in a row.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if those are too many.
    pub(in crate::decode) fn check_idle_steps(&self, steps: usize) -> Result<(), PlanError> {
        match self.budget {
            Budget::Ancestral { eps } if steps as f32 >= MAX_IDLE_DRAWS * (1.0 - eps) => {
                Err(PlanError::Invalid {
                    field: "budget.ancestral.eps",
                    reason: format!(
                        "next to none of {steps} steps from time 1 to {eps} unmasks anything; allowed: steps / (1 − eps) \
                         of less than {MAX_IDLE_DRAWS}"
                    ),
                })
            }
            _ => Ok(()),
        }
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
}
