//! What the pieces of an answer have in common, and what they add up to.

use std::sync::Arc;

use super::error::ApiError;
use super::ledger::Ledger;
use super::random;
use super::run::Cost;
use super::state::{AppState, unix_time};
use super::validate::CompletionJob;
use super::wire::{Answer, DiffusionReport, Usage};
use crate::decode::DecodePlan;
use crate::text::Tokenizer;

/// The head of an answer, of each of its chunks and frames.
pub(super) struct Head {
    /// Identifier of the answer.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// Writes the tokens of log-probabilities, if they were asked for.
    pub logprobs: Option<Arc<dyn Tokenizer>>,
    seed: u64,
    prompt_tokens: usize,
    ledger: Ledger,
}

impl Head {
    /// The head of a new answer, whose identifier begins with `kind`, to so many fixed tokens.
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
            logprobs: None,
            seed: plan.sampling.seed,
            prompt_tokens,
            ledger: Ledger::open(state),
        })
    }

    /// As [`Head::new`], of the answer to a completion's prompts.
    ///
    /// # Errors
    /// As [`Head::new`].
    pub fn of(kind: &str, state: &AppState, job: &CompletionJob) -> Result<Self, ApiError> {
        let head = Self::new(kind, state, &job.plan, job.prompt_tokens())?;
        Ok(Self {
            logprobs: job.top_logprobs.map(|_| state.tokenizer.clone()),
            ..head
        })
    }

    /// An answer or a chunk with so many choices; what it took is not in it yet.
    pub fn answer<C>(&self, object: &'static str, choices: Vec<C>) -> Answer<'_, C> {
        Answer {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage: None,
            diffusion: None,
        }
    }

    /// The end of the whole answer, which is entered in the ledger.
    pub fn end(&self, completion_tokens: usize, cost: &Cost) -> (Usage, DiffusionReport) {
        self.ledger
            .answer(self.prompt_tokens, completion_tokens, cost);
        (
            Usage::new(self.prompt_tokens, completion_tokens),
            cost.report(self.seed),
        )
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

    /// Takes in that a sequence is finished; the end of the whole answer if it was the last.
    pub fn add(
        &mut self,
        completion_tokens: usize,
        cost: Cost,
        head: &Head,
    ) -> Option<(Usage, DiffusionReport)> {
        self.running -= 1;
        self.completion_tokens += completion_tokens;
        self.cost.add(cost);
        (self.running == 0).then(|| head.end(self.completion_tokens, &self.cost))
    }
}
