//! `POST /v1/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::diffusion::DiffusionOptions;
use super::frame::StreamedDiffusion;
use super::logprobs::CompletionLogprobs;
use super::number::{Integer, Real, Whole};
use super::object::Object;
use super::prompt::{Prompt, Texts};
use super::response_format::ResponseFormat;

/// A request for completions, in OpenAI's shape with `top_k` and `diffusion` beside it.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// What is to be completed.
    #[schema(required = true)]
    pub prompt: Option<Prompt>,
    /// Text after the completion: makes it an infilling.
    pub suffix: Option<String>,
    /// Slots of the gap; 16 if absent.
    pub max_tokens: Option<Whole>,
    /// As the plan says if absent.
    pub temperature: Option<Real>,
    /// As the plan says if absent.
    pub top_p: Option<Real>,
    /// Keeps the tokens whose probability is at least this share of the most probable one's: 0 to 1, 0 is off. As the
    /// plan says if absent.
    pub min_p: Option<Real>,
    /// As the plan says if absent; 0 and −1 keep all tokens.
    pub top_k: Option<Integer>,
    /// Completions a prompt; 1 if absent.
    pub n: Option<Whole>,
    /// Random if absent.
    pub seed: Option<Whole>,
    /// Strings that end a completion.
    pub stop: Option<Texts>,
    /// Whether the prompt comes back before the completion.
    pub echo: Option<bool>,
    /// Whether to answer with server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    #[schema(value_type = Option<StreamOptions>)]
    pub stream_options: Option<Object<StreamOptions>>,
    /// Another name of `stream_options.diffusion` = `frames`.
    pub diffusing: Option<bool>,
    /// Decode options.
    #[schema(value_type = Option<DiffusionOptions>)]
    pub diffusion: Option<Object<DiffusionOptions>>,
    /// An end user's name, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub user: Option<String>,
    /// Not supported but at `n`.
    pub best_of: Option<Whole>,
    /// Not supported but at 0.
    pub presence_penalty: Option<Real>,
    /// Not supported but at 0.
    pub frequency_penalty: Option<Real>,
    /// What is added to the logits of tokens, by id: −100 to 100.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<Map<String, Value>>,
    /// What a completion is to be: any text if absent.
    #[schema(value_type = Option<ResponseFormat>)]
    pub response_format: Option<Object<ResponseFormat>>,
    /// A grammar, GBNF or Lark, of which the whole completion is to be a text; allowed in the place of
    /// `response_format`.
    pub grammar: Option<String>,
    /// Most probable tokens that are reported with each token: 0 to 20; no log-probabilities if absent.
    pub logprobs: Option<Whole>,
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether a last chunk without choices carries the usage.
    pub include_usage: Option<bool>,
    /// Frames of the canvas beside the text that is final.
    pub diffusion: Option<StreamedDiffusion>,
    /// Not supported but at false.
    pub include_obfuscation: Option<bool>,
}

/// The `object` of an answer and of each chunk.
pub const COMPLETION_OBJECT: &str = "text_completion";

/// A completion, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Which sequence: prompt times `n` plus the completion's number.
    pub index: usize,
    /// Its text; in a chunk, what is new of it.
    pub text: String,
    /// Log-probabilities, if they were asked for; in a chunk, of the tokens that begin in it.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended: `stop` or `length`; null in chunks before the end.
    pub finish_reason: Option<&'static str>,
}
