//! `POST /tokenize` and `POST /detokenize`, in the shapes of llama.cpp's server.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::number::Whole;
use crate::canvas::TokenId;

/// A request for the tokens of a text.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The text.
    #[schema(required = true)]
    pub content: Option<String>,
    /// Whether the special tokens come with it that the tokenizer puts around a text; false if absent.
    pub add_special: Option<bool>,
    /// Whether special tokens written out in the text are such tokens: not supported but at true.
    pub parse_special: Option<bool>,
    /// Whether each token comes with how it is written; false if absent.
    pub with_pieces: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tokenized {
    /// The tokens.
    pub tokens: TokenList,
}

/// Tokens, alone or with how they are written.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TokenList {
    /// Alone.
    Ids(Vec<TokenId>),
    /// With how they are written.
    Pieces(Vec<Piece>),
}

/// A token and how it is written.
#[derive(Debug, Serialize, ToSchema)]
pub struct Piece {
    /// The token.
    pub id: TokenId,
    /// How it is written.
    pub piece: PieceText,
}

/// How a token is written.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PieceText {
    /// As text.
    Text(String),
    /// As bytes, where they are no text by themselves.
    Bytes(Vec<u8>),
}

/// A request for the text of tokens.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The tokens.
    #[schema(required = true)]
    pub tokens: Option<Vec<Whole>>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Detokenized {
    /// The text; special tokens are written as they are called, and bytes that are no text are U+FFFD.
    pub content: String,
}
