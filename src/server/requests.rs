//! Each request from its head until its answer is sent or dropped: its span, what is counted of it, and its line in the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span};

use super::error::ErrorCode;
use super::metrics::Metrics;
use super::observed_body::{Sent, observed};
use super::request_id;
use super::sse::Progress;
use super::state::AppState;

/// Paths that are asked all the time by who watches the server.
pub(super) const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its answer went out whole.
    Ok,
    /// It was one that cannot be answered: a status of 4xx.
    Refused,
    /// The server could not answer it: a status of 5xx, or an error after a stream had begun.
    Failed,
    /// The answer did not go out whole: the client went, or the server ended.
    Aborted,
}

impl Outcome {
    /// Its name in the log and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// Marks an answer that is denoised, the first text of which is worth timing.
#[derive(Clone)]
struct Denoised;

/// Marks what denoising endpoints answer.
pub(super) async fn denoised(mut response: Response) -> Response {
    response.extensions_mut().insert(Denoised);
    response
}

/// Follows a request. One whose client goes before there is an answer has status 499, as nginx has it.
pub(super) async fn follow(
    State(state): State<Arc<AppState>>,
    request: Request,
    next: Next,
) -> Response {
    let mut course = Course::begin(state.metrics.clone(), &request);
    let span = course.span.clone();
    // The router drops the body of the answer to HEAD, unsent.
    let is_head_alone = request.method() == Method::HEAD;
    let response = next.run(request).instrument(span).await;
    course.answered(&response);
    course.is_whole = is_head_alone;
    observed(response, move |sent| course.sent(sent))
}

/// A request being answered; it has ended when this is dropped.
struct Course {
    metrics: Arc<Metrics>,
    span: Span,
    route: String,
    is_probe: bool,
    begun: Instant,
    status: StatusCode,
    /// The code of the error that is the answer.
    error: Option<&'static str>,
    /// How far the answer has come, if it is a stream.
    progress: Option<Progress>,
    /// Whether the first text need not be timed any more.
    is_timed: bool,
    is_whole: bool,
}

impl Course {
    fn begin(metrics: Arc<Metrics>, request: &Request) -> Self {
        metrics.begin_request();
        let route = request.extensions().get::<MatchedPath>();
        Self {
            metrics,
            span: request_id::span(request),
            route: route.map_or("unmatched", MatchedPath::as_str).to_owned(),
            is_probe: PROBES.contains(&request.uri().path()),
            begun: Instant::now(),
            status: StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            error: None,
            progress: None,
            is_timed: true,
            is_whole: false,
        }
    }

    /// Takes in the head of the answer.
    fn answered(&mut self, response: &Response) {
        let extensions = response.extensions();
        self.status = response.status();
        self.error = extensions.get::<ErrorCode>().map(|code| code.0);
        self.progress = extensions.get::<Progress>().cloned();
        self.is_timed = !self.status.is_success() || extensions.get::<Denoised>().is_none();
    }

    fn sent(&mut self, sent: Sent) {
        if let Sent::Whole = sent {
            self.is_whole = true;
            return;
        }
        let has_text = self.progress.as_ref().is_none_or(Progress::has_text);
        if has_text && !std::mem::replace(&mut self.is_timed, true) {
            let elapsed = self.begun.elapsed();
            self.metrics.time_first_token(&self.route, elapsed);
        }
    }

    /// How it ended, and the code of the error if it was one.
    fn outcome(&self) -> (Outcome, Option<&'static str>) {
        let in_stream = self.progress.as_ref().and_then(Progress::failure);
        let outcome = if self.status.is_server_error() || in_stream.is_some() {
            Outcome::Failed
        } else if !self.is_whole {
            Outcome::Aborted
        } else if self.status.is_client_error() {
            Outcome::Refused
        } else {
            Outcome::Ok
        };
        (outcome, in_stream.or(self.error))
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        const ENDED: &str = "request ended";
        let elapsed = self.begun.elapsed();
        let (outcome, error) = self.outcome();
        self.metrics
            .end_request(&self.route, self.status, outcome, elapsed);
        let (span, status, ms) = (&self.span, self.status.as_u16(), milliseconds(elapsed));
        let name = outcome.name();
        if self.is_probe {
            tracing::debug!(parent: span, status, outcome = name, error, ms, "{ENDED}");
        } else if outcome == Outcome::Failed {
            tracing::error!(parent: span, status, outcome = name, error, ms, "{ENDED}");
        } else {
            tracing::info!(parent: span, status, outcome = name, error, ms, "{ENDED}");
        }
    }
}

/// To a thousandth.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
