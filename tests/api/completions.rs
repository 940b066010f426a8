//! `POST /v1/completions`.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::decode::{DecodePlan, EarlyStop};
use unmask::server::Limits;

use crate::mock::{Mock, SPECIAL, STOP};
use crate::server::{MODEL, Server, Setup};

const PATH: &str = "/v1/completions";

pub fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

/// What a stream's chunks say together, in the shape of an answer in one piece.
fn joined(frames: &[Value]) -> Value {
    let mut choices: Vec<Value> = Vec::new();
    let indices: BTreeSet<u64> = frames
        .iter()
        .flat_map(|frame| frame["choices"].as_array().unwrap())
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    for index in indices {
        let of_index: Vec<&Value> = frames
            .iter()
            .flat_map(|frame| frame["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index)
            .collect();
        let text: String = of_index
            .iter()
            .map(|choice| choice["text"].as_str().unwrap())
            .collect();
        let mut logprobs = Value::Null;
        for choice in &of_index {
            let Some(lists) = choice["logprobs"].as_object() else {
                continue;
            };
            for (name, list) in lists {
                let whole = &mut logprobs[name];
                if whole.is_null() {
                    *whole = json!([]);
                }
                let entries = list.as_array().unwrap();
                whole.as_array_mut().unwrap().extend_from_slice(entries);
            }
        }
        let (last, before) = of_index.split_last().unwrap();
        assert!(
            before
                .iter()
                .all(|choice| choice["finish_reason"].is_null())
        );
        choices.push(json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": last["finish_reason"],
        }));
    }
    json!({"choices": choices, "usage": frames.last().unwrap()["usage"]})
}

