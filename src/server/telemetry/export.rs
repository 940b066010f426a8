//! The way to the collector.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::http::{Request, Response};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use ureq::Agent;

/// How long a batch may take to be sent and answered.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The least time between two lines of the log that say that traces cannot be sent.
const QUIET: Duration = Duration::from_secs(300);

/// Sends batches with the HTTP client that the program has already. It blocks the thread that sends, which does nothing
/// else.
#[derive(Debug)]
pub(super) struct Collector {
    agent: Agent,
    trouble: Mutex<Trouble>,
}

/// Whether the log has been told that traces are lost.
#[derive(Debug, Default)]
struct Trouble {
    told: Option<Instant>,
    is_over: bool,
}

impl Default for Collector {
    fn default() -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // The headers may hold a key, which is for none but the collector.
            .max_redirects(0)
            .build();
        Self {
            agent: Agent::new_with_config(config),
            trouble: Mutex::default(),
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let to = request.uri().to_string();
        let sent = self.send(request);
        let failure = match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("status {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        self.tell(&to, failure);
        Ok(sent?)
    }
}

impl Collector {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, mut body) = self.agent.run(request.map(|b| b.to_vec()))?.into_parts();
        let body = body.read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }

    /// Tells the log that traces are lost, now and then, and once that they are not any more.
    fn tell(&self, to: &str, failure: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(error) if trouble.told.is_none_or(|told| told.elapsed() >= QUIET) => {
                tracing::warn!(
                    to,
                    error,
                    "traces cannot be sent and are dropped; requests are answered all the same"
                );
                *trouble = Trouble {
                    told: Some(Instant::now()),
                    is_over: false,
                };
            }
            Some(_) => {}
            None if trouble.told.is_some() && !trouble.is_over => {
                tracing::info!(to, "traces are sent again");
                trouble.is_over = true;
            }
            None => {}
        }
    }
}
