//! `POST /v1/chat/completions` and `POST /apply-template`.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{DiffusionReport, Usage};
use super::completion::StreamOptions;
use super::diffusion::DiffusionOptions;
use super::number::{Integer, Real, Whole};
use super::object::Object;
use super::prompt::Stop;

/// A request for an answer to a chat, in OpenAI's shape, with `top_k`, `diffusion` and what vLLM has for
/// the template beside it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The chat so far.
    pub messages: Option<Vec<Object<MessageFields>>>,
    /// Whether the template begins an answer; true if absent.
    pub add_generation_prompt: Option<bool>,
    /// Whether the last message is to be continued; false if absent.
    pub continue_final_message: Option<bool>,
    /// Variables of the template's own.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Slots of the gap.
    pub max_completion_tokens: Option<Whole>,
    /// The older name of `max_completion_tokens`.
    pub max_tokens: Option<Whole>,
    /// As the plan says if absent.
    pub temperature: Option<Real>,
    /// As the plan says if absent.
    pub top_p: Option<Real>,
    /// As the plan says if absent; 0 and −1 keep all tokens.
    pub top_k: Option<Integer>,
    /// Answers; 1 if absent.
    pub n: Option<Whole>,
    /// Random if absent.
    pub seed: Option<Whole>,
    /// Strings that end an answer.
    pub stop: Option<Stop>,
    /// Whether to answer with server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<Object<StreamOptions>>,
    /// Decode options.
    pub diffusion: Option<Object<DiffusionOptions>>,
    /// An end user's name, which is not used.
    pub user: Option<String>,
    /// The newer name of `user`, which is not used.
    pub safety_identifier: Option<String>,
    /// A hint for OpenAI's caches, which is not used.
    pub prompt_cache_key: Option<String>,
    /// Not supported but at 0.
    pub presence_penalty: Option<Real>,
    /// Not supported but at 0.
    pub frequency_penalty: Option<Real>,
    /// Not supported but when empty.
    pub logit_bias: Option<Map<String, Value>>,
    /// Not supported but at false.
    pub logprobs: Option<Value>,
    /// Not supported but at 0.
    pub top_logprobs: Option<Value>,
    /// Not supported but for text.
    pub response_format: Option<Value>,
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
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyTemplateRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The chat so far.
    pub messages: Option<Vec<Object<MessageFields>>>,
    /// Whether the template begins an answer; true if absent.
    pub add_generation_prompt: Option<bool>,
    /// Whether the last message is to be continued; false if absent.
    pub continue_final_message: Option<bool>,
    /// Variables of the template's own.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartFields {
    /// `text`; others are known and not supported.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The text of a part of type `text`.
    pub text: Option<String>,
    image_url: Option<IgnoredAny>,
    input_audio: Option<IgnoredAny>,
    file: Option<IgnoredAny>,
    refusal: Option<IgnoredAny>,
}

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

/// The `object` of an answer.
pub const CHAT_OBJECT: &str = "chat.completion";

/// The `object` of a chunk.
pub const CHAT_CHUNK_OBJECT: &str = "chat.completion.chunk";

/// An answer, or a chunk of a stream.
#[derive(Debug, Serialize)]
pub struct Chat<'a> {
    /// Identifier of the answer.
    pub id: &'a str,
    /// [`CHAT_OBJECT`] or [`CHAT_CHUNK_OBJECT`].
    pub object: &'static str,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served model's name.
    pub model: &'a str,
    /// One a sequence; in a chunk, the one that it is of.
    pub choices: Vec<ChatChoice>,
    /// Token counts. In a stream absent unless asked for; then null in every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// What denoising took; in a stream, in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diffusion: Option<DiffusionReport>,
}

/// An answer's message, or a piece of one.
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// Which sequence.
    pub index: usize,
    /// The message of an answer in one piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<AnswerMessage>,
    /// What is new of the message, in a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    /// Always null.
    pub logprobs: Option<Value>,
    /// Why it ended: `stop` or `length`; null in chunks before the end.
    pub finish_reason: Option<&'static str>,
}

/// The message of an answer.
#[derive(Debug, Serialize)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The answer's text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
}

/// What a chunk adds to a message.
#[derive(Debug, Default, Serialize)]
pub struct Delta {
    /// `assistant`, in a sequence's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text; empty in the first chunk, absent in the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
