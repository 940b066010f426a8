//! Clients that hang up, a full queue, faults and shutting down.

use std::io::{Read, Write};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::engine::EngineConfig;
use unmask::server::{Ending, Limits};

use crate::mock::{Gate, Mock, POISON};
use crate::server::{Server, Setup, eventually, frames};

const PATH: &str = "/v1/completions";

/// Steps that the abandoned requests would take.
const STEPS: usize = 200;

/// Lets the model step until nothing runs any more; it must not have come to the end.
async fn assert_dropped(server: &Server, gate: &Gate) {
    eventually("the slot is free", || {
        let status = server.engine.status();
        if status.running > 0 {
            gate.allow(1);
        }
        status.running == 0 && status.queued == 0
    })
    .await;
    assert!(server.engine.status().steps < STEPS as u64);
}

/// A request of every endpoint that denoises, of [`STEPS`] steps or more.
fn long_requests() -> Vec<(&'static str, Value)> {
    vec![
        (PATH, json!({"prompt": "p", "max_tokens": STEPS})),
        (PATH, json!({"prompt": "p", "max_tokens": STEPS, "n": 3})),
        (
            PATH,
            json!({"prompt": ["p", "q"], "max_tokens": STEPS, "suffix": "s"}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "p"}], "max_tokens": STEPS}),
        ),
        ("/v1/infill", json!({"text": format!("{{{{{STEPS}}}}}")})),
        (
            "/v1/infill",
            json!({"segments": [{"gap": {"min_tokens": STEPS, "max_tokens": STEPS + 4}}]}),
        ),
        (
            "/v1/fim/completions",
            json!({"prompt": "p", "suffix": "s", "max_tokens": STEPS}),
        ),
        ("/infill", json!({"input_prefix": "p", "n_predict": STEPS})),
    ]
}

/// One request at a time, and a template for chats.
fn narrow() -> Setup {
    Setup {
        limits: Limits {
            requests: 1,
            ..Limits::default()
        },
        chat_template: Some("{{ messages[0].content }}"),
        ..Setup::default()
    }
}

/// The one place for requests is free again, and the engine works on.
async fn assert_free(server: &Server, gate: Gate) {
    drop(gate);
    let body = json!({"prompt": "p", "max_tokens": 1});
    // The place is given back when the connection's task has seen the hang-up.
    while server.ask(PATH, &body).await.0 == StatusCode::TOO_MANY_REQUESTS {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.answer(PATH, &body).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_slot_and_its_place() {
    for (path, body) in long_requests() {
        let (model, gate) = Mock::uniform().gated();
        let server = Server::with(model, narrow()).await;
        let request = server
            .client
            .post(format!("{}{path}", server.url))
            .json(&body);
        let request = tokio::spawn(request.send());
        eventually("it runs", || server.engine.status().running > 0).await;
        request.abort();
        assert!(request.await.is_err());
        assert_dropped(&server, &gate).await;
        assert_free(&server, gate).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_frees_its_slot_and_its_place() {
    for (path, mut body) in long_requests() {
        if body["segments"][0]["gap"].get("min_tokens").is_some() {
            // Candidates of several lengths are not streamed.
            continue;
        }
        body["stream"] = true.into();
        let (model, gate) = Mock::uniform().gated();
        let server = Server::with(model, narrow()).await;
        let response = server.post(path, &body).await;
        assert_eq!(response.status(), StatusCode::OK, "{body}");
        gate.allow(1);
        eventually("it runs", || server.engine.status().running > 0).await;
        drop(response);
        assert_dropped(&server, &gate).await;
        assert_free(&server, gate).await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_queue_is_never_denoised() {
    let (model, gate) = Mock::uniform().gated();
    let setup = Setup {
        engine: EngineConfig {
            max_sequences: 1,
            ..EngineConfig::default()
        },
        ..Setup::default()
    };
    let server = Server::with(model, setup).await;
    let send = |max_tokens: usize| {
        let body = json!({"prompt": "p", "max_tokens": max_tokens});
        let request = server.client.post(format!("{}{PATH}", server.url));
        tokio::spawn(request.json(&body).send())
    };
    let first = send(3);
    eventually("the first runs", || server.engine.status().running == 1).await;
    let second = send(STEPS);
    eventually("the second waits", || server.engine.status().queued == 1).await;
    second.abort();
    assert!(second.await.is_err());
    let third = send(3);
    eventually("the third waits", || server.engine.status().queued >= 1).await;
    drop(gate);
    for request in [first, third] {
        let status = request.await.unwrap().unwrap().status();
        assert_eq!(status, StatusCode::OK);
    }
    eventually("nothing is left", || {
        let status = server.engine.status();
        status.running == 0 && status.queued == 0
    })
    .await;
    assert!(server.engine.status().steps < STEPS as u64);
}

#[tokio::test]
async fn a_full_queue_is_answered_with_429_and_retry_after() {
    let (model, gate) = Mock::uniform().gated();
    let setup = Setup {
        engine: EngineConfig {
            max_sequences: 1,
            max_queue: 1,
            ..EngineConfig::default()
        },
        ..Setup::default()
    };
    let server = Server::with(model, setup).await;
    let body = json!({"prompt": "p"});
    let request = || {
        server
            .client
            .post(format!("{}{PATH}", server.url))
            .json(&body)
    };
    let first = tokio::spawn(request().send());
    eventually("the first runs", || server.engine.status().running == 1).await;
    let second = tokio::spawn(request().send());
    eventually("the second waits", || server.engine.status().queued == 1).await;
    for path_and_body in [
        (PATH, body.clone()),
        (PATH, json!({"prompt": "p", "stream": true})),
        ("/v1/infill", json!({"text": "{{1}}"})),
    ] {
        let response = server.post(path_and_body.0, &path_and_body.1).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let retry_after = response.headers()["retry-after"].to_str().unwrap();
        assert!(retry_after.parse::<u32>().unwrap() > 0);
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["type"], "rate_limit_error");
        assert_eq!(answer["error"]["code"], "queue_full");
    }
    drop(gate);
    for request in [first, second] {
        let status = request.await.unwrap().unwrap().status();
        assert_eq!(status, StatusCode::OK);
    }
    server.answer(PATH, &body).await;
}

#[tokio::test]
async fn a_fault_of_the_engine_is_answered_with_500_and_the_next_request_works() {
    let server = Server::of(Mock::uniform()).await;
    let poisoned = json!({"prompt": [POISON]});
    let (status, answer) = server.ask(PATH, &poisoned).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer["error"]["type"], "server_error");
    assert_eq!(answer["error"]["code"], "engine_failure");
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("poisoned")
    );
    server.answer(PATH, &json!({"prompt": "p"})).await;
}

#[tokio::test]
async fn a_fault_in_a_stream_is_its_last_frame() {
    let server = Server::of(Mock::uniform()).await;
    let frames = server
        .frames(PATH, &json!({"prompt": [POISON], "n": 2}))
        .await;
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0]["error"]["code"], "engine_failure");
    server.answer(PATH, &json!({"prompt": "p"})).await;
}

#[tokio::test]
async fn shutting_down_finishes_the_requests_that_run() {
    let (model, gate) = Mock::saying_text(1, "").gated();
    let server = Server::of(model).await;
    let url = format!("{}{PATH}", server.url);
    let whole = server.client.post(&url).json(&json!({"prompt": "p"}));
    let whole = tokio::spawn(whole.send());
    let stream = server
        .post(PATH, &json!({"prompt": "p", "stream": true}))
        .await;
    eventually("both run", || {
        let status = server.engine.status();
        status.running + status.queued == 2
    })
    .await;
    server.shut_down();
    let address = server.url.trim_start_matches("http://").to_owned();
    eventually("no new connections are taken", || {
        std::net::TcpStream::connect(&address).is_err()
    })
    .await;
    assert!(!server.ended.is_finished());
    drop(gate);
    let answer: Value = whole.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(answer["choices"][0]["text"], "x".repeat(16));
    let streamed = frames(&stream.text().await.unwrap());
    let last = &streamed.last().unwrap()["choices"][0];
    assert_eq!(last["finish_reason"], "length");
    let ending = server.ended.await.unwrap();
    assert_eq!(ending, Ending::Drained);
}

#[tokio::test]
async fn draining_ends_at_its_deadline() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, Setup::without_drain()).await;
    let request = server.client.post(format!("{}{PATH}", server.url));
    let request = tokio::spawn(request.json(&json!({"prompt": "p"})).send());
    eventually("it runs", || server.engine.status().running == 1).await;
    server.shut_down();
    assert_given_up(request.await.unwrap().unwrap()).await;
    let ending = server.ended.await.unwrap();
    assert_eq!(ending, Ending::DeadlinePassed);
    drop(gate);
}

