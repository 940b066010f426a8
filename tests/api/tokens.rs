//! `POST /tokenize` and `POST /detokenize`.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::Mock;
use crate::server::Server;
use crate::support::{golden, json as read_json};

#[tokio::test]
async fn texts_become_the_official_tokens_and_tokens_the_official_texts() {
    let server = Server::golden().await;
    let cases = read_json(&golden("llada").join("tokenizer_cases.json"));
    for case in cases["encode"].as_array().unwrap() {
        let body = json!({"content": case["text"], "add_special": true});
        let answer = server.answer("/tokenize", &body).await;
        assert_eq!(answer, json!({"tokens": case["ids"]}));
        let body = json!({"tokens": case["ids"]});
        let answer = server.answer("/detokenize", &body).await;
        assert_eq!(answer, json!({"content": case["decoded"]}));
    }
}

#[tokio::test]
async fn pieces_are_text_or_the_bytes_of_part_of_a_character() {
    let server = Server::golden().await;
    let body = json!({"content": "b€<|eot_id|>", "with_pieces": true});
    let answer = server.answer("/tokenize", &body).await;
    let pieces = answer["tokens"].as_array().unwrap();
    let text = |piece: &Value| match &piece["piece"] {
        Value::String(text) => text.clone().into_bytes(),
        bytes => serde_json::from_value(bytes.clone()).unwrap(),
    };
    let bytes: Vec<u8> = pieces.iter().flat_map(text).collect();
    assert_eq!(bytes, "b€<|eot_id|>".as_bytes());
    assert_eq!(pieces[0]["piece"], "b");
    assert!(pieces.iter().any(|piece| piece["piece"].is_array()));
    assert_eq!(
        *pieces.last().unwrap(),
        json!({"id": 510, "piece": "<|eot_id|>"})
    );
}

#[tokio::test]
async fn what_cannot_be_tokenised_is_refused_by_its_path() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body, param, says) in [
        ("/tokenize", json!({}), "content", "a string"),
        ("/tokenize", json!({"content": 5}), "content", "a string"),
        (
            "/tokenize",
            json!({"content": "x", "colour": 1}),
            "colour",
            "unknown",
        ),
        (
            "/tokenize",
            json!({"content": "x", "parse_special": false}),
            "parse_special",
            "allowed: true",
        ),
        (
            "/tokenize",
            json!({"content": "x", "model": "no"}),
            "model",
            "no",
        ),
        ("/detokenize", json!({}), "tokens", "token ids"),
        ("/detokenize", json!({"tokens": [1, -1]}), "tokens[1]", "-1"),
        (
            "/detokenize",
            json!({"tokens": [1, 260]}),
            "tokens[1]",
            "0 to 259",
        ),
        (
            "/detokenize",
            json!({"tokens": ["a"]}),
            "tokens[0]",
            "whole number",
        ),
    ] {
        let (status, error) = server.ask(path, &body).await;
        assert!(status == StatusCode::BAD_REQUEST || param == "model");
        assert_eq!(error["error"]["param"], param, "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}
