//! Models of the uniform process behind the same endpoints.

use reqwest::StatusCode;
use serde_json::json;

use crate::completions::text;
use crate::mock::Mock;
use crate::server::Server;

#[tokio::test]
async fn completions_and_gaps_are_denoised_from_random_tokens() {
    let server = Server::of(Mock::saying_text(0, "0123456789").of_the_uniform_process()).await;
    let body = json!({"prompt": "ab", "max_tokens": 4, "seed": 3, "diffusion": {"steps": 7}});
    let answer = server.answer("/v1/completions", &body).await;
    assert_eq!(text(&answer), "2345");
    assert_eq!(answer["diffusion"]["steps"], 7);
    assert_eq!(answer["diffusion"]["nfe"], 7);

    let body = json!({"text": "ab{{3}}fg{{1}}", "seed": 3});
    let answer = server.answer("/v1/infill", &body).await;
    assert_eq!(answer["choices"][0]["text"], "ab234fg7");
    let frames = server.frames("/v1/infill", &body).await;
    let (last, steps) = frames.split_last().unwrap();
    assert_eq!(last["choices"][0]["text"], "ab234fg7");
    let committed: usize = steps
        .iter()
        .map(|frame| frame["committed"].as_array().unwrap().len())
        .sum();
    assert!(committed >= 4, "every slot was committed");
}

#[tokio::test]
async fn a_seeded_answer_does_not_depend_on_what_else_is_served() {
    let server = Server::of(Mock::uniform().of_the_uniform_process()).await;
    let body = |seed: u64| json!({"prompt": "ab", "max_tokens": 12, "seed": seed});
    let alone = text(&server.answer("/v1/completions", &body(5)).await).to_owned();
    let (first, second, third) = (body(4), body(5), body(6));
    let path = "/v1/completions";
    let (_, together, other) = tokio::join!(
        server.answer(path, &first),
        server.answer(path, &second),
        server.answer(path, &third),
    );
    assert_eq!(text(&together), alone);
    assert_ne!(text(&other), alone);
}

#[tokio::test]
async fn plans_of_the_other_process_are_refused_with_the_reason() {
    let uniform = Server::of(Mock::uniform().of_the_uniform_process()).await;
    let absorbing = Server::of(Mock::uniform()).await;
    for (server, diffusion, param, says) in [
        (
            &uniform,
            json!({"preset": "llada"}),
            "diffusion.preset",
            "uniform-ancestral",
        ),
        (
            &uniform,
            json!({"revision": "none"}),
            "diffusion.revision",
            "no mask token",
        ),
        (
            &uniform,
            json!({"guidance_scale": 1.5}),
            "diffusion.guidance_scale",
            "no mask",
        ),
        (
            &absorbing,
            json!({"preset": "uniform-ancestral"}),
            "diffusion.preset",
            "fills masks",
        ),
        (
            &absorbing,
            json!({"revision": "renoise", "budget": {"ancestral": {}}}),
            "diffusion.revision",
            "fills masks",
        ),
    ] {
        let body = json!({"prompt": "ab", "max_tokens": 4, "diffusion": diffusion});
        let (status, answer) = server.ask("/v1/completions", &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        let error = &answer["error"];
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}

#[tokio::test]
async fn the_presets_listed_are_those_that_the_model_can_follow() {
    let names = |model: serde_json::Value| -> Vec<String> {
        let presets = model["data"][0]["presets"].as_array().unwrap();
        let names = presets
            .iter()
            .map(|preset| preset["name"].as_str().unwrap());
        names.map(str::to_owned).collect()
    };
    let list = |server: Server| async move {
        let url = format!("{}/v1/models", server.url);
        server
            .client
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    };
    let uniform = Server::of(Mock::uniform().of_the_uniform_process()).await;
    assert_eq!(names(list(uniform).await), ["uniform-ancestral"]);
    let absorbing = names(list(Server::of(Mock::uniform()).await).await);
    assert!(absorbing.len() > 10 && !absorbing.contains(&"uniform-ancestral".to_owned()));
    // A preset that is not known, or does not go with the model, is answered with the same names.
    let server = Server::of(Mock::uniform()).await;
    for preset in ["magic", "uniform-ancestral"] {
        let body = json!({"prompt": "p", "diffusion": {"preset": preset}});
        let (_, answer) = server.ask("/v1/completions", &body).await;
        assert_eq!(answer["error"]["param"], "diffusion.preset", "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        let allowed = format!("allowed: {}", absorbing.join(", "));
        assert!(
            message.contains(preset) && message.ends_with(&allowed),
            "{message}"
        );
    }
}

#[tokio::test]
async fn what_needs_a_mask_token_is_refused_with_the_reason() {
    let server = Server::of(Mock::uniform().of_the_uniform_process()).await;
    let choices = json!({"segments": ["ab", {"gap": {"choices": ["c", "d"]}}]});
    for (path, body, param) in [
        ("/v1/score", json!({"input": ["A text."]}), "model"),
        ("/v1/infill", choices, "segments[1].gap.choices"),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(answer["error"]["param"], param);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("uniform process"), "{message}");
    }
}
