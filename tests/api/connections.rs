//! Clients that are slow, silent or too many.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
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

/// Sends `begun`, then more of the same letter for as long as the server takes it; all that the server sends.
async fn trickle(server: &Server, begun: &str) -> String {
    let mut stream = connect(server);
    stream.write_all(begun.as_bytes()).unwrap();
    tokio::task::spawn_blocking(move || {
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        let read_timeout = Some(Duration::from_millis(1));
        stream.set_read_timeout(read_timeout).unwrap();
        loop {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&piece[..read]),
                Err(error) if would_block(&error) => {}
                // The server has closed a connection on which more was sent.
                Err(_) => break,
            }
            let _ = stream.write_all(b"a");
            sleep(Duration::from_millis(2));
        }
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
    .unwrap()
}

fn would_block(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

/// The head of a completion whose body has so many bytes.
fn head(body_bytes: usize) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {body_bytes}\r\n\r\n"
    )
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
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let answer = trickle(&server, "GET /health HTTP/1.1\r\nhost: a\r\nx-slow: ").await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_connection_that_is_idle_after_an_answer_is_closed() {
    let listen = ListenConfig {
        head_timeout: Duration::from_millis(50),
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    let mut stream = connect(&server);
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_client_that_sends_no_whole_body_is_told_so() {
    let limits = Limits {
        body_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = server(ListenConfig::default(), limits).await;
    let mut silent = connect(&server);
    silent.write_all(head(100).as_bytes()).unwrap();
    silent.write_all(b"{").unwrap();
    for answer in [
        rest(silent).await,
        trickle(&server, &(head(1_000_000) + "{")).await,
    ] {
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("request_timeout"), "{answer}");
    }
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_sends_slowly_holds_no_place_among_the_requests() {
    let limits = Limits {
        requests: 1,
        ..Limits::default()
    };
    let server = server(ListenConfig::default(), limits).await;
    let body = json!({"prompt": "p"});
    let text = body.to_string();
    let mut slow: Vec<TcpStream> = (0..20).map(|_| connect(&server)).collect();
    for stream in &mut slow {
        stream.write_all(head(text.len()).as_bytes()).unwrap();
        stream.write_all(&text.as_bytes()[..3]).unwrap();
    }
    server.answer("/v1/completions", &body).await;
    for mut stream in slow {
        stream.write_all(&text.as_bytes()[3..]).unwrap();
        let answer = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn bodies_over_the_memory_for_them_are_refused_until_there_is_room() {
    let limits = Limits {
        bodies_bytes: 1000,
        ..Limits::default()
    };
    let server = server(ListenConfig::default(), limits).await;
    let body = json!({"prompt": "p", "user": "u".repeat(600)});
    let text = body.to_string();
    let mut slow = connect(&server);
    slow.write_all(head(text.len()).as_bytes()).unwrap();
    slow.write_all(&text.as_bytes()[..600]).unwrap();
    // The server may not have read it yet.
    let refused = loop {
        let response = server.post("/v1/completions", &body).await;
        if response.status() != StatusCode::OK {
            break response;
        }
    };
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "too_many_bodies");
    // What is small is let in meanwhile.
    server
        .answer("/v1/completions", &json!({"prompt": "p"}))
        .await;
    slow.write_all(&text.as_bytes()[600..]).unwrap();
    let answer = rest(slow).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.answer("/v1/completions", &body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_idle_and_half_sent_connections_hold_nobody_up() {
    let server = server(ListenConfig::default(), Limits::default()).await;
    let pieces = [
        String::new(),
        "POST /v1/comp".into(),
        "GET /health HTTP/1.1\r\nhost: a\r\nx-slow: a".into(),
        head(100) + "{\"prompt\"",
    ];
    let held: Vec<TcpStream> = (0..400)
        .map(|index| {
            let mut stream = connect(&server);
            let piece = &pieces[index % pieces.len()];
            stream.write_all(piece.as_bytes()).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(server.get("/health").await.0, StatusCode::OK);
        server
            .answer("/v1/completions", &json!({"prompt": "p"}))
            .await;
    }
    eventually("nothing runs", || server.engine.status().running == 0).await;
    drop(held);
    server
        .answer("/v1/completions", &json!({"prompt": "p"}))
        .await;
}

#[tokio::test]
async fn a_client_that_closes_its_half_of_a_connection_is_taken_to_be_gone() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::of(model).await;
    let body = json!({"prompt": "p", "max_tokens": 200}).to_string();
    let mut stream = connect(&server);
    stream
        .write_all((head(body.len()) + &body).as_bytes())
        .unwrap();
    eventually("it runs", || server.engine.status().running > 0).await;
    stream.shutdown(Shutdown::Write).unwrap();
    eventually("its slot is free", || {
        let running = server.engine.status().running;
        if running > 0 {
            gate.allow(1);
        }
        running == 0
    })
    .await;
    assert!(server.engine.status().steps < 200);
    assert_eq!(rest(stream).await, "");
    // Half of a body, and no more to come.
    let mut stream = connect(&server);
    stream
        .write_all((head(body.len()) + "{").as_bytes())
        .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let answer = rest(stream).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(gate);
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
async fn a_head_of_more_than_a_hundred_lines_is_refused() {
    let server = server(ListenConfig::default(), Limits::default()).await;
    for (lines, status) in [(100, "200"), (101, "431")] {
        let others = "x-other: 1\r\n".repeat(lines - 2);
        let mut stream = connect(&server);
        let head = format!("GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{others}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let answer = rest(stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let listen = ListenConfig {
        connections: 1,
        full_age: Duration::from_secs(3600),
        head_timeout: Duration::from_secs(3600),
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    let first = connect(&server);
    let request = server.client.get(format!("{}/health", server.url));
    let waiting = tokio::spawn(request.send());
    // Long enough for an answer, were there a place.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn idle_connections_make_way_where_all_are_taken() {
    let listen = ListenConfig {
        connections: 2,
        full_age: Duration::from_millis(1),
        head_timeout: Duration::from_secs(3600),
        ..ListenConfig::default()
    };
    let server = server(listen, Limits::default()).await;
    // While a place is free it may take its time.
    let mut kept_alive = connect(&server);
    kept_alive
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    let mut head = [0; 12];
    let kept_alive = tokio::task::spawn_blocking(move || {
        kept_alive.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        kept_alive
    });
    let kept_alive = kept_alive.await.unwrap();
    let silent = connect(&server);
    let (_, metrics) = server.get("/metrics").await;
    let open = metrics
        .lines()
        .find_map(|line| line.strip_prefix("unmask_connections "));
    assert!(
        (1..=2).contains(&open.unwrap().parse().unwrap()),
        "{open:?}"
    );
    assert_eq!(rest(silent).await, "");
    assert!(rest(kept_alive).await.ends_with('}'));
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
