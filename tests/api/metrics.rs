//! `GET /metrics`, `GET /ready` and `GET /health`.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use unmask::server::Limits;

use crate::mock::{Mock, POISON};
use crate::server::{Server, Setup, eventually};

/// The value of a metric, which must be there.
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {text}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn what_was_answered_is_counted_by_route_and_status() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({"prompt": "abc", "max_tokens": 4, "diffusion": {"steps": 2}});
    server.answer("/v1/completions", &body).await;
    server.frames("/v1/completions", &body).await;
    server
        .answer("/v1/infill", &json!({"text": "a{{3}}"}))
        .await;
    server.ask("/v1/completions", &json!({"n": 0})).await;
    server
        .ask("/v1/completions", &json!({"prompt": [POISON]}))
        .await;
    server
        .frames("/v1/completions", &json!({"prompt": [POISON]}))
        .await;
    server.answer("/tokenize", &json!({"content": "a"})).await;
    server.get("/nowhere").await;
    server.get("/v1/models/mini").await;
    eventually("nothing runs", || server.engine.status().running == 0).await;
    let (status, text) = server.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    let requests = |route: &str, status: u16, outcome: &str| {
        let labels = format!("route=\"{route}\",status=\"{status}\",outcome=\"{outcome}\"");
        value(&text, &format!("unmask_http_requests_total{{{labels}}}"))
    };
    assert_eq!(requests("/v1/completions", 200, "ok"), 2.0);
    assert_eq!(requests("/v1/completions", 400, "refused"), 1.0);
    assert_eq!(requests("/v1/completions", 500, "failed"), 1.0);
    assert_eq!(requests("/v1/completions", 200, "failed"), 1.0);
    assert_eq!(requests("/v1/infill", 200, "ok"), 1.0);
    assert_eq!(requests("/v1/models/{*id}", 200, "ok"), 1.0);
    assert_eq!(requests("unmatched", 404, "refused"), 1.0);
    assert!(!text.contains("time_to_first_token_seconds_count{route=\"/tokenize\"}"));
    let of_completions = |name: &str| {
        let series = format!("unmask_{name}_count{{route=\"/v1/completions\"}}");
        value(&text, &series)
    };
    assert_eq!(of_completions("http_request_duration_seconds"), 5.0);
    assert_eq!(of_completions("time_to_first_token_seconds"), 2.0);
    assert_eq!(value(&text, "unmask_prompt_tokens_total"), 3.0 + 3.0 + 1.0);
    assert_eq!(
        value(&text, "unmask_completion_tokens_total"),
        4.0 + 4.0 + 3.0
    );
    assert_eq!(value(&text, "unmask_denoise_steps_total"), 2.0 + 2.0 + 3.0);
    assert_eq!(value(&text, "unmask_denoise_step_rows_count"), 7.0);
    assert_eq!(
        value(&text, "unmask_denoise_step_rows_sum"),
        4.0 * 7.0 + 3.0 * 4.0
    );
    assert_eq!(value(&text, "unmask_denoise_rows_total"), 40.0);
    // Half of four slots and all of two others; three, two, one.
    let scored = 2.0 * (4.0 + 2.0) + 3.0 + 2.0 + 1.0;
    assert_eq!(value(&text, "unmask_scored_rows_total"), scored);
    assert_eq!(value(&text, "unmask_denoise_step_scored_rows_sum"), scored);
    assert_eq!(value(&text, "unmask_queue_wait_seconds_count"), 3.0);
    let phases = ["schedule", "forward", "head", "sampling", "decode"];
    let phases = phases.map(|phase| {
        let series = format!("unmask_denoise_phase_seconds{{phase=\"{phase}\"}}");
        value(&text, &series)
    });
    assert!(phases.iter().all(|seconds| *seconds > 0.0), "{phases:?}");
    let busy = value(&text, "unmask_denoise_busy_seconds");
    assert!((phases.iter().sum::<f64>() - busy).abs() < 1e-9);
    assert_eq!(value(&text, "unmask_committed_slots_total"), 11.0);
    assert_eq!(value(&text, "unmask_tokens_per_forward_count"), 3.0);
    assert_eq!(
        value(&text, "unmask_tokens_per_forward_sum"),
        2.0 + 2.0 + 1.0
    );
    assert_eq!(value(&text, "unmask_queued_sequences"), 0.0);
    assert_eq!(value(&text, "unmask_running_sequences"), 0.0);
    // The request for the metrics is being answered.
    assert_eq!(value(&text, "unmask_http_requests_in_flight"), 1.0);
    assert!(text.contains("unmask_model_info{model=\"mini\",family=\"llada\""));
    assert!(text.contains("unmask_build_info{version="));
}

