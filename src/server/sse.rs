//! Answers as server-sent events, as OpenAI sends them: `data:` frames of JSON, then `[DONE]`.

use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;

/// A frame that is ready to be sent.
pub(super) type Frame = Result<Event, axum::Error>;

/// An event as it is described.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is described and never made")]
pub(super) struct ServerEvent {
    /// A frame of JSON, or `[DONE]`.
    data: String,
}

/// A frame of JSON.
pub(super) fn frame(value: &impl Serialize) -> Frame {
    Event::default().json_data(value)
}

/// How a stream ends after its last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With `[DONE]`, as OpenAI's do.
    Done,
    /// With nothing, as llama.cpp's own do.
    Nothing,
}

/// Streams what `render` makes of each update. An error is sent as a frame of its own and ends the
/// stream, as its status has gone out already.
pub(super) fn respond<U: 'static>(
    updates: impl Stream<Item = Result<U, ApiError>> + Send + 'static,
    keep_alive: Duration,
    end: End,
    render: impl FnMut(U) -> Vec<Frame> + Send + 'static,
) -> Response {
    #[cfg(feature = "otel")]
    let span = super::telemetry::RequestSpan::current();
    let last = (end == End::Done).then(|| Ok(Event::default().data("[DONE]")));
    // With the error the updates are dropped, so that what else the request denoises ends at once.
    let running = Some((Box::pin(updates), render));
    let frames = stream::unfold(running, |running| async {
        let (mut updates, mut render) = running?;
        Some(match updates.next().await? {
            Ok(update) => (Ok(render(update)), Some((updates, render))),
            Err(error) => (Err(error), None),
        })
    });
    let frames = frames
        .map(move |frames| {
            stream::iter(frames.unwrap_or_else(|error| {
                #[cfg(feature = "otel")]
                if let Some(span) = &span {
                    span.fail(error.code());
                }
                vec![frame(&error.into_body())]
            }))
        })
        .flatten()
        .chain(stream::iter(last));
    Sse::new(frames)
        .keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"))
        .into_response()
}
