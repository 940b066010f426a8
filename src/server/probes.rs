//! `GET /health` and `GET /ready`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::AppState;

/// That the server is alive.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// That requests are answered: the model is loaded, and the engine steps where there is something to denoise.
pub(super) async fn ready(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    if !state.engine.is_running() {
        return Err(ApiError::not_ready("the engine has stopped".into()));
    }
    match state.engine.stalled_for() {
        Some(stalled) if stalled > state.limits.step_timeout => Err(ApiError::not_ready(format!(
            "sequences have waited {} s for a denoise step to end",
            stalled.as_secs()
        ))),
        _ => Ok(Json(json!({"status": "ready", "model": state.model_name}))),
    }
}
