//! Answers as server-sent events, as OpenAI sends them: `data:` frames of JSON, then `[DONE]`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;

/// A frame that is ready to be sent.
pub(super) struct Frame {
    event: Result<Event, axum::Error>,
    has_text: bool,
    /// The code of the error that it tells of.
    failure: Option<&'static str>,
}

impl Frame {
    /// The same, which is one that brings text of the answer if `has_text` says so. A canvas brings none: what it
    /// shows may change yet.
    pub fn telling(self, has_text: bool) -> Self {
        Self { has_text, ..self }
    }
}

/// An event as it is described.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is described and never made")]
pub(super) struct ServerEvent {
    /// A frame of JSON, or `[DONE]`.
    data: String,
}

/// A frame of JSON.
pub(super) fn frame(value: &impl Serialize) -> Frame {
    let event = Event::default().json_data(value);
    Frame {
        has_text: false,
        failure: event.is_err().then_some(ApiError::INTERNAL),
        event,
    }
}

/// A frame that tells of an error.
pub(super) fn failure(error: ApiError) -> Frame {
    let code = error.code();
    Frame {
        failure: Some(code),
        ..frame(&error.into_body())
    }
}

/// How a stream ends after its last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With `[DONE]`, as OpenAI's do.
    Done,
    /// With nothing, as llama.cpp's own do.
    Nothing,
}

/// How far a stream has come, among the extensions of its answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<Passed>);

#[derive(Debug, Default)]
struct Passed {
    text: AtomicBool,
    failure: OnceLock<&'static str>,
}

impl Progress {
    /// Whether a frame has brought text of the answer.
    pub fn has_text(&self) -> bool {
        self.0.text.load(Ordering::Relaxed)
    }

    /// The code of the error that a frame told of.
    pub fn failure(&self) -> Option<&'static str> {
        self.0.failure.get().copied()
    }

    fn pass(&self, frame: &Frame) {
        if frame.has_text {
            self.0.text.store(true, Ordering::Relaxed);
        }
        if let Some(code) = frame.failure {
            self.0.failure.get_or_init(|| code);
        }
    }
}

/// Streams an answer that has one frame, which may be long in coming.
pub(super) fn respond_once(
    answer: impl Future<Output = Result<Frame, ApiError>> + Send + 'static,
    keep_alive: Duration,
    end: End,
) -> Response {
    respond(stream::once(answer), keep_alive, end, |frame| vec![frame])
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
    let progress = Progress::default();
    let last = (end == End::Done).then(|| Ok(Event::default().data("[DONE]")));
    // With the error the updates are dropped, so that what else the request denoises ends at once.
    let running = Some((Box::pin(updates), render));
    let frames = stream::unfold(running, |running| async {
        let (mut updates, mut render) = running?;
        Some(match updates.next().await? {
            Ok(update) => (render(update), Some((updates, render))),
            Err(error) => (vec![failure(error)], None),
        })
    });
    let passed = progress.clone();
    let events = frames
        .flat_map(stream::iter)
        .map(move |frame| {
            passed.pass(&frame);
            #[cfg(feature = "otel")]
            if let (Some(span), Some(code)) = (&span, frame.failure) {
                span.fail(code);
            }
            frame.event
        })
        .chain(stream::iter(last));
    let events =
        Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive).text("keep-alive"));
    (axum::Extension(progress), events).into_response()
}
