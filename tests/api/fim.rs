//! `POST /v1/fim/completions` and llama.cpp's `POST /infill`, asked as editors ask.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::{CONTEXT, Mock, STOP};
use crate::server::{MODEL, Server, eventually};

const FIM: &str = "/v1/fim/completions";
const INFILL: &str = "/infill";

#[tokio::test]
async fn a_gap_between_prompt_and_suffix_is_answered_as_a_chat_message() {
    let server = Server::of(Mock::saying_text(5, "abc|d")).await;
    let body = json!({
        "model": MODEL, "prompt": "(pre)", "suffix": "(post)", "max_tokens": 5, "min_tokens": 0,
        "temperature": 0, "top_p": 1, "random_seed": 7, "stop": ["|"], "metadata": {"file": "a.py"},
        "prompt_cache_key": null,
    });
    let mut answer = server.answer(FIM, &body).await;
    assert!(answer["id"].take().as_str().unwrap().starts_with("fim-"));
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    assert_eq!(answer["diffusion"].take()["seed"], 7);
    assert_eq!(
        answer,
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": MODEL,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "abc"},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
            "diffusion": null,
        })
    );
    let frames = server.frames(FIM, &body).await;
    let deltas = frames.iter().map(|frame| {
        assert_eq!(frame["object"], "chat.completion.chunk");
        let delta = &frame["choices"][0]["delta"];
        assert_eq!(delta["role"], "assistant");
        delta["content"].as_str().unwrap()
    });
    assert_eq!(deltas.collect::<String>(), "abc");
    let last = frames.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"], answer["usage"]);
    assert_eq!(last["diffusion"]["seed"], 7);
}

#[tokio::test]
async fn a_filling_has_log_probabilities_in_the_shape_of_chats() {
    let server = Server::of(Mock::saying_text(1, "é!")).await;
    let body = json!({"prompt": "p", "max_tokens": 3, "logprobs": true, "top_logprobs": 2});
    let answer = server.answer(FIM, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let content = logprobs["content"].as_array().unwrap();
    let bytes: Vec<&Value> = content.iter().map(|token| &token["bytes"]).collect();
    assert_eq!(bytes, [&json!([0xC3]), &json!([0xA9]), &json!([b'!'])]);
    assert_eq!(content[2]["token"], "!");
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        for field in ["token", "logprob", "bytes"] {
            assert_eq!(top[0][field], token[field]);
        }
        assert!(top[1]["logprob"].as_f64().unwrap() < top[0]["logprob"].as_f64().unwrap());
    }
    let mut streamed = Vec::new();
    for frame in server.frames(FIM, &body).await {
        let content = &frame["choices"][0]["logprobs"]["content"];
        streamed.extend(content.as_array().unwrap().clone());
    }
    assert_eq!(&streamed, content);
}

/// A limit of time that no test comes near, however slow the machine.
const LONG_MS: u64 = 3_600_000;

/// A request as the Vim plug-in of llama.cpp sends it.
fn vim() -> Value {
    json!({
        "input_prefix": "def add(a, b):\n", "input_suffix": "\n\nprint(add(1, 2))\n",
        "input_extra": [
            {"text": "import os\n", "time": [1, 2], "filename": "other.py"},
            {"text": "x = 1\n", "time": [1, 3], "filename": "last.py"},
        ],
        "prompt": "    ", "n_predict": 16, "n_indent": 4, "top_k": 40, "top_p": 0.99, "stream": false,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true,
        "t_max_prompt_ms": 500, "t_max_predict_ms": LONG_MS,
        "response_fields": [
            "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms",
            "timings/prompt_per_second", "timings/predicted_n", "timings/predicted_ms",
            "timings/predicted_per_token_ms", "timings/predicted_per_second", "truncated",
            "tokens_cached",
        ],
    })
}

/// A request as the VS Code extension of llama.cpp sends it.
fn vscode() -> Value {
    json!({
        "input_prefix": "fn main() {\n", "input_suffix": "}\n", "input_extra": [],
        "prompt": "    ", "n_predict": 8, "top_k": 40, "top_p": 0.99, "stream": false,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true,
        "t_max_prompt_ms": 500, "t_max_predict_ms": LONG_MS,
    })
}

