//! `GET /metrics`: what the server counts, in Prometheus' text format. `docs/metrics.md` lists the names.
//!
//! Each server has a recorder of its own, so that several in one process count apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use super::error::ErrorBody;
use super::listen::OpenConnections;
use super::requests::Outcome;
use super::state::AppState;
use crate::engine::{Engine, EngineStatus, Phases};

/// How often the samples of histograms are gathered, so that they do not pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Bounds of histograms in seconds.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Bounds of the histogram of rows.
const ROWS: [f64; 14] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
];
/// Bounds of the histogram of tokens a forward.
const TOKENS: [f64; 10] = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0];

const METADATA: Metadata = Metadata::new("unmask", Level::INFO, None);

/// A metric's name and what it is.
type Metric = (&'static str, &'static str);

const REQUESTS: Metric = (
    "unmask_http_requests_total",
    "Requests that have ended, by how they ended.",
);
const IN_FLIGHT: Metric = ("unmask_http_requests_in_flight", "Requests being answered.");
const DURATION: Metric = (
    "unmask_http_request_duration_seconds",
    "From a request's head to the end of its answer.",
);
const FIRST_TOKEN: Metric = (
    "unmask_time_to_first_token_seconds",
    "From a request's head to the first text of its answer, of requests that denoise.",
);
const CONNECTIONS: Metric = (
    "unmask_connections",
    "Open connections, idle ones included.",
);
const QUEUED: Metric = (
    "unmask_queued_sequences",
    "Sequences that wait for their first step.",
);
const RUNNING: Metric = ("unmask_running_sequences", "Sequences being denoised.");
const STEPS: Metric = (
    "unmask_denoise_steps_total",
    "Denoise steps; each is one batch.",
);
const ROWS_TOTAL: Metric = (
    "unmask_denoise_rows_total",
    "Rows computed in denoise steps.",
);
const KEPT_ROWS: Metric = (
    "unmask_kept_rows_total",
    "Rows computed in denoise steps whose keys and values were kept.",
);
const SCORED_ROWS: Metric = (
    "unmask_scored_rows_total",
    "Rows whose logits were computed.",
);
const REUSED: Metric = (
    "unmask_prefix_cache_reused_slots_total",
    "Slots whose keys and values were found computed by an earlier request.",
);
const KV_SLOTS: Metric = (
    "unmask_kv_pool_slots",
    "Slots of the pool of cached keys and values.",
);
const KV_USED: Metric = (
    "unmask_kv_pool_used_slots",
    "Slots of the pool of cached keys and values in blocks that running sequences use.",
);
const COMMITTED: Metric = (
    "unmask_committed_slots_total",
    "Slots committed or edited in denoise steps.",
);
const BUSY: Metric = (
    "unmask_denoise_busy_seconds",
    "Time spent in denoise steps since the start.",
);
const PHASE: Metric = (
    "unmask_denoise_phase_seconds",
    "Time spent in a phase of denoise steps since the start.",
);
const QUEUE_WAIT: Metric = (
    "unmask_queue_wait_seconds",
    "From a sequence's submission to its first step.",
);
const STEP_ROWS: Metric = ("unmask_denoise_step_rows", "Rows of a denoise step.");
const STEP_SCORED_ROWS: Metric = (
    "unmask_denoise_step_scored_rows",
    "Rows of a denoise step whose logits were computed.",
);
const STEP_DURATION: Metric = (
    "unmask_denoise_step_duration_seconds",
    "Time of a denoise step.",
);
const PROMPT_TOKENS: Metric = (
    "unmask_prompt_tokens_total",
    "Fixed tokens of answered requests.",
);
const COMPLETION_TOKENS: Metric = (
    "unmask_completion_tokens_total",
    "Tokens that answers were read from.",
);
const TOKENS_PER_FORWARD: Metric = (
    "unmask_tokens_per_forward",
    "Slots committed a network evaluation, of each answered request.",
);
const MODEL_INFO: Metric = ("unmask_model_info", "The served model; always 1.");
const BUILD_INFO: Metric = ("unmask_build_info", "This build; always 1.");

