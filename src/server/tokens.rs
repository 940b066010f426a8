//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::deadline::Deadline;
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::state::AppState;
use super::validate;
use super::wire::{DetokenizeRequest, Detokenized, TokenizeRequest, Tokenized};

/// The tokens of a text.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "Text",
    operation_id = "tokenize",
    request_body(content = TokenizeRequest, example = json!({"content": "Once upon a time", "with_pieces": true})),
    responses(
        (status = 200, description = "The tokens", body = Tokenized),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn tokenize(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<Tokenized>, ApiError> {
    validate::checked(&state, deadline, request, validate::tokenize)
        .await
        .map(Json)
}

/// The text of tokens.
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "Text",
    operation_id = "detokenize",
    request_body(content = DetokenizeRequest, example = json!({"tokens": [1, 2, 3]})),
    responses(
        (status = 200, description = "The text", body = Detokenized),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn detokenize(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Detokenized>, ApiError> {
    validate::checked(&state, deadline, request, validate::detokenize)
        .await
        .map(Json)
}
