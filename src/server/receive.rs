//! Takes in the bodies of requests, before the requests take anything else.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::deadline::{Deadline, within};
use super::error::ApiError;
use super::state::AppState;

/// Memory for bodies that come in, a permit a byte.
pub(super) struct BodyMemory(Arc<Semaphore>);

impl BodyMemory {
    /// So many bytes for all bodies together.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        self.0.clone().try_acquire_many_owned(bytes).ok()
    }
}

/// What a body takes, kept until it is parsed: by the request, and by whoever takes the body out of it.
#[derive(Clone)]
pub(super) struct Taken {
    _memory: Arc<OwnedSemaphorePermit>,
}

/// Lets requests pass when they have come in whole: a client that sends slowly holds no place among the
/// requests that run, only the memory of what it has sent.
pub(super) async fn receive(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    if let Err(error) = check_media_type(headers).and_then(|()| check_encoding(headers)) {
        return error.into_response();
    }
    let (mut parts, body) = request.into_parts();
    let timeout = state.limits.body_timeout;
    let received = async {
        let received = tokio::time::timeout(timeout, whole(body, &state)).await;
        received.unwrap_or_else(|_| Err(ApiError::body_timeout(timeout)))
    };
    match within(Deadline::of_server(&parts.extensions), received).await {
        Ok((bytes, memory)) => {
            parts.extensions.insert(Taken {
                _memory: Arc::new(memory),
            });
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Err(error) => error.into_response(),
    }
}

/// A whole body, and the memory that it takes.
async fn whole(
    mut body: Body,
    state: &AppState,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
    let limit = state.limits.body_bytes;
    let full = || ApiError::too_many_bodies(state.limits.bodies_bytes);
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::body_too_large(limit));
    }
    let mut bytes = Vec::new();
    let mut memory = state.body_memory.take(0).ok_or_else(full)?;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::body(format!("the body cannot be read: {error}")))?;
        // Trailers say nothing here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        memory.merge(state.body_memory.take(data.len()).ok_or_else(full)?);
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, memory))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .map_or(b"".as_slice(), |value| value.as_bytes());
    let given = String::from_utf8_lossy(given);
    let mut parts = given.split(';').map(str::trim);
    let is_json = parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
    match is_json && parts.all(allows_utf8) {
        true => Ok(()),
        false => Err(ApiError::media_type(&given)),
    }
}

/// Whether a parameter of JSON's media type says nothing against UTF-8, in which JSON is.
fn allows_utf8(parameter: &str) -> bool {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let value = value.trim().trim_matches('"');
    !name.trim().eq_ignore_ascii_case("charset")
        || ["utf-8", "utf8"]
            .iter()
            .any(|utf8| value.eq_ignore_ascii_case(utf8))
}

fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
    match given.find(|given| !given.as_bytes().eq_ignore_ascii_case(b"identity")) {
        None => Ok(()),
        Some(given) => {
            let given = String::from_utf8_lossy(given.as_bytes());
            Err(ApiError::content_encoding(&given))
        }
    }
}
