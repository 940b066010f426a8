//! Requests that are refused whatever their fields are: bodies, models, lengths, and what a defect says.

use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::engine::EngineConfig;
use unmask::server::Limits;
use unmask::text::{TextError, Tokenizer};

use crate::mock::Mock;
use crate::server::{Server, Setup};

const COMPLETIONS: &str = "/v1/completions";
const INFILL: &str = "/v1/infill";

#[tokio::test]
async fn a_canvas_that_is_too_long_has_openais_code() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "p", "max_tokens": 256})),
        (INFILL, json!({"text": "p{{256}}"})),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["code"], "context_length_exceeded");
    }
}

#[tokio::test]
async fn limits_that_are_the_servers_own_are_named_by_their_options() {
    let ask = async |server: &Server, path: &str, body: Value| {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    let engine = EngineConfig {
        max_rows: 20,
        max_queue: 2,
        ..EngineConfig::default()
    };
    let setup = Setup {
        engine,
        ..Setup::default()
    };
    let narrow = Server::with(Mock::uniform(), setup).await;
    let wide = Server::of(Mock::uniform()).await;
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "p", "max_tokens": 300})),
        (COMPLETIONS, json!({"prompt": "p".repeat(300)})),
        (INFILL, json!({"text": "{{300}}"})),
        ("/infill", json!({"n_predict": 300})),
        ("/v1/score", json!({"input": "p".repeat(300)})),
    ] {
        let message = ask(&narrow, path, body.clone()).await;
        assert!(
            message.contains("20 slots, the --max-rows of this server"),
            "{message}"
        );
        let message = ask(&wide, path, body).await;
        assert!(
            message.contains("the model's limit is 256 slots"),
            "{message}"
        );
    }
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "p", "n": 17})),
        (COMPLETIONS, json!({"prompt": vec!["p"; 17]})),
        (INFILL, json!({"text": "{{1}}", "n": 17})),
        (
            INFILL,
            json!({"segments": vec![json!({"gap": {"max_tokens": 3}}); 6]}),
        ),
    ] {
        let message = ask(&narrow, path, body.clone()).await;
        let of_queue = "2 sequences a request, the --max-queue of this server";
        assert!(message.contains(of_queue), "{message}");
        let message = ask(&wide, path, body).await;
        assert!(message.contains("16 sequences a request"), "{message}");
        assert!(!message.contains("--"), "{message}");
    }
}

#[tokio::test]
async fn another_model_is_not_found() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body) in [
        (COMPLETIONS, json!({"model": "gpt-4", "prompt": "p"})),
        (INFILL, json!({"model": "gpt-4", "text": "{{1}}"})),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let error = &answer["error"];
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "model");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("gpt-4") && message.contains("mini"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn the_mask_token_written_out_in_a_text_is_refused() {
    let server = Server::golden().await;
    for (path, body, param) in [
        (
            COMPLETIONS,
            json!({"prompt": ["a", "b <|mdm_mask|>"]}),
            "prompt[1]",
        ),
        (
            COMPLETIONS,
            json!({"prompt": "a", "suffix": "<|mdm_mask|>"}),
            "suffix",
        ),
        (INFILL, json!({"text": "<|mdm_mask|>{{1}}"}), "text"),
        (
            INFILL,
            json!({"segments": [{"gap": {"tokens": 1}}, "<|mdm_mask|>"]}),
            "segments[1]",
        ),
        (
            INFILL,
            json!({"segments": [{"gap": {"choices": ["a", "<|mdm_mask|>"]}}]}),
            "segments[0].gap.choices[1]",
        ),
        ("/v1/score", json!({"input": "<|mdm_mask|>"}), "input"),
        (
            "/v1/score",
            json!({"input": "a", "prompt": "<|mdm_mask|>"}),
            "prompt",
        ),
        (
            COMPLETIONS,
            json!({"prompt": "a", "logit_bias": {"505": 1}}),
            "logit_bias.505",
        ),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("mask token"), "{message}");
        assert!(message.contains("505"), "{message}");
        // Where a gap might have been meant.
        let of_text = ["prompt[1]", "suffix", "text", "segments[1]"].contains(&param);
        assert_eq!(message.contains("{{8}}"), of_text, "{message}");
    }
}

