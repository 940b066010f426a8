//! The spans of a request and of its sequences, and what they say. Texts are never part of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

use super::super::request_id::{self, MAX_METHOD, MAX_PATH, shortened};
use super::super::run::Cost;
use crate::engine::Statistics;

/// The longest `tracestate` that is passed on, in bytes: what the W3C asks for at least.
const MAX_STATE_BYTES: usize = 512;

tokio::task_local! {
    static CURRENT: Arc<RequestSpan>;
}

/// The span of a request.
pub(in crate::server) struct RequestSpan {
    tracer: SdkTracer,
    context: Context,
    /// Whether it is an answer that the engine has to do with.
    is_denoising: bool,
    /// Whether the end of the answer is known.
    is_settled: AtomicBool,
}

impl RequestSpan {
    /// Begins the span of `request`, below the caller's if its `traceparent` names one.
    pub fn begin(tracer: SdkTracer, request: &Request) -> Self {
        let headers = request.headers();
        let (method, original) = method(request.method());
        let route = request.extensions().get::<MatchedPath>();
        let route = route.map(|route| route.as_str().to_owned());
        let name: Cow<str> = match (&route, original) {
            (Some(route), None) => format!("{method} {route}").into(),
            (Some(route), Some(_)) => format!("HTTP {route}").into(),
            (None, None) => method.into(),
            (None, Some(_)) => "HTTP".into(),
        };
        let path = shortened(request.uri().path(), MAX_PATH);
        let mut attributes = vec![
            KeyValue::new("http.request.method", method),
            KeyValue::new("url.path", path.to_owned()),
            KeyValue::new("url.scheme", "http"),
        ];
        if let Some(original) = original {
            let original = shortened(original, MAX_METHOD).to_owned();
            attributes.push(KeyValue::new("http.request.method_original", original));
        }
        let id = headers.get(&request_id::HEADER);
        if let Some(id) = id.and_then(|id| id.to_str().ok()) {
            attributes.push(KeyValue::new("unmask.request_id", id.to_owned()));
        }
        // A browser asks with OPTIONS first, which denoises nothing.
        let denoised = route
            .as_deref()
            .filter(|_| request.method() == Method::POST);
        let operation = denoised.and_then(operation);
        if let Some(operation) = operation {
            attributes.push(KeyValue::new("gen_ai.operation.name", operation));
        }
        if let Some(route) = route {
            attributes.push(KeyValue::new("http.route", route));
        }
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &TraceHeaders(headers));
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(&tracer, &parent);
        Self {
            tracer,
            context: Context::new().with_span(span),
            is_denoising: operation.is_some(),
            is_settled: AtomicBool::new(false),
        }
    }

    /// Does `work` as that of this request.
    pub async fn enter<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), work).await
    }

    /// The span of the request whose handler this is called in, if it has one.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    fn set(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.context
            .span()
            .set_attribute(KeyValue::new(name, value));
    }

    /// Whose request it is: the name of an API key.
    pub fn caller(&self, name: &str) {
        self.set("unmask.api_key.name", name.to_owned());
    }

    /// Which model answers.
    pub fn model(&self, name: &str) {
        self.set("gen_ai.request.model", name.to_owned());
    }

    /// What an answer took.
    pub fn answer(&self, prompt_tokens: usize, completion_tokens: usize, cost: &Cost) {
        self.is_settled.store(true, Ordering::Relaxed);
        self.set("gen_ai.usage.input_tokens", prompt_tokens as i64);
        self.set("gen_ai.usage.output_tokens", completion_tokens as i64);
        self.set("unmask.steps", cost.steps as i64);
        self.set("unmask.nfe", cost.nfe as i64);
        self.set("unmask.queue_ms", cost.queued.as_secs_f64() * 1e3);
    }

    /// What it took to read texts and write none.
    pub fn scored(&self, prompt_tokens: usize, nfe: usize) {
        self.is_settled.store(true, Ordering::Relaxed);
        self.set("gen_ai.usage.input_tokens", prompt_tokens as i64);
        self.set("unmask.nfe", nfe as i64);
    }

    /// That a stream ended with an error after its status had gone out.
    pub fn fail(&self, code: &'static str) {
        self.is_settled.store(true, Ordering::Relaxed);
        self.error(code);
    }

    fn error(&self, kind: impl Into<opentelemetry::Value>) {
        self.set("error.type", kind);
        self.context.span().set_status(Status::error(""));
    }
}

