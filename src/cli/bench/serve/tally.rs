//! What a load came to, in memory that does not grow with the number of requests.

use std::collections::BTreeMap;

use super::quantiles::Histogram;
use super::stream::{Failure, Sample};

/// Requests that failed in the same way.
#[derive(Debug, Clone)]
pub struct Errors {
    pub count: u64,
    /// What was said of the first.
    pub first: String,
}

/// Counts and times of a load; times in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub seconds: f64,
    /// Requests that were answered.
    pub answered: u64,
    /// Those that were not, by status, `stream` or `connection`.
    pub errors: BTreeMap<String, Errors>,
    /// Those whose clients hung up before the answer's end.
    pub hung_up: u64,
    /// Arrivals that found too many requests under way.
    pub not_sent: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Slots committed.
    pub committed: f64,
    /// Network evaluations, each request's own.
    pub nfe: f64,
    pub first_commit: Histogram,
    pub first_text: Histogram,
    pub per_token: Histogram,
    pub latency: Histogram,
    pub queued: Histogram,
}

impl Tally {
    /// Counts an answer.
    pub fn answered(&mut self, sample: &Sample) {
        let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        self.answered += 1;
        self.prompt_tokens += sample.prompt_tokens;
        self.completion_tokens += sample.completion_tokens;
        self.nfe += sample.nfe;
        self.committed += sample.tokens_per_forward * sample.nfe;
        if let Some(time) = sample.first_commit {
            self.first_commit.record(milliseconds(time));
        }
        if let Some(time) = sample.first_text {
            self.first_text.record(milliseconds(time));
        }
        if sample.completion_tokens > 0 {
            let denoising = sample.latency.saturating_sub(sample.queued);
            let tokens = sample.completion_tokens as f64;
            self.per_token.record(milliseconds(denoising) / tokens);
        }
        self.latency.record(milliseconds(sample.latency));
        self.queued.record(milliseconds(sample.queued));
    }

    /// Counts a failure.
    pub fn failed(&mut self, failure: Failure) {
        let errors = self.errors.entry(failure.kind).or_insert(Errors {
            count: 0,
            first: failure.message,
        });
        errors.count += 1;
    }
}