/// The answer to a request that a server that ends does not wait for.
async fn assert_given_up(answer: reqwest::Response) {
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["error"]["type"], "server_error");
    assert_eq!(answer["error"]["code"], "shutting_down");
}

#[tokio::test]
async fn what_outlives_the_drain_is_told_so_in_streams_and_before_its_body_has_come() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, Setup::without_drain()).await;
    let completion = json!({"prompt": "p", "stream": true});
    let infill = json!({"text": "{{2}}", "stream": true});
    let completion = server.post(PATH, &completion).await;
    let infill = server.post("/v1/infill", &infill).await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let half_sent = tokio::task::spawn_blocking(move || {
        let mut half_sent = std::net::TcpStream::connect(address).unwrap();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
        );
        half_sent.write_all(head.as_bytes()).unwrap();
        half_sent
    });
    let mut half_sent = half_sent.await.unwrap();
    let in_flight = "unmask_http_requests_in_flight 4\n";
    // Those three, and the one that asks.
    let all_run = async {
        while !server.get("/metrics").await.1.contains(in_flight) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(120), all_run).await;
    waited.expect("three requests run");
    server.shut_down();
    for stream in [completion, infill] {
        let frames = frames(&stream.text().await.unwrap());
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(frames[0]["error"]["code"], "shutting_down");
    }
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        half_sent.read_to_string(&mut answer).map(|_| answer)
    });
    let answer = answer.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("shutting_down"), "{answer}");
    assert_eq!(server.ended.await.unwrap(), Ending::DeadlinePassed);
    drop(gate);
}

#[tokio::test]
async fn a_second_signal_cuts_the_drain_short() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::of(model).await;
    let request = server.client.post(format!("{}{PATH}", server.url));
    let request = tokio::spawn(request.json(&json!({"prompt": "p"})).send());
    eventually("it runs", || server.engine.status().running == 1).await;
    server.shut_down();
    let address = server.url.trim_start_matches("http://").to_owned();
    eventually("no new connections are taken", || {
        std::net::TcpStream::connect(&address).is_err()
    })
    .await;
    assert!(!server.ended.is_finished());
    server.shut_down();
    let ending = server.ended.await.unwrap();
    assert_eq!(ending, Ending::CutShort);
    assert_given_up(request.await.unwrap().unwrap()).await;
    drop(gate);
}
