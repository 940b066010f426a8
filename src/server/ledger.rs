//! Where an answer is entered when it is known what it took.

use std::sync::Arc;

use super::metrics::Metrics;
use super::run::Cost;
use super::state::AppState;
#[cfg(feature = "otel")]
use super::telemetry::RequestSpan;

/// What one request's answer is entered in: the metrics, and the request's span if there is one.
pub(super) struct Ledger {
    metrics: Arc<Metrics>,
    #[cfg(feature = "otel")]
    span: Option<Arc<RequestSpan>>,
}

impl Ledger {
    /// That of the request whose handler this is called in, once it is checked.
    pub fn open(state: &AppState) -> Self {
        Self {
            metrics: state.metrics.clone(),
            #[cfg(feature = "otel")]
            span: RequestSpan::current().inspect(|span| span.model(&state.model_name)),
        }
    }

    /// Enters an answer.
    pub fn answer(&self, prompt_tokens: usize, completion_tokens: usize, cost: &Cost) {
        let per_forward = cost.tokens_per_forward();
        self.metrics
            .count_answer(prompt_tokens, completion_tokens, per_forward);
        #[cfg(feature = "otel")]
        if let Some(span) = &self.span {
            span.answer(prompt_tokens, completion_tokens, cost);
        }
    }

    /// Enters an answer that completes nothing, of so many forwards.
    #[cfg_attr(
        not(feature = "otel"),
        expect(unused_variables, reason = "only a span tells of forwards")
    )]
    pub fn scored(&self, prompt_tokens: usize, nfe: usize) {
        self.metrics.count_scored(prompt_tokens);
        #[cfg(feature = "otel")]
        if let Some(span) = &self.span {
            span.scored(prompt_tokens, nfe);
        }
    }
}
