//! What the pieces of an answer have in common.

use super::error::ApiError;
use super::random;
use super::run::Cost;
use super::state::{AppState, unix_time};
use super::wire::{DiffusionReport, Usage};
use crate::decode::DecodePlan;

/// The head of an answer, of each of its chunks and frames.
pub(super) struct Head {
    /// Identifier of the answer.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    seed: u64,
    prompt_tokens: usize,
}

impl Head {
    /// The head of a new answer, whose identifier begins with `kind`, to prompts of so many tokens.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn new(
        kind: &str,
        state: &AppState,
        plan: &DecodePlan,
        prompt_tokens: usize,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            id: format!("{kind}-{}", random::identifier()?),
            created: unix_time(),
            model: state.model_name.clone(),
            seed: plan.sampling.seed,
            prompt_tokens,
        })
    }

    /// The token counts of the whole answer.
    pub fn usage(&self, completion_tokens: usize) -> Usage {
        Usage::new(self.prompt_tokens, completion_tokens)
    }

    /// What the whole answer took.
    pub fn diffusion(&self, cost: &Cost) -> DiffusionReport {
        cost.report(self.seed)
    }
}

/// What the sequences of a stream add up to.
pub(super) struct Tally {
    /// Sequences without an answer yet.
    running: usize,
    completion_tokens: usize,
    cost: Cost,
}

impl Tally {
    /// Of so many sequences, none of which is finished.
    pub fn of(sequences: usize) -> Self {
        Self {
            running: sequences,
            completion_tokens: 0,
            cost: Cost::default(),
        }
    }

    /// Counts a finished sequence.
    pub fn add(&mut self, completion_tokens: usize, cost: Cost) {
        self.running -= 1;
        self.completion_tokens += completion_tokens;
        self.cost.add(cost);
    }

    /// Whether all sequences are finished.
    pub fn is_complete(&self) -> bool {
        self.running == 0
    }

    /// The token counts so far.
    pub fn usage(&self, head: &Head) -> Usage {
        head.usage(self.completion_tokens)
    }

    /// What was taken so far.
    pub fn diffusion(&self, head: &Head) -> DiffusionReport {
        head.diffusion(&self.cost)
    }
}