/// What one server counts.
pub(super) struct Metrics {
    recorder: PrometheusRecorder,
    started: Instant,
    /// When samples were last gathered, in whole seconds since `started`.
    gathered: AtomicU64,
    in_flight: Gauge,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    tokens_per_forward: Histogram,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new(engine: &Engine, model_name: &str) -> Arc<Self> {
        let recorder = builder().build_recorder();
        describe(&recorder);
        let spec = engine.spec();
        let labels = vec![
            Label::new("model", model_name.to_owned()),
            Label::new("family", spec.family),
            Label::new("parameters", spec.parameters.to_string()),
            Label::new("context", spec.max_canvas.to_string()),
        ];
        gauge(&recorder, MODEL_INFO, labels).set(1.0);
        let labels = vec![Label::new("version", env!("CARGO_PKG_VERSION"))];
        gauge(&recorder, BUILD_INFO, labels).set(1.0);
        let metrics = Arc::new(Self {
            started: Instant::now(),
            gathered: AtomicU64::new(0),
            in_flight: gauge(&recorder, IN_FLIGHT, Vec::new()),
            prompt_tokens: counter(&recorder, PROMPT_TOKENS, Vec::new()),
            completion_tokens: counter(&recorder, COMPLETION_TOKENS, Vec::new()),
            tokens_per_forward: histogram(&recorder, TOKENS_PER_FORWARD, Vec::new()),
            recorder,
        });
        let rows = histogram(&metrics.recorder, STEP_ROWS, Vec::new());
        let scored = histogram(&metrics.recorder, STEP_SCORED_ROWS, Vec::new());
        let waited = histogram(&metrics.recorder, QUEUE_WAIT, Vec::new());
        let duration = histogram(&metrics.recorder, STEP_DURATION, Vec::new());
        let of_engine = metrics.clone();
        engine.on_step(move |step| {
            rows.record(step.rows as f64);
            scored.record(step.scored as f64);
            for wait in &step.waited {
                waited.record(wait.as_secs_f64());
            }
            duration.record(step.phases.total().as_secs_f64());
            of_engine.gather();
        });
        metrics
    }

    /// Counts a request that is being answered from now on.
    pub fn begin_request(&self) {
        self.in_flight.increment(1.0);
    }

    /// Enters when the first text of an answer went out.
    pub fn time_first_token(&self, route: &str, elapsed: Duration) {
        histogram(&self.recorder, FIRST_TOKEN, of_route(route)).record(elapsed.as_secs_f64());
    }

    /// Counts a request that is not being answered any more.
    pub fn end_request(
        &self,
        route: &str,
        status: StatusCode,
        outcome: Outcome,
        elapsed: Duration,
    ) {
        self.in_flight.decrement(1.0);
        histogram(&self.recorder, DURATION, of_route(route)).record(elapsed.as_secs_f64());
        let mut labels = of_route(route);
        labels.push(Label::new("status", status.as_str().to_owned()));
        labels.push(Label::new("outcome", outcome.name()));
        counter(&self.recorder, REQUESTS, labels).increment(1);
        self.gather();
    }

    /// Counts an answer.
    pub fn count_answer(&self, prompt_tokens: usize, completion_tokens: usize, per_forward: f64) {
        self.prompt_tokens.increment(prompt_tokens as u64);
        self.completion_tokens.increment(completion_tokens as u64);
        self.tokens_per_forward.record(per_forward);
    }

    /// Counts an answer that completes nothing.
    pub fn count_scored(&self, prompt_tokens: usize) {
        self.prompt_tokens.increment(prompt_tokens as u64);
    }

