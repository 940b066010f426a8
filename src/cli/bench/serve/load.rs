//! Puts a load on the server: a closed loop of clients, or arrivals at a rate.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::requests::{Requests, exponential, patience};
use super::stream::{self, Failure, Sample};
use super::tally::Tally;
use crate::cli::bench::client::{Client, Target};

/// How long a client of a closed loop waits after a failure, so that it does not send failures only.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many clients, each of which sends a request when its last one is answered.
    Closed(usize),
    /// Poisson arrivals at so many requests a second, whether those before are answered or not.
    Open(f64),
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(clients) => write!(f, "{clients} at a time"),
            Self::Open(rate) => write!(f, "{rate}/s"),
        }
    }
}

/// When no more requests are sent.
#[derive(Debug, Clone, Copy)]
pub enum Extent {
    /// After so long.
    Duration(Duration),
    /// After so many.
    Requests(u64),
}

/// Sends the requests of one measurement after another.
#[derive(Clone)]
pub struct Generator {
    pub target: Target,
    pub requests: Arc<Requests>,
    /// The first of every so many requests asks for frames of the canvas; 0 is none.
    pub frames_every: u64,
    /// The share of requests whose clients hang up.
    pub hang_ups: f64,
    /// The seed of arrivals and of hang-ups.
    pub seed: u64,
    /// The most requests that an open loop waits for.
    pub max_in_flight: usize,
}

/// A measurement in progress.
struct Run {
    generator: Generator,
    begun: Instant,
    extent: Extent,
    /// Number of the first request.
    first: u64,
    sent: AtomicU64,
    tally: Mutex<Tally>,
}

impl Generator {
    /// Puts `load` on the server with the requests from number `first` on, and waits for all answers.
    pub async fn run(&self, load: Load, extent: Extent, first: u64) -> Tally {
        let run = Arc::new(Run {
            generator: self.clone(),
            begun: Instant::now(),
            extent,
            first,
            sent: AtomicU64::new(0),
            tally: Mutex::default(),
        });
        match load {
            Load::Closed(clients) => {
                let clients = (0..clients).map(|_| tokio::spawn(run.clone().client()));
                join_all(clients.collect::<Vec<_>>()).await;
            }
            Load::Open(rate) => run.clone().arrivals(rate).await,
        }
        let seconds = run.begun.elapsed().as_secs_f64();
        let tally = std::mem::take(&mut *run.tally());
        Tally { seconds, ..tally }
    }
}

impl Run {
    /// The number of the next request, if there is one to be sent at `at`.
    fn next(&self, at: Duration) -> Option<u64> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let goes_on = match self.extent {
            Extent::Duration(duration) => at < duration,
            Extent::Requests(requests) => number < requests,
        };
        goes_on.then_some(self.first + number)
    }

    async fn client(self: Arc<Self>) {
        let mut connection = None;
        while let Some(number) = self.next(self.begun.elapsed()) {
            let answered = self.request(&mut connection, number, Instant::now()).await;
            if !answered {
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }

    async fn arrivals(self: Arc<Self>, rate: f64) {
        let idle = Arc::new(Mutex::new(Vec::new()));
        let places = Arc::new(Semaphore::new(self.generator.max_in_flight));
        let mut at = 0.0;
        loop {
            let number = self.first + self.sent.load(Ordering::Relaxed);
            at += exponential(self.generator.seed, number) / rate;
            let after = Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX);
            let Some(number) = self.next(after) else {
                break;
            };
            let due = self.begun + after;
            tokio::time::sleep_until(due.into()).await;
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.tally().not_sent += 1;
                continue;
            };
            let (run, idle) = (self.clone(), idle.clone());
            tokio::spawn(async move {
                let mut connection = lock(&idle).pop();
                // From when it was due, so that a generator that is late does not flatter the server.
                run.request(&mut connection, number, due).await;
                lock(&idle).extend(connection);
                drop(place);
            });
        }
        // All places are free when all are answered.
        let _all = places
            .acquire_many(self.generator.max_in_flight as u32)
            .await;
    }

    /// Sends a request and counts what becomes of it; whether it was answered. The connection is kept if it
    /// can be used again.
    async fn request(&self, connection: &mut Option<Client>, number: u64, begun: Instant) -> bool {
        let every = self.generator.frames_every;
        let frames = every > 0 && (number - self.first).is_multiple_of(every);
        let patience = patience(self.generator.seed, number, self.generator.hang_ups);
        let answer = self.answer(connection, number, frames, begun);
        let result = match patience {
            None => Ok(answer.await),
            Some(patience) => tokio::time::timeout(patience, answer).await,
        };
        let mut tally = self.tally();
        let Ok(result) = result else {
            // The connection was dropped with the answer.
            tally.hung_up += 1;
            return true;
        };
        match result {
            Ok(sample) => {
                tally.answered(&sample);
                true
            }
            Err(failure) => {
                tally.failed(failure);
                false
            }
        }
    }

    async fn answer(
        &self,
        connection: &mut Option<Client>,
        number: u64,
        frames: bool,
        begun: Instant,
    ) -> Result<Sample, Failure> {
        let mut client = match connection.take() {
            Some(client) => client,
            None => Client::connect(&self.generator.target)
                .await
                .map_err(|error| Failure::of_connection(format!("{error:#}")))?,
        };
        let body = self.generator.requests.body(number, frames);
        let response = client.post("/v1/completions", body).await;
        let response = response.map_err(Failure::of_connection)?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await;
            let body = body.map_err(Failure::of_connection)?.to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            *connection = Some(client);
            return Err(Failure {
                kind: status.as_str().to_owned(),
                message: body["error"]["message"].as_str().unwrap_or_default().into(),
            });
        }
        let sample = stream::read(response.into_body(), begun).await?;
        *connection = Some(client);
        Ok(sample)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }
}

/// What is locked is whole between any two statements, so that a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
