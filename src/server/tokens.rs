//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::error::ApiError;
use super::extract::Body;
use super::state::AppState;
use super::validate;
use super::wire::{DetokenizeRequest, Detokenized, TokenizeRequest, Tokenized};

/// The tokens of a text.
pub(super) async fn tokenize(
    State(state): State<Arc<AppState>>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<Tokenized>, ApiError> {
    validate::checked(&state, request, validate::tokenize)
        .await
        .map(Json)
}

/// The text of tokens.
pub(super) async fn detokenize(
    State(state): State<Arc<AppState>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Detokenized>, ApiError> {
    validate::checked(&state, request, validate::detokenize)
        .await
        .map(Json)
}
