//! `POST /v1/score`.

use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::eval::Target;
use unmask::eval::likelihood::{Estimator, Settings, estimate};
use unmask::text::{HfTokenizer, Tokenizer};

use crate::mock::{Mock, POISON, VOCABULARY};
use crate::server::{Server, eventually};
use crate::support::{golden, load};

const PATH: &str = "/v1/score";

fn encode(text: &str) -> Vec<TokenId> {
    let tokenizer = HfTokenizer::from_file(&golden("llada").join("tokenizer.json")).unwrap();
    tokenizer.encode(text).unwrap()
}

fn close(given: &Value, expected: f64) {
    let given = given.as_f64().unwrap();
    let tolerance = 1e-4 * expected.abs().max(1.0);
    assert!((given - expected).abs() < tolerance, "{given} {expected}");
}

#[tokio::test]
async fn a_score_is_what_an_evaluation_with_the_same_settings_gives() {
    let server = Server::golden().await;
    let model = load("llada");
    let texts = ["Beautiful is better than ugly.", "é🦀 now"];
    for (estimator, name, samples, strata, guidance_scale) in [
        (Estimator::ExactCount, "exact_count", 12, 4, 0.0),
        (Estimator::ContinuousTime, "continuous_time", 8, 8, 0.0),
        (Estimator::ExactCount, "exact_count", 4, 2, 1.5),
    ] {
        let prompt = encode("The zen: ");
        let targets = texts.map(|text| Target::after_prompt(&prompt, &encode(text)));
        let settings = Settings {
            estimator,
            groups: samples / strata,
            strata,
            guidance_scale,
            seed: 11,
        };
        let targets: Vec<&Target> = targets.iter().collect();
        let expected = estimate(&*model, &targets, &settings, &mut |_| ()).unwrap();
        let body = json!({
            "input": texts, "prompt": "The zen: ", "samples": samples, "strata": strata,
            "estimator": name, "seed": 11, "diffusion": {"guidance_scale": guidance_scale},
        });
        let answer = server.answer(PATH, &body).await;
        assert_eq!(answer["object"], "score");
        assert_eq!(answer["diffusion"]["samples"], samples);
        assert_eq!(answer["diffusion"]["seed"], 11);
        let scores = answer["data"].as_array().unwrap();
        assert_eq!(scores.len(), 2);
        let mut tokens = prompt.len();
        for (index, (score, expected)) in scores.iter().zip(expected).enumerate() {
            let length = targets[index].slots.len();
            tokens += length;
            assert_eq!(score["index"], index);
            assert_eq!(score["tokens"], length);
            assert_eq!(score["bytes"], texts[index].len());
            close(&score["nelbo"], expected.nelbo);
            close(&score["standard_error"], expected.standard_error.unwrap());
            close(&score["nats_per_token"], expected.nelbo / length as f64);
            let bits = expected.nelbo / 2f64.ln() / texts[index].len() as f64;
            close(&score["bits_per_byte"], bits);
        }
        assert_eq!(answer["usage"]["prompt_tokens"], tokens);
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    }
}

#[tokio::test]
async fn a_uniform_model_scores_a_text_by_its_length() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({"input": "abc", "samples": 1});
    let answer = server.answer(PATH, &body).await;
    let score = &answer["data"][0];
    // One token of the mock's vocabulary is never predicted.
    let nats = f64::from(VOCABULARY as u32 - 1).ln();
    close(&score["nats_per_token"], nats);
    close(&score["perplexity_bound"], nats.exp());
    assert_eq!(score["standard_error"], Value::Null);
    assert_eq!(answer["diffusion"]["nfe"], 1);
}

#[tokio::test]
async fn a_score_does_not_depend_on_what_else_is_asked() {
    let server = Server::golden().await;
    let body = json!({"input": "Beautiful is better", "samples": 32, "seed": 3});
    let alone = server.answer(PATH, &body).await;
    let others = (0..4).map(|seed| {
        let request = server.client.post(format!("{}/v1/completions", server.url));
        let body = json!({"prompt": "a", "max_tokens": 24, "seed": seed});
        tokio::spawn(request.json(&body).send())
    });
    let others: Vec<_> = others.collect();
    let beside = server.answer(PATH, &body).await;
    close(
        &beside["data"][0]["nelbo"],
        alone["data"][0]["nelbo"].as_f64().unwrap(),
    );
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_model_of_blocks_is_not_scored_and_a_fault_is_told() {
    let server = Server::of(Mock::uniform().in_blocks_of(8)).await;
    let (status, answer) = server.ask(PATH, &json!({"input": "abc"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["code"], "unsupported_value");
    assert!(POISON as usize == VOCABULARY - 1);
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_what_its_score_took() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::of(model).await;
    let request = server.client.post(format!("{}{PATH}", server.url));
    let body = json!({"input": "abcdef", "samples": 1000});
    let request = tokio::spawn(request.json(&body).send());
    eventually("it runs", || server.engine.status().running > 0).await;
    request.abort();
    gate.allow(2);
    eventually("nothing runs", || {
        let status = server.engine.status();
        status.running == 0 && status.queued == 0
    })
    .await;
    assert!(server.engine.status().steps < 10);
}