/// Ends a request's span.
pub(super) struct EndOnDrop {
    span: Arc<RequestSpan>,
    status: Option<StatusCode>,
}

impl EndOnDrop {
    /// Of a request that has no answer yet.
    pub fn new(span: Arc<RequestSpan>) -> Self {
        Self { span, status: None }
    }

    /// Takes in the head of the answer.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
        let code = i64::from(status.as_u16());
        self.span.set("http.response.status_code", code);
        if status.is_server_error() {
            self.span.error(status.as_str().to_owned());
        }
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let span = &self.span;
        let is_whole = match self.status {
            None => false,
            Some(status) if status.is_success() && span.is_denoising => {
                span.is_settled.load(Ordering::Relaxed)
            }
            Some(_) => true,
        };
        if !is_whole {
            span.set("unmask.aborted", true);
        }
        span.context.span().end();
    }
}

/// The spans of a sequence: its wait, and its denoising once that has begun. They are made when this is dropped.
pub(in crate::server) struct SequenceSpans {
    request: Arc<RequestSpan>,
    index: usize,
    submitted: SystemTime,
    taken: Option<Statistics>,
}

impl SequenceSpans {
    /// Those of the `index`th sequence of the request whose handler this is called in, which is submitted now.
    pub fn begin(index: usize) -> Option<Self> {
        Some(Self {
            request: RequestSpan::current()?,
            index,
            submitted: SystemTime::now(),
            taken: None,
        })
    }

    /// Takes in what the sequence took so far.
    pub fn took(&mut self, statistics: Statistics) {
        self.taken = Some(statistics);
    }

    fn child(
        &self,
        name: &'static str,
        begin: SystemTime,
        end: SystemTime,
        attributes: Vec<KeyValue>,
    ) {
        let request = &self.request;
        SpanBuilder::from_name(name)
            .with_start_time(begin)
            .with_attributes(attributes)
            .start_with_context(&request.tracer, &request.context)
            .end_with_timestamp(end);
    }
}

impl Drop for SequenceSpans {
    fn drop(&mut self) {
        let index = || KeyValue::new("unmask.sequence", self.index as i64);
        let Some(taken) = self.taken else {
            return self.child("queue", self.submitted, SystemTime::now(), vec![index()]);
        };
        let started = self.submitted + taken.queued;
        self.child("queue", self.submitted, started, vec![index()]);
        let attributes = vec![
            index(),
            KeyValue::new("unmask.steps", taken.steps as i64),
            KeyValue::new("unmask.nfe", taken.nfe as i64),
        ];
        self.child("denoise", started, started + taken.denoising, attributes);
    }
}

/// What is asked of the engine, by OpenTelemetry's names where it has them.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" => Some("chat"),
        "/v1/completions" | "/v1/fim/completions" | "/infill" => Some("text_completion"),
        "/v1/infill" => Some("infill"),
        "/v1/score" => Some("score"),
        _ => None,
    }
}

/// A method's name. Those that nobody knows go by one, so that clients cannot make names up; then the second is what
/// was sent.
fn method(method: &Method) -> (&'static str, Option<&str>) {
    match method.as_str() {
        "CONNECT" => ("CONNECT", None),
        "DELETE" => ("DELETE", None),
        "GET" => ("GET", None),
        "HEAD" => ("HEAD", None),
        "OPTIONS" => ("OPTIONS", None),
        "PATCH" => ("PATCH", None),
        "POST" => ("POST", None),
        "PUT" => ("PUT", None),
        "TRACE" => ("TRACE", None),
        other => ("_OTHER", Some(other)),
    }
}

/// The W3C's headers, if they are well formed.
struct TraceHeaders<'a>(&'a HeaderMap);

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut values = self.0.get_all(key).iter();
        let value = values.next()?.to_str().ok()?;
        match key {
            // The propagator takes numbers of any length.
            "traceparent" => (values.next().is_none() && is_traceparent(value)).then_some(value),
            // One that is sent in several lines is dropped too: the trace does without.
            _ => (values.next().is_none() && value.len() <= MAX_STATE_BYTES).then_some(value),
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// Whether a text is a version, a trace, a span and flags, as <https://www.w3.org/TR/trace-context/> has it; versions
/// after the first may have more behind it.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let has_lengths = [2, 32, 16, 2].iter().all(|length| {
        parts.next().is_some_and(|part| {
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            part.len() == *length && part.bytes().all(is_hex)
        })
    });
    has_lengths && (parts.next().is_none() || !text.starts_with("00-"))
}
