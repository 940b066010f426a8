//! OpenTelemetry traces: a span a request, spans of its sequences below it.
//!
//! Spans are made beside the log's, with which they share nothing but the request's identifier: what is logged never
//! reaches a collector, and `RUST_LOG` says nothing about traces. Ended spans wait in a bounded queue for a thread that
//! sends them; what does not fit is dropped, and no request waits.

mod export;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::observed_body::observed;
use super::requests::PROBES;
use super::state::AppState;
use export::Collector;
use spans::EndOnDrop;
pub(super) use spans::{RequestSpan, SequenceSpans};

/// The service's name where the environment gives none.
const SERVICE_NAME: &str = "unmask";

/// Traces that cannot be sent anywhere.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The variables `OTEL_EXPORTER_OTLP_*`, or the URL.
    #[error("{0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Sends the spans of requests to a collector.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends to `url`, an OTLP endpoint for traces as in `http://127.0.0.1:4318/v1/traces`, as protobuf over HTTP.
    /// Starts a thread. Of OpenTelemetry's variables it follows those for the service's name and attributes, the
    /// sampler, the batches (`OTEL_BSP_*`), and the exporter's headers and compression.
    ///
    /// # Errors
    /// If the URL or a variable of the exporter cannot be used. Whether a collector is there is not looked at: it
    /// may come and go.
    pub fn to(url: &str) -> Result<Self, TracesError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::default())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .build()?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build();
        let tracer = provider.tracer(SERVICE_NAME);
        Ok(Self { provider, tracer })
    }

    /// Sends what has ended, and blocks until that is done or has failed, 5 seconds at most; whether it was sent.
    pub fn flush(&self) -> bool {
        self.provider.force_flush().is_ok()
    }

    /// Sends what has ended and ends the thread. Blocks for `timeout` at most; whether that was enough. What ends
    /// later is dropped.
    pub fn end(&self, timeout: Duration) -> bool {
        self.provider.shutdown_with_timeout(timeout).is_ok()
    }
}

/// What is traced.
fn resource() -> Resource {
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let given = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"]
        .map(|variable| std::env::var(variable).unwrap_or_default());
    let is_named = !given[0].is_empty()
        || given[1]
            .split(',')
            .any(|entry| entry.trim().starts_with("service.name="));
    match is_named {
        true => resource.build(),
        false => resource.with_service_name(SERVICE_NAME).build(),
    }
}

/// `router` with a span for every request, if `state` has traces.
pub(super) fn traced(router: Router<Arc<AppState>>, state: &AppState) -> Router<Arc<AppState>> {
    match &state.traces {
        Some(traces) => router.layer(middleware::from_fn_with_state(traces.clone(), trace)),
        None => router,
    }
}

/// Spans a request, from its head until its answer is sent or dropped.
async fn trace(State(traces): State<Traces>, request: Request, next: Next) -> Response {
    if PROBES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let span = Arc::new(RequestSpan::begin(traces.tracer, &request));
    let mut open = EndOnDrop::new(span.clone());
    let response = span.enter(next.run(request)).await;
    open.answered(response.status());
    observed(response, move |_| {
        let _kept = &open;
    })
}
