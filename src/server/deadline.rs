//! How long a request may take.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::Extensions;
use axum::http::request::Parts;
use futures::future::{self, Either};
use tokio::time::Instant;

use super::error::ApiError;
use super::listen::DrainEnd;
use super::state::AppState;

/// When a request must have been answered: within the server's limit, if it has one, and before a server that ends gives
/// up the requests that still run.
#[derive(Debug, Clone)]
pub(super) struct Deadline {
    limit: Option<(Instant, Duration)>,
    drain_end: Option<DrainEnd>,
}

impl Deadline {
    /// That of a request which is begun now, on a server that does not end. A limit beyond what the clock can tell is
    /// none.
    pub fn after(limit: Option<Duration>) -> Self {
        Self {
            limit: limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit))),
            drain_end: None,
        }
    }

    /// The end of the server that a request with such extensions came to; without other limits.
    pub fn of_server(extensions: &Extensions) -> Self {
        Self {
            limit: None,
            drain_end: extensions.get().cloned(),
        }
    }

    /// Waits until it is over; the error that says so.
    pub async fn passed(self) -> ApiError {
        let Self { limit, drain_end } = self;
        let late = async {
            match limit {
                Some((at, limit)) => {
                    tokio::time::sleep_until(at).await;
                    ApiError::deadline_exceeded(limit)
                }
                None => future::pending().await,
            }
        };
        let given_up = async {
            match drain_end {
                Some(end) => {
                    end.reached().await;
                    ApiError::shutting_down()
                }
                None => future::pending().await,
            }
        };
        future::select(pin!(late), pin!(given_up))
            .await
            .factor_first()
            .0
    }
}

impl FromRequestParts<Arc<AppState>> for Deadline {
    type Rejection = Infallible;

    /// That of a request which has come in whole now.
    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<Self, Infallible> {
        Ok(Self {
            drain_end: parts.extensions.get().cloned(),
            ..Self::after(state.limits.request_timeout)
        })
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
