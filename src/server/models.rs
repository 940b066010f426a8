//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use super::state::{AppState, Limits};
use crate::decode::{Cache, CachePolicy, DecodePlan};
use crate::engine::CacheScheme;
use crate::models::{AttentionPattern, SlidingWindow};

/// A model in OpenAI's shape, with what it can do beside it.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    family: &'static str,
    parameters: usize,
    vocab_size: usize,
    /// Longest canvas, in slots.
    context_length: usize,
    /// How requests with `diffusion.sliding_window` denoise longer canvases, of models that are sampled so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    sliding_window: Option<SlidingWindow>,
    /// What a gap is filled by: `bidirectional`, all of the canvas; `left-context`, what precedes the end
    /// of its block, and only where a request asks for that.
    infill: &'static str,
    /// What gaps can be held to; nothing for models of the uniform process.
    constraints: &'static [&'static str],
    /// Which slots a slot sees: "bidirectional", or an object of the block length.
    #[schema(value_type = serde_json::Value)]
    attention: AttentionPattern,
    /// The policies of `diffusion.cache` that the model allows, and what each comes to.
    #[schema(value_type = Object)]
    cache: BTreeMap<&'static str, CacheScheme>,
    /// Whether a request with a seed gives the same tokens whatever else is served at the same time.
    batch_invariant: bool,
    #[schema(value_type = Object)]
    default_plan: DecodePlan,
    presets: Vec<PresetEntry>,
    #[schema(value_type = Object)]
    limits: Limits,
}

#[derive(Serialize, ToSchema)]
struct PresetEntry {
    name: &'static str,
    description: &'static str,
    #[schema(value_type = Object)]
    plan: DecodePlan,
}

/// A list in OpenAI's shape.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

fn model(state: &AppState) -> Model {
    let spec = state.engine.spec();
    Model {
        id: state.model_name.clone(),
        object: "model",
        created: state.created,
        owned_by: "unmask",
        family: spec.family,
        parameters: spec.parameters,
        vocab_size: spec.vocab_size,
        context_length: spec.max_canvas,
        sliding_window: spec.sliding_window,
        infill: match spec.attention {
            AttentionPattern::Bidirectional => "bidirectional",
            AttentionPattern::BlockCausal { .. } => "left-context",
        },
        constraints: match spec.mask_token() {
            Some(_) => &["regex", "grammar", "json_object", "json_schema"],
            None => &[],
        },
        attention: spec.attention,
        cache: CachePolicy::ALL
            .into_iter()
            .filter_map(|policy| {
                let plan = DecodePlan {
                    cache: Cache {
                        policy,
                        refresh: None,
                    },
                    ..DecodePlan::default()
                };
                Some((policy.name(), state.engine.cache_scheme(&plan).ok()?))
            })
            .collect(),
        batch_invariant: state.engine.is_batch_invariant(),
        default_plan: spec.default_plan.clone(),
        presets: spec
            .presets()
            .into_iter()
            .map(|preset| PresetEntry {
                name: preset.name,
                description: preset.description,
                plan: spec.plan(&preset),
            })
            .collect(),
        limits: state.limits.clone(),
    }
}

/// The served models: one.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "Server",
    operation_id = "models",
    responses(
        (status = 200, description = "The answer", body = ModelList),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn list(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: vec![model(&state)],
    })
}

/// One model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "Server",
    operation_id = "model",
    params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The answer", body = Model),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn retrieve(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id.map_err(ApiError::path)?;
    if id == state.model_name {
        Ok(Json(model(&state)))
    } else {
        Err(ApiError::no_such_model(&id, &state.model_name))
    }
}
