//! What every answer carries.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::CacheScheme;

/// Token counts, as OpenAI and vLLM count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Fixed tokens, each prompt's once whatever `n` is.
    pub prompt_tokens: usize,
    /// Tokens that the answer was read from: those of a gap up to and with the one that ended it, a
    /// stop token or the last of a stop string.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
}

impl Usage {
    /// The counts and their sum.
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// What denoising took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct DiffusionReport {
    /// Denoise steps of all sequences together.
    pub steps: usize,
    /// Network evaluations of a canvas; one with guidance counts once, though it computes two.
    pub nfe: usize,
    /// Slots committed a network evaluation.
    pub tokens_per_forward: f64,
    /// From submission to the first step, in milliseconds; the longest of all sequences.
    pub queued_ms: f64,
    /// From the beginning of the first step to the end of the last, in milliseconds; the longest of
    /// all sequences.
    pub denoise_ms: f64,
    /// What was cached: `none` and `block` are exact, `prefix` and `dual` approximate.
    pub cache: CacheScheme,
    /// The seed: given with the same request again, it gives the same answer.
    pub seed: u64,
}

/// An answer of completions in one piece, or a chunk of a stream; `C` is a choice of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Answer<'a, C> {
    /// Identifier of the answer.
    pub id: &'a str,
    /// What it is: an answer or a chunk, of which endpoint.
    pub object: &'static str,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served model's name.
    pub model: &'a str,
    /// One a sequence; in a chunk, the one that it is of.
    pub choices: Vec<C>,
    /// Token counts. In a stream of OpenAI's shape absent unless asked for, then null in every chunk but the last;
    /// in one of Mistral's in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// What denoising took; in a stream, in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diffusion: Option<DiffusionReport>,
}
