//! Models that change the length of gaps (DreamOn) behind the same endpoints.

use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::canvas::TokenId;

use crate::completions::text;
use crate::mock::{Mock, SPECIAL, STOP};
use crate::server::Server;

/// Predicts `token` in slot 3 and 'x' elsewhere; slots 5 and 4 are committed before it, slot 2 after it.
fn mock(token: TokenId) -> Mock {
    Mock::scripted(move |slot| Some(if slot == 3 { token } else { 'x'.into() })).resizing()
}

fn gap(fields: Value) -> Value {
    json!({"segments": ["ab", {"gap": fields}, "cd"], "seed": 1})
}

#[tokio::test]
async fn the_network_finds_the_length_of_a_gap_and_the_answer_says_so() {
    let server = Server::of(mock(STOP)).await;
    let body = gap(json!({"min_tokens": 1, "max_tokens": 6, "name": "middle"}));
    let answer = server.answer("/v1/infill", &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "abxxxcd");
    assert!(choice.get("candidates").is_none(), "nothing was searched");
    let filled = &choice["gaps"][0];
    assert_eq!(
        (&filled["length"], &filled["name"]),
        (&json!("resized"), &json!("middle"))
    );
    assert_eq!((&filled["start"], &filled["end"]), (&json!(2), &json!(5)));
    assert_eq!(
        (&filled["start_byte"], &filled["end_byte"]),
        (&json!(2), &json!(5))
    );
    let steps: Vec<_> = filled["provenance"].as_array().unwrap().iter().collect();
    let steps: Vec<_> = steps.iter().map(|p| p["step"].as_u64().unwrap()).collect();
    assert_eq!(
        steps,
        [4, 2, 1],
        "what was committed moves with its provenance"
    );
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["diffusion"]["steps"], 4);

    let body = gap(json!({"max_tokens": 3}));
    let answer = server.answer("/v1/infill", &body).await;
    assert_eq!(answer["choices"][0]["gaps"][0]["length"], "resized");
    let mut body = gap(json!({"tokens": 4}));
    body["diffusion"] = json!({"revision": "none"});
    let answer = server.answer("/v1/infill", &body).await;
    let filled = &answer["choices"][0]["gaps"][0];
    assert_eq!(filled["length"], "given");
    assert_eq!(filled["tokens"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn gaps_grow_and_shrink_within_the_limits_of_the_request() {
    let grows = Server::of(mock(SPECIAL)).await;
    let tokens = |answer: Value| {
        answer["choices"][0]["gaps"][0]["tokens"]
            .as_array()
            .unwrap()
            .len()
    };
    let body = gap(json!({"max_tokens": 6}));
    assert_eq!(tokens(grows.answer("/v1/infill", &body).await), 6);
    let mut body = gap(json!({"tokens": 4}));
    body["diffusion"] = json!({"revision": {"resize": {"max_gap": 9, "expansions": 50}}});
    assert_eq!(tokens(grows.answer("/v1/infill", &body).await), 9);
    body["diffusion"] = json!({"revision": {"resize": {"max_gap": 9, "expansions": 2}}});
    assert_eq!(tokens(grows.answer("/v1/infill", &body).await), 6);

    let shrinks = Server::of(mock(STOP)).await;
    let body = gap(json!({"min_tokens": 4, "max_tokens": 6}));
    assert_eq!(tokens(shrinks.answer("/v1/infill", &body).await), 4);
    let body = gap(json!({"min_tokens": 4, "max_tokens": 4}));
    let answer = shrinks.answer("/v1/infill", &body).await;
    assert_eq!(answer["choices"][0]["gaps"][0]["length"], "given");
    assert_eq!(tokens(answer), 4);
}

#[tokio::test]
async fn streams_bring_what_was_expanded_and_removed() {
    let server = Server::of(mock(STOP)).await;
    let mut body = gap(json!({"max_tokens": 6}));
    let frames = server.frames("/v1/infill", &body).await;
    let (last, steps) = frames.split_last().unwrap();
    assert_eq!(last["choices"][0]["text"], "abxxxcd");
    let spliced: Vec<_> = steps
        .iter()
        .filter_map(|step| step.get("spliced"))
        .collect();
    assert_eq!(spliced, [&json!([{"gap": 0, "position": 1, "masked": 0}])]);
    // A client that takes every frame in comes to the same gap.
    let mut slots: Vec<Option<u64>> = vec![None; 4];
    for step in steps {
        let position = |slot: &Value| slot["position"].as_u64().unwrap() as usize;
        for slot in step["committed"].as_array().unwrap() {
            slots[position(slot)] = slot["token"].as_u64();
        }
        for slot in step["spliced"].as_array().into_iter().flatten().rev() {
            let masked = slot["masked"].as_u64().unwrap() as usize;
            slots.splice(position(slot)..=position(slot), vec![None; masked]);
        }
    }
    assert_eq!(slots, vec![Some(u64::from('x')); 3]);

    body["diffusing"] = true.into();
    let frames = server.frames("/v1/infill", &body).await;
    let (last, canvases) = frames.split_last().unwrap();
    assert_eq!(last["choices"][0]["text"], "abxxxcd");
    let canvas = canvases.last().unwrap();
    assert_eq!(
        (&canvas["text"], &canvas["masked"]),
        (&json!("abxxxcd"), &json!(0))
    );
    assert_eq!(canvas["gaps"][0]["slots"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_completion_never_has_more_than_max_tokens_and_ends_where_the_network_ends_it() {
    let server = Server::of(mock(STOP)).await;
    let mut body = json!({"prompt": "ab", "max_tokens": 4, "logprobs": 1, "seed": 1});
    let answer = server.answer("/v1/completions", &body).await;
    assert_eq!(text(&answer), "xxx");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 3);
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    body.as_object_mut().unwrap().remove("logprobs");
    let chunks = server.frames("/v1/completions", &body).await;
    let pieces = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), "xxx");

    let grows = Server::of(mock(SPECIAL)).await;
    let answer = grows.answer("/v1/completions", &body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn models_without_the_tokens_neither_list_nor_take_the_plan() {
    let with = Server::of(mock(STOP)).await;
    let without = Server::of(Mock::uniform()).await;
    for (server, offered) in [(&with, true), (&without, false)] {
        let (_, models) = server.get("/v1/models").await;
        let models: Value = serde_json::from_str(&models).unwrap();
        let presets = models["data"][0]["presets"].as_array().unwrap();
        let listed = presets.iter().any(|preset| preset["name"] == "dreamon");
        assert_eq!(listed, offered);
    }
    let mut body = gap(json!({"tokens": 2}));
    body["diffusion"] = json!({"preset": "dreamon"});
    let (status, answer) = without.ask("/v1/infill", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(answer["error"]["param"], "diffusion.preset");
    for (field, value) in [
        ("steps", json!(4)),
        ("block_length", json!(4)),
        ("cache", json!({"policy": "dual"})),
        ("budget", json!({"ancestral": {}})),
    ] {
        let mut body = gap(json!({"tokens": 2}));
        body["diffusion"] = json!({ field: value });
        let (status, answer) = with.ask("/v1/infill", &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("resize"), "{field}: {message}");
    }
}
