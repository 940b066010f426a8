//! Gaps with choices, of several lengths, and with stop strings.

use std::collections::HashMap;

use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::models::{Denoiser, RaggedBatch};
use unmask::text::{HfTokenizer, Tokenizer};

use crate::mock::Mock;
use crate::server::Server;
use crate::support::{golden, load};

const PATH: &str = "/v1/infill";
const MASK: TokenId = 505;

fn encode(text: &str) -> Vec<TokenId> {
    let tokenizer = HfTokenizer::from_file(&golden("llada").join("tokenizer.json")).unwrap();
    tokenizer.encode(text).unwrap()
}

/// ln p of `token` in `slot` of a canvas.
fn logprob(model: &dyn Denoiser, canvas: &[TokenId], slot: usize, token: TokenId) -> f64 {
    let mut batch = RaggedBatch::new();
    batch.push(canvas.iter().copied());
    let hidden = model.hidden(&batch, None).unwrap();
    let logits: Vec<Vec<f32>> = model.head(&hidden).unwrap().to_vec2().unwrap();
    let sum: f64 = logits[slot].iter().map(|l| f64::from(*l).exp()).sum();
    f64::from(logits[slot][token as usize]) - sum.ln()
}

fn close(given: &Value, expected: f64) {
    let given = given.as_f64().unwrap();
    assert!((given - expected).abs() < 1e-4, "{given} {expected}");
}

#[tokio::test]
async fn choices_of_one_token_take_one_forward_and_have_its_probabilities() {
    let server = Server::golden().await;
    let model = load("llada");
    let (before, between) = (encode("Is it good? "), encode(". Or bad? "));
    let choices = ["a", "b", "c"];
    let gap = json!({"gap": {"choices": choices, "name": "letter"}});
    let body =
        json!({"segments": ["Is it good? ", gap, ". Or bad? ", {"gap": {"choices": ["x", "y"]}}]});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["diffusion"]["nfe"], 1);
    assert_eq!(answer["diffusion"]["tokens_per_forward"], 2.0);
    let canvas = [&before[..], &[MASK], &between, &[MASK]].concat();
    let gaps = answer["choices"][0]["gaps"].as_array().unwrap();
    let places = [before.len(), before.len() + 1 + between.len()];
    for ((gap, slot), choices) in gaps.iter().zip(places).zip([&choices[..], &["x", "y"]]) {
        let given = gap["choices"].as_array().unwrap();
        let expected: Vec<f64> = choices
            .iter()
            .map(|choice| logprob(&*model, &canvas, slot, encode(choice)[0]))
            .collect();
        let sum: f64 = expected.iter().map(|logprob| logprob.exp()).sum();
        let mut total = 0.0;
        for ((given, text), logprob) in given.iter().zip(choices).zip(&expected) {
            assert_eq!(given["text"], *text);
            close(&given["logprob"], *logprob);
            close(&given["probability"], logprob.exp() / sum);
            total += given["probability"].as_f64().unwrap();
        }
        assert!((total - 1.0).abs() < 1e-9);
        let best = (0..choices.len())
            .max_by(|a, b| expected[*a].total_cmp(&expected[*b]))
            .unwrap();
        assert_eq!(gap["text"], choices[best]);
        assert_eq!(gap["provenance"][0]["step"], 0);
        close(&gap["provenance"][0]["probability"], expected[best].exp());
    }
    assert_eq!(gaps[0]["name"], "letter");
}

