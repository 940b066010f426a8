//! How long a request may take.

use std::pin::pin;
use std::time::Duration;

use futures::future::{self, Either};
use tokio::time::Instant;

use super::error::ApiError;

/// When a request must have been answered, and the limit that says so; nothing if it has all the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<(Instant, Duration)>);

impl Deadline {
    /// That of a request which is begun now. A limit beyond what the clock can tell is none.
    pub fn after(limit: Option<Duration>) -> Self {
        Self(limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit))))
    }

    /// Waits until it is over; the error that says so.
    pub async fn passed(self) -> ApiError {
        match self.0 {
            Some((at, limit)) => {
                tokio::time::sleep_until(at).await;
                ApiError::deadline_exceeded(limit)
            }
            None => future::pending().await,
        }
    }
}

/// What `work` comes to.
///
/// # Errors
/// Its own, or that `deadline` is over before.
pub(super) async fn within<T>(
    deadline: Deadline,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    match future::select(pin!(work), pin!(deadline.passed())).await {
        Either::Left((done, _)) => done,
        Either::Right((error, _)) => Err(error),
    }
}
