//! How many requests may run at a time, in all and for each API key.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::auth::{ApiKeys, Caller};
use super::error::ApiError;
use super::observed_body::observed;
use super::state::{AppState, Limits};

/// Places for requests that are answered, those about text alone included.
pub(super) struct Admission {
    all: Arc<Semaphore>,
    by_key: HashMap<Arc<str>, Arc<Semaphore>>,
}

impl Admission {
    /// As many places as `limits` has, and as many for each of `keys`.
    pub fn new(limits: &Limits, keys: &ApiKeys) -> Self {
        let places = |limit: usize| Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        let names = keys.names().cloned();
        Self {
            all: places(limits.requests),
            by_key: names
                .map(|name| (name, places(limits.requests_per_key)))
                .collect(),
        }
    }

    /// Takes a place, or two: a key's own and one of all.
    fn enter(
        &self,
        caller: Option<&Caller>,
        limits: &Limits,
    ) -> Result<Vec<OwnedSemaphorePermit>, ApiError> {
        let own = caller.and_then(|caller| self.by_key.get(&caller.0));
        let own = own.map(|places| (places, "for this API key", limits.requests_per_key));
        let places = own
            .into_iter()
            .chain([(&self.all, "in all", limits.requests)]);
        places
            .map(|(places, whose, limit)| {
                let place = places.clone().try_acquire_owned();
                place.map_err(|_| ApiError::too_many_requests(whose, limit))
            })
            .collect()
    }
}

/// Lets requests pass while there are places. A request keeps its own until its answer is sent or dropped.
pub(super) async fn admit(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let caller = request.extensions().get::<Caller>();
    match state.admission.enter(caller, &state.limits) {
        Err(error) => error.into_response(),
        Ok(places) => observed(next.run(request).await, move |_| {
            let _kept = &places;
        }),
    }
}
