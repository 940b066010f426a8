//! Promises of every endpoint, held against random requests.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::completions::both_ways;
use crate::mock::Mock;
use crate::server::Server;

/// Runs `check` on random values; nothing is written beside the sources.
pub fn for_random<S: Strategy>(cases: u32, values: S, check: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&values, |value| {
            check(value);
            Ok(())
        })
        .unwrap();
}

/// Requests to `/v1/completions` as clients may make them, without lists of stop strings.
fn completions() -> impl Strategy<Value = Value> {
    let prompts = proptest::collection::vec(r"[a-c é🦀\n\PC]{0,8}", 1..3);
    let plan = prop_oneof![
        Just(json!({})),
        Just(json!({"score": "left_to_right"})),
        (1usize..12).prop_map(|steps| json!({"steps": steps, "score": "random"})),
        (2usize..6).prop_map(|length| json!({"block_length": length})),
        Just(json!({"preset": "fast-dllm"})),
        Just(json!({
            "steps": 9, "budget": {"ancestral": {}}, "revision": {"remask": {"rescale": 0.8}},
        })),
    ];
    let logprobs = prop_oneof![Just(Value::Null), (0usize..4).prop_map(|top| json!(top))];
    let suffix = prop_oneof![3 => Just(Value::Null), 1 => r"[ab é]{0,4}".prop_map(Value::from)];
    let sampling = (prop_oneof![Just(0.0), Just(1.0)], any::<u32>(), 1usize..4);
    (
        prompts,
        1usize..28,
        plan,
        logprobs,
        suffix,
        sampling,
        any::<bool>(),
    )
        .prop_map(
            |(prompts, max_tokens, plan, logprobs, suffix, (temperature, seed, n), echo)| {
                json!({
                    "prompt": prompts, "max_tokens": max_tokens, "diffusion": plan, "suffix": suffix,
                    "logprobs": logprobs, "temperature": temperature, "seed": seed, "n": n,
                    "echo": echo && suffix.is_null(),
                })
            },
        )
}

/// What a request's prompts and suffix take, by `/tokenize`.
async fn prompt_tokens(server: &Server, body: &Value) -> usize {
    let mut total = 0;
    let suffix = body["suffix"].as_str().unwrap_or_default();
    for prompt in body["prompt"].as_array().unwrap() {
        for text in [prompt.as_str().unwrap(), suffix] {
            let body = json!({"content": text, "add_special": false});
            let answer = server.answer("/tokenize", &body).await;
            total += answer["tokens"].as_array().unwrap().len();
        }
    }
    total
}

/// Asks for a request both ways, then again with stop strings cut out of what came.
async fn check_completion(server: &Server, body: &Value) {
    let free = both_ways(server, body).await;
    let choices = free["choices"].as_array().unwrap();
    let asked = body["max_tokens"].as_u64().unwrap();
    let usage = &free["usage"];
    assert_eq!(usage["prompt_tokens"], prompt_tokens(server, body).await);
    let completed = usage["completion_tokens"].as_u64().unwrap();
    if choices
        .iter()
        .all(|choice| choice["finish_reason"] == "length")
    {
        assert_eq!(completed, asked * choices.len() as u64);
    }
    assert!(completed <= asked * choices.len() as u64);
    let total = usage["prompt_tokens"].as_u64().unwrap() + completed;
    assert_eq!(usage["total_tokens"], total);
    let mut plain = body.clone();
    plain["echo"] = false.into();
    let plain = server.answer("/v1/completions", &plain).await;
    for index in 0..choices.len() {
        let text = plain["choices"][index]["text"].as_str().unwrap();
        let characters: Vec<char> = text.chars().collect();
        for length in [1, 3] {
            let from = characters.len() / 3;
            let stop: String = characters.iter().skip(from).take(length).collect();
            if stop.is_empty() {
                continue;
            }
            let mut body = body.clone();
            body["stop"] = json!([stop]);
            body["echo"] = false.into();
            let stopped = both_ways(server, &body).await;
            assert!(stopped["usage"]["completion_tokens"].as_u64() <= Some(completed));
            for (choice, free) in stopped["choices"]
                .as_array()
                .unwrap()
                .iter()
                .zip(plain["choices"].as_array().unwrap())
            {
                let free = free["text"].as_str().unwrap();
                let expected = free.split(&stop).next().unwrap();
                assert_eq!(choice["text"], expected, "{body}");
                if expected.len() < free.len() {
                    assert_eq!(choice["finish_reason"], "stop");
                }
            }
        }
    }
}

#[test]
fn a_completion_is_the_same_streamed_its_usage_exact_and_no_stop_string_in_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::of(Mock::uniform()));
    for_random(60, completions(), |body| {
        runtime.block_on(check_completion(&server, &body));
    });
    let server = runtime.block_on(Server::golden());
    for_random(30, completions(), |body| {
        runtime.block_on(check_completion(&server, &body));
    });
}
