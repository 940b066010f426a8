//! The log: one line a request, when it has ended.

use std::io::{self, Write};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use unmask::server::{Access, ApiKeys, Limits};

use crate::mock::{Mock, POISON};
use crate::server::{Server, Setup, eventually};

const PATH: &str = "/v1/completions";

/// All that servers of this process wrote since the first test that looked.
static WRITTEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());

static LOG: LazyLock<()> = LazyLock::new(|| {
    tracing_subscriber::fmt()
        .json()
        .with_env_filter("unmask=debug")
        .with_writer(|| Log)
        .init();
});

struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WRITTEN.lock().unwrap().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of the request that carried `id`.
fn lines(id: &str) -> Vec<Value> {
    let written = WRITTEN.lock().unwrap();
    let lines = std::str::from_utf8(&written).unwrap().lines();
    lines
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["span"]["id"] == id)
        .collect()
}

/// The last line of the request that carried `id`, which says how it ended.
async fn ended(id: &str) -> Value {
    let last = || {
        lines(id)
            .pop()
            .filter(|line| line["fields"]["status"].is_u64())
    };
    eventually("the request has ended", || last().is_some()).await;
    last().unwrap()
}

fn request(server: &Server, method: Method, path: &str, id: &str) -> RequestBuilder {
    LazyLock::force(&LOG);
    let request = server
        .client
        .request(method, format!("{}{path}", server.url));
    request.header("x-request-id", id)
}

fn completion(server: &Server, id: &str, body: &Value) -> RequestBuilder {
    request(server, Method::POST, PATH, id).json(body)
}

#[tokio::test]
async fn every_request_has_a_line_that_says_how_it_ended_and_how_long_it_took() {
    let setup = Setup {
        access: Access {
            keys: ApiKeys::new(["alice:sk-1"]).unwrap(),
            ..Access::default()
        },
        ..Setup::default()
    };
    let server = Server::with(Mock::uniform(), setup).await;
    for (id, body, level, status, outcome, error) in [
        ("log-1", json!({"prompt": "a"}), "INFO", 200, "ok", None),
        (
            "log-2",
            json!({"prompt": "a", "stream": true}),
            "INFO",
            200,
            "ok",
            None,
        ),
        (
            "log-3",
            json!({"prompt": "a", "n": 0}),
            "INFO",
            400,
            "refused",
            Some("invalid_value"),
        ),
        (
            "log-4",
            json!({"prompt": [POISON]}),
            "ERROR",
            500,
            "failed",
            Some("engine_failure"),
        ),
        (
            "log-5",
            json!({"prompt": [POISON], "stream": true}),
            "ERROR",
            200,
            "failed",
            Some("engine_failure"),
        ),
    ] {
        let sent = completion(&server, id, &body).bearer_auth("sk-1").send();
        sent.await.unwrap().bytes().await.unwrap();
        let line = ended(id).await;
        let fields = &line["fields"];
        assert_eq!(line["level"], level, "{line}");
        assert_eq!(fields["status"], status, "{line}");
        assert_eq!(fields["outcome"], outcome, "{line}");
        assert_eq!(fields.get("error").and_then(Value::as_str), error, "{line}");
        assert!(fields["ms"].as_f64().unwrap() > 0.0, "{line}");
        let span =
            json!({"name": "request", "id": id, "method": "POST", "path": PATH, "key": "alice"});
        assert_eq!(line["span"], span);
        assert!(
            line["target"].as_str().unwrap().starts_with("unmask::"),
            "{line}"
        );
        assert_eq!(lines(id).len(), 1, "{:?}", lines(id));
    }
    // What a request asked for is nobody's business but the client's.
    let written = WRITTEN.lock().unwrap();
    assert!(!String::from_utf8_lossy(&written).contains("sk-1"));
}

#[tokio::test]
async fn the_head_of_an_answer_alone_is_an_answer() {
    let server = Server::of(Mock::uniform()).await;
    for (id, path, status, outcome) in [
        ("head-1", "/v1/models", 200, "ok"),
        ("head-2", "/nowhere", 404, "refused"),
    ] {
        let sent = request(&server, Method::HEAD, path, id).send();
        assert_eq!(sent.await.unwrap().status(), status);
        let line = ended(id).await;
        assert_eq!(line["fields"]["status"], status, "{line}");
        assert_eq!(line["fields"]["outcome"], outcome, "{line}");
    }
}

