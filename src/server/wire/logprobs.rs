//! Log-probabilities of the tokens of an answer, in OpenAI's two shapes.

use std::collections::HashMap;

use serde::{Serialize, Serializer};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// `logprobs` of a completion: parallel lists with one entry a token of the text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The tokens' texts; one that is part of a character is written `bytes:\xe2\x82`.
    pub tokens: Vec<String>,
    /// Their log-probabilities; null for those of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens in their places, and the token itself; null for those of a prompt.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// An object from a token's text to its log-probability, in descending order; of several tokens with one
/// text the most probable.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

impl PartialSchema for TopLogprobs {
    fn schema() -> RefOr<Schema> {
        HashMap::<String, f32>::schema()
    }
}

impl ToSchema for TopLogprobs {}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

/// `logprobs` of a chat message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry a token of the message.
    pub content: Vec<TokenLogprobs>,
    /// Always null.
    #[schema(value_type = Option<String>)]
    pub refusal: Option<()>,
}

/// A token with its log-probability and the most probable ones in its place.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprobs {
    /// The token.
    #[serde(flatten)]
    pub token: TokenLogprob,
    /// The most probable tokens, best first; as many as were asked for.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text; U+FFFD stands for part of a character.
    pub token: String,
    /// Its log-probability, in nats.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}
