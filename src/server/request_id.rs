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

/// The most of a path that is written down, in bytes.
pub(super) const MAX_PATH: usize = 1024;

/// The most of a method that is written down, in bytes.
pub(super) const MAX_METHOD: usize = 64;

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

/// The span of a request. It holds no part of the body, and bounded parts of the head. Its level is the highest, so that
/// whatever the log has of the request says whose it is.
pub(super) fn span(request: &Request) -> Span {
    let id = request.headers().get(&HEADER);
    tracing::error_span!(
        "request",
        id = id.and_then(|id| id.to_str().ok()).unwrap_or_default(),
        method = shortened(request.method().as_str(), MAX_METHOD),
        path = shortened(request.uri().path(), MAX_PATH),
        key = tracing::field::Empty,
    )
}

/// The beginning of `text`, of at most so many bytes.
pub(super) fn shortened(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