#[tokio::test]
async fn a_client_that_goes_has_a_line_and_is_counted_as_one() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, Setup::default()).await;
    let body = json!({"prompt": "p", "max_tokens": 200});
    let whole = tokio::spawn(completion(&server, "log-gone", &body).send());
    eventually("it runs", || server.engine.status().running == 1).await;
    whole.abort();
    let line = ended("log-gone").await;
    assert_eq!(line["fields"]["status"], 499, "{line}");
    assert_eq!(line["fields"]["outcome"], "aborted", "{line}");

    let streamed = json!({"prompt": "p", "max_tokens": 200, "stream": true});
    let stream = completion(&server, "log-left", &streamed)
        .send()
        .await
        .unwrap();
    drop(stream);
    gate.allow(400);
    let line = ended("log-left").await;
    assert_eq!(line["fields"]["status"], 200, "{line}");
    assert_eq!(line["fields"]["outcome"], "aborted", "{line}");
    drop(gate);
    let (_, metrics) = server.get("/metrics").await;
    for status in [499, 200] {
        let series = format!(
            "unmask_http_requests_total{{route=\"{PATH}\",status=\"{status}\",outcome=\"aborted\"}} 1"
        );
        assert!(metrics.contains(&series), "{metrics}");
    }
}

#[tokio::test]
async fn a_stream_that_runs_out_of_time_failed_and_was_never_answered() {
    let limits = Limits {
        request_timeout: Some(Duration::from_millis(50)),
        ..Limits::default()
    };
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, setup).await;
    let body = json!({"prompt": "p", "stream": true});
    let sent = completion(&server, "log-late", &body).send().await;
    sent.unwrap().bytes().await.unwrap();
    let line = ended("log-late").await;
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["fields"]["outcome"], "failed");
    assert_eq!(line["fields"]["error"], "deadline_exceeded");
    let (_, metrics) = server.get("/metrics").await;
    assert!(!metrics.contains("time_to_first_token"), "{metrics}");
    drop(gate);
}

#[tokio::test]
async fn a_request_that_outlives_the_drain_failed_and_was_not_left_by_its_client() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, Setup::without_drain()).await;
    let whole = json!({"prompt": "p"});
    let whole = tokio::spawn(completion(&server, "log-drained", &whole).send());
    let stream = json!({"prompt": "p", "stream": true});
    let stream = completion(&server, "log-drained-stream", &stream)
        .send()
        .await;
    eventually("both are there", || {
        let status = server.engine.status();
        status.running + status.queued == 2
    })
    .await;
    server.shut_down();
    stream.unwrap().bytes().await.unwrap();
    whole.await.unwrap().unwrap().bytes().await.unwrap();
    for (id, status) in [("log-drained", 503), ("log-drained-stream", 200)] {
        let line = ended(id).await;
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["fields"]["status"], status);
        assert_eq!(line["fields"]["outcome"], "failed");
        assert_eq!(line["fields"]["error"], "shutting_down");
    }
    drop(gate);
}

#[tokio::test]
async fn probes_are_for_who_debugs_and_a_long_path_is_cut() {
    let server = Server::of(Mock::uniform()).await;
    for path in ["/health", "/ready", "/metrics"] {
        let id = format!("log{}", path.replace('/', "-"));
        let sent = request(&server, Method::GET, path, &id).send().await;
        sent.unwrap().bytes().await.unwrap();
        assert_eq!(ended(&id).await["level"], "DEBUG", "{path}");
    }
    let (path, method) = ("/é".repeat(5_000), "M".repeat(1000));
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let sent = request(&server, method, &path, "log-long").send().await;
    assert_eq!(sent.unwrap().status(), 404);
    let line = ended("log-long").await;
    assert!(line.to_string().len() < 2000, "{line}");
    assert!(
        line["span"]["path"]
            .as_str()
            .unwrap()
            .starts_with("/%C3%A9/")
    );
}

/// The first text of a chat is later than the chunk that has its role, and a shown canvas is no text.
#[tokio::test]
async fn the_time_to_the_first_token_is_that_of_the_first_text() {
    let chat = json!({"messages": [{"role": "user", "content": "p"}], "max_tokens": 200});
    let frames = json!({"prompt": "p", "max_tokens": 200, "diffusing": true});
    // Slots are committed in any order, so that one step makes no text final.
    for (path, mut body) in [("/v1/chat/completions", chat), (PATH, frames)] {
        let (model, gate) = Mock::uniform().gated();
        let setup = Setup {
            chat_template: Some("{{ messages[0].content }}"),
            ..Setup::default()
        };
        let server = Server::with(model, setup).await;
        body["stream"] = true.into();
        body["seed"] = 1.into();
        body["diffusion"] = json!({"score": "random"});
        let mut stream = server.post(path, &body).await;
        gate.allow(1);
        // The role, or the canvas.
        let first = stream.chunk().await.unwrap().unwrap();
        let first = String::from_utf8_lossy(&first).into_owned();
        let counted = format!("unmask_time_to_first_token_seconds_count{{route=\"{path}\"}}");
        let (_, metrics) = server.get("/metrics").await;
        assert!(!metrics.contains(&counted), "{first} {metrics}");
        drop(gate);
        stream.text().await.unwrap();
        let (_, metrics) = server.get("/metrics").await;
        assert!(metrics.contains(&format!("{counted} 1")), "{metrics}");
    }
}
