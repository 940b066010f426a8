//! Texts to tokens and back.

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{
    DetokenizeRequest, Detokenized, Piece, PieceText, TokenList, TokenizeRequest, Tokenized,
};
use super::{check_known, check_model};

/// The tokens of a text; those that may not stand in a prompt are told as well.
pub fn tokenize(request: TokenizeRequest, state: &AppState) -> Result<Tokenized, ApiError> {
    check_model(request.model.as_deref(), state)?;
    let content = request
        .content
        .ok_or_else(|| ApiError::missing("content", "a string"))?;
    if request.parse_special == Some(false) {
        return Err(ApiError::unsupported(
            "parse_special",
            false,
            "special tokens that are written out are always such tokens; allowed: true",
        ));
    }
    let tokenizer = &state.tokenizer;
    let tokens = state.encode(&content, |tokenizer| match request.add_special {
        Some(true) => tokenizer.encode_with_special(&content),
        _ => tokenizer.encode(&content),
    });
    let tokens = tokens.map_err(|error| ApiError::unusable("content", error))?;
    if request.with_pieces != Some(true) {
        return Ok(Tokenized {
            tokens: TokenList::Ids(tokens),
        });
    }
    let piece = |id| {
        let bytes = tokenizer.piece(id);
        let piece = match std::str::from_utf8(bytes) {
            Ok(text) => PieceText::Text(text.to_owned()),
            Err(_) => PieceText::Bytes(bytes.to_vec()),
        };
        Piece { id, piece }
    };
    Ok(Tokenized {
        tokens: TokenList::Pieces(tokens.into_iter().map(piece).collect()),
    })
}

/// The text of tokens.
pub fn detokenize(request: DetokenizeRequest, state: &AppState) -> Result<Detokenized, ApiError> {
    check_model(request.model.as_deref(), state)?;
    let tokens = request
        .tokens
        .ok_or_else(|| ApiError::missing("tokens", "a list of token ids"))?;
    let tokens: Vec<_> = tokens
        .iter()
        .enumerate()
        .map(|(i, token)| check_known(token.0, &format!("tokens[{i}]"), state))
        .collect::<Result<_, _>>()?;
    let content = state.tokenizer.decode_whole(&tokens);
    Ok(Detokenized {
        content: content.map_err(|error| ApiError::unusable("tokens", error))?,
    })
}
