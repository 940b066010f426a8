//! OpenTelemetry traces: what a collector is told of requests, and that no request depends on one.

mod serve;

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use unmask::server::{Access, ApiKeys, Traces};

use crate::collector::{Collector, Manner, SERVER, Span};
use crate::mock::{Mock, POISON};
use crate::server::{Server, Setup, eventually};

const PATH: &str = "/v1/completions";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What no collector is told.
const PROMPT: &str = "a very secret prompt";

fn traced(collector: &Collector) -> (Setup, Traces) {
    let traces = Traces::to(&collector.traces_url()).unwrap();
    let setup = Setup {
        traces: Some(traces.clone()),
        chat_template: Some("{{ messages[0].content }}"),
        ..Setup::default()
    };
    (setup, traces)
}

/// Waits until the collector has `count` spans of requests; all that it has.
async fn spans_of(collector: &Collector, traces: &Traces, count: usize) -> Vec<Span> {
    let begun = Instant::now();
    loop {
        let traces = traces.clone();
        tokio::task::spawn_blocking(move || traces.flush())
            .await
            .unwrap();
        let spans = collector.spans();
        if requests(&spans).count() >= count {
            return spans;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{count} requests were not traced: {spans:?}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn requests(spans: &[Span]) -> impl Iterator<Item = &Span> {
    spans.iter().filter(|span| span.kind == SERVER)
}

fn children<'a>(spans: &'a [Span], of: &Span) -> Vec<&'a Span> {
    let of_parent = |span: &&Span| span.parent == of.id && span.trace == of.trace;
    spans.iter().filter(of_parent).collect()
}

/// A request of every route that denoises, the operation that it is, and how many sequences it takes.
fn denoising() -> Vec<(&'static str, Value, &'static str, usize)> {
    vec![
        (
            PATH,
            json!({"prompt": PROMPT, "max_tokens": 4, "n": 2}),
            "text_completion",
            2,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}),
            "chat",
            1,
        ),
        (
            "/v1/infill",
            json!({"segments": [PROMPT, {"gap": {"tokens": 4}}, {"gap": {"choices": ["a", "bc"]}}]}),
            "infill",
            1,
        ),
        (
            "/v1/fim/completions",
            json!({"prompt": PROMPT, "suffix": "s", "max_tokens": 4}),
            "text_completion",
            1,
        ),
        (
            "/infill",
            json!({"input_prefix": PROMPT, "input_suffix": "s", "n_predict": 4}),
            "text_completion",
            1,
        ),
    ]
}

