//! `POST /v1/chat/completions` and `POST /apply-template`.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::{Mock, STOP};
use crate::server::{MODEL, Server, Setup};
use crate::support::{golden, json as read_json};

const PATH: &str = "/v1/chat/completions";

/// What a byte tokenizer makes of it has as many tokens as it has bytes.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}{% if m.name %}({{ m.name }}){% endif %}: \
                        {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}\
                        {% if shout is defined %}{{ shout }}{% endif %}\
                        {% if messages[0].content == 'no' %}{{ raise_exception('not to that') }}{% endif %}";

fn hi() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

/// The prompt that [`TEMPLATE`] makes of [`hi`].
const PROMPT: &str = "user: Hi\nassistant: ";

async fn server(model: Mock) -> Server {
    let setup = Setup {
        chat_template: Some(TEMPLATE),
        ..Setup::default()
    };
    Server::with(model, setup).await
}

async fn saying(text: &str) -> Server {
    server(Mock::saying_text(PROMPT.len(), text)).await
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// Asks for one piece and for a stream; both must say the same, and the stream must have OpenAI's order.
async fn both_ways(server: &Server, body: &Value) -> Value {
    let whole = server.answer(PATH, body).await;
    let mut body = body.clone();
    body["stream_options"] = json!({"include_usage": true});
    let frames = server.frames(PATH, &body).await;
    let (usage, chunks) = frames.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], whole["usage"], "{body}");
    assert_eq!(usage["diffusion"]["steps"], whole["diffusion"]["steps"]);
    for choice in whole["choices"].as_array().unwrap() {
        let of_index: Vec<&Value> = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == choice["index"])
            .collect();
        let deltas: Vec<&Value> = of_index
            .iter()
            .map(|chunk| &chunk["choices"][0]["delta"])
            .collect();
        assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
        assert_eq!(**deltas.last().unwrap(), json!({}));
        let text: String = deltas[1..deltas.len() - 1]
            .iter()
            .map(|delta| delta["content"].as_str().unwrap())
            .collect();
        assert_eq!(choice["message"]["content"], text, "{body}");
        let logprobs: Vec<Value> = of_index
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
            .flatten()
            .cloned()
            .collect();
        let expected = choice["logprobs"]["content"].as_array();
        assert_eq!(logprobs, *expected.unwrap_or(&Vec::new()), "{body}");
        let reasons: Vec<&Value> = of_index
            .iter()
            .map(|chunk| &chunk["choices"][0]["finish_reason"])
            .collect();
        let (last, before) = reasons.split_last().unwrap();
        assert_eq!(**last, choice["finish_reason"]);
        assert!(before.iter().all(|reason| reason.is_null()));
    }
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_some()));
    whole
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = saying("Hello.").await;
    let body = json!({
        "model": MODEL, "messages": hi(), "max_completion_tokens": 6, "seed": 7, "user": "u",
    });
    let mut answer = server.answer(PATH, &body).await;
    let id = answer["id"].take();
    assert!(id.as_str().unwrap().starts_with("chatcmpl-"), "{id}");
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    for time in ["queued_ms", "denoise_ms"] {
        assert!(answer["diffusion"][time].take().as_f64().unwrap() >= 0.0);
    }
    assert_eq!(
        answer,
        json!({
            "id": null,
            "object": "chat.completion",
            "created": null,
            "model": MODEL,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hello.", "refusal": null},
                "logprobs": null,
                "finish_reason": "length",
            }],
            "usage": {
                "prompt_tokens": PROMPT.len(), "completion_tokens": 6,
                "total_tokens": PROMPT.len() + 6,
            },
            "diffusion": {
                "steps": 6, "nfe": 6, "tokens_per_forward": 1.0,
                "queued_ms": null, "denoise_ms": null, "cache": "none", "seed": 7,
            },
        })
    );
}

#[tokio::test]
async fn a_chunk_has_openais_shape() {
    let server = saying("Hey").await;
    let body = json!({
        "messages": hi(), "max_tokens": 3, "diffusion": {"score": "left_to_right"},
    });
    let frames = server.frames(PATH, &body).await;
    let deltas: Vec<&Value> = frames
        .iter()
        .map(|frame| &frame["choices"][0]["delta"])
        .collect();
    let said = ["H", "e", "y"].map(|text| json!({"content": text}));
    let mut expected = vec![json!({"role": "assistant", "content": ""})];
    expected.extend(said);
    expected.push(json!({}));
    assert_eq!(deltas, expected.iter().collect::<Vec<_>>());
    let (last, before) = frames.split_last().unwrap();
    for frame in &frames {
        assert_eq!(frame["object"], "chat.completion.chunk");
        assert_eq!(frame["id"], frames[0]["id"]);
        assert_eq!(frame["model"], MODEL);
        assert!(frame.get("usage").is_none());
        assert!(frame["choices"][0].get("message").is_none());
    }
    assert!(before.iter().all(|frame| frame.get("diffusion").is_none()));
    assert_eq!(last["diffusion"]["steps"], 3);
}

