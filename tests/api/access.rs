//! API keys, limits on requests, deadlines, and pages of other origins.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use unmask::server::{Access, ApiKeys, Limits};

use crate::mock::Mock;
use crate::server::{Server, Setup, eventually};

const PATH: &str = "/v1/completions";

fn keyed(limits: Limits, open_metrics: bool) -> Setup {
    Setup {
        access: Access {
            keys: ApiKeys::new(["alice:sk-alice", "sk-second"]).unwrap(),
            open_metrics,
            ..Access::default()
        },
        limits,
        ..Setup::default()
    }
}

/// Posts a completion with an authorization header; status and error.
async fn post(server: &Server, authorization: Option<&str>) -> (StatusCode, Value) {
    let mut request = server.client.post(format!("{}{PATH}", server.url));
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let response = request.json(&json!({"prompt": "p"})).send().await.unwrap();
    let status = response.status();
    if status == StatusCode::UNAUTHORIZED {
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
    assert!(response.headers().contains_key("x-request-id"));
    (status, response.json().await.unwrap())
}

#[tokio::test]
async fn only_requests_with_a_key_are_answered_where_keys_are_asked_for() {
    let server = Server::with(Mock::uniform(), keyed(Limits::default(), false)).await;
    for key in ["Bearer sk-alice", "bearer sk-second"] {
        let (status, answer) = post(&server, Some(key)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    for (given, says) in [
        (None, "no authorization header"),
        (Some("sk-alice"), "Bearer KEY"),
        (Some("Basic sk-alice"), "Bearer KEY"),
        (Some("Bearer "), "Bearer KEY"),
        (Some("Bearer sk-alic"), "not one of"),
        (Some("Bearer alice:sk-alice"), "not one of"),
        (Some("Bearer key-2"), "not one of"),
    ] {
        let (status, answer) = post(&server, given).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{given:?}");
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["code"], "invalid_api_key");
        assert_eq!(error["param"], Value::Null);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
        assert!(!message.contains("sk-"), "{message}");
    }
}

#[tokio::test]
async fn health_and_readiness_need_no_key_and_metrics_only_if_so_asked() {
    let server = Server::with(Mock::uniform(), keyed(Limits::default(), false)).await;
    for (path, status) in [
        ("/health", StatusCode::OK),
        ("/ready", StatusCode::OK),
        ("/metrics", StatusCode::UNAUTHORIZED),
        ("/v1/models", StatusCode::UNAUTHORIZED),
        ("/v1/models/mini", StatusCode::UNAUTHORIZED),
        ("/nowhere", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(server.get(path).await.0, status, "{path}");
    }
    let server = Server::with(Mock::uniform(), keyed(Limits::default(), true)).await;
    assert_eq!(server.get("/metrics").await.0, StatusCode::OK);
    assert_eq!(server.get("/v1/models").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn more_requests_at_a_time_than_the_limit_are_answered_with_429() {
    let limits = Limits {
        requests: 2,
        requests_per_key: 1,
        ..Limits::default()
    };
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, keyed(limits, false)).await;
    let begin = |key: &str, stream: bool| {
        let request = server.client.post(format!("{}{PATH}", server.url));
        let body = json!({"prompt": "p", "max_tokens": 4, "stream": stream});
        tokio::spawn(request.bearer_auth(key).json(&body).send())
    };
    let first = begin("sk-alice", false);
    eventually("the first runs", || server.engine.status().running == 1).await;
    let (status, answer) = post(&server, Some("Bearer sk-alice")).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer["error"]["code"], "too_many_requests");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("1 requests") && message.contains("this API key"));
    // A stream keeps its place until it is read to its end.
    let second = begin("sk-second", true).await.unwrap().unwrap();
    assert_eq!(second.status(), StatusCode::OK);
    let (status, _) = post(&server, Some("Bearer sk-second")).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    drop(gate);
    first.await.unwrap().unwrap().bytes().await.unwrap();
    second.text().await.unwrap();
    let (status, _) = post(&server, Some("Bearer sk-second")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_request_over_its_deadline_is_answered_with_504_and_frees_its_slot() {
    let limits = Limits {
        request_timeout: Some(Duration::from_millis(50)),
        ..Limits::default()
    };
    let (model, gate) = Mock::uniform().gated();
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let server = Server::with(model, setup).await;
    let body = json!({"prompt": "p", "max_tokens": 200});
    let (status, answer) = server.ask(PATH, &body).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer["error"]["code"], "deadline_exceeded");
    let response = server.post(PATH, &body).await;
    assert_eq!(response.headers()["x-should-retry"], "false");
    let frames = server.frames(PATH, &body).await;
    assert_eq!(frames.last().unwrap()["error"]["code"], "deadline_exceeded");
    gate.allow(3);
    eventually("all are dropped", || {
        let status = server.engine.status();
        status.running == 0 && status.queued == 0
    })
    .await;
}

#[tokio::test]
async fn web_pages_of_other_origins_are_let_in_only_if_their_origin_is_named() {
    let ask = async |server: &Server, origin: &str| {
        let url = format!("{}{PATH}", server.url);
        let request = server.client.request(Method::OPTIONS, url);
        let response = request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
            .send()
            .await
            .unwrap();
        let headers = response.headers();
        headers
            .get("access-control-allow-origin")
            .map(|origin| origin.to_str().unwrap().to_owned())
    };
    let with = async |origins: &[&'static str]| {
        let mut setup = keyed(Limits::default(), false);
        let origins = origins.iter().copied();
        setup.access.origins = origins.map(|o| o.parse().unwrap()).collect();
        Server::with(Mock::uniform(), setup).await
    };
    let (ours, other) = ("https://ours.example", "https://other.example");
    let closed = with(&[]).await;
    assert_eq!(ask(&closed, ours).await, None);
    let named = with(&[ours]).await;
    assert_eq!(ask(&named, ours).await.as_deref(), Some(ours));
    assert_eq!(ask(&named, other).await, None);
    let open = with(&["*"]).await;
    assert_eq!(ask(&open, other).await.as_deref(), Some("*"));
}

#[tokio::test]
async fn web_pages_may_send_the_headers_that_their_clients_send_and_read_those_of_the_answer() {
    let mut setup = keyed(Limits::default(), false);
    let ours = "https://ours.example";
    setup.access.origins = vec![ours.parse().unwrap()];
    let server = Server::with(Mock::uniform(), setup).await;
    let url = format!("{}{PATH}", server.url);
    // As OpenAI's client asks in a browser.
    let asked =
        "authorization,content-type,x-stainless-arch,x-stainless-os,x-stainless-retry-count";
    let preflight = server.client.request(Method::OPTIONS, &url);
    let preflight = preflight
        .header("origin", ours)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", asked);
    let preflight = preflight.send().await.unwrap();
    assert_eq!(preflight.status(), StatusCode::OK);
    let headers = preflight.headers();
    assert_eq!(headers["access-control-allow-headers"], asked);
    assert_eq!(headers["access-control-allow-methods"], "GET,POST");
    let answer = server.client.post(&url).header("origin", ours).send();
    let answer = answer.await.unwrap();
    let exposed = &answer.headers()["access-control-expose-headers"];
    for header in ["x-request-id", "retry-after", "x-should-retry"] {
        assert!(exposed.to_str().unwrap().contains(header), "{exposed:?}");
    }
}
