//! A model that denoises whole blocks after what its encoder has read, and so goes on from a text and fills no gaps.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::completions::{both_ways, text};
use crate::mock::{CONTEXT, Mock, STOP};
use crate::server::Server;

const PATH: &str = "/v1/completions";

async fn server() -> Server {
    Server::of(Mock::saying_text(0, "0123456789abcdefghij").encoding_for_blocks_of(8)).await
}

#[tokio::test]
async fn texts_go_on_in_whole_blocks_whose_rest_is_neither_returned_nor_counted() {
    let server = server().await;
    let answer = both_ways(&server, &json!({"prompt": "ab", "max_tokens": 3})).await;
    assert_eq!(text(&answer), "234");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    // The second step finds the same as the first, with little doubt.
    assert_eq!(answer["diffusion"]["steps"], 2);
    assert_eq!(answer["diffusion"]["cache"], "block");
    let answer = both_ways(&server, &json!({"prompt": "ab", "max_tokens": 12})).await;
    assert_eq!(text(&answer), "23456789abcd");
    assert_eq!(answer["diffusion"]["steps"], 4);
    let body = json!({"prompt": "ab", "max_tokens": 3, "diffusion": {
        "revision": {"renoise_rest": {"stable_steps": 1, "max_entropy": 0.0}}, "steps_per_block": 7,
    }});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["diffusion"]["steps"], 7);
}

#[tokio::test]
async fn a_stop_token_ends_a_text_after_its_block() {
    let said = [b'a', b'b', b'c'].map(u32::from).into_iter().chain([STOP]);
    let mock = Mock::saying(0, said).encoding_for_blocks_of(8);
    let server = Server::of(mock).await;
    let answer = both_ways(&server, &json!({"prompt": "p", "max_tokens": 60})).await;
    assert_eq!(text(&answer), "bc");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["diffusion"]["steps"], 2);
}

#[tokio::test]
async fn the_model_says_what_it_can_do() {
    let server = server().await;
    let (_, models) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    let model = &models["data"][0];
    assert_eq!(model["infill"], "none");
    assert_eq!(model["constraints"], json!([]));
    assert_eq!(
        model["attention"],
        json!({"encoded_blocks": {"block_length": 8}})
    );
    assert_eq!(model["cache"], json!({"auto": "block", "prefix": "block"}));
    let presets = model["presets"].as_array().unwrap();
    let names: Vec<&Value> = presets.iter().map(|preset| &preset["name"]).collect();
    assert_eq!(names, ["diffusion-gemma"]);
    let body = json!({"prompt": "ab", "max_tokens": 3, "diffusion": {"preset": "diffusion-gemma"}});
    assert_eq!(text(&server.answer(PATH, &body).await), "234");
    let answer = server
        .answer("/v1/infill", &json!({"text": "ab{{3}}"}))
        .await;
    assert_eq!(answer["choices"][0]["text"], "ab234");
}

#[tokio::test]
async fn what_it_cannot_do_is_refused_with_the_reason() {
    let server = server().await;
    let with = |diffusion: Value| json!({"prompt": "ab", "max_tokens": 3, "diffusion": diffusion});
    for (path, body, reason) in [
        (
            PATH,
            json!({"prompt": "ab", "max_tokens": 2, "suffix": "!"}),
            "only goes on from a text",
        ),
        (
            "/v1/infill",
            json!({"text": "ab{{2}}!"}),
            "only goes on from a text",
        ),
        (
            "/v1/infill",
            json!({"text": "a{{2}}b{{2}}"}),
            "only goes on from a text",
        ),
        (
            PATH,
            with(json!({"left_context": true})),
            "only goes on from a text",
        ),
        (PATH, with(json!({"block_length": 4})), "blocks of 8 slots"),
        (PATH, with(json!({"guidance_scale": 1.0})), "no mask"),
        (
            PATH,
            with(json!({"cache": {"policy": "none"}})),
            "allowed: auto, prefix",
        ),
        (PATH, with(json!({"preset": "llada"})), "renoise_rest"),
        (
            PATH,
            with(json!({"preset": "uniform-ancestral"})),
            "renoise_rest",
        ),
        (
            "/v1/score",
            json!({"input": "ab"}),
            "after what an encoder read",
        ),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer["error"]["param"].is_string(), "{body}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{body}: {message}");
    }
    let whole_blocks = json!({"prompt": "ab", "max_tokens": CONTEXT - 3});
    let (status, answer) = server.ask(PATH, &whole_blocks).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["code"], "context_length_exceeded");
}
