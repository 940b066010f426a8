//! Streams that show the canvas.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::server::Limits;

use crate::completions::text;
use crate::mock::Mock;
use crate::server::{Server, Setup};

/// The frames of the canvas, and the others.
fn split(frames: Vec<Value>) -> (Vec<Value>, Vec<Value>) {
    frames
        .into_iter()
        .partition(|frame| frame["object"] == "diffusion.frame")
}

/// Checks that frames go on step by step, and that each says the same of its slots in all its ways.
fn check(frames: &[Value], slots: usize) {
    let mut last = 0;
    for frame in frames {
        let step = frame["step"].as_u64().unwrap();
        assert!(step > last);
        assert!(frame["nfe"].as_u64().unwrap() <= step);
        last = step;
        let gaps = frame["gaps"].as_array().unwrap();
        let states: Vec<&Value> = gaps
            .iter()
            .flat_map(|gap| gap["slots"].as_array().unwrap())
            .collect();
        assert_eq!(states.len(), slots);
        let masked = states.iter().filter(|slot| slot["state"] == "masked");
        let masked = masked.count();
        assert_eq!(frame["masked"], masked);
        for slot in states {
            if slot["state"] == "committed" {
                assert!(slot["step"].as_u64().unwrap() <= step);
                assert!(slot["token"].is_u64() && slot["text"].is_string());
            }
        }
        let shown: usize = gaps
            .iter()
            .map(|gap| gap["text"].as_str().unwrap().matches('▒').count())
            .sum();
        assert_eq!(shown, masked);
    }
}

#[tokio::test]
async fn a_completion_shows_its_gap_beside_the_text_that_is_final() {
    let server = Server::of(Mock::saying_text(1, "abcdefgh")).await;
    let body = json!({"prompt": "p", "max_tokens": 8, "seed": 1});
    let whole = server.answer("/v1/completions", &body).await;
    for asked in [
        json!({"stream_options": {"diffusion": "frames"}}),
        json!({"diffusing": true}),
    ] {
        let mut body = body.clone();
        body.as_object_mut()
            .unwrap()
            .extend(asked.as_object().unwrap().clone());
        let (canvas, chunks) = split(server.frames("/v1/completions", &body).await);
        check(&canvas, 8);
        let last = canvas.last().unwrap();
        assert_eq!(last["text"], text(&whole));
        assert_eq!(last["masked"], 0);
        assert_eq!(last["id"], chunks[0]["id"]);
        let said = chunks.iter().map(text);
        assert_eq!(said.collect::<String>(), text(&whole));
    }
}

#[tokio::test]
async fn frames_come_no_faster_than_the_limit_and_the_end_does_not_wait() {
    let limits = Limits {
        frame_interval: Duration::from_secs(3600),
        ..Limits::default()
    };
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let server = Server::with(Mock::saying_text(1, &"abcdefgh".repeat(8)), setup).await;
    let body = json!({"prompt": "p", "max_tokens": 64, "seed": 1, "diffusing": true});
    let (canvas, chunks) = split(server.frames("/v1/completions", &body).await);
    assert!(canvas.len() <= 2, "{} frames", canvas.len());
    assert_eq!(canvas.last().unwrap()["masked"], 0);
    let said: String = chunks.iter().map(text).collect();
    assert_eq!(said, "abcdefgh".repeat(8));
}

#[tokio::test]
async fn an_infilling_shows_its_whole_text_in_the_place_of_single_steps() {
    let server = Server::golden().await;
    let body = json!({
        "segments": ["The ", {"gap": {"tokens": 5}}, " of ", {"gap": {"tokens": 4}}, "."],
        "temperature": 1, "seed": 2, "n": 2, "diffusion": {"steps": 6},
        "stream_options": {"diffusion": "frames"},
    });
    let (canvas, mut others) = split(server.frames("/v1/infill", &body).await);
    let answer = others.pop().unwrap();
    assert_eq!((&answer["object"], others.len()), (&json!("infill"), 0));
    for index in 0..2 {
        let of_index = canvas.iter().filter(|frame| frame["index"] == index);
        let of_index: Vec<Value> = of_index.cloned().collect();
        check(&of_index, 9);
        assert!(of_index.iter().all(|frame| {
            let text = frame["text"].as_str().unwrap();
            text.starts_with("The ") && text.ends_with('.')
        }));
        let last = of_index.last().unwrap();
        assert_eq!(last["text"], answer["choices"][index]["text"]);
    }
}

#[tokio::test]
async fn a_filling_in_the_middle_shows_its_gap_too() {
    let server = Server::of(Mock::saying_text(1, "abcd")).await;
    let body = json!({"prompt": "p", "max_tokens": 4, "diffusing": true});
    let (canvas, chunks) = split(server.frames("/v1/fim/completions", &body).await);
    check(&canvas, 4);
    assert_eq!(canvas.last().unwrap()["text"], "abcd");
    assert!(!chunks.is_empty());
}

#[tokio::test]
async fn frames_under_revision_end_in_the_answer() {
    let server = Server::golden().await;
    let body = json!({
        "text": "The {{9}}.", "temperature": 1, "seed": 5, "diffusing": true,
        "diffusion": {
            "steps": 20,
            "budget": {"ancestral": {"eps": 0.001}},
            "revision": {"remask": {"rescale": 0.9}},
        },
    });
    let (canvas, others) = split(server.frames("/v1/infill", &body).await);
    check(&canvas, 9);
    let answer = others.last().unwrap();
    assert_eq!(canvas.last().unwrap()["text"], answer["choices"][0]["text"]);
}

#[tokio::test]
async fn frames_are_asked_for_in_streams_only() {
    let server = Server::of(Mock::uniform()).await;
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": "p"})),
        ("/v1/infill", json!({"text": "{{1}}"})),
        ("/v1/fim/completions", json!({"prompt": "p"})),
    ] {
        body["diffusing"] = true.into();
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["param"], "diffusing");
    }
    let body = json!({"prompt": "p", "stream": true, "stream_options": {"diffusion": "all"}});
    let (_, answer) = server.ask("/v1/completions", &body).await;
    assert_eq!(answer["error"]["param"], "stream_options.diffusion");
}
