//! A model that denoises whole blocks after what its encoder has read, and so goes on from a text and fills no gaps.

use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::completions::{both_ways, text};
use crate::mock::{CONTEXT, Gate, Mock, STOP};
use crate::server::{Server, Setup, eventually};

const PATH: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn model() -> Mock {
    Mock::saying_text(0, "0123456789abcdefghij").encoding_for_blocks_of(8)
}

async fn server() -> Server {
    Server::of(model()).await
}

/// A server whose model takes a step when it is let, and whose chats begin with their first message.
async fn gated() -> (Server, Gate) {
    let (model, gate) = model().gated();
    let setup = Setup {
        chat_template: Some("{{ messages[0].content }}"),
        ..Setup::default()
    };
    (Server::with(model, setup).await, gate)
}

/// The forwards that a block takes: what comes before it is encoded, and of its two steps the second finds the same as
/// the first, with little doubt.
const FORWARDS: usize = 3;

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
async fn a_block_is_streamed_when_it_is_finished() {
    let prompt = json!({"prompt": "ab"});
    let messages = json!({"messages": [{"role": "user", "content": "ab"}]});
    for (path, mut body) in [(PATH, prompt), (CHAT, messages)] {
        let (server, gate) = gated().await;
        body["max_tokens"] = 18.into();
        body["stream"] = true.into();
        let mut stream = server.post(path, &body).await.bytes_stream();
        let mut seen = String::new();
        for expected in ["23456789", "abcdefgh", "ij"] {
            gate.allow(FORWARDS);
            // No forward of the next block is allowed.
            while !seen.contains(&format!("\"{expected}\"")) {
                let bytes = stream.next().await.unwrap().unwrap();
                seen.push_str(std::str::from_utf8(&bytes).unwrap());
            }
        }
    }
}

#[tokio::test]
async fn a_stop_string_ends_a_request_when_its_block_is_finished() {
    let prompt = json!({"prompt": "ab"});
    let messages = json!({"messages": [{"role": "user", "content": "ab"}]});
    for (path, mut body) in [(PATH, prompt), (CHAT, messages)] {
        let (server, gate) = gated().await;
        gate.allow(FORWARDS);
        body["max_tokens"] = 60.into();
        body["stop"] = json!(["56"]);
        let answer = server.answer(path, &body).await;
        let choice = &answer["choices"][0];
        let said = choice["text"].as_str();
        let said = said.or_else(|| choice["message"]["content"].as_str());
        assert_eq!(said, Some("234"));
        assert_eq!(choice["finish_reason"], "stop");
        // The tokens of the stop string count, those after it do not.
        assert_eq!(answer["usage"]["completion_tokens"], 5);
        assert_eq!(answer["diffusion"]["steps"], 2);
        assert_eq!(answer["diffusion"]["tokens_per_forward"], 4.0);
        drop(gate);
        eventually("nothing runs", || server.engine.status().running == 0).await;
        // One forward may have begun before the answer was read.
        assert!(server.engine.status().steps <= FORWARDS as u64 + 1);
    }
}

#[tokio::test]
async fn streamed_blocks_equal_the_text_in_one_piece_wherever_it_stops() {
    let server = server().await;
    let said = "23456789abcdefghij";
    for start in 0..said.len() {
        for length in [1, 2, 9] {
            let stop = &said[start..(start + length).min(said.len())];
            let body = json!({"prompt": "ab", "max_tokens": 20, "stop": stop, "logprobs": 1});
            let answer = both_ways(&server, &body).await;
            assert_eq!(text(&answer), &said[..start], "{stop}");
            assert_eq!(answer["choices"][0]["finish_reason"], "stop");
            let read = start + stop.len();
            assert_eq!(answer["usage"]["completion_tokens"], read, "{stop}");
            // No block after the one that completes the stop string.
            let steps = 2 * read.div_ceil(8);
            assert_eq!(answer["diffusion"]["steps"], steps, "{stop}");
        }
    }
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
            PATH,
            with(json!({"guidance_scale": 1.0, "negative_prompt": "no"})),
            "no mask",
        ),
        (
            "/v1/fim/completions",
            json!({"prompt": "ab", "suffix": "!", "max_tokens": 2}),
            "only goes on from a text",
        ),
        (
            "/infill",
            json!({"input_prefix": "ab", "input_suffix": "!", "n_predict": 2}),
            "only goes on from a text",
        ),
        (
            "/v1/infill",
            json!({"segments": ["ab", {"gap": {"choices": ["c", "d"]}}]}),
            "does not see what follows a choice",
        ),
        (
            "/v1/infill",
            json!({"segments": ["ab", {"gap": {"tokens": 8, "regex": "[a-z]+"}}]}),
            "uniform process",
        ),
        (
            "/v1/score",
            json!({"input": "ab"}),
            "this model denoises one block after what an encoder read; nothing bounds its likelihood",
        ),
        (
            "/v1/score",
            json!({"input": "ab", "prompt": "c", "diffusion": {"guidance_scale": 1.0}}),
            "nothing bounds its likelihood",
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

#[tokio::test]
async fn what_an_editor_sends_is_cut_to_what_leaves_room_for_whole_blocks() {
    let server = server().await;
    let mut body = json!({"input_prefix": "x".repeat(2 * CONTEXT), "n_predict": 4});
    let answer = server.answer("/infill", &body).await;
    assert_eq!(answer["truncated"], true);
    assert_eq!(answer["tokens_predicted"], 4);
    body["prompt"] = json!("y".repeat(CONTEXT - 4));
    let (status, refused) = server.ask("/infill", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("n_predict is 4; allowed: 0 to 0"),
        "{message}"
    );
}
