//! `POST /v1/fim/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::completion::StreamOptions;
use super::diffusion::DiffusionOptions;
use super::logprobs::ChatLogprobs;
use super::number::{Integer, Real, Whole};
use super::object::Object;
use super::prompt::Texts;
use super::response_format::ResponseFormat;

/// A request to fill the gap between a prompt and a suffix, in Mistral's shape.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FimRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The text before the gap.
    #[schema(required = true)]
    pub prompt: Option<String>,
    /// The text after the gap; without it, the prompt is completed.
    pub suffix: Option<String>,
    /// Slots of the gap; 64 if absent.
    pub max_tokens: Option<Whole>,
    /// Not supported but at 0.
    pub min_tokens: Option<Whole>,
    /// As the plan says if absent.
    pub temperature: Option<Real>,
    /// As the plan says if absent.
    pub top_p: Option<Real>,
    /// Keeps the tokens whose probability is at least this share of the most probable one's: 0 to 1, 0 is off. As the
    /// plan says if absent.
    pub min_p: Option<Real>,
    /// As the plan says if absent; 0 and −1 keep all tokens.
    pub top_k: Option<Integer>,
    /// Fillings; 1 if absent.
    pub n: Option<Whole>,
    /// Random if absent.
    pub random_seed: Option<Whole>,
    /// Another name of `random_seed`.
    pub seed: Option<Whole>,
    /// Strings that end the filling.
    pub stop: Option<Texts>,
    /// Whether to answer with server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    #[schema(value_type = Option<StreamOptions>)]
    pub stream_options: Option<Object<StreamOptions>>,
    /// Another name of `stream_options.diffusion` = `frames`.
    pub diffusing: Option<bool>,
    /// What is added to the logits of tokens, by id: −100 to 100.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<Map<String, Value>>,
    /// Whether log-probabilities are reported; false if absent.
    pub logprobs: Option<bool>,
    /// Most probable tokens that are reported with each: 0 to 20; 0 if absent.
    pub top_logprobs: Option<Whole>,
    /// Decode options.
    #[schema(value_type = Option<DiffusionOptions>)]
    pub diffusion: Option<Object<DiffusionOptions>>,
    /// What the filling is to be: any text if absent.
    #[schema(value_type = Option<ResponseFormat>)]
    pub response_format: Option<Object<ResponseFormat>>,
    /// A grammar, GBNF or Lark, of which the whole filling is to be a text; allowed in the place of
    /// `response_format`.
    pub grammar: Option<String>,
    /// Labels of the client's own, which are not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    #[schema(value_type = Option<HashMap<String, Value>>)]
    pub metadata: Option<Map<String, Value>>,
    /// A hint for Mistral's caches, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub prompt_cache_key: Option<String>,
    /// Not supported but at 0.
    pub presence_penalty: Option<Real>,
    /// Not supported but at 0.
    pub frequency_penalty: Option<Real>,
}

/// A filling, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub struct FimChoice<C> {
    /// Which filling.
    pub index: usize,
    /// Its text.
    #[serde(flatten)]
    pub content: C,
    /// Log-probabilities, if they were asked for; in a chunk, of the tokens that begin in it.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended: `stop` or `length`; null in chunks before the end.
    pub finish_reason: Option<&'static str>,
}

/// The text of a whole filling.
#[derive(Debug, Serialize, ToSchema)]
pub struct FimMessage {
    /// The message.
    pub message: Delta,
}

/// A message of the assistant, or in a chunk under the name `delta` what is new of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
}

/// The text of a chunk.
#[derive(Debug, Serialize, ToSchema)]
pub struct FimDelta {
    /// What is new.
    pub delta: Delta,
}
