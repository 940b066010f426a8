//! An answer's body, watched while it is sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// A body whose data `observer` sees as it goes out; the observer is dropped with it, when the body has been
/// sent or its client has gone.
struct ObservedBody<F> {
    inner: Body,
    observer: F,
}

/// `response`, with `observer` called for each piece of its body.
pub(super) fn observed(
    response: Response,
    observer: impl FnMut(&Bytes) + Send + Unpin + 'static,
) -> Response {
    response.map(|inner| Body::new(ObservedBody { inner, observer }))
}

impl<F: FnMut(&Bytes) + Unpin> HttpBody for ObservedBody<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            (self.observer)(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
