//! The HTTP API: OpenAI's shapes where it has them, infilling beside them.
//!
//! | endpoint | what it does |
//! |---|---|
//! | `POST /v1/completions` | completes prompts; with `suffix`, fills the gap before it |
//! | `POST /v1/chat/completions` | answers a chat, by the model's chat template |
//! | `POST /v1/infill` | fills the gaps of a text and says how each token came to be |
//! | `POST /tokenize`, `POST /detokenize` | texts to tokens and back, as llama.cpp's server has it |
//! | `POST /apply-template` | the text of a chat, as llama.cpp's server has it |
//! | `GET /v1/models`, `GET /v1/models/{id}` | the served model, its presets and limits |
//! | `GET /health` | 200 while the process lives |
//!
//! Where OpenAI's API leaves a choice, or a diffusion model asks for another one:
//!
//! - `temperature`, `top_p` and `top_k` are those of the decode plan unless given: the plan of
//!   `diffusion.preset` if it is named, the model's default plan otherwise. Both may be greedy.
//! - A completion is final when the committed slots from the left on hold a stop token or a stop
//!   string; what is still masked then is never denoised. Of several stop strings the one that is
//!   complete first wins, whatever the token borders. Under a plan with revision nothing is final
//!   before the end, and a stream brings the whole text then.
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
//! - `echo` brings the prompt as it was sent, not the suffix.
//! - `diffusion` of an answer counts steps of all its sequences together and times of the longest; in
//!   a stream, the last frame before `[DONE]` carries it.
//! - An error after a stream has begun is a frame with `error`, then `[DONE]`.
//!
//! A request goes one way: `extract` reads the body into a type of `wire`, `validate` turns that into
//! a checked job with its canvases laid out, `run` follows its generations, and the endpoint's module
//! reads the canvases back as one answer or as server-sent events. Nothing behind `validate` meets a
//! value that was not checked.

mod chat;
mod completion_text;
mod completions;
mod error;
mod extract;
mod head;
mod infill;
mod infill_text;
mod models;
mod random;
mod request_id;
mod run;
mod sse;
mod state;
mod tokens;
mod validate;
mod wire;

use std::any::Any;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tracing::Level;

use error::ApiError;
pub use state::{AppState, Limits};

/// All endpoints.
pub fn router(state: AppState) -> Router {
    let body_limit = DefaultBodyLimit::max(state.limits.body_bytes);
    Router::new()
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/infill", post(infill::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(chat::apply_template))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/health", get(models::health))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_path)
        .layer(body_limit)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(request_id::span)
                .on_response(DefaultOnResponse::new().level(Level::INFO)),
        )
        .layer(middleware::from_fn(request_id::assign))
        .with_state(Arc::new(state))
}

/// A handler's panic is a defect; the message goes to the log, not to the client.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(message, "a handler panicked");
    ApiError::internal("the request could not be handled because of a defect in the server".into())
        .into_response()
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::no_such_path(&method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(&method, uri.path())
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every request that had begun was answered.
    Drained,
    /// The time to drain was over while requests still ran.
    DeadlinePassed,
}

/// Serves `router` until `shutdown` resolves, then takes no new connections and gives the requests
/// that run at most `drain` to finish. Requests that outlive it are dropped with the runtime.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> std::io::Result<Ending> {
    // Frames of a stream are small: they must not wait for one another.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let (begin, begun) = oneshot::channel();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            shutdown.await;
            tracing::info!(seconds = drain.as_secs(), "draining");
            // The receiver is gone only if the server has ended already.
            let _ = begin.send(());
        })
        .into_future();
    let deadline = async move {
        match begun.await {
            Ok(()) => tokio::time::sleep(drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = server => ended.map(|()| Ending::Drained),
        () = deadline => Ok(Ending::DeadlinePassed),
    }
}