#[tokio::test]
async fn streamed_answers_equal_the_answers_in_one_piece() {
    let server = Server::golden().await;
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "é🦀?"},
    ]);
    for seed in 0..4 {
        let body = json!({
            "messages": messages, "n": 3, "max_tokens": 20, "temperature": 1, "seed": seed,
            "stop": ["a", "zzz"], "diffusion": {"steps": 9},
        });
        let answer = both_ways(&server, &body).await;
        assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_chat_is_a_completion_of_what_its_template_makes_of_it() {
    let server = Server::golden().await;
    let cases = read_json(&golden("llada").join("tokenizer_cases.json"));
    for case in cases["chat"].as_array().unwrap() {
        let messages = json!({
            "messages": case["messages"], "add_generation_prompt": case["add_generation_prompt"],
        });
        let applied = server.answer("/apply-template", &messages).await;
        assert_eq!(applied, json!({"prompt": case["rendered"]}));
        let decode = json!({"max_tokens": 8, "seed": 3, "temperature": 1});
        let merged = |others: Value| {
            let mut body = decode.clone();
            let fields = body.as_object_mut().unwrap();
            fields.extend(others.as_object().unwrap().clone());
            body
        };
        let chat = server.answer(PATH, &merged(messages)).await;
        let completion = server
            .answer("/v1/completions", &merged(json!({"prompt": case["ids"]})))
            .await;
        assert_eq!(content(&chat), completion["choices"][0]["text"]);
        assert_eq!(chat["usage"], completion["usage"]);
    }
}

#[tokio::test]
async fn log_probabilities_and_biases_are_those_of_the_completion() {
    let server = Server::golden().await;
    let fields = json!({
        "max_tokens": 8, "seed": 3, "temperature": 1, "logit_bias": {"33": 100}, "stop": "B",
    });
    let mut chat = fields.clone();
    chat["messages"] = hi();
    chat["logprobs"] = true.into();
    chat["top_logprobs"] = 2.into();
    let chat = both_ways(&server, &chat).await;
    let mut completion = fields;
    let applied = server
        .answer("/apply-template", &json!({"messages": hi()}))
        .await;
    completion["prompt"] = applied["prompt"].clone();
    completion["logprobs"] = 2.into();
    let completion = server.answer("/v1/completions", &completion).await;
    assert_eq!(content(&chat), "", "the bias makes B the first token");
    let tokens = chat["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    let of_completion = &completion["choices"][0]["logprobs"];
    let logprobs: Vec<&Value> = tokens.iter().map(|token| &token["logprob"]).collect();
    let expected = of_completion["token_logprobs"].as_array().unwrap();
    assert_eq!(logprobs, expected.iter().collect::<Vec<_>>());
    for token in tokens {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_stream_may_show_the_canvas() {
    let server = saying("Hello.").await;
    let body = json!({
        "messages": hi(), "max_tokens": 6, "stream_options": {"diffusion": "frames"},
    });
    let frames = server.frames(PATH, &body).await;
    let is_of_canvas = |frame: &&Value| frame["object"] == "diffusion.frame";
    let shown: Vec<&Value> = frames.iter().filter(is_of_canvas).collect();
    assert_eq!(shown.last().unwrap()["text"], "Hello.");
    assert_eq!(shown.last().unwrap()["masked"], 0);
}

#[tokio::test]
async fn a_stop_token_ends_an_answer() {
    let tokens = "Hello.".bytes().map(u32::from).chain([STOP]);
    let server = server(Mock::saying(PROMPT.len(), tokens)).await;
    let answer = both_ways(&server, &json!({"messages": hi(), "max_tokens": 20})).await;
    assert_eq!(content(&answer), "Hello.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 7);
}

#[tokio::test]
async fn messages_may_be_in_any_of_the_shapes_that_clients_send() {
    let server = server(Mock::uniform()).await;
    for (message, text) in [
        (json!({"role": "developer", "content": "x"}), "system: x\n"),
        (json!({"role": "system", "content": ""}), "system: \n"),
        (
            json!({"role": "user", "name": "Ann", "content": "x"}),
            "user(Ann): x\n",
        ),
        (
            json!({"role": "user", "content": [
                {"type": "text", "text": "one"}, {"type": "text", "text": "two"},
            ]}),
            "user: one\ntwo\n",
        ),
        // An answer of OpenAI's as it comes, sent back.
        (
            json!({
                "role": "assistant", "content": "x", "refusal": null, "annotations": [],
                "audio": null, "tool_calls": null, "function_call": null,
            }),
            "assistant: x\n",
        ),
    ] {
        let body = json!({"messages": [message], "add_generation_prompt": false});
        let applied = server.answer("/apply-template", &body).await;
        assert_eq!(applied["prompt"], text);
    }
}

#[tokio::test]
async fn the_last_message_is_continued_if_that_is_asked_for() {
    let begun = "user: Hi\nassistant: I say";
    let server = server(Mock::saying_text(begun.len(), " hello")).await;
    let mut messages = hi();
    let list = messages.as_array_mut().unwrap();
    list.push(json!({"role": "assistant", "content": "I say"}));
    let body = json!({"messages": messages, "continue_final_message": true, "max_tokens": 6});
    let answer = both_ways(&server, &body).await;
    assert_eq!(content(&answer), " hello");
    assert_eq!(answer["usage"]["prompt_tokens"], begun.len());
    // Otherwise the assistant has another turn.
    let applied = server
        .answer("/apply-template", &json!({"messages": messages}))
        .await;
    assert_eq!(applied["prompt"], format!("{begun}\nassistant: "));
}

#[tokio::test]
async fn variables_of_the_template_can_be_given() {
    let server = server(Mock::uniform()).await;
    let body = json!({"messages": hi(), "chat_template_kwargs": {"shout": "HEY"}});
    let applied = server.answer("/apply-template", &body).await;
    assert_eq!(applied["prompt"], format!("{PROMPT}HEY"));
}

#[tokio::test]
async fn without_a_length_an_answer_has_256_tokens_or_what_is_left() {
    // The mock's canvas has 256 slots.
    let server = server(Mock::saying(0, [])).await;
    let answer = server.answer(PATH, &json!({"messages": hi()})).await;
    assert_eq!(answer["usage"]["total_tokens"], 256);
    let of_length = |length| json!({"messages": [{"role": "user", "content": "x".repeat(length)}]});
    let one = server.answer("/apply-template", &of_length(1)).await;
    let around = one["prompt"].as_str().unwrap().len() - 1;
    for (length, says) in [
        (256 - around, "messages has 256 tokens"),
        (300, "messages has"),
    ] {
        let (status, error) = server.ask(PATH, &of_length(length)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(error["error"]["code"], "context_length_exceeded");
        assert_eq!(error["error"]["param"], "messages");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
        // What the request does not say is not said of it.
        assert!(!message.contains("max_completion_tokens"), "{message}");
    }
}

#[tokio::test]
async fn a_model_without_a_template_refuses_chats_and_says_why() {
    let server = Server::of(Mock::uniform()).await;
    for path in [PATH, "/apply-template"] {
        let (status, error) = server.ask(path, &json!({"messages": hi()})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(error["error"]["code"], "no_chat_template");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("\"mini\" has no chat template"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn fields_that_are_not_supported_are_taken_where_they_have_no_effect() {
    let server = saying("Hello.").await;
    let body = json!({
        "messages": hi(), "max_tokens": 6, "presence_penalty": 0, "frequency_penalty": 0.0,
        "logit_bias": {}, "logprobs": false, "top_logprobs": 0, "response_format": {"type": "text"},
        "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "functions": [],
        "function_call": "none", "modalities": ["text"], "audio": null, "prediction": null,
        "web_search_options": null, "reasoning_effort": "none", "verbosity": "medium",
        "service_tier": "auto", "store": false, "metadata": {}, "user": "u",
        "safety_identifier": "s", "prompt_cache_key": "k", "n": 1, "seed": 1, "stop": null,
        "top_k": -1, "stream": false, "stream_options": null, "prompt_cache_retention": "24h",
        "prompt_cache_options": null, "moderation": null,
    });
    assert_eq!(content(&server.answer(PATH, &body).await), "Hello.");
    let body = json!({
        "messages": hi(), "max_tokens": 6, "stream_options": {"include_obfuscation": false},
    });
    assert!(!server.frames(PATH, &body).await.is_empty());
}

#[tokio::test]
async fn what_a_chat_cannot_be_is_refused_by_its_path() {
    let server = server(Mock::uniform()).await;
    let with = |field: &str, value: Value| {
        let mut body = json!({"messages": hi()});
        body[field] = value;
        body
    };
    let message = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
    let part = |part: Value| message(json!({"role": "user", "content": [part]}));
    for (body, param, says) in [
        (json!({}), "messages", "at least one message"),
        (
            json!({"messages": []}),
            "messages",
            "an empty list; allowed: at least one message",
        ),
        (json!({"messages": "x"}), "messages", "a sequence"),
        (json!({"messages": ["x"]}), "messages[0]", "a JSON object"),
        (
            message(json!({"content": "x"})),
            "messages[1].role",
            "missing",
        ),
        (
            message(json!({"role": "robot", "content": "x"})),
            "messages[1].role",
            "\"robot\"; allowed: \"system\"",
        ),
        (
            message(json!({"role": "tool", "content": "x", "tool_call_id": "c"})),
            "messages[1].role",
            "tools are not supported",
        ),
        (
            message(json!({"role": "user"})),
            "messages[1].content",
            "missing",
        ),
        (
            message(json!({"role": "user", "content": 5})),
            "messages[1].content",
            "a string, or a list of parts",
        ),
        (
            message(json!({"role": "user", "content": "x", "colour": 1})),
            "messages[1].colour",
            "unknown field",
        ),
        (
            message(json!({"role": "assistant", "content": "x", "tool_calls": [{"id": "c"}]})),
            "messages[1].tool_calls",
            "allowed: null, []",
        ),
        (part(json!({})), "messages[1].content[0].type", "missing"),
        (
            part(json!({"type": "text"})),
            "messages[1].content[0].text",
            "missing",
        ),
        (
            part(json!({"type": "image_url", "image_url": {"url": "data:"}})),
            "messages[1].content[0].type",
            "reads text only",
        ),
        (
            part(json!({"type": "text", "text": "x", "size": 1})),
            "messages[1].content[0].size",
            "unknown field",
        ),
        (
            json!({"messages": [{"role": "user", "content": "no"}]}),
            "messages",
            "refuses the messages: not to that",
        ),
        (with("colour", json!(1)), "colour", "unknown field"),
        (
            with("max_completion_tokens", json!(0)),
            "max_completion_tokens",
            "at least 1",
        ),
        (
            with("max_completion_tokens", json!(9999)),
            "max_completion_tokens",
            "max_completion_tokens is 9999",
        ),
        (with("temperature", json!(-1)), "temperature", "-1"),
        (with("min_p", json!(2)), "min_p", "0 to 1"),
        (with("n", json!(17)), "n", "1 to 16"),
        (with("stop", json!(["a", ""])), "stop[1]", "0 bytes"),
        (
            with("stream_options", json!({})),
            "stream_options",
            "stream = true",
        ),
        (
            with("presence_penalty", json!(0.5)),
            "presence_penalty",
            "allowed: 0",
        ),
        (
            with("top_logprobs", json!(2)),
            "top_logprobs",
            "logprobs = true",
        ),
        (
            with("logit_bias", json!({"x": 1})),
            "logit_bias.x",
            "token id",
        ),
        (with("diffusing", json!(true)), "diffusing", "stream = true"),
        (with("tools", json!([{}])), "tools", "allowed: null, []"),
        (
            with("tool_choice", json!("auto")),
            "tool_choice",
            "\"none\"",
        ),
        (
            with("response_format", json!({"type": "xml"})),
            "response_format.type",
            "\"json_object\"",
        ),
        (with("audio", json!({})), "audio", "allowed: null"),
        (
            with("continue_final_message", json!(true)),
            "continue_final_message",
            "the assistant's",
        ),
        (
            with("chat_template_kwargs", json!({"messages": []})),
            "chat_template_kwargs",
            "\"messages\"",
        ),
        (
            with("diffusion", json!({"steps": 0})),
            "diffusion.steps",
            "0",
        ),
        (with("model", json!("other")), "model", "does not exist"),
    ] {
        let (status, error) = server.ask(PATH, &body).await;
        let expected = match param {
            "model" => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        };
        assert_eq!(status, expected, "{body}");
        let error = &error["error"];
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
    for (body, param) in [
        (
            json!({"messages": hi(), "max_tokens": 1, "max_completion_tokens": 1}),
            "max_tokens",
        ),
        (
            json!({
                "messages": [{"role": "assistant", "content": "x"}],
                "continue_final_message": true, "add_generation_prompt": true,
            }),
            "add_generation_prompt",
        ),
    ] {
        let (_, error) = server.ask(PATH, &body).await;
        assert_eq!(error["error"]["param"], param, "{error}");
    }
}

#[tokio::test]
async fn the_mask_token_cannot_be_smuggled_in_by_a_message() {
    let server = Server::golden().await;
    let body = json!({"messages": [{"role": "user", "content": "a<|mdm_mask|>b"}]});
    let (status, error) = server.ask(PATH, &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("mask token 505"), "{message}");
}