/// Asks for one piece and for a stream; both must say the same. The answer in one piece.
pub async fn both_ways(server: &Server, body: &Value) -> Value {
    let whole = server.answer(PATH, body).await;
    let mut body = body.clone();
    body["stream_options"] = json!({"include_usage": true});
    let frames = server.frames(PATH, &body).await;
    let streamed = joined(&frames);
    assert_eq!(streamed["choices"], whole["choices"], "{body}");
    assert_eq!(streamed["usage"], whole["usage"], "{body}");
    let before = &frames[..frames.len() - 1];
    assert!(before.iter().all(|frame| frame["usage"].is_null()));
    assert!(before.iter().all(|frame| frame.get("usage").is_some()));
    let usage_frame = frames.last().unwrap();
    assert_eq!(usage_frame["choices"], json!([]));
    assert_eq!(
        usage_frame["diffusion"]["steps"],
        whole["diffusion"]["steps"]
    );
    whole
}

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let server = Server::of(Mock::saying_text(2, "cat.")).await;
    let body = json!({"model": MODEL, "prompt": "a ", "max_tokens": 4, "seed": 7, "user": "u"});
    let mut answer = server.answer(PATH, &body).await;
    let id = answer["id"].take();
    assert!(id.as_str().unwrap().starts_with("cmpl-"), "{id}");
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    for time in ["queued_ms", "denoise_ms"] {
        assert!(answer["diffusion"][time].take().as_f64().unwrap() >= 0.0);
    }
    assert_eq!(
        answer,
        json!({
            "id": null,
            "object": "text_completion",
            "created": null,
            "model": MODEL,
            "choices": [{"index": 0, "text": "cat.", "logprobs": null, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
            "diffusion": {
                "steps": 4, "nfe": 4, "tokens_per_forward": 1.0,
                "queued_ms": null, "denoise_ms": null, "cache": "none", "seed": 7,
            },
        })
    );
}

#[tokio::test]
async fn streamed_text_equals_the_text_in_one_piece() {
    let server = Server::golden().await;
    for seed in 0..6 {
        let body = json!({
            "prompt": ["Beautiful is better", "é🦀"], "n": 2, "max_tokens": 24,
            "temperature": 1, "seed": seed, "diffusion": {"steps": 9},
        });
        let free = both_ways(&server, &body).await;
        assert_eq!(free["choices"].as_array().unwrap().len(), 4);
        // Stop at pieces of what came, wherever token borders are.
        for choice in 0..4 {
            let text = free["choices"][choice]["text"].as_str().unwrap();
            let characters: Vec<char> = text.chars().collect();
            let Some(stop) = characters.get(characters.len() / 2..) else {
                continue;
            };
            let stop: String = stop.iter().take(3).collect();
            if stop.is_empty() {
                continue;
            }
            let mut body = body.clone();
            body["stop"] = json!([stop, "never"]);
            let stopped = both_ways(&server, &body).await;
            let choice = &stopped["choices"][choice];
            assert_eq!(choice["text"], text.split(&stop).next().unwrap());
            assert_eq!(choice["finish_reason"], "stop");
        }
    }
}

#[tokio::test]
async fn streamed_text_equals_the_text_in_one_piece_for_bytes_that_are_not_utf8() {
    let server = Server::of(Mock::uniform()).await;
    let mut texts = BTreeSet::new();
    for seed in 0..20 {
        let body = json!({
            "prompt": "p", "n": 2, "max_tokens": 40, "temperature": 1, "seed": seed,
            "stop": ["ab", "\u{FFFD}\u{FFFD}\u{FFFD}"], "diffusion": {"steps": 11, "score": "random"},
        });
        texts.insert(text(&both_ways(&server, &body).await).to_owned());
    }
    assert!(texts.iter().any(|text| text.contains('\u{FFFD}')));
    assert!(
        texts
            .iter()
            .all(|text| !text.contains("\u{FFFD}\u{FFFD}\u{FFFD}"))
    );
}

#[tokio::test]
async fn a_character_split_over_tokens_is_sent_whole() {
    let said = "🦀é€ wörld🦀";
    let server = Server::of(Mock::saying_text(0, said)).await;
    for score in ["left_to_right", "confidence"] {
        let body = json!({"prompt": "", "max_tokens": said.len(), "diffusion": {"score": score}});
        assert_eq!(text(&both_ways(&server, &body).await), said);
        let frames = server.frames(PATH, &body).await;
        assert!(frames.iter().all(|frame| !text(frame).contains('\u{FFFD}')));
        if score == "left_to_right" {
            // One a character, and one for the end.
            assert_eq!(frames.len(), said.chars().count() + 1);
        }
    }
}

#[tokio::test]
async fn stop_strings_never_leak_across_token_borders() {
    let said = "one\n\ntwö\n\nQ: three 🦀 four";
    let server = Server::of(Mock::saying_text(0, said)).await;
    let starts: Vec<usize> = said.char_indices().map(|(at, _)| at).collect();
    for (i, &start) in starts.iter().enumerate() {
        for length in [1, 2, 4] {
            let end = starts.get(i + length).copied().unwrap_or(said.len());
            let stop = &said[start..end];
            for score in ["left_to_right", "confidence"] {
                let body = json!({
                    "prompt": "", "max_tokens": said.len(), "stop": stop,
                    "diffusion": {"score": score},
                });
                let answer = both_ways(&server, &body).await;
                let expected = &said[..said.find(stop).unwrap()];
                assert_eq!(text(&answer), expected, "{stop:?}");
                assert_eq!(answer["choices"][0]["finish_reason"], "stop");
                // The tokens of the stop string count, those after it do not.
                let read = expected.len() + stop.len();
                assert_eq!(answer["usage"]["completion_tokens"], read);
            }
        }
    }
}

#[tokio::test]
async fn the_first_of_several_stop_strings_ends_the_text() {
    let server = Server::of(Mock::saying_text(0, "one two three")).await;
    let body = json!({"prompt": "", "max_tokens": 13, "stop": ["three", " two", "zzz", "two"]});
    assert_eq!(text(&both_ways(&server, &body).await), "one");
}

#[tokio::test]
async fn a_stop_token_ends_the_text_and_is_counted() {
    let said = [b'a', b'b'].map(TokenId::from).into_iter().chain([STOP]);
    let server = Server::of(Mock::saying(1, said)).await;
    // "b" may become a stop string until the stop token says that it does not.
    let body = json!({"prompt": "p", "max_tokens": 9, "stop": "bc"});
    let answer = both_ways(&server, &body).await;
    assert_eq!(text(&answer), "ab");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4})
    );
}

