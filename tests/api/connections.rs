//! Clients that are slow, silent or too many.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use unmask::server::{Limits, ListenConfig};

use crate::mock::Mock;
use crate::server::{Server, Setup, eventually};

async fn server(listen: ListenConfig, limits: Limits) -> Server {
    let setup = Setup {
        listen,
        limits,
        ..Setup::default()
    };
    Server::with(Mock::uniform(), setup).await
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).unwrap();
    stream
}

/// All that the server sends until it closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_client_that_sends_no_whole_head_is_cut_off() {
    let listen = ListenConfig {
        head_timeout: Duration::from_millis(50),
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    for sent in ["", "GET /health HTTP/1.1\r\nhost:"] {
        let mut stream = connect(&server);
        stream.write_all(sent.as_bytes()).unwrap();
        let answer = rest(stream).await;
        assert!(!answer.contains("200"), "{answer}");
    }
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_sends_no_whole_body_is_told_so() {
    let limits = Limits {
        body_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = server(ListenConfig::default(), limits).await;
    let mut stream = connect(&server);
    let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                content-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let listen = ListenConfig {
        head_bytes: 8192,
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    let request = server.client.get(format!("{}/health", server.url));
    let response = request.header("x-long", "a".repeat(20_000)).send().await;
    let status = response.unwrap().status();
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let listen = ListenConfig {
        connections: 1,
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    let first = connect(&server);
    let request = server.client.get(format!("{}/health", server.url));
    let waiting = tokio::spawn(request.send());
    let early = tokio::time::timeout(Duration::from_millis(50), async {}).await;
    assert!(early.is_ok() && !waiting.is_finished());
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off_and_its_slot_freed() {
    let listen = ListenConfig {
        stall_timeout: Duration::from_millis(100),
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    // Far more than a socket's buffers hold: each step's frame tells of many slots again and again.
    let body = json!({
        "text": "{{250}}", "stream": true, "n": 16, "temperature": 1, "logprobs": true,
        "diffusion": {
            "steps": 2000,
            "budget": {"ancestral": {"eps": 0.001}},
            "revision": {"remask": {"rescale": 0.9}},
        },
    })
    .to_string();
    let mut stream = connect(&server);
    let head = format!(
        "POST /v1/infill HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    eventually("it runs", || server.engine.status().running > 0).await;
    eventually("it is dropped", || {
        let status = server.engine.status();
        status.running == 0 && status.queued == 0
    })
    .await;
    let most = 16 * 2000;
    assert!(server.engine.status().steps < most);
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    drop(stream);
}
