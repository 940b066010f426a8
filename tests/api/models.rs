//! `GET /v1/models`, `GET /v1/models/{id}`, `GET /health` and what is common to all answers.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::Mock;
use crate::server::{MODEL, Server};

async fn get(server: &Server, path: &str) -> (StatusCode, Value) {
    let response = server
        .client
        .get(format!("{}{path}", server.url))
        .send()
        .await
        .unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn the_served_model_is_listed_with_what_it_can_do() {
    let server = Server::golden().await;
    let (status, list) = get(&server, "/v1/models").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(model["id"], MODEL);
    assert_eq!(model["object"], "model");
    assert_eq!(model["family"], "llada");
    assert_eq!(model["context_length"], 256);
    assert_eq!(model["vocab_size"], 512);
    assert_eq!(model["infill"], "bidirectional");
    assert_eq!(model["batch_invariant"], true);
    let cache = json!({"auto": "none", "none": "none", "prefix": "prefix", "dual": "dual"});
    assert_eq!(model["cache"], cache);
    let sampling = &model["default_plan"]["sampling"];
    assert_eq!(sampling["temperature"], 0.0);
    // A seed is a request's own.
    assert!(sampling.get("seed").is_none());
    assert_eq!(model["limits"]["sequences"], 16);
    assert_eq!(model["limits"]["frame_interval_ms"], 10);
    assert!(model["parameters"].as_u64().unwrap() > 0);
    let presets = model["presets"].as_array().unwrap();
    let fast = presets.iter().find(|p| p["name"] == "fast-dllm").unwrap();
    assert!(fast["description"].as_str().unwrap().contains("Fast-dLLM"));
    assert_eq!(fast["plan"]["block_length"], 32);

    let (status, one) = get(&server, &format!("/v1/models/{MODEL}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(one, *model);
}

#[tokio::test]
async fn every_listed_preset_can_be_asked_for() {
    for model in [Mock::uniform(), Mock::uniform().told_the_noise_level()] {
        let server = Server::of(model).await;
        let (_, list) = get(&server, "/v1/models").await;
        for preset in list["data"][0]["presets"].as_array().unwrap() {
            let body = json!({"prompt": "p", "diffusion": {"preset": preset["name"]}});
            server.answer("/v1/completions", &body).await;
        }
    }
}

#[tokio::test]
async fn a_model_that_is_told_the_noise_level_takes_thresholds_blocks_and_the_caches() {
    let server = Server::of(Mock::uniform().told_the_noise_level()).await;
    let (_, list) = get(&server, "/v1/models").await;
    let cache = json!({"auto": "none", "none": "none", "prefix": "prefix", "dual": "dual"});
    assert_eq!(list["data"][0]["cache"], cache);
    for policy in ["prefix", "dual"] {
        let diffusion = json!({
            "budget": {"factor": 1.0}, "block_length": 4, "cache": {"policy": policy, "refresh": 2},
        });
        let body = json!({"prompt": "p", "max_tokens": 12, "diffusion": diffusion});
        let answer = server.answer("/v1/completions", &body).await;
        assert_eq!(answer["diffusion"]["cache"], policy);
    }
    // Its default plan follows a noise schedule, whose times would be those of a block.
    let body = json!({"prompt": "p", "max_tokens": 12, "diffusion": {"block_length": 4}});
    let (status, answer) = server.ask("/v1/completions", &body).await;
    assert_eq!(status, 400);
    assert_eq!(answer["error"]["param"], "diffusion.block_length");
}

#[tokio::test]
async fn unknown_models_and_paths_and_methods_are_said_to_be_so() {
    let server = Server::of(Mock::uniform()).await;
    for (path, name) in [
        ("gpt-4", "gpt-4"),
        ("owner/name", "owner/name"),
        ("owner%2Fname", "owner/name"),
    ] {
        let (status, body) = get(&server, &format!("/v1/models/{path}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(body["error"]["code"], "model_not_found");
        assert!(body["error"]["message"].as_str().unwrap().contains(name));
    }

    let (status, body) = get(&server, "/v1/nothing").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(body["error"]["code"], "not_found");
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/v1/nothing")
    );

    let url = format!("{}/v1/completions", server.url);
    let response = server.client.get(url).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()["allow"], "POST");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "method_not_allowed");
    assert_eq!(body["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn a_live_server_is_healthy() {
    let server = Server::of(Mock::uniform()).await;
    let (status, body) = get(&server, "/health").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, json!({"status": "ok"}));
}

#[tokio::test]
async fn a_request_id_is_echoed_or_made() {
    let server = Server::of(Mock::uniform()).await;
    let id = async |given: Option<&str>, path: &str| {
        let mut request = server.client.get(format!("{}{path}", server.url));
        if let Some(given) = given {
            request = request.header("x-request-id", given);
        }
        let response = request.send().await.unwrap();
        response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(id(Some("mine-1"), "/health").await, "mine-1");
    assert_eq!(id(Some("mine-2"), "/nothing").await, "mine-2");
    let made = id(None, "/health").await;
    assert_eq!(made.len(), 32);
    assert_ne!(made, id(None, "/health").await);
    for bad in ["with space", &"x".repeat(129)] {
        assert_eq!(id(Some(bad), "/health").await.len(), 32);
    }
}
