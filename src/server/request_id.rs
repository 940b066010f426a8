//! `x-request-id`: taken from the request or made up, in every log line and on every answer.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Span;

use super::random;

/// The header's name.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest identifier that is taken from a client, in bytes.
const MAX_LENGTH: usize = 128;

/// Sees to it that request and answer carry the same identifier. One that is too long or not visible
/// ASCII is replaced, so that it cannot garble logs.
pub(super) async fn assign(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&HEADER).filter(|id| {
        (1..=MAX_LENGTH).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    let id = match given {
        Some(id) => id.clone(),
        None => match random::identifier() {
            // Hexadecimal digits are a valid header value.
            Ok(id) => HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none")),
            Err(error) => return error.into_response(),
        },
    };
    request.headers_mut().insert(HEADER, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(HEADER, id);
    response
}

/// The span of a request. It holds no part of the body.
pub(super) fn span<B>(request: &axum::http::Request<B>) -> Span {
    let id = request.headers().get(&HEADER);
    tracing::info_span!(
        "request",
        id = id.and_then(|id| id.to_str().ok()).unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
        key = tracing::field::Empty,
    )
}
