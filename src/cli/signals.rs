//! The signals that ask a process to end.

use futures::Stream;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Signal {
    /// What it is called.
    pub name: &'static str,
    /// The exit status of a process that ends by it, as shells have it.
    pub status: u8,
}

const INTERRUPT: Signal = Signal {
    name: "SIGINT",
    status: 130,
};

/// Yields at every SIGTERM and SIGINT; to be called within a runtime.
#[cfg(unix)]
pub fn termination() -> std::io::Result<impl Stream<Item = Signal> + Send + 'static> {
    use std::task::Poll;
    use tokio::signal::unix::{SignalKind, signal};

    const TERMINATE: Signal = Signal {
        name: "SIGTERM",
        status: 143,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(futures::stream::poll_fn(move |context| {
        if terminate.poll_recv(context).is_ready() {
            Poll::Ready(Some(TERMINATE))
        } else if interrupt.poll_recv(context).is_ready() {
            Poll::Ready(Some(INTERRUPT))
        } else {
            Poll::Pending
        }
    }))
}

/// Yields at every Ctrl-C.
#[cfg(not(unix))]
pub fn termination() -> std::io::Result<impl Stream<Item = Signal> + Send + 'static> {
    // Without a handler there is no orderly end, and the process runs until it is killed.
    Ok(futures::stream::unfold((), |()| async {
        let came = tokio::signal::ctrl_c().await;
        came.ok().map(|()| (INTERRUPT, ()))
    }))
}
