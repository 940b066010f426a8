//! `POST /v1/chat/completions` and `POST /apply-template`.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::completion::StreamOptions;
use super::diffusion::DiffusionOptions;
use super::logprobs::ChatLogprobs;
use super::number::{Integer, Real, Whole};
use super::object::Object;
use super::prompt::{Texts, one_of};
use super::response_format::ResponseFormat;

/// A request for an answer to a chat, in OpenAI's shape, with `top_k`, `diffusion` and what vLLM has for
/// the template beside it.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The chat so far.
    #[schema(required = true, value_type = Vec<MessageFields>)]
    pub messages: Option<Vec<Object<MessageFields>>>,
    /// Whether the template begins an answer; true if absent.
    pub add_generation_prompt: Option<bool>,
    /// Whether the last message is to be continued; false if absent.
    pub continue_final_message: Option<bool>,
    /// Variables of the template's own.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Slots of the gap.
    pub max_completion_tokens: Option<Whole>,
    /// The older name of `max_completion_tokens`.
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
    /// Answers; 1 if absent.
    pub n: Option<Whole>,
    /// Random if absent.
    pub seed: Option<Whole>,
    /// Strings that end an answer.
    pub stop: Option<Texts>,
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
    /// The newer name of `user`, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub safety_identifier: Option<String>,
    /// A hint for OpenAI's caches, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub prompt_cache_key: Option<String>,
    /// How long OpenAI's caches are to keep the prompt, which is not used.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub prompt_cache_retention: Option<String>,
    /// Not supported.
    pub prompt_cache_options: Option<Value>,
    /// Not supported.
    pub moderation: Option<Value>,
    /// Not supported but at 0.
    pub presence_penalty: Option<Real>,
    /// Not supported but at 0.
    pub frequency_penalty: Option<Real>,
    /// What is added to the logits of tokens, by id: −100 to 100.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<Map<String, Value>>,
    /// Whether the answer's tokens come with their log-probabilities.
    pub logprobs: Option<bool>,
    /// Most probable tokens that are reported with each token: 0 to 20.
    pub top_logprobs: Option<Whole>,
    /// What an answer is to be: any text if absent.
    #[schema(value_type = Option<ResponseFormat>)]
    pub response_format: Option<Object<ResponseFormat>>,
    /// A grammar, GBNF or Lark, of which the whole answer is to be a text; allowed in the place of
    /// `response_format`.
    pub grammar: Option<String>,
    /// Not supported but when empty.
    pub tools: Option<Value>,
    /// Not supported but at `none`.
    pub tool_choice: Option<Value>,
    /// Not supported but at true.
    pub parallel_tool_calls: Option<Value>,
    /// Not supported but when empty.
    pub functions: Option<Value>,
    /// Not supported but at `none`.
    pub function_call: Option<Value>,
    /// Not supported but for text.
    pub modalities: Option<Value>,
    /// Not supported.
    pub audio: Option<Value>,
    /// Not supported.
    pub prediction: Option<Value>,
    /// Not supported.
    pub web_search_options: Option<Value>,
    /// Not supported but at `none`.
    pub reasoning_effort: Option<Value>,
    /// Not supported but at `medium`.
    pub verbosity: Option<Value>,
    /// Not supported but at `auto` and `default`.
    pub service_tier: Option<Value>,
    /// Not supported but at false.
    pub store: Option<Value>,
    /// Not supported but when empty.
    pub metadata: Option<Value>,
}

/// A request for the text of a chat, as llama.cpp's server has it.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyTemplateRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The chat so far.
    #[schema(required = true, value_type = Vec<MessageFields>)]
    pub messages: Option<Vec<Object<MessageFields>>>,
    /// Whether the template begins an answer; true if absent.
    pub add_generation_prompt: Option<bool>,
    /// Whether the last message is to be continued; false if absent.
    pub continue_final_message: Option<bool>,
    /// Variables of the template's own.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageFields {
    /// Who speaks.
    pub role: Option<String>,
    /// What is said.
    pub content: Option<Content>,
    /// The speaker's name.
    pub name: Option<String>,
    /// Comes with answers of OpenAI's; not supported but at null, and so are the following.
    pub refusal: Option<Value>,
    /// Not supported but when empty.
    pub annotations: Option<Value>,
    /// Not supported.
    pub audio: Option<Value>,
    /// Not supported but when empty.
    pub tool_calls: Option<Value>,
    /// Not supported.
    pub tool_call_id: Option<Value>,
    /// Not supported.
    pub function_call: Option<Value>,
}

/// `content`: a text, or a list of parts.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts.
    Parts(Vec<PartFields>),
}

/// A part of a message.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartFields {
    /// `text`; others are known and not supported.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The text of a part of type `text`.
    pub text: Option<String>,
    #[schema(ignore)]
    image_url: Option<IgnoredAny>,
    #[schema(ignore)]
    input_audio: Option<IgnoredAny>,
    #[schema(ignore)]
    file: Option<IgnoredAny>,
    #[schema(ignore)]
    refusal: Option<IgnoredAny>,
}

impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        let parts = ArrayBuilder::new().items(PartFields::schema()).into();
        one_of(
            "A text, or a list of parts.",
            [String::schema(), RefOr::T(parts)],
        )
    }
}

impl ToSchema for Content {}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(r#"a string, or a list of parts {"type": "text", "text": "…"}"#)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(Object(part)) = items.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// The `object` of an answer, and of a filling in Mistral's shape.
pub const CHAT_OBJECT: &str = "chat.completion";

/// The `object` of a chunk of either.
pub const CHAT_CHUNK_OBJECT: &str = "chat.completion.chunk";

/// Who answers.
pub const ASSISTANT: &str = "assistant";

/// An answer's message, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which sequence.
    pub index: usize,
    /// The message of an answer in one piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<AnswerMessage>,
    /// What is new of the message, in a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<ChatDelta>,
    /// Log-probabilities, if they were asked for; in a chunk, of the tokens that begin in it.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended: `stop` or `length`; null in chunks before the end.
    pub finish_reason: Option<&'static str>,
}

/// The message of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The answer's text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
}

/// What a chunk adds to a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant`, in a sequence's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text; empty in the first chunk, absent in the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// The text of a chat.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenderedChat {
    /// The text.
    pub prompt: String,
}