/// Posts a raw body; status and error.
async fn raw(server: &Server, content_type: Option<&str>, body: &[u8]) -> (StatusCode, Value) {
    let url = format!("{}{COMPLETIONS}", server.url);
    let mut request = server.client.post(url).body(body.to_vec());
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    (status, body["error"].clone())
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused_where_they_are_wrong() {
    let server = Server::of(Mock::uniform()).await;
    for (body, says) in [
        (&b""[..], "EOF"),
        (b"{\"prompt\": \"p\"", "line 1 column 14"),
        (b"{\"prompt\": \"p\"} x", "line 1 column 17"),
        (b"{\"prompt\": 'p'}", "line 1 column 12"),
        (b"{\"prompt\": \"\\ud800\"}", "line 1"),
        (b"{\"prompt\": \"a\xFFb\"}", "byte 13"),
        (b"prompt=p", "line 1 column 1"),
    ] {
        let (status, error) = raw(&server, Some("application/json"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert_eq!(error["code"], "invalid_json", "{error}");
        assert_eq!(error["param"], Value::Null);
        assert!(
            error["message"].as_str().unwrap().contains(says),
            "{says}: {error}"
        );
    }
    let deep = format!("{{\"prompt\": {}", "[".repeat(100_000));
    let (status, _) = raw(&server, Some("application/json"), deep.as_bytes()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let twice = br#"{"prompt": "p", "n": 1, "n": 2}"#;
    let (status, error) = raw(&server, Some("application/json"), twice).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(error["code"], "invalid_value", "{error}");
    assert_eq!(error["param"], "n", "{error}");
    let (status, error) = raw(&server, Some("application/json"), b"[1]").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(error["code"], "invalid_value", "{error}");
    assert_eq!(error["param"], Value::Null, "{error}");
}

#[tokio::test]
async fn other_media_types_are_refused() {
    let server = Server::of(Mock::uniform()).await;
    let body = br#"{"prompt": "p"}"#;
    for given in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("application/json; charset=latin1"),
        Some("application/json;q=1; Charset=\"us-ascii\""),
    ] {
        let (status, error) = raw(&server, given, body).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let message = error["message"].as_str().unwrap();
        let shown = format!("{:?}", given.unwrap_or_default());
        assert!(message.contains(&shown), "{message}");
        assert!(message.contains("application/json, in utf-8"), "{message}");
    }
    for given in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json;charset=\"UTF-8\"; q=1",
    ] {
        let (status, _) = raw(&server, Some(given), body).await;
        assert_eq!(status, StatusCode::OK, "{given}");
    }
}

#[tokio::test]
async fn compressed_bodies_are_refused() {
    let server = Server::of(Mock::uniform()).await;
    let send = async |encoding: &str| {
        let request = server.client.post(format!("{}{COMPLETIONS}", server.url));
        let request = request.header("content-encoding", encoding);
        let response = request.json(&json!({"prompt": "p"})).send().await.unwrap();
        (response.status(), response.json::<Value>().await.unwrap())
    };
    for encoding in ["gzip", "br", "identity, gzip"] {
        let (status, answer) = send(encoding).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let error = &answer["error"];
        assert_eq!(error["code"], "unsupported_content_encoding");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("content-encoding") && message.contains(encoding));
    }
    assert_eq!(send("Identity").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_as_one() {
    let server = Server::of(Mock::uniform()).await;
    let (status, text) = server.get("/v1/models/%ff").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("\"invalid_path\""), "{text}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let limits = Limits {
        body_bytes: 100,
        ..Limits::default()
    };
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let server = Server::with(Mock::uniform(), setup).await;
    let body = |length: usize| format!("{{\"prompt\": \"p\"{}}}", " ".repeat(length - 15));
    let (status, _) = raw(&server, Some("application/json"), body(100).as_bytes()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, error) = raw(&server, Some("application/json"), body(101).as_bytes()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(error["code"], "body_too_large");
    assert!(error["message"].as_str().unwrap().contains("100 bytes"));
}

/// A tokenizer with a defect.
struct Broken;

impl Tokenizer for Broken {
    fn encode(&self, _: &str) -> Result<Vec<TokenId>, TextError> {
        panic!("what is for the log")
    }

    fn encode_as_text(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode(text)
    }

    fn bytes(&self, _: TokenId) -> &[u8] {
        &[]
    }

    fn longest_token(&self) -> Option<usize> {
        None
    }
}

#[tokio::test]
async fn what_a_defect_says_does_not_reach_the_client() {
    let server = Server::speaking(Mock::uniform(), Broken).await;
    let (status, answer) = server.ask(COMPLETIONS, &json!({"prompt": "p"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("defect in the server"), "{message}");
    assert!(!message.contains("for the log"), "{message}");
}
