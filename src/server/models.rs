//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use serde::ser::{Error, Serializer};
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use super::state::{AppState, Limits};
use super::wire;
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
    sliding_window: Option<SlidingWindow>,
    /// What a gap is filled by: `bidirectional`, all of the canvas; `left-context`, what precedes the end
    /// of its block, and only where a request asks for that; `none`, where the model only goes on from a text.
    infill: &'static str,
    /// What gaps can be held to; nothing for models of the uniform process.
    constraints: &'static [&'static str],
    /// Which slots a slot sees.
    attention: AttentionPattern,
    /// The policies of `diffusion.cache` that the model allows, and what each comes to.
    #[schema(value_type = HashMap<String, CacheScheme>)]
    cache: BTreeMap<&'static str, CacheScheme>,
    /// Whether a request with a seed gives the same tokens whatever else is served at the same time.
    batch_invariant: bool,
    /// How canvases are denoised when a request does not say.
    #[serde(serialize_with = "without_seed")]
    default_plan: DecodePlan,
    presets: Vec<PresetEntry>,
    limits: ModelLimits,
}

/// What one request may ask for.
#[derive(Serialize, ToSchema)]
struct ModelLimits {
    /// Most sequences a request: prompts times `n`.
    sequences: usize,
    /// Most stop strings a request.
    stop_strings: usize,
    /// Longest stop string, in bytes of UTF-8.
    stop_string_bytes: usize,
    /// Most entries of `logit_bias`.
    logit_bias_entries: usize,
    /// Most Monte-Carlo samples of a request to score, all texts together.
    score_samples: usize,
    /// Most choices of a gap.
    choices: usize,
    /// Most forwards that the choices of a request may take.
    choice_forwards: usize,
    /// Longest name of a gap, in bytes of UTF-8.
    gap_name_bytes: usize,
    /// Longest regular expression of a gap, in bytes of UTF-8.
    regex_bytes: usize,
    /// Most different regular expressions and grammars a request.
    forms: usize,
    /// Largest request body, in bytes.
    body_bytes: usize,
    /// The least time between two frames of a canvas, in milliseconds.
    frame_interval_ms: u64,
}

impl ModelLimits {
    fn of(limits: &Limits) -> Self {
        Self {
            sequences: limits.sequences,
            stop_strings: limits.stop_strings,
            stop_string_bytes: limits.stop_string_bytes,
            logit_bias_entries: limits.logit_bias_entries,
            score_samples: limits.score_samples,
            choices: limits.choices,
            choice_forwards: limits.choice_forwards,
            gap_name_bytes: limits.gap_name_bytes,
            regex_bytes: limits.regex_bytes,
            forms: limits.forms,
            body_bytes: limits.body_bytes,
            frame_interval_ms: limits.frame_interval.as_millis() as u64,
        }
    }
}

/// A named plan.
#[derive(Serialize, ToSchema)]
struct PresetEntry {
    name: &'static str,
    description: &'static str,
    #[serde(serialize_with = "without_seed")]
    plan: DecodePlan,
}

/// A plan but for its seed, which is a request's own.
fn without_seed<S: Serializer>(plan: &DecodePlan, serializer: S) -> Result<S::Ok, S::Error> {
    let mut plan = wire::as_written(plan).map_err(S::Error::custom)?;
    if let Some(sampling) = plan["sampling"].as_object_mut() {
        sampling.remove("seed");
    }
    plan.serialize(serializer)
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
            AttentionPattern::EncodedBlocks { .. } => "none",
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
        limits: ModelLimits::of(&state.limits),
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
