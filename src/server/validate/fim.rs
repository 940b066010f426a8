//! Filling the gap between a prompt and a suffix: a completion under other names.

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{CompletionRequest, FimRequest, Prompt, Whole};
use super::completion::{CompletionJob, completion};
use super::logits::chat_logprobs;

/// Slots of a gap whose length is not given.
const DEFAULT_MAX_TOKENS: u64 = 64;

/// Checks a request to fill a gap.
pub fn fim(request: FimRequest, state: &AppState) -> Result<CompletionJob, ApiError> {
    if let Some(Whole(tokens)) = request.min_tokens
        && tokens > 0
    {
        return Err(ApiError::unsupported(
            "min_tokens",
            tokens,
            "it is not supported; allowed: 0 (/v1/infill fills gaps of an exact length)",
        ));
    }
    let seed = match (request.random_seed, request.seed) {
        (Some(_), Some(_)) => {
            return Err(ApiError::unusable(
                "seed",
                "both random_seed and seed are given; allowed: one of them",
            ));
        }
        (random_seed, seed) => random_seed.or(seed),
    };
    let top_logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
    let prompt = request
        .prompt
        .ok_or_else(|| ApiError::missing("prompt", "the text before the gap, as a string"))?;
    completion(
        CompletionRequest {
            model: request.model,
            prompt: Some(Prompt::Text(prompt)),
            suffix: request.suffix,
            max_tokens: request.max_tokens.or(Some(Whole(DEFAULT_MAX_TOKENS))),
            temperature: request.temperature,
            top_p: request.top_p,
            min_p: request.min_p,
            top_k: request.top_k,
            n: request.n,
            seed,
            stop: request.stop,
            stream: request.stream,
            stream_options: request.stream_options,
            diffusing: request.diffusing,
            diffusion: request.diffusion,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            logit_bias: request.logit_bias,
            response_format: request.response_format,
            grammar: request.grammar,
            logprobs: top_logprobs.map(|top| Whole(top as u64)),
            ..CompletionRequest::default()
        },
        state,
    )
}
