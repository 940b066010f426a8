//! Completions by a model that knows whole blocks only.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::completions::{both_ways, text};
use crate::mock::{CONTEXT, Mock, STOP};
use crate::server::Server;

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn the_last_block_is_filled_up_with_slots_that_are_neither_returned_nor_counted() {
    let server = Server::of(Mock::saying_text(0, "0123456789").in_blocks_of(8)).await;
    let answer = both_ways(&server, &json!({"prompt": "ab", "max_tokens": 3})).await;
    assert_eq!(text(&answer), "234");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5});
    assert_eq!(answer["usage"], usage);
    // Six masked slots, one a step.
    assert_eq!(answer["diffusion"]["steps"], 6);
    assert_eq!(answer["diffusion"]["tokens_per_forward"], 0.5);
}

#[tokio::test]
async fn text_after_a_gap_is_refused_with_the_reason_where_the_model_would_not_see_it() {
    let server = Server::of(Mock::saying_text(0, "0123456789").in_blocks_of(8)).await;
    let suffix = json!({"prompt": "ab", "max_tokens": 2, "suffix": "!"});
    let infill = json!({"text": "ab{{2}}!"});
    let segments = json!({"segments": ["ab", {"gap": {"tokens": 1}}, {"gap": {"tokens": 1}}, "!"]});
    let fim = json!({"prompt": "ab", "suffix": "!"});
    let llama = json!({"input_prefix": "ab", "input_suffix": "!", "n_predict": 2});
    for (path, body, param) in [
        ("/v1/completions", suffix, "suffix"),
        ("/v1/infill", infill, "text"),
        ("/v1/infill", segments, "segments[3]"),
        ("/v1/fim/completions", fim, "suffix"),
        ("/infill", llama, "input_suffix"),
    ] {
        let response = server.post(path, &body).await;
        assert_eq!(response.status(), 400);
        let answer: serde_json::Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["param"], param, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("block-causal"), "{message}");
        assert!(message.contains("diffusion.left_context"), "{message}");
    }
    let (_, models) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(models["data"][0]["infill"], "left-context");
    let asked_for = json!({"text": "ab{{2}}!", "diffusion": {"left_context": true}});
    let answer = server.answer("/v1/infill", &asked_for).await;
    assert_eq!(answer["choices"][0]["text"], "ab23!");
}

#[tokio::test]
async fn blocks_that_begin_at_the_gap_need_no_filling_up() {
    let server = Server::of(Mock::saying_text(0, "0123456789").in_blocks_of(8)).await;
    let body = json!({"prompt": "ab", "max_tokens": 3, "diffusion": {"block_origin": "gap"}});
    let answer = both_ways(&server, &body).await;
    assert_eq!(text(&answer), "234");
    assert_eq!(answer["diffusion"]["steps"], 3);
}

#[tokio::test]
async fn a_stop_token_in_a_block_ends_the_completion_before_the_next() {
    let said = [b'a', b'b', b'c'].map(u32::from).into_iter().chain([STOP]);
    let server = Server::of(Mock::saying(0, said).in_blocks_of(8)).await;
    let answer = both_ways(&server, &json!({"prompt": "p", "max_tokens": 60})).await;
    assert_eq!(text(&answer), "bc");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_canvas_whose_whole_blocks_are_longer_than_the_context_is_refused() {
    let server = Server::of(Mock::saying_text(0, "").in_blocks_of(100)).await;
    let most = 200 - 1;
    server
        .answer(PATH, &json!({"prompt": "p", "max_tokens": most}))
        .await;
    for (path, body) in [
        (PATH, json!({"prompt": "p", "max_tokens": most + 1})),
        (PATH, json!({"prompt": "p", "max_tokens": u64::MAX})),
        ("/v1/infill", json!({"text": "p{{200}}"})),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer["error"]["code"], "context_length_exceeded");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("whole"), "{message}");
        assert!(message.contains(&CONTEXT.to_string()), "{message}");
    }
}

#[tokio::test]
async fn canvases_longer_than_the_context_slide_where_asked_for_and_where_the_model_is_sampled_so()
{
    let blocks = || Mock::saying_text(0, "").in_blocks_of(8);
    let sliding = Server::of(blocks().sliding(3 * CONTEXT)).await;
    let body = |max_tokens: usize, slides: bool| {
        json!({
            "prompt": "p", "max_tokens": max_tokens, "diffusion": {"sliding_window": slides},
        })
    };
    let answer = sliding.answer(PATH, &body(2 * CONTEXT, true)).await;
    assert_eq!(answer["usage"]["completion_tokens"], 2 * CONTEXT);
    for (max_tokens, slides, limit) in [(CONTEXT, false, CONTEXT), (3 * CONTEXT, true, 3 * CONTEXT)]
    {
        let (status, answer) = sliding.ask(PATH, &body(max_tokens, slides)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["code"], "context_length_exceeded");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(&limit.to_string()), "{message}");
    }
    let (_, models) = sliding.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    let window = json!({"slots": CONTEXT, "max_canvas": 3 * CONTEXT});
    assert_eq!(models["data"][0]["sliding_window"], window);

    let (status, answer) = Server::of(blocks()).await.ask(PATH, &body(4, true)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["param"], "diffusion.sliding_window");
}

#[tokio::test]
async fn blocks_of_another_length_are_refused_and_every_preset_keeps_the_models() {
    let server = Server::of(Mock::saying_text(0, "").in_blocks_of(8)).await;
    let body = json!({"prompt": "p", "diffusion": {"block_length": 4}});
    let (status, answer) = server.ask(PATH, &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["param"], "diffusion.block_length");
    let (_, models) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    let presets = models["data"][0]["presets"].as_array().unwrap();
    assert!(presets.len() > 9);
    for preset in presets {
        let body = json!({"prompt": "p", "diffusion": {"preset": preset["name"]}});
        server.answer(PATH, &body).await;
    }
}
