//! The HTTP API: OpenAI's shapes where it has them, infilling beside them.
//!
//! | endpoint | what it does |
//! |---|---|
//! | `POST /v1/completions` | completes prompts; with `suffix`, fills the gap before it |
//! | `POST /v1/chat/completions` | answers a chat, by the model's chat template |
//! | `POST /v1/infill` | fills the gaps of a text and says how each token came to be |
//! | `POST /v1/fim/completions` | fills the gap between prompt and suffix, as Mistral's API has it |
//! | `POST /infill` | the same for editors that speak to llama.cpp's server |
//! | `POST /v1/score` | the NELBO of texts, with its Monte-Carlo standard error |
//! | `POST /tokenize`, `POST /detokenize` | texts to tokens and back, as llama.cpp's server has it |
//! | `POST /apply-template` | the text of a chat, as llama.cpp's server has it |
//! | `GET /v1/models`, `GET /v1/models/{id}` | the served model, its presets and limits |
//! | `GET /health` | 200 while the process lives |
//! | `GET /ready` | 200 while requests are answered: the model is loaded and the engine steps |
//! | `GET /` | a page to try the model with |
//! | `GET /openapi.json`, `GET /docs` | the description of this API, and a page to read it |
//! | `GET /metrics` | what the server counts, for Prometheus |
//!
//! Where OpenAI's API leaves a choice, or a diffusion model asks for another one:
//!
//! - `temperature`, `top_p`, `min_p` and `top_k` are those of the decode plan unless given: the plan of
//!   `diffusion.preset` if it is named, the model's default plan otherwise. Both may be greedy. A
//!   `temperature` that is given holds for all steps, whatever schedule the plan has, unless the request
//!   names a `diffusion.temperature_schedule` too.
//! - A completion is final when the committed slots from the left on hold a stop token or a stop
//!   string; what is still masked then is never denoised. Of several stop strings the one that is
//!   complete first wins, whatever the token borders. Under a plan with revision a slot is
//!   final once its block is finished.
//! - `completion_tokens` counts the tokens that the text was read from, with the stop token or those
//!   of the stop string, as vLLM does. `prompt_tokens` counts each prompt once, and its suffix.
//! - Choice i of `n` is what the seed plus i gives alone; each prompt of a list is answered as it
//!   would be alone. A seed that is not given is drawn, and returned as `diffusion.seed`.
//! - A model that knows whole blocks only has its last block filled up with scratch slots, which are
//!   denoised and neither returned nor counted, except by the limit on the canvas.
//! - A chat is a completion of the text that the chat template makes of the messages, special tokens
//!   written out in them included. The role `developer` is `system` to the template. Without
//!   `max_completion_tokens` or `max_tokens` an answer has up to 256 tokens, as many as the model's
//!   limit leaves.
//! - With `response_format` a completion is a whole text of that form, and ends as `stop`; it may take more
//!   steps than were asked for.
//! - `echo` brings the prompt as it was sent, not the suffix.
//! - `diffusion` of an answer counts steps of all its sequences together and times of the longest; in
//!   a stream, the last frame before `[DONE]` carries it.
//! - An error after a stream has begun is a frame with `error`, then `[DONE]`.
//!
//! A request goes one way: `receive` takes its body in, `extract` reads that into a type of `wire`, `validate` turns that into
//! a checked job with its canvases laid out, `run` follows its generations, and the endpoint's module
//! reads the canvases back as one answer or as server-sent events. Nothing behind `validate` meets a
//! value that was not checked.

mod admission;
mod auth;
mod background;
mod chat;
mod choices;
mod completion_reader;
mod completion_text;
mod completions;
mod deadline;
mod error;
mod extract;
mod fim;
mod frames;
mod head;
mod infill;
mod infill_reader;
mod infill_text;
mod languages;
mod ledger;
mod listen;
mod llama_infill;
mod logprobs;
mod metrics;
mod models;
mod observed_body;
mod openapi;
mod playground;
mod probe;
mod probes;
mod random;
mod receive;
mod request_id;
mod requests;
mod run;
mod score;
mod sse;
mod stall;
mod state;
#[cfg(feature = "otel")]
mod telemetry;
mod tokens;
mod validate;
mod wire;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any as AnyOrigin, CorsLayer};

pub use auth::{ApiKeyError, ApiKeys};
use error::ApiError;
pub use listen::{Ending, ListenConfig, serve};
pub use state::{Access, AppState, Limits};
#[cfg(feature = "otel")]
pub use telemetry::{Traces, TracesError};

/// All endpoints.
pub fn router(state: AppState) -> Router {
    let state = Arc::new(state);
    let denoising = Router::new()
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/infill", post(infill::create))
        .route("/v1/fim/completions", post(fim::create))
        .route("/infill", post(llama_infill::create))
        .route_layer(middleware::map_response(requests::denoised));
    let mut keyed = denoising
        .route("/v1/score", post(score::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(chat::apply_template))
        .route_layer(middleware::from_fn_with_state(
            state.clone(),
            admission::admit,
        ))
        .route_layer(middleware::from_fn_with_state(
            state.clone(),
            receive::receive,
        ))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve));
    let mut open = Router::new()
        .route("/openapi.json", get(openapi::get))
        .route("/docs", get(openapi::docs))
        .route("/", get(playground::page))
        .route("/playground.css", get(playground::style))
        .route("/playground.js", get(playground::script))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready));
    let metrics = get(metrics::get);
    if state.access.open_metrics {
        open = open.route("/metrics", metrics);
    } else {
        keyed = keyed.route("/metrics", metrics);
    }
    let router = keyed
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::check))
        .merge(open)
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_path)
        // What `receive` lets pass is bounded already.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cross_origin(&state.access))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            requests::follow,
        ));
    #[cfg(feature = "otel")]
    let router = telemetry::traced(router, &state);
    router
        .layer(middleware::from_fn(request_id::assign))
        .with_state(state)
}

/// What web pages of other origins may do: nothing, unless the server is told their origins.
fn cross_origin(access: &Access) -> CorsLayer {
    let origins = &access.origins;
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let allowed: AllowOrigin = match origins.iter().any(|origin| origin == "*") {
        true => AnyOrigin.into(),
        false => origins.clone().into(),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // Clients have headers of their own (OpenAI's: x-stainless-*), and none does anything but by its key.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([request_id::HEADER, header::RETRY_AFTER, error::SHOULD_RETRY])
}

/// A handler's panic is a defect: its message is for the process's panic hook, not for the client.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::internal("the request could not be handled because of a defect in the server".into())
        .into_response()
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(&method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(&method, uri.path())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn every_route_is_described() {
        let source = include_str!("mod.rs");
        let routes = source.split(".route(\"").skip(1);
        // An identifier may hold slashes, which OpenAPI has no mark for.
        let routes = routes.filter_map(|rest| Some(rest.split('"').next()?.replace("{*", "{")));
        let document = super::openapi::get().await.unwrap().0;
        let described = document["paths"].as_object().unwrap();
        let described: BTreeSet<String> = described.keys().cloned().collect();
        // What is left is how this test finds them.
        let routes: BTreeSet<String> = routes.filter(|route| route.starts_with('/')).collect();
        assert!(routes.len() > 8, "{routes:?}");
        assert_eq!(routes, described);
        let paths = document["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|methods| methods.as_object().unwrap().values());
        let names: Vec<&str> = operations
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}