#[tokio::test]
async fn special_tokens_have_no_text_but_are_counted() {
    let said = [TokenId::from(b'a'), SPECIAL, TokenId::from(b'b')];
    let server = Server::of(Mock::saying(0, said)).await;
    let answer = both_ways(&server, &json!({"prompt": "", "max_tokens": 3})).await;
    assert_eq!(text(&answer), "ab");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn an_answer_is_given_as_soon_as_it_is_final() {
    let said = "ab. and so on";
    let (model, gate) = Mock::saying_text(0, said).gated();
    let server = Server::of(model).await;
    // Three steps are enough to know it, and no fourth is ever allowed.
    gate.allow(3);
    let body = json!({
        "prompt": "", "max_tokens": 200, "stop": ".", "diffusion": {"preset": "left-to-right"},
    });
    let answer = server.answer(PATH, &body).await;
    assert_eq!(text(&answer), "ab");
    assert_eq!(answer["diffusion"]["steps"], 3);
    assert_eq!(answer["diffusion"]["tokens_per_forward"], 1.0);
    drop(gate);
}

#[tokio::test]
async fn a_plan_that_stops_early_gives_the_same_answer() {
    let said = [b'a', b'b'].map(TokenId::from).into_iter().chain([STOP]);
    let said: Vec<TokenId> = said.collect();
    let body = json!({"prompt": "", "max_tokens": 40, "stop": "bc"});
    for early_stop in [EarlyStop::Never, EarlyStop::AfterBlock, EarlyStop::AtOnce] {
        let plan = DecodePlan {
            block_length: Some(8),
            early_stop,
            ..DecodePlan::default()
        };
        let server = Server::of(Mock::saying(0, said.clone()).by_default(plan)).await;
        let answer = both_ways(&server, &body).await;
        assert_eq!(text(&answer), "ab");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["usage"]["completion_tokens"], 3);
    }
}

#[tokio::test]
async fn text_that_may_be_revised_is_not_sent() {
    let server = Server::golden().await;
    for seed in 0..8 {
        let body = json!({
            "prompt": "Now is", "max_tokens": 24, "temperature": 1, "seed": seed, "n": 2,
            "stop": "e",
            "diffusion": {
                "steps": 16,
                "budget": {"ancestral": {}},
                "revision": {"remask": {"rescale": 0.9}},
            },
        });
        let answer = both_ways(&server, &body).await;
        let choices = answer["choices"].as_array().unwrap();
        assert!(
            choices
                .iter()
                .all(|choice| !choice["text"].as_str().unwrap().contains('e'))
        );
        let chunks = server.frames(PATH, &body).await;
        assert_eq!(chunks.len(), 2, "one a sequence, at its end");
    }
}

#[tokio::test]
async fn text_that_can_no_longer_be_revised_is_sent_block_by_block() {
    let server = Server::golden().await;
    let revisions = [
        json!({"budget": {"ancestral": {}}, "revision": {"remask": {"rescale": 0.9}}}),
        json!({"revision": {"edit": {"threshold": 0.0, "max_post_steps": 2}}}),
    ];
    for mut diffusion in revisions {
        diffusion["steps"] = 30.into();
        diffusion["block_length"] = 8.into();
        let (mut most_frames, mut saved_steps) = (0, 0);
        for seed in 0..6 {
            let body = json!({
                "prompt": "Now is", "max_tokens": 24, "temperature": 1, "seed": seed,
                "diffusion": diffusion, "logprobs": 1,
            });
            let whole = both_ways(&server, &body).await;
            let frames = server.frames(PATH, &body).await;
            // One a block and one for the end; a stop token may end a text within its first block.
            assert!(frames.len() <= 4, "{}", frames.len());
            most_frames = most_frames.max(frames.len());
            let characters: Vec<char> = text(&whole).chars().collect();
            let Some(stop) = characters.get(2..4) else {
                continue;
            };
            let mut body = body.clone();
            body["stop"] = stop.iter().collect::<String>().into();
            let stopped = both_ways(&server, &body).await;
            assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
            let steps = |answer: &Value| answer["diffusion"]["steps"].as_u64().unwrap();
            saved_steps += steps(&whole).checked_sub(steps(&stopped)).unwrap();
        }
        assert_eq!(most_frames, 4, "{diffusion}");
        assert!(saved_steps > 0, "{diffusion}");
    }
}