#[tokio::test]
async fn the_memory_of_keys_and_values_and_what_it_spares_are_told() {
    let (model, gate) = Mock::saying_text(0, "0123456789").in_blocks_of(8).gated();
    let server = Server::with(model, Setup::default()).await;
    let body = json!({"prompt": "0123456789012345678901234567890123456789", "max_tokens": 2});
    let path = "/v1/completions";
    let request = server.client.post(format!("{}{path}", server.url));
    let request = tokio::spawn(request.json(&body).send());
    eventually("it runs", || server.engine.status().running > 0).await;
    let (_, text) = server.get("/metrics").await;
    let slots = value(&text, "unmask_kv_pool_slots");
    let used = value(&text, "unmask_kv_pool_used_slots");
    assert!(used >= 40.0 && used <= slots, "{used} of {slots}");
    drop(gate);
    request.await.unwrap().unwrap();
    server.answer(path, &body).await;
    eventually("nothing runs", || server.engine.status().running == 0).await;
    let (_, text) = server.get("/metrics").await;
    // Two blocks of 16 slots of the prompt are whole; the second request found them computed.
    assert_eq!(value(&text, "unmask_prefix_cache_reused_slots_total"), 32.0);
    assert!(value(&text, "unmask_kept_rows_total") >= 32.0);
    eventually("all is given back", || server.engine.status().kv_used == 0).await;
    let (_, text) = server.get("/metrics").await;
    assert_eq!(value(&text, "unmask_kv_pool_used_slots"), 0.0);
}

#[tokio::test]
async fn every_metric_is_documented_and_has_a_help_text() {
    let server = Server::of(Mock::uniform()).await;
    server
        .answer("/v1/completions", &json!({"prompt": "a"}))
        .await;
    let (_, text) = server.get("/metrics").await;
    let documented = include_str!("../../docs/metrics.md");
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(documented.contains(&format!("`{name}`")), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
}

#[tokio::test]
async fn servers_in_one_process_count_apart() {
    let (first, second) = (
        Server::of(Mock::uniform()).await,
        Server::of(Mock::uniform()).await,
    );
    first
        .answer("/v1/completions", &json!({"prompt": "a"}))
        .await;
    let (_, text) = second.get("/metrics").await;
    assert_eq!(value(&text, "unmask_denoise_steps_total"), 0.0);
}

#[tokio::test]
async fn a_server_is_ready_unless_a_step_does_not_end() {
    let limits = Limits {
        step_timeout: Duration::from_millis(20),
        ..Limits::default()
    };
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let (model, gate) = Mock::uniform().gated();
    let server = Server::with(model, setup).await;
    let (status, text) = server.get("/ready").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("mini"), "{text}");
    let request = server.client.post(format!("{}/v1/completions", server.url));
    let request = tokio::spawn(
        request
            .json(&json!({"prompt": "p", "max_tokens": 1}))
            .send(),
    );
    eventually("a step takes long", || {
        let stalled = server.engine.stalled_for();
        stalled.is_some_and(|stalled| stalled > Duration::from_millis(20))
    })
    .await;
    let (status, text) = server.get("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("not_ready"), "{text}");
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    drop(gate);
    request.await.unwrap().unwrap();
    eventually("nothing runs", || server.engine.stalled_for().is_none()).await;
    assert_eq!(server.get("/ready").await.0, StatusCode::OK);
}