/// Requests to complete code in the middle as editors' extensions send them, each with its path.
fn editors() -> Vec<(&'static str, &'static str, Value)> {
    let (prompt, suffix) = ("def add(a, b):\n    ", "\n\nprint(add(1, 2))\n");
    vec![
        (
            "Mistral's client for Codestral",
            FIM,
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "temperature": 0.2, "top_p": 1,
                "max_tokens": 16, "min_tokens": null, "stream": false, "random_seed": null, "stop": null,
            }),
        ),
        (
            "Continue, as provider mistral",
            FIM,
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "max_tokens": 16, "temperature": 0.01,
                "top_p": null, "frequency_penalty": null, "presence_penalty": null,
                "stop": ["<fim_prefix>", "\n\n\n", "/src/", "```"], "stream": true,
            }),
        ),
        (
            "Continue, as provider openai",
            "/v1/completions",
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "max_tokens": 16, "temperature": 0.01,
                "stop": ["\n\n\n", "```"], "stream": true, "frequency_penalty": 0, "presence_penalty": 0,
            }),
        ),
        (
            "Tabby, as kind mistral/completion",
            FIM,
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "max_tokens": 16, "temperature": 0.1,
                "stream": true,
            }),
        ),
        (
            "Tabby, as kind openai/completion",
            "/v1/completions",
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "max_tokens": 16, "temperature": 0.1,
                "stream": true, "presence_penalty": 0.0,
            }),
        ),
        (
            "Zed's edit predictions by Codestral",
            FIM,
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "max_tokens": 16, "temperature": 0.2,
                "top_p": 1.0, "min_tokens": 0, "stream": false, "random_seed": null, "stop": null,
            }),
        ),
        (
            "minuet-ai, as openai_fim_compatible",
            "/v1/completions",
            json!({
                "model": MODEL, "prompt": prompt, "suffix": suffix, "max_tokens": 16, "top_p": 0.9,
                "stop": ["\n\n"], "stream": true,
            }),
        ),
    ]
}

#[tokio::test]
async fn what_editors_send_is_answered_with_the_filling() {
    let before = "def add(a, b):\n    ".len();
    let server = Server::of(Mock::saying_text(before, "return a + b # x")).await;
    for (editor, path, body) in editors() {
        let texts: Vec<Value> = match body["stream"] == true {
            true => server.frames(path, &body).await,
            false => vec![server.answer(path, &body).await],
        };
        let pieces = texts.iter().filter_map(|answer| {
            let choice = answer["choices"].get(0)?;
            let message = choice.get("delta").or(choice.get("message"));
            let text = message.map_or(&choice["text"], |message| &message["content"]);
            text.as_str()
        });
        assert_eq!(pieces.collect::<String>(), "return a + b # x", "{editor}");
    }
}