#[tokio::test]
async fn choices_of_several_tokens_have_the_product_of_their_tokens_probabilities() {
    let server = Server::golden().await;
    let model = load("llada");
    let (before, after) = (encode("It is "), encode(" now."));
    let choices = ["beautiful", "ugly", "z"];
    let body = json!({"segments": ["It is ", {"gap": {"choices": choices}}, " now."]});
    let answer = server.answer(PATH, &body).await;
    let given = answer["choices"][0]["gaps"][0]["choices"]
        .as_array()
        .unwrap();
    let mut forwards = 0;
    for (given, choice) in given.iter().zip(choices) {
        let tokens = encode(choice);
        forwards += tokens.len();
        let total: f64 = (0..tokens.len())
            .map(|at| {
                let mut gap = tokens.clone();
                gap[at..].fill(MASK);
                let canvas = [&before[..], &gap, &after].concat();
                logprob(&*model, &canvas, before.len() + at, tokens[at])
            })
            .sum();
        close(&given["logprob"], total);
    }
    assert_eq!(answer["diffusion"]["nfe"], forwards);
    let total: f64 = given
        .iter()
        .map(|c| c["probability"].as_f64().unwrap())
        .sum();
    assert!((total - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn what_choices_have_in_common_is_computed_once() {
    let server = Server::of(Mock::saying_text(1, "ac.xz")).await;
    let body = json!({"segments": [
        "(", {"gap": {"choices": ["ab", "ac", "b"]}}, ".", {"gap": {"choices": ["xy", "xz"]}},
    ]});
    let answer = server.answer(PATH, &body).await;
    // All masked; one masked, of one token; after "a"; after "x".
    assert_eq!(answer["diffusion"]["nfe"], 4);
    assert_eq!(answer["choices"][0]["text"], "(ac.xz");
}

#[tokio::test]
async fn other_gaps_are_denoised_after_a_choice_is_made() {
    let server = Server::golden().await;
    let segments =
        json!(["The ", {"gap": {"choices": ["a", "b"]}}, " and ", {"gap": {"tokens": 3}}, "."]);
    let body = json!({"segments": segments, "temperature": 1, "seed": 3, "n": 2});
    let answer = server.answer(PATH, &body).await;
    for choice in answer["choices"].as_array().unwrap() {
        let picked = choice["gaps"][0]["text"].as_str().unwrap();
        let seed = 3 + choice["index"].as_u64().unwrap();
        let segments = json!(["The ", picked, " and ", {"gap": {"tokens": 3}}, "."]);
        let body = json!({"segments": segments, "temperature": 1, "seed": seed});
        let alone = server.answer(PATH, &body).await;
        assert_eq!(choice["text"], alone["choices"][0]["text"]);
    }
    let mut frames = server.frames(PATH, &body).await;
    let last = frames.pop().unwrap();
    assert_eq!(last["choices"], answer["choices"]);
    assert_eq!(frames.len(), 6);
}

#[tokio::test]
async fn a_choice_is_to_other_gaps_as_the_same_text_around_them() {
    let server = Server::golden().await;
    for options in [
        json!({}),
        json!({"guidance_scale": 1.5}),
        json!({"preset": "remdm-rescale", "steps": 20}),
    ] {
        let body = |segments: Value| {
            let options = options.clone();
            json!({"segments": segments, "temperature": 1, "seed": 4, "diffusion": options})
        };
        let choice = json!({"gap": {"choices": ["some text", "another"]}});
        let chosen = body(json!(["The ", {"gap": {"tokens": 6}}, choice]));
        let chosen = server.answer(PATH, &chosen).await["choices"][0].take();
        let picked = &chosen["gaps"][1]["text"];
        let fixed = body(json!(["The ", {"gap": {"tokens": 6}}, picked]));
        let fixed = server.answer(PATH, &fixed).await;
        assert_eq!(chosen["text"], fixed["choices"][0]["text"], "{options}");
    }
    // Blocks are counted from the first gap that is still to be filled.
    let body = |first: Value| {
        json!({"segments": ["The ", first, {"gap": {"tokens": 16}}], "temperature": 1, "seed": 4,
            "diffusion": {"block_length": 8, "steps": 2}})
    };
    let choice = json!({"gap": {"choices": ["some text"]}});
    let chosen = server.answer(PATH, &body(choice)).await;
    let fixed = server.answer(PATH, &body(json!("some text"))).await;
    assert_eq!(chosen["choices"][0]["text"], fixed["choices"][0]["text"]);
}

#[tokio::test]
async fn a_gap_that_is_held_to_a_form_is_filled_whole_before_a_choice() {
    let server = Server::of(Mock::uniform()).await;
    let body = |gap: Value| {
        let mut gap = gap;
        gap["regex"] = "[0-9]{2}".into();
        json!({"segments": ["a", {"gap": gap}, {"gap": {"choices": ["x"]}}]})
    };
    let (status, answer) = server.ask(PATH, &body(json!({"tokens": 4}))).await;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(answer["error"]["param"], "segments[1].gap.tokens");
    let answer = server.answer(PATH, &body(json!({"max_tokens": 4}))).await;
    let gap = &answer["choices"][0]["gaps"][0];
    assert_eq!(gap["tokens"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_choice_stays_whatever_the_plan_revises() {
    // The model would have another text there.
    let server = Server::of(Mock::saying_text(0, "")).await;
    let choices = ["ab", "cd", "e"];
    let segments = json!(["(", {"gap": {"choices": choices}}, ")", {"gap": {"tokens": 8}}, "."]);
    for diffusion in [
        json!({"preset": "remdm-cap", "steps": 500}),
        json!({"preset": "remdm-rescale", "steps": 500}),
        json!({"preset": "remdm-confidence", "steps": 500}),
        json!({"preset": "remdm-loop", "steps": 500}),
        json!({"preset": "llada2.1", "revision": {"edit": {"threshold": 0.5, "max_post_steps": 4}}}),
    ] {
        let body = json!({
            "segments": segments, "temperature": 1, "seed": 1, "n": 8, "diffusion": diffusion,
        });
        let answer = server.answer(PATH, &body).await;
        for choice in answer["choices"].as_array().unwrap() {
            let [chosen, denoised] = choice["gaps"].as_array().unwrap().as_slice() else {
                panic!("{choice}");
            };
            let text = chosen["text"].as_str().unwrap();
            assert!(choices.contains(&text), "{diffusion}: {chosen}");
            assert_eq!(denoised["text"], "x".repeat(8));
            for token in chosen["provenance"].as_array().unwrap() {
                for field in ["step", "remasked", "edited"] {
                    assert_eq!(token[field], 0, "{diffusion}: {token}");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_bias_of_their_tokens_weighs_choices_and_leaves_their_log_probabilities() {
    let server = Server::of(Mock::uniform()).await;
    let choices = ["a", "b", "cc"];
    let segments = json!([{"gap": {"choices": choices}}]);
    let plain = server.answer(PATH, &json!({"segments": segments})).await;
    let bias = json!({"97": 1.0, "99": 5.0, "120": 9.0});
    let body = json!({"segments": segments, "logit_bias": bias});
    let biased = server.answer(PATH, &body).await;
    let of = |answer: &Value| {
        let gap = &answer["choices"][0]["gaps"][0];
        (gap["choices"].clone(), gap["text"].clone())
    };
    let ((plain, before), (biased, after)) = (of(&plain), of(&biased));
    assert_eq!((before, after), (json!("a"), json!("cc")));
    let weight = |index: usize, bias: f64| {
        let logprob = plain[index]["logprob"].as_f64().unwrap();
        (logprob + bias).exp()
    };
    let weights = [weight(0, 1.0), weight(1, 0.0), weight(2, 10.0)];
    for (index, weight) in weights.iter().enumerate() {
        assert_eq!(biased[index]["logprob"], plain[index]["logprob"]);
        close(
            &biased[index]["probability"],
            weight / weights.iter().sum::<f64>(),
        );
    }
}

#[tokio::test]
async fn choices_are_drawn_among_those_that_the_filters_keep() {
    let server = Server::of(Mock::uniform()).await;
    // Shares of 0.665, 0.245 and 0.090.
    let bias = json!({"97": 1, "99": -1});
    for (field, value, kept) in [
        ("top_k", json!(1), &["a"][..]),
        ("top_k", json!(2), &["a", "b"]),
        ("top_p", json!(0.6), &["a"]),
        ("top_p", json!(0.8), &["a", "b"]),
        ("min_p", json!(0.5), &["a"]),
        ("min_p", json!(0.2), &["a", "b"]),
        ("min_p", json!(0.0), &["a", "b", "c"]),
    ] {
        let mut drawn: Vec<String> = Vec::new();
        for seed in 0..8 {
            let mut body = json!({
                "segments": [{"gap": {"choices": ["a", "b", "c"]}}], "logit_bias": bias,
                "temperature": 1, "n": 16, "seed": 1000 * seed,
            });
            body[field] = value.clone();
            let answer = server.answer(PATH, &body).await;
            let texts = answer["choices"].as_array().unwrap().iter();
            drawn.extend(texts.map(|choice| choice["text"].as_str().unwrap().to_owned()));
        }
        drawn.sort();
        drawn.dedup();
        assert_eq!(drawn, kept, "{field} {value}");
    }
}

#[tokio::test]
async fn choices_of_a_model_that_is_told_the_noise_level_are_those_of_one_that_is_not() {
    let body = json!({
        "segments": ["a", {"gap": {"choices": ["a", "bc", "d"]}}, {"gap": {"tokens": 2}}],
        "temperature": 0, "seed": 1,
    });
    let told = Server::of(Mock::uniform().told_the_noise_level()).await;
    let other = Server::of(Mock::uniform()).await;
    let choices = |answer: &Value| answer["choices"][0]["gaps"][0].clone();
    let of_told = choices(&told.answer(PATH, &body).await);
    assert_eq!(of_told["choices"].as_array().map(Vec::len), Some(3));
    assert_eq!(of_told, choices(&other.answer(PATH, &body).await));
}

#[tokio::test]
async fn above_temperature_zero_choices_are_drawn_by_their_probability() {
    let server = Server::of(Mock::uniform()).await;
    let mut drawn: HashMap<String, usize> = HashMap::new();
    for seed in 0..25 {
        let body = json!({
            "segments": [{"gap": {"choices": ["a", "b"]}}], "temperature": 1, "n": 16,
            "seed": 1000 * seed,
        });
        let answer = server.answer(PATH, &body).await;
        assert_eq!(answer["diffusion"]["nfe"], 1);
        for choice in answer["choices"].as_array().unwrap() {
            *drawn.entry(choice["text"].to_string()).or_default() += 1;
        }
    }
    // Binomial(400, 1/2): mean 200, standard deviation 10.
    assert!(
        drawn.values().all(|count| (150..=250).contains(count)),
        "{drawn:?}"
    );
}

#[tokio::test]
async fn of_several_lengths_the_filling_with_the_largest_mean_log_probability_is_returned() {
    let server = Server::golden().await;
    let gap = json!({"gap": {"min_tokens": 2, "max_tokens": 5}});
    let body = json!({"segments": ["The ", gap, " of the ", gap, "."], "seed": 2});
    let answer = server.answer(PATH, &body).await;
    let choice = &answer["choices"][0];
    let candidates = choice["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 16);
    let mut chosen = candidates
        .iter()
        .filter(|candidate| candidate["chosen"] == true);
    let chosen = chosen.next().unwrap();
    let lengths: Vec<usize> = choice["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| gap["tokens"].as_array().unwrap().len())
        .collect();
    assert_eq!(chosen["tokens"], json!(lengths));
    let mean = |candidate: &Value| candidate["mean_logprob"].as_f64().unwrap();
    assert!(candidates.iter().all(|other| mean(other) <= mean(chosen)));
    // Each candidate is what a request for its lengths alone gives.
    for candidate in candidates.iter().take(4) {
        let length = |gap: usize| candidate["tokens"][gap].clone();
        let segments = json!([
            "The ", {"gap": {"tokens": length(0)}}, " of the ", {"gap": {"tokens": length(1)}}, ".",
        ]);
        let body = json!({"segments": segments, "seed": 2, "logprobs": true});
        let alone = server.answer(PATH, &body).await;
        let gaps = alone["choices"][0]["gaps"].as_array().unwrap();
        let logprobs: Vec<f64> = gaps
            .iter()
            .flat_map(|gap| gap["provenance"].as_array().unwrap())
            .map(|token| token["logprob"].as_f64().unwrap())
            .collect();
        close(
            &candidate["mean_logprob"],
            logprobs.iter().sum::<f64>() / logprobs.len() as f64,
        );
        if candidate == chosen {
            assert_eq!(choice["text"], alone["choices"][0]["text"]);
        }
    }
    assert!(choice["gaps"][0]["provenance"][0].get("logprob").is_none());
}

#[tokio::test]
async fn a_stream_of_a_search_is_its_answer() {
    let server = Server::golden().await;
    let segments = json!(["The ", {"gap": {"max_tokens": 3}}, "."]);
    let mut body = json!({"segments": segments, "seed": 2, "n": 2});
    let whole = server.answer(PATH, &body).await;
    for options in [json!(null), json!({"diffusion": "frames"})] {
        body["stream_options"] = options;
        let frames = server.frames(PATH, &body).await;
        let [answer] = &frames[..] else {
            panic!("{} frames", frames.len());
        };
        assert_eq!(answer["object"], "infill");
        assert_eq!(answer["choices"], whole["choices"]);
        assert_eq!(answer["usage"], whole["usage"]);
        let candidates = answer["choices"][1]["candidates"].as_array().unwrap();
        assert_eq!(candidates.len(), 3);
    }
}

#[tokio::test]
async fn a_long_range_of_lengths_is_tried_from_end_to_end() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({"segments": [{"gap": {"max_tokens": 100}}, "!"], "n": 3});
    let answer = server.answer(PATH, &body).await;
    for choice in answer["choices"].as_array().unwrap() {
        let candidates = choice["candidates"].as_array().unwrap().iter();
        let lengths: Vec<&Value> = candidates
            .map(|candidate| &candidate["tokens"][0])
            .collect();
        assert_eq!(lengths.len(), 5);
        assert_eq!((lengths[0], lengths[4]), (&json!(1), &json!(100)));
    }
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_gap_ends_before_its_stop_string() {
    let server = Server::of(Mock::saying_text(0, "(ab;cd)")).await;
    let body = json!({"segments": [
        "(", {"gap": {"tokens": 5, "stop": [";c", ";"]}}, ")", {"gap": {"tokens": 1, "stop": "?"}},
    ]});
    let answer = server.answer(PATH, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "(ab)x");
    let gap = &choice["gaps"][0];
    assert_eq!((&gap["text"], &gap["stop"]), (&json!("ab"), &json!(";")));
    assert_eq!((&gap["start"], &gap["end"]), (&json!(1), &json!(3)));
    assert_eq!(gap["tokens"], json!(b"ab"));
    assert_eq!(gap["provenance"].as_array().unwrap().len(), 2);
    assert!(choice["gaps"][1].get("stop").is_none());
    // Tokens of a stop string are counted, as of a completion.
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    let body = json!({"prompt": "(", "max_tokens": 5, "stop": [";c", ";"], "logprobs": 0});
    let completion = server.answer("/v1/completions", &body).await;
    let tokens = &completion["choices"][0]["logprobs"]["tokens"];
    assert_eq!(tokens, &json!(["a", "b"]));
    assert_eq!(completion["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn what_is_cut_off_with_a_stop_string_has_no_tokens() {
    let server = Server::of(Mock::saying_text(0, "é::x|")).await;
    for (stop, text, tokens) in [
        ("::", "é", "é"),
        (":x", "é:", "é:"),
        ("é", "", ""),
        ("|", "é::x", "é::x"),
    ] {
        let gap = json!({"gap": {"tokens": 6, "stop": stop}});
        let answer = server.answer(PATH, &json!({"segments": [gap]})).await;
        let gap = &answer["choices"][0]["gaps"][0];
        assert_eq!(gap["text"], text, "{stop}");
        assert_eq!(gap["tokens"], json!(tokens.as_bytes()), "{stop}");
    }
}