#[tokio::test]
async fn a_stream_sends_text_as_it_is_committed() {
    let (model, gate) = Mock::saying_text(0, "abc").gated();
    let server = Server::of(model).await;
    let body = json!({
        "prompt": "", "max_tokens": 3, "stream": true, "diffusion": {"preset": "left-to-right"},
    });
    let response = server.post(PATH, &body).await;
    let mut stream = response.bytes_stream();
    for expected in ["a", "b", "c"] {
        gate.allow(1);
        let bytes = stream.next().await.unwrap().unwrap();
        let frame = String::from_utf8(bytes.to_vec()).unwrap();
        let frame = frame.split("\n\n").next().unwrap();
        let frame: Value = serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(text(&frame), expected);
    }
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let (model, gate) = Mock::uniform().gated();
    let limits = Limits {
        keep_alive: Duration::from_millis(1),
        ..Limits::default()
    };
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let server = Server::with(model, setup).await;
    let response = server
        .post(PATH, &json!({"prompt": "p", "stream": true}))
        .await;
    let first = response.bytes_stream().next().await.unwrap().unwrap();
    assert!(first.starts_with(b":"), "{first:?}");
    drop(gate);
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_another_gives_another() {
    let server = Server::golden().await;
    let body =
        |seed: u64| json!({"prompt": "Now", "temperature": 1, "seed": seed, "max_tokens": 20});
    let first = server.answer(PATH, &body(1)).await;
    let again = server.answer(PATH, &body(1)).await;
    let other = server.answer(PATH, &body(2)).await;
    assert_eq!(text(&first), text(&again));
    assert_ne!(text(&first), text(&other));
}

#[tokio::test]
async fn without_a_seed_answers_differ_and_name_the_seed_that_repeats_them() {
    let server = Server::golden().await;
    let body = json!({"prompt": "Now", "temperature": 1, "max_tokens": 20});
    let first = server.answer(PATH, &body).await;
    let second = server.answer(PATH, &body).await;
    assert_ne!(text(&first), text(&second));
    let mut repeat = body;
    repeat["seed"] = first["diffusion"]["seed"].clone();
    assert_eq!(text(&server.answer(PATH, &repeat).await), text(&first));
}

#[tokio::test]
async fn the_largest_seed_is_returned_exactly() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({"prompt": "p", "temperature": 1, "seed": u64::MAX, "n": 2});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["diffusion"]["seed"], u64::MAX);
}

#[tokio::test]
async fn choice_i_of_n_is_what_seed_plus_i_gives_alone() {
    let server = Server::golden().await;
    let body = |seed: u64, n: usize| json!({"prompt": "Now", "temperature": 1, "seed": seed, "n": n, "max_tokens": 12});
    let both = server.answer(PATH, &body(40, 2)).await;
    let alone = server.answer(PATH, &body(41, 1)).await;
    assert_eq!(both["choices"][1]["text"], alone["choices"][0]["text"]);
    assert_ne!(both["choices"][0]["text"], both["choices"][1]["text"]);
}

#[tokio::test]
async fn temperature_is_the_plans_unless_given() {
    let server = Server::golden().await;
    let body = json!({"prompt": "Now is better than", "max_tokens": 12});
    let first = server.answer(PATH, &body).await;
    let second = server.answer(PATH, &body).await;
    assert_eq!(text(&first), text(&second), "the default plan is greedy");
}

#[tokio::test]
async fn a_block_longer_than_any_canvas_is_the_whole_canvas() {
    let server = Server::of(Mock::saying_text(1, "bcd")).await;
    let mut body = json!({"prompt": "a", "max_tokens": 3});
    let whole = server.answer(PATH, &body).await;
    body["diffusion"] = json!({"block_length": u64::MAX});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["choices"], whole["choices"]);
    assert_eq!(answer["choices"][0]["text"], "bcd");
}

#[tokio::test]
async fn usage_counts_every_prompt_once_and_every_completion() {
    let server = Server::of(Mock::saying_text(0, "abcdefghij")).await;
    let body = json!({"prompt": ["ab", "", "é🦀"], "n": 3, "max_tokens": 5});
    let answer = both_ways(&server, &body).await;
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 8, "completion_tokens": 45, "total_tokens": 53})
    );
    assert_eq!(answer["choices"].as_array().unwrap().len(), 9);
}

#[tokio::test]
async fn max_tokens_is_16_unless_given() {
    let server = Server::of(Mock::saying_text(0, "")).await;
    let answer = server.answer(PATH, &json!({"prompt": ""})).await;
    assert_eq!(text(&answer), "x".repeat(16));
}