    /// All that was counted, as text; connections only where it is known how many there are.
    fn render(&self, status: EngineStatus, connections: Option<OpenConnections>) -> String {
        let count = |metric, value| counter(&self.recorder, metric, Vec::new()).absolute(value);
        let set = |metric, value| gauge(&self.recorder, metric, Vec::new()).set(value);
        count(STEPS, status.steps);
        count(ROWS_TOTAL, status.rows);
        count(KEPT_ROWS, status.kept);
        count(SCORED_ROWS, status.scored);
        count(COMMITTED, status.committed);
        count(REUSED, status.reused);
        set(KV_SLOTS, status.kv_slots as f64);
        set(KV_USED, status.kv_used as f64);
        if let Some(connections) = connections {
            set(CONNECTIONS, connections.number() as f64);
        }
        set(QUEUED, status.queued as f64);
        set(RUNNING, status.running as f64);
        set(BUSY, status.phases.total().as_secs_f64());
        for (name, duration) in Phases::NAMES.iter().zip(status.phases.durations()) {
            let labels = vec![Label::new("phase", *name)];
            gauge(&self.recorder, PHASE, labels).set(duration.as_secs_f64());
        }
        self.recorder.handle().render()
    }

    /// Gathers the samples of histograms if that is due.
    fn gather(&self) {
        let now = self.started.elapsed().as_secs();
        let last = self.gathered.load(Ordering::Relaxed);
        let is_due = now >= last + UPKEEP.as_secs();
        // Of several that find it due, one does it.
        let swapped = |last| {
            let ordering = Ordering::Relaxed;
            self.gathered
                .compare_exchange(last, now, ordering, ordering)
        };
        if is_due && swapped(last).is_ok() {
            self.recorder.handle().run_upkeep();
        }
    }
}

fn builder() -> PrometheusBuilder {
    let mut builder = PrometheusBuilder::new();
    for ((name, _), bounds) in [
        (DURATION, &SECONDS[..]),
        (FIRST_TOKEN, &SECONDS),
        (STEP_DURATION, &SECONDS),
        (QUEUE_WAIT, &SECONDS),
        (STEP_ROWS, &ROWS),
        (STEP_SCORED_ROWS, &ROWS),
        (TOKENS_PER_FORWARD, &TOKENS),
    ] {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
            .expect("it fails only without bounds");
    }
    builder
}

fn describe(recorder: &PrometheusRecorder) {
    for (name, help) in [
        REQUESTS,
        STEPS,
        ROWS_TOTAL,
        KEPT_ROWS,
        SCORED_ROWS,
        REUSED,
        COMMITTED,
        PROMPT_TOKENS,
        COMPLETION_TOKENS,
    ] {
        recorder.describe_counter(name.into(), None, help.into());
    }
    for (name, help) in [
        CONNECTIONS,
        IN_FLIGHT,
        QUEUED,
        RUNNING,
        KV_SLOTS,
        KV_USED,
        MODEL_INFO,
        BUILD_INFO,
    ] {
        recorder.describe_gauge(name.into(), None, help.into());
    }
    for (name, help) in [BUSY, PHASE] {
        recorder.describe_gauge(name.into(), Some(Unit::Seconds), help.into());
    }
    for (name, help) in [DURATION, FIRST_TOKEN, QUEUE_WAIT, STEP_DURATION] {
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), help.into());
    }
    for (name, help) in [STEP_ROWS, STEP_SCORED_ROWS, TOKENS_PER_FORWARD] {
        recorder.describe_histogram(name.into(), None, help.into());
    }
}

fn of_route(route: &str) -> Vec<Label> {
    vec![Label::new("route", route.to_owned())]
}

fn counter(recorder: &PrometheusRecorder, metric: Metric, labels: Vec<Label>) -> Counter {
    recorder.register_counter(&Key::from_parts(metric.0, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, metric: Metric, labels: Vec<Label>) -> Gauge {
    recorder.register_gauge(&Key::from_parts(metric.0, labels), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, metric: Metric, labels: Vec<Label>) -> Histogram {
    recorder.register_histogram(&Key::from_parts(metric.0, labels), &METADATA)
}

/// All that was counted.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Server",
    operation_id = "metrics",
    responses(
        (status = 200, description = "The answer", body = String, content_type = "text/plain"),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn get(
    State(state): State<Arc<AppState>>,
    connections: Option<Extension<OpenConnections>>,
) -> Response {
    let connections = connections.map(|Extension(connections)| connections);
    let text = state.metrics.render(state.engine.status(), connections);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}