#[tokio::test]
async fn the_vim_plugins_request_is_answered_with_the_fields_that_it_names() {
    // What comes before the gap: two extra texts under their files' names, the prefix, the line.
    let before = "other.py\nimport os\n\nlast.py\nx = 1\n\ndef add(a, b):\n    ".len();
    let said = "return a + b\n\nx=1";
    let server = Server::of(Mock::saying_text(before, said)).await;
    let answer = server.answer(INFILL, &vim()).await;
    assert_eq!(answer["content"], "return a + b\n");
    assert_eq!(
        answer["timings/prompt_n"],
        before + "\n\nprint(add(1, 2))\n".len()
    );
    assert_eq!(answer["timings/predicted_n"], 16);
    assert!(answer["timings/predicted_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(answer["truncated"], false);
    assert_eq!(answer["tokens_cached"], 0);
    assert_eq!(answer.as_object().unwrap().len(), 11);
}

#[tokio::test]
async fn the_extensions_request_is_answered_in_llama_cpps_shape() {
    let server = Server::of(Mock::saying_text(16, "todo!();")).await;
    let answer = server.answer(INFILL, &vscode()).await;
    assert_eq!(answer["content"], "todo!();");
    for (field, value) in [
        ("index", json!(0)),
        ("stop", json!(true)),
        ("model", json!(MODEL)),
        ("tokens", json!([])),
        ("tokens_predicted", json!(8)),
        ("tokens_evaluated", json!(18)),
        ("stop_type", json!("limit")),
        ("stopping_word", json!("")),
        ("has_new_line", json!(false)),
        ("truncated", json!(false)),
    ] {
        assert_eq!(answer[field], value, "{field}");
    }
    assert_eq!(answer["generation_settings"]["top_k"], 40);
    let mut body = vscode();
    body["stop"] = json!(["!"]);
    body["return_tokens"] = true.into();
    let answer = server.answer(INFILL, &body).await;
    assert_eq!(answer["content"], "todo");
    assert_eq!(answer["tokens"], json!(b"todo"));
    assert_eq!(answer["stop_type"], "word");
    assert_eq!(answer["stopping_word"], "!");
    let server = Server::of(Mock::saying(16, [b'a'.into(), STOP])).await;
    let answer = server.answer(INFILL, &vscode()).await;
    assert_eq!(
        (&answer["content"], &answer["stop_type"]),
        (&json!("a"), &json!("eos"))
    );
}

#[tokio::test]
async fn llama_cpps_samplers_that_are_not_there_are_taken_where_they_are_off() {
    let server = Server::of(Mock::saying_text(16, "todo!();")).await;
    let off = json!({
        "repeat_penalty": 1.0, "repeat_last_n": 64, "presence_penalty": 0, "frequency_penalty": 0.0,
        "typical_p": 1.0, "top_n_sigma": -1.0, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0,
        "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
        "dry_sequence_breakers": ["\n", ":"], "xtc_probability": 0.0, "xtc_threshold": 0.1,
        "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "min_keep": 0, "n_keep": 0,
        "n_probs": 0, "ignore_eos": false, "logit_bias": [], "lora": [], "timings_per_token": false,
        "return_progress": false, "post_sampling_probs": false,
    });
    for value in [None, Some(Value::Null)] {
        let mut body = vscode();
        for (field, neutral) in off.as_object().unwrap() {
            body[field] = value.as_ref().unwrap_or(neutral).clone();
        }
        let answer = server.answer(INFILL, &body).await;
        assert_eq!(answer["content"], "todo!();");
    }
}

#[tokio::test]
async fn a_stream_in_llama_cpps_shape_ends_with_the_answer() {
    let server = Server::of(Mock::saying_text(16, "a\nb|cdef")).await;
    let mut body = vscode();
    body["stream"] = true.into();
    body["stop"] = "|".into();
    let text = server.post(INFILL, &body).await.text().await.unwrap();
    let frames: Vec<Value> = text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(|json| serde_json::from_str(json).unwrap())
        .collect();
    let (last, before) = frames.split_last().unwrap();
    assert!(before.iter().all(|frame| frame["stop"] == false));
    assert_eq!(last["stop"], true);
    assert_eq!(last["stopping_word"], "|");
    assert_eq!(last["has_new_line"], true);
    let content = frames
        .iter()
        .map(|frame| frame["content"].as_str().unwrap());
    assert_eq!(content.collect::<String>(), "a\nb");
}

#[tokio::test]
async fn the_last_frame_of_a_stream_has_the_fields_that_were_asked_for() {
    let server = Server::of(Mock::saying_text(16, "a b c de")).await;
    for n_predict in [8, 0] {
        let mut body = vscode();
        body["stream"] = true.into();
        body["n_predict"] = n_predict.into();
        body["response_fields"] = json!(["stop", "timings/predicted_n"]);
        let text = server.post(INFILL, &body).await.text().await.unwrap();
        let frames = text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "));
        let last: Value = serde_json::from_str(frames.last().unwrap()).unwrap();
        assert_eq!(
            last,
            json!({"stop": true, "timings/predicted_n": n_predict})
        );
    }
}

#[tokio::test]
async fn a_filling_that_ends_before_its_indent_does_has_no_tokens_after_its_end() {
    let server = Server::of(Mock::saying_text(16, "a\n  b\nc")).await;
    let mut body = vscode();
    body["n_indent"] = 2.into();
    body["return_tokens"] = true.into();
    let answer = server.answer(INFILL, &body).await;
    assert_eq!(answer["content"], "a\n  b");
    assert_eq!(answer["tokens"], json!(b"a\n  b"));
    assert_eq!(answer["tokens_predicted"], 8);
}

#[tokio::test]
async fn a_stream_of_a_filling_that_ends_by_its_indent_is_its_answer() {
    let server = Server::of(Mock::saying_text(16, "a\n  b\nc")).await;
    let mut body = vscode();
    body["n_indent"] = 2.into();
    body["stream"] = true.into();
    let text = server.post(INFILL, &body).await.text().await.unwrap();
    let frames: Vec<&str> = text.split_terminator("\n\n").collect();
    let [frame] = &frames[..] else {
        panic!("{text}");
    };
    let answer: Value = serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(answer["content"], "a\n  b");
    assert_eq!(answer["stop"], true);
}

#[tokio::test]
async fn a_request_that_warms_the_cache_up_is_answered_with_nothing() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({
        "input_prefix": "", "input_suffix": "", "input_extra": [{"text": "a", "filename": "b"}],
        "prompt": "", "n_predict": 0, "samplers": [], "cache_prompt": true,
        "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""],
    });
    assert_eq!(server.answer(INFILL, &body).await, json!({}));
    let body = json!({"n_predict": 0});
    assert_eq!(server.answer(INFILL, &body).await["content"], "");
    assert_eq!(server.engine.status().steps, 0);
}

#[tokio::test]
async fn a_filling_ends_when_its_time_is_up_and_a_line_of_it_is_final() {
    // Each of its 16 steps takes longer than it may take.
    let said = "a = 1\nb = 2\nc = 3";
    for (limit, options, content) in [
        (1, json!({"preset": "left-to-right"}), "a = 1\n"),
        (0, json!({"preset": "left-to-right"}), "a = 1\nb = 2\nc = "),
        // The mock is sure of the slots in another order, so that no line is final before the end.
        (1, json!({"steps": 2}), "a = 1\nb = 2\nc = "),
    ] {
        let (model, gate) = Mock::saying_text(0, said).gated();
        let server = Server::of(model).await;
        let body = json!({"n_predict": 16, "t_max_predict_ms": limit, "diffusion": options});
        let engine = server.engine.clone();
        let steps = async {
            eventually("the first step", || engine.status().running == 1).await;
            for step in 1..=16 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                gate.allow(1);
                // However late this looks, the next step is not let through before.
                eventually("the step", || {
                    let status = engine.status();
                    status.steps >= step || status.running == 0
                })
                .await;
            }
        };
        let (answer, ()) = tokio::join!(server.answer(INFILL, &body), steps);
        assert_eq!(answer["content"], content, "{body}");
        assert_eq!(answer["stop_type"], "limit");
    }
}