#[tokio::test]
async fn every_form_of_a_prompt_gives_the_same() {
    let server = Server::of(Mock::uniform()).await;
    let mut texts = BTreeSet::new();
    for prompt in [
        json!("ab"),
        json!(["ab"]),
        json!([97, 98]),
        json!([[97, 98]]),
    ] {
        let body = json!({"prompt": prompt, "temperature": 1, "seed": 5, "echo": true});
        texts.insert(text(&server.answer(PATH, &body).await).to_owned());
    }
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts.first().unwrap().starts_with("ab"));
}

#[tokio::test]
async fn each_prompt_of_a_list_is_answered_as_it_would_be_alone() {
    let server = Server::golden().await;
    let body = |prompt: Value| json!({"prompt": prompt, "temperature": 1, "seed": 3, "n": 2});
    let together = server
        .answer(PATH, &body(json!(["Flat", "Sparse is"])))
        .await;
    for (i, prompt) in ["Flat", "Sparse is"].into_iter().enumerate() {
        let alone = server.answer(PATH, &body(json!(prompt))).await;
        for n in 0..2 {
            assert_eq!(
                together["choices"][2 * i + n]["text"],
                alone["choices"][n]["text"]
            );
        }
    }
}

#[tokio::test]
async fn echo_returns_the_prompt_as_it_was_sent() {
    let server = Server::golden().await;
    // The end-of-text token has no text of its own.
    let prompt = "é🦀 a<|endoftext|>\u{0301}\r\n";
    let body = json!({"prompt": prompt, "echo": true, "max_tokens": 6, "stop": ["é", "a"]});
    let echoed = both_ways(&server, &body).await;
    let mut body = body;
    body["echo"] = false.into();
    let plain = both_ways(&server, &body).await;
    assert_eq!(text(&echoed), format!("{prompt}{}", text(&plain)));
}

#[tokio::test]
async fn a_suffix_makes_it_an_infilling() {
    // Slots 2 to 5 are the gap: what the model predicts for the suffix is not used.
    let server = Server::of(Mock::saying_text(0, "..gap!....")).await;
    let body = json!({"prompt": "ab", "suffix": "éz", "max_tokens": 4});
    let answer = both_ways(&server, &body).await;
    assert_eq!(text(&answer), "gap!");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    assert_eq!(answer["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn a_completion_may_fill_the_whole_context() {
    let server = Server::of(Mock::saying_text(0, "")).await;
    let body = json!({"prompt": "p".repeat(100), "max_tokens": 156, "diffusion": {"steps": 2}});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["usage"]["total_tokens"], 256);
}

#[tokio::test]
async fn decode_options_are_followed() {
    let server = Server::of(Mock::saying_text(0, "")).await;
    let steps = async |diffusion: Value| {
        let body = json!({"prompt": "Now", "max_tokens": 64, "diffusion": diffusion});
        let answer = server.answer(PATH, &body).await;
        let report = &answer["diffusion"];
        assert_eq!(report["steps"], report["nfe"]);
        let steps = report["steps"].as_u64().unwrap();
        assert_eq!(report["tokens_per_forward"], 64.0 / steps as f64);
        steps
    };
    assert_eq!(steps(json!({})).await, 64);
    assert_eq!(steps(json!({"steps": 4})).await, 4);
    assert_eq!(
        steps(json!({"steps": 9, "block_length": 8, "block_origin": "canvas"})).await,
        9
    );
    assert_eq!(steps(json!({"budget": {"threshold": 0.0}})).await, 1);
    assert_eq!(
        steps(json!({"budget": {"threshold": 0.0}, "block_length": 16})).await,
        4
    );
    assert_eq!(steps(json!({"budget": {"entropy_bound": 1e9}})).await, 1);
    assert_eq!(steps(json!({"budget": {"factor": 1e9}})).await, 1);
    assert_eq!(
        steps(json!({"budget": "even", "steps": 5, "guidance_scale": 1.5})).await,
        5
    );
    assert_eq!(
        steps(json!({"preset": "fast-dllm", "budget": {"threshold": 0.0}})).await,
        2
    );
    assert_eq!(
        steps(json!({"preset": "llada-random", "score": "margin"})).await,
        64
    );
}

#[tokio::test]
async fn guidance_leads_away_from_a_negative_prompt_as_seeded() {
    let server = Server::golden().await;
    let (prompt, negative) = ("the old man", "a small boat on the sea");
    let text = async |diffusion: Value| {
        let body = json!({"prompt": prompt, "suffix": " and", "max_tokens": 8, "seed": 5, "temperature": 1,
            "diffusion": diffusion});
        let mut answer = server.answer(PATH, &body).await;
        answer["choices"][0]["text"].take()
    };
    let with = |negative: &str| json!({"guidance_scale": 1.5, "negative_prompt": negative});
    // The same on both sides leads nowhere.
    assert_eq!(text(with(prompt)).await, text(json!({})).await);
    let led = text(with(negative)).await;
    assert_ne!(led, text(json!({})).await);
    assert_ne!(led, text(json!({"guidance_scale": 1.5})).await);
    let again = futures::future::join_all((0..4).map(|_| text(with(negative)))).await;
    assert!(again.iter().all(|text| *text == led));
    let chat = async |content: &str, diffusion: Value| {
        let messages = json!([
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": content},
        ]);
        let body = json!({"messages": messages, "max_tokens": 8, "seed": 5, "temperature": 1,
            "diffusion": diffusion});
        let mut answer = server.answer("/v1/chat/completions", &body).await;
        answer["choices"][0]["message"]["content"].take()
    };
    assert_eq!(
        chat(prompt, with(prompt)).await,
        chat(prompt, json!({})).await
    );
    assert_ne!(
        chat(prompt, with(negative)).await,
        chat(prompt, json!({})).await
    );
    let body = json!({"text": "a {{3}}.", "diffusion": with(negative)});
    let (status, answer) = server.ask("/v1/infill", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["param"], "diffusion.negative_prompt");
}

#[tokio::test]
async fn neutral_values_of_unsupported_fields_are_taken() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({
        "prompt": "p", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {},
        "best_of": 2, "n": 2, "logprobs": null, "suffix": null, "stop": null, "seed": null,
        "stream": false, "stream_options": null, "diffusion": null, "top_k": -1, "top_p": 1,
        "min_p": 0, "temperature": null, "max_tokens": null, "model": null, "echo": null, "user": null,
    });
    server.answer(PATH, &body).await;
}

