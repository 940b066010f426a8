//! An answer's body, watched while it is sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// What happens to a body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sent {
    /// A piece of it goes out.
    Piece,
    /// All of it has gone out.
    Whole,
}

/// A body whose way `observer` sees; the observer is dropped with it, when the body has been sent or its client
/// has gone.
struct ObservedBody<F: FnMut(Sent)> {
    inner: Body,
    observer: F,
    is_whole: bool,
}

/// `response`, with `observer` called for each piece of its body, and once when that is sent whole.
pub(super) fn observed(
    response: Response,
    observer: impl FnMut(Sent) + Send + Unpin + 'static,
) -> Response {
    response.map(|inner| {
        Body::new(ObservedBody {
            inner,
            observer,
            is_whole: false,
        })
    })
}

impl<F: FnMut(Sent)> ObservedBody<F> {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.is_whole, true) {
            (self.observer)(Sent::Whole);
        }
    }
}

impl<F: FnMut(Sent) + Unpin> HttpBody for ObservedBody<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if frame.is_data() {
                    (self.observer)(Sent::Piece);
                }
            }
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
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

impl<F: FnMut(Sent)> Drop for ObservedBody<F> {
    /// A body of a known length is not asked whether anything follows.
    fn drop(&mut self) {
        if self.inner.is_end_stream() {
            self.end();
        }
    }
}