#[tokio::test]
async fn text_that_does_not_fit_the_context_is_left_out_from_afar() {
    let server = Server::of(Mock::uniform()).await;
    let (context, gap) = (CONTEXT, 16);
    for (prefix, suffix, extra, truncated) in [
        (300, 300, 0, true),
        (300, 10, 0, true),
        (10, 300, 0, true),
        (10, 10, 300, true),
        (10, 10, 10, false),
        (5_000_000 / 16, 10, 10, true),
    ] {
        let body = json!({
            "input_prefix": "p".repeat(prefix), "input_suffix": "s".repeat(suffix),
            "input_extra": [{"filename": "e", "text": "x".repeat(extra)}],
            "prompt": "line", "n_predict": gap,
        });
        let answer = server.answer(INFILL, &body).await;
        assert_eq!(answer["truncated"], truncated, "{prefix} {suffix} {extra}");
        let evaluated = answer["tokens_evaluated"].as_u64().unwrap() as usize;
        let whole = "e\n".len() + extra + 1 + prefix + 4 + suffix;
        assert_eq!(
            evaluated,
            whole.min(context - gap),
            "{prefix} {suffix} {extra}"
        );
    }
    for (prompt, n_predict, param) in [(4, context, "n_predict"), (context, 1, "prompt")] {
        let body = json!({"prompt": "l".repeat(prompt), "n_predict": n_predict});
        let (status, answer) = server.ask(INFILL, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
}