#[tokio::test]
async fn top_k_of_one_is_greedy_at_any_temperature() {
    let server = Server::golden().await;
    let greedy = server
        .answer(PATH, &json!({"prompt": "Now", "temperature": 0}))
        .await;
    let narrow = json!({"prompt": "Now", "temperature": 1, "top_k": 1});
    assert_eq!(text(&server.answer(PATH, &narrow).await), text(&greedy));
}

#[tokio::test]
async fn min_p_of_one_is_greedy_at_any_temperature_and_of_zero_changes_nothing() {
    let server = Server::golden().await;
    let drawn = |min_p: f32| json!({"prompt": "Now", "temperature": 2, "seed": 3, "min_p": min_p});
    let answer = async |body: Value| text(&server.answer(PATH, &body).await).to_owned();
    let greedy = answer(json!({"prompt": "Now", "temperature": 0})).await;
    let unfiltered = answer(json!({"prompt": "Now", "temperature": 2, "seed": 3})).await;
    assert_ne!(unfiltered, greedy);
    assert_eq!(answer(drawn(1.0)).await, greedy);
    assert_eq!(answer(drawn(0.0)).await, unfiltered);
}

#[tokio::test]
async fn a_budget_that_ranks_nothing_takes_the_place_of_what_the_default_plan_ranks_by() {
    let ranks = DecodePlan {
        score_temperature: 0.3,
        at_least: 2,
        ..DecodePlan::default()
    };
    let server = Server::of(Mock::saying_text(0, "").by_default(ranks)).await;
    for budget in [
        json!({"ancestral": {"eps": 1e-5}}),
        json!({"schedule": {"rounding": "floor"}}),
    ] {
        let body = json!({"prompt": "p", "max_tokens": 4, "diffusion": {"budget": budget}});
        server.answer(PATH, &body).await;
    }
    let chosen = json!({"budget": {"ancestral": {}}, "at_least": 2});
    let body = json!({"prompt": "p", "diffusion": chosen});
    let (status, answer) = server.ask(PATH, &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["param"], "diffusion.at_least");
}
