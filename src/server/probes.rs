//! `GET /health` and `GET /ready`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::{ApiError, ErrorBody};
use super::state::AppState;

/// So many denoise steps in a row that bring none of their sequences on are no accident of a request.
const FAILING_STEPS: usize = 10;

/// That the server is alive.
#[utoipa::path(
    get,
    path = "/health",
    tag = "Server",
    operation_id = "health",
    responses(
        (status = 200, description = "The answer", body = Object),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// That requests are answered: the model is loaded, and the engine steps where there is something to denoise, and not
/// in vain.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "Server",
    operation_id = "ready",
    responses(
        (status = 200, description = "The answer", body = Object),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn ready(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    if !state.engine.is_running() {
        return Err(ApiError::not_ready("the engine has stopped".into()));
    }
    let failing = state.engine.status().failing;
    if failing >= FAILING_STEPS {
        return Err(ApiError::not_ready(format!(
            "the last {failing} denoise steps failed; the log says why"
        )));
    }
    match state.engine.stalled_for() {
        Some(stalled) if stalled > state.limits.step_timeout => Err(ApiError::not_ready(format!(
            "sequences have waited {} s for a denoise step to end",
            stalled.as_secs()
        ))),
        _ => Ok(Json(json!({"status": "ready", "model": state.model_name}))),
    }
}