#[tokio::test]
async fn the_span_of_an_answer_says_what_it_took_and_has_one_below_it_for_each_wait_and_denoising()
{
    for stream in [false, true] {
        for (path, mut body, operation, sequences) in denoising() {
            let collector = Collector::start(Manner::Takes);
            let (setup, traces) = traced(&collector);
            let server = Server::with(Mock::saying_text(0, "something"), setup).await;
            body["stream"] = stream.into();
            let text = server.post(path, &body).await.text().await.unwrap();
            let last = text
                .lines()
                .map(|line| line.strip_prefix("data: ").unwrap_or(line))
                .rfind(|line| line.starts_with('{'));
            let answer: Value = serde_json::from_str(last.unwrap()).unwrap();
            let spans = spans_of(&collector, &traces, 1).await;
            let span = requests(&spans).next().unwrap();
            assert_eq!(span.name, format!("POST {path}"));
            assert_eq!(span.parent, "");
            assert!(span.begin < span.end);
            let expected = [
                ("http.request.method", json!("POST")),
                ("http.route", json!(path)),
                ("http.response.status_code", json!(200)),
                ("url.path", json!(path)),
                ("url.scheme", json!("http")),
                ("gen_ai.operation.name", json!(operation)),
                ("gen_ai.request.model", json!("mini")),
            ];
            for (name, value) in expected {
                assert_eq!(span.attributes[name], value, "{path}: {name}");
            }
            if path == "/infill" {
                let tokens = &span.attributes["gen_ai.usage.output_tokens"];
                assert_eq!(tokens, &answer["tokens_predicted"], "{answer}");
            } else {
                let (usage, report) = (&answer["usage"], &answer["diffusion"]);
                if let Some(usage) = usage.as_object() {
                    let input = &span.attributes["gen_ai.usage.input_tokens"];
                    assert_eq!(input, &usage["prompt_tokens"]);
                    let output = &span.attributes["gen_ai.usage.output_tokens"];
                    assert_eq!(output, &usage["completion_tokens"]);
                }
                assert_eq!(span.attributes["unmask.nfe"], report["nfe"], "{answer}");
                assert_eq!(span.attributes["unmask.steps"], report["steps"]);
                let queue = span.attributes["unmask.queue_ms"].as_f64().unwrap();
                let queued = report["queued_ms"].as_f64().unwrap();
                assert!((queue - queued).abs() < 1e-9, "{queue} {queued}");
            }
            for absent in ["error.type", "unmask.aborted", "unmask.api_key.name"] {
                assert!(!span.attributes.contains_key(absent), "{absent}");
            }
            assert_eq!(span.status, 0);
            let children = children(&spans, span);
            assert_eq!(children.len() + 1, spans.len());
            for name in ["queue", "denoise"] {
                let of_name = children.iter().filter(|child| child.name == name);
                let of_name: Vec<_> = of_name.collect();
                assert_eq!(of_name.len(), sequences, "{path}: {name}");
                for (index, child) in of_name.iter().enumerate() {
                    assert!(child.begin <= child.end);
                    let others = of_name[..index].iter();
                    let index = &child.attributes["unmask.sequence"];
                    assert!(
                        others
                            .clone()
                            .all(|other| &other.attributes["unmask.sequence"] != index)
                    );
                }
            }
            for received in collector.received().iter() {
                let bytes = String::from_utf8_lossy(&received.body).into_owned();
                for secret in ["secret", "something", "omethin"] {
                    assert!(!bytes.contains(secret), "{path}: {bytes}");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_span_of_a_score_says_what_it_read_and_in_how_many_forwards() {
    let collector = Collector::start(Manner::Takes);
    let (setup, traces) = traced(&collector);
    let server = Server::with(Mock::uniform(), setup).await;
    let body = json!({"input": "secret", "samples": 4, "seed": 1});
    let answer = server.answer("/v1/score", &body).await;
    let spans = spans_of(&collector, &traces, 1).await;
    let attributes = &spans[0].attributes;
    assert_eq!(attributes["gen_ai.operation.name"], "score");
    assert_eq!(attributes["unmask.nfe"], answer["diffusion"]["nfe"]);
    let tokens = &attributes["gen_ai.usage.input_tokens"];
    assert_eq!(tokens, &answer["usage"]["prompt_tokens"]);
    assert!(!attributes.contains_key("unmask.aborted"));
}

#[tokio::test]
async fn a_callers_trace_goes_on_and_a_malformed_one_is_ignored() {
    let collector = Collector::start(Manner::Takes);
    let (setup, traces) = traced(&collector);
    let server = Server::with(Mock::uniform(), setup).await;
    let get = async |traceparents: &[&str], id: &str| {
        let mut request = server.client.get(format!("{}/v1/models", server.url));
        for traceparent in traceparents {
            request = request.header("traceparent", *traceparent);
        }
        let request = request.header("x-request-id", id);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    };
    let given = format!("00-{TRACE}-{PARENT}-01");
    get(&[&given], "continued").await;
    let malformed = [
        String::new(),
        "nonsense".into(),
        format!("00-{TRACE}-{PARENT}"),
        format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{}-{PARENT}-01", &TRACE[1..]),
        format!("00-{TRACE}-+{}-01", &PARENT[1..]),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("00-{TRACE}-{PARENT}-01-more"),
        format!("00-{TRACE}-{PARENT}-0g"),
    ];
    for malformed in &malformed {
        get(&[malformed], "alone").await;
    }
    get(&[&given, &given], "alone").await;
    // A caller that does not trace asks for no spans.
    get(&[&format!("00-{TRACE}-{PARENT}-00")], "unsampled").await;
    get(&[&format!("cc-{TRACE}-{PARENT}-01-what-will-be")], "later").await;
    let spans = spans_of(&collector, &traces, malformed.len() + 3).await;
    let of = |id: &str| {
        let of_id = |span: &&Span| span.attributes["unmask.request_id"] == id;
        spans.iter().filter(of_id).collect::<Vec<_>>()
    };
    for id in ["continued", "later"] {
        let continued = of(id);
        assert_eq!(continued.len(), 1);
        assert_eq!(
            (&*continued[0].trace, &*continued[0].parent),
            (TRACE, PARENT)
        );
        assert_ne!(continued[0].id, PARENT);
    }
    let alone = of("alone");
    assert_eq!(alone.len(), malformed.len() + 1);
    for span in alone {
        assert_ne!(span.trace, TRACE);
        assert_eq!(span.parent, "");
        assert_eq!(span.trace.len(), 32);
    }
    assert_eq!(of("unsampled").len(), 0);
}

#[tokio::test]
async fn faults_of_the_server_are_errors_and_those_of_a_request_are_not() {
    let collector = Collector::start(Manner::Takes);
    let (setup, traces) = traced(&collector);
    let server = Server::with(Mock::uniform(), setup).await;
    server.ask(PATH, &json!({"prompt": [POISON]})).await;
    let stream = json!({"prompt": [POISON], "stream": true});
    server.post(PATH, &stream).await.text().await.unwrap();
    server.ask(PATH, &json!({"prompt": "p", "n": 0})).await;
    server.get("/a/path/that/is/not?key=secret").await;
    let odd = Method::from_bytes(b"BREW").unwrap();
    let request = server.client.request(odd, format!("{}{PATH}", server.url));
    request.send().await.unwrap();
    let spans = spans_of(&collector, &traces, 5).await;
    let found = |status: u16, error: Option<&str>| {
        let found = requests(&spans).filter(|span| {
            let attributes = &span.attributes;
            let given = attributes.get("error.type").and_then(Value::as_str);
            attributes["http.response.status_code"] == status && given == error
        });
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 1, "{status} {error:?}: {spans:?}");
        let is_error = found[0].status == 2;
        assert_eq!(is_error, error.is_some());
        assert!(!found[0].attributes.contains_key("unmask.aborted"));
        found[0]
    };
    found(500, Some("500"));
    found(200, Some("engine_failure"));
    assert_eq!(found(400, None).name, format!("POST {PATH}"));
    let unknown = found(404, None);
    assert_eq!(unknown.name, "GET");
    assert_eq!(unknown.attributes["url.path"], "/a/path/that/is/not");
    assert!(!unknown.attributes.contains_key("http.route"));
    let odd = found(405, None);
    assert_eq!(odd.name, format!("HTTP {PATH}"));
    assert_eq!(odd.attributes["http.request.method"], "_OTHER");
    assert_eq!(odd.attributes["http.request.method_original"], "BREW");
}

#[tokio::test]
async fn a_browser_that_asks_whether_it_may_ask_denoises_nothing_and_has_its_answer() {
    let collector = Collector::start(Manner::Takes);
    let (setup, traces) = traced(&collector);
    let server = Server::with(Mock::saying_text(0, "something"), setup).await;
    let method = reqwest::Method::OPTIONS;
    let url = format!("{}{PATH}", server.url);
    let answer = server.client.request(method, url).send().await.unwrap();
    assert!(answer.status().is_success());
    let spans = spans_of(&collector, &traces, 1).await;
    let span = requests(&spans).next().unwrap();
    assert_eq!(span.name, format!("OPTIONS {PATH}"));
    for absent in ["gen_ai.operation.name", "unmask.aborted"] {
        assert!(!span.attributes.contains_key(absent), "{absent}");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_span() {
    for stream in [false, true] {
        let collector = Collector::start(Manner::Takes);
        let (setup, traces) = traced(&collector);
        let (model, gate) = Mock::uniform().gated();
        let server = Server::with(model, setup).await;
        let body = json!({"prompt": "p", "max_tokens": 200, "stream": stream});
        let request = server.client.post(format!("{}{PATH}", server.url));
        let request = request.json(&body);
        if stream {
            let response = request.send().await.unwrap();
            gate.allow(1);
            eventually("it runs", || server.engine.status().steps > 0).await;
            drop(response);
        } else {
            let request = tokio::spawn(request.send());
            eventually("it runs", || server.engine.status().running > 0).await;
            request.abort();
            assert!(request.await.is_err());
        }
        let spans = spans_of(&collector, &traces, 1).await;
        let span = requests(&spans).next().unwrap();
        assert_eq!(span.attributes["unmask.aborted"], true);
        let status = span.attributes.get("http.response.status_code");
        assert_eq!(status, stream.then(|| json!(200)).as_ref());
        assert!(!span.attributes.contains_key("error.type"));
        assert_eq!(span.status, 0);
        let children = children(&spans, span);
        assert!(children.iter().any(|child| child.name == "queue"));
        assert!(children.iter().all(|child| child.end <= span.end));
        drop(gate);
    }
}

#[tokio::test]
async fn a_collector_that_is_away_or_does_not_answer_disturbs_no_request() {
    let away = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/v1/traces", listener.local_addr().unwrap())
    };
    let hangs = Collector::start(Manner::Hangs);
    for url in [away, hangs.traces_url()] {
        let traces = Traces::to(&url).unwrap();
        let setup = Setup {
            traces: Some(traces.clone()),
            ..Setup::default()
        };
        let server = Server::with(Mock::uniform(), setup).await;
        let body = json!({"prompt": "p", "max_tokens": 1});
        server.answer(PATH, &body).await;
        let flushing = {
            let traces = traces.clone();
            tokio::task::spawn_blocking(move || traces.flush())
        };
        // More spans than wait for a collector at most.
        for _ in 0..1000 {
            server.answer(PATH, &body).await;
        }
        let ended = tokio::task::spawn_blocking(move || traces.end(Duration::from_millis(1)));
        let _ = ended.await.unwrap();
        server.answer(PATH, &body).await;
        assert!(!flushing.await.unwrap(), "{url}");
    }
}

#[tokio::test]
async fn health_readiness_and_metrics_make_no_spans() {
    let collector = Collector::start(Manner::Takes);
    let (setup, traces) = traced(&collector);
    let server = Server::with(Mock::uniform(), setup).await;
    for path in ["/health", "/ready", "/metrics", "/v1/models"] {
        assert_eq!(server.get(path).await.0, StatusCode::OK);
    }
    let spans = spans_of(&collector, &traces, 1).await;
    let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["GET /v1/models"]);
}

#[tokio::test]
async fn a_key_is_known_by_its_name() {
    let collector = Collector::start(Manner::Takes);
    let (setup, traces) = traced(&collector);
    let setup = Setup {
        access: Access {
            keys: ApiKeys::new(["alice:sk-hidden"]).unwrap(),
            ..Access::default()
        },
        ..setup
    };
    let server = Server::with(Mock::uniform(), setup).await;
    for key in ["sk-hidden", "sk-wrong"] {
        let request = server.client.get(format!("{}/v1/models", server.url));
        request.bearer_auth(key).send().await.unwrap();
    }
    let spans = spans_of(&collector, &traces, 2).await;
    for span in &spans {
        let name = span.attributes.get("unmask.api_key.name");
        let is_known = span.attributes["http.response.status_code"] == 200;
        assert_eq!(name, is_known.then(|| json!("alice")).as_ref());
    }
    for received in collector.received().iter() {
        assert!(!String::from_utf8_lossy(&received.body).contains("sk-"));
    }
}
