//! Log-probabilities and biases of `/v1/completions` and `/v1/infill`.

use std::collections::HashMap;
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::models::{Denoiser, RaggedBatch};

use crate::completions::{both_ways, text};
use crate::mock::{Mock, STOP};
use crate::server::Server;
use crate::support::{golden, json as file, load};

const COMPLETIONS: &str = "/v1/completions";
const INFILL: &str = "/v1/infill";

/// What `unmask forward` prints as log-probabilities, to this precision.
const TOLERANCE: f64 = 1e-4;

/// The log-probabilities `[rows, vocab]` of a canvas.
fn forward(model: &dyn Denoiser, tokens: &[TokenId]) -> Vec<Vec<f64>> {
    let mut batch = RaggedBatch::new();
    batch.push(tokens.iter().copied());
    let hidden = model.hidden(&batch, None).unwrap();
    log_softmax(model.head(&hidden).unwrap().to_vec2().unwrap())
}

fn log_softmax(logits: Vec<Vec<f32>>) -> Vec<Vec<f64>> {
    logits
        .into_iter()
        .map(|row| {
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            row.iter().map(|l| f64::from(*l) - sum.ln()).collect()
        })
        .collect()
}

/// The tokens with the largest log-probabilities, largest first.
fn best(row: &[f64], count: usize) -> Vec<(u64, f64)> {
    let mut best: Vec<(u64, f64)> = (0..).zip(row.iter().copied()).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best.truncate(count);
    best
}

fn close(given: &Value, expected: f64) {
    let given = given.as_f64().unwrap();
    assert!((given - expected).abs() < TOLERANCE, "{given} {expected}");
}

#[tokio::test]
async fn the_log_probabilities_of_an_infilling_are_those_of_a_forward_before_each_step() {
    let server = Server::golden().await;
    let model = load("llada");
    let mask: TokenId = 505;
    for (seed, options) in [
        (1, json!({"steps": 4})),
        (
            2,
            json!({"score": "left_to_right", "stop_tokens": "anywhere"}),
        ),
        (3, json!({"basis": "sampling", "guidance_scale": 0})),
    ] {
        let body = json!({
            "text": "The {{6}} of {{3}}.", "temperature": 0.7, "top_k": 40, "seed": seed,
            "logprobs": true, "top_logprobs": 4, "diffusion": options,
            "logit_bias": {"17": 5, "18": -100},
        });
        let answer = server.answer(INFILL, &body).await;
        let gaps = answer["choices"][0]["gaps"].as_array().unwrap();
        let tokens: Vec<&Value> = gaps
            .iter()
            .flat_map(|gap| gap["provenance"].as_array().unwrap())
            .collect();
        let fixed = |text: &str| encode(text);
        let (the, of, end) = (fixed("The "), fixed(" of "), fixed("."));
        let first = the.len()..the.len() + 6;
        let second = first.end + of.len()..first.end + of.len() + 3;
        let slots: Vec<usize> = first.clone().chain(second).collect();
        assert_eq!(tokens.len(), slots.len());
        let steps = answer["diffusion"]["steps"].as_u64().unwrap();
        for step in 1..=steps {
            let mut canvas = [&the[..], &[mask; 6], &of, &[mask; 3], &end].concat();
            for (slot, token) in slots.iter().zip(&tokens) {
                if token["step"].as_u64().unwrap() < step {
                    canvas[*slot] = token["token"].as_u64().unwrap() as TokenId;
                }
            }
            let rows = forward(&*model, &canvas);
            for (slot, token) in slots.iter().zip(&tokens) {
                if token["step"] != step {
                    continue;
                }
                let row = &rows[*slot];
                close(
                    &token["logprob"],
                    row[token["token"].as_u64().unwrap() as usize],
                );
                let top = token["top_logprobs"].as_array().unwrap();
                assert_eq!(top.len(), 4);
                for (given, (_, logprob)) in top.iter().zip(best(row, 4)) {
                    close(&given["logprob"], logprob);
                    let token = given["token"].as_u64().unwrap() as usize;
                    close(&given["logprob"], row[token]);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_probability_counts_what_a_token_was_chosen_by_and_a_log_probability_does_not() {
    let server = Server::golden().await;
    let free = json!({"gap": {"tokens": 3}});
    for (gap, fields, is_own) in [
        (&free, json!({}), true),
        (&free, json!({"temperature": 0.5}), true),
        (
            &free,
            json!({"temperature": 0.5, "diffusion": {"basis": "sampling"}}),
            false,
        ),
        (&free, json!({"logit_bias": {"17": 100}}), false),
        (
            &json!({"gap": {"tokens": 3, "regex": "[0-9]+"}}),
            json!({}),
            false,
        ),
    ] {
        let mut body = json!({"segments": ["The ", gap], "seed": 1, "logprobs": true});
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let answer = server.answer(INFILL, &body).await;
        let tokens = &answer["choices"][0]["gaps"][0]["provenance"];
        for token in tokens.as_array().unwrap() {
            let of_model = token["logprob"].as_f64().unwrap().exp();
            let probability = token["probability"].as_f64().unwrap();
            let is_same = (probability / of_model - 1.0).abs() < 1e-3;
            assert_eq!(is_same, is_own, "{probability} {of_model} {body}");
        }
    }
}

/// What `unmask forward` writes of a canvas, as log-probabilities `[rows, vocab]`.
fn printed(canvas: &[TokenId]) -> Vec<Vec<f64>> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    let ids: Vec<i64> = canvas.iter().map(|token| i64::from(*token)).collect();
    let ids = Tensor::from_vec(ids, (1, canvas.len()), &Device::Cpu).unwrap();
    candle_core::safetensors::save(&HashMap::from([("input_ids", ids)]), &input).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(["forward", "--device", "cpu", "--dtype", "f32", "--model"])
        .arg(golden("llada"))
        .arg("--input")
        .arg(&input)
        .arg("--output")
        .arg(&output)
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let logits = candle_core::safetensors::load(&output, &Device::Cpu).unwrap();
    log_softmax(logits["logits"].get(0).unwrap().to_vec2().unwrap())
}

#[tokio::test]
async fn the_first_step_s_log_probabilities_are_what_unmask_forward_writes() {
    let server = Server::golden().await;
    let (before, after) = (encode("Is it "), encode(" or not?"));
    let gap = 3;
    let canvas = [&before[..], &[505; 3], &after].concat();
    let rows = printed(&canvas);
    let body = json!({
        "text": "Is it {{3}} or not?", "temperature": 1, "seed": 4, "diffusion": {"steps": 1},
        "logprobs": true, "top_logprobs": 5,
    });
    let answer = server.answer(INFILL, &body).await;
    let tokens = &answer["choices"][0]["gaps"][0]["provenance"];
    for slot in 0..gap {
        let row = &rows[before.len() + slot];
        let id = tokens[slot]["token"].as_u64().unwrap() as usize;
        close(&tokens[slot]["logprob"], row[id]);
        for (given, (_, logprob)) in tokens[slot]["top_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .zip(best(row, 5))
        {
            close(&given["logprob"], logprob);
        }
    }
    let choices = ["a", "b", "c", "z"];
    let body = json!({"segments": ["Is it ", {"gap": {"choices": choices}}, " or not?"]});
    let answer = server.answer(INFILL, &body).await;
    let rows = printed(&[&before[..], &[505], &after].concat());
    let row = &rows[before.len()];
    let expected = choices.map(|choice| row[encode(choice)[0] as usize]);
    let sum: f64 = expected.iter().map(|logprob| logprob.exp()).sum();
    let given = answer["choices"][0]["gaps"][0]["choices"]
        .as_array()
        .unwrap();
    assert_eq!(given.len(), choices.len());
    for (given, logprob) in given.iter().zip(expected) {
        close(&given["logprob"], logprob);
        close(&given["probability"], logprob.exp() / sum);
    }
}

/// The tokens of a text without special tokens, by the golden tokenizer.
fn encode(text: &str) -> Vec<TokenId> {
    use unmask::text::{HfTokenizer, Tokenizer};
    let tokenizer = HfTokenizer::from_file(&golden("llada").join("tokenizer.json")).unwrap();
    tokenizer.encode(text).unwrap()
}

#[tokio::test]
async fn a_completion_has_openais_lists_of_log_probabilities() {
    let server = Server::golden().await;
    let model = load("llada");
    let body = json!({
        "prompt": "The cat", "max_tokens": 8, "temperature": 0, "logprobs": 3,
        "diffusion": {"steps": 1}, "echo": true,
    });
    let answer = both_ways(&server, &body).await;
    let prompt = encode("The cat");
    let canvas = [&prompt[..], &[505; 8]].concat();
    let rows = forward(&*model, &canvas);
    let lists = &answer["choices"][0]["logprobs"];
    let length = lists["tokens"].as_array().unwrap().len();
    assert!(length > prompt.len());
    for field in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[field].as_array().unwrap().len(), length, "{field}");
    }
    for index in 0..prompt.len() {
        assert!(lists["token_logprobs"][index].is_null());
        assert!(lists["top_logprobs"][index].is_null());
    }
    let mut without_stop = rows[prompt.len()..].iter();
    for index in prompt.len()..length {
        let row = without_stop.next().unwrap();
        let expected = best(row, 1)[0].1;
        close(&lists["token_logprobs"][index], expected);
        let top = lists["top_logprobs"][index].as_object().unwrap();
        assert!((1..=4).contains(&top.len()));
        close(&top[lists["tokens"][index].as_str().unwrap()], expected);
    }
    let config = file(&golden("llada").join("config.json"));
    assert_eq!(config["mask_token_id"], 505);
}

#[tokio::test]
async fn offsets_say_where_in_the_text_each_token_begins_and_stop_strings_have_none() {
    let server = Server::golden().await;
    for seed in 0..5 {
        let mut body = json!({
            "prompt": "Beautiful é🦀", "max_tokens": 24, "temperature": 1, "seed": seed,
            "logprobs": 0, "echo": seed % 2 == 0,
        });
        let free = both_ways(&server, &body).await;
        let characters: Vec<char> = text(&free).chars().collect();
        let stop: String = characters[characters.len() * 2 / 3..]
            .iter()
            .take(2)
            .collect();
        body["stop"] = json!([stop]);
        for answer in [free, both_ways(&server, &body).await] {
            let text: Vec<char> = text(&answer).chars().collect();
            let lists = &answer["choices"][0]["logprobs"];
            let tokens = lists["tokens"].as_array().unwrap();
            let offsets = lists["text_offset"].as_array().unwrap();
            assert_eq!(offsets.first().unwrap(), 0_u64);
            assert!(offsets.is_sorted_by_key(|offset| offset.as_u64()));
            for (token, offset) in tokens.iter().zip(offsets) {
                let token = token.as_str().unwrap();
                let offset = offset.as_u64().unwrap() as usize;
                assert!(offset <= text.len());
                if !token.starts_with("bytes:") {
                    let here = text[offset..].iter().copied();
                    let same = here.zip(token.chars()).filter(|(a, b)| a == b).count();
                    assert_eq!(same, token.chars().count().min(text.len() - offset));
                }
            }
        }
    }
}

#[tokio::test]
async fn parts_of_a_character_are_written_as_bytes() {
    let server = Server::of(Mock::saying_text(1, "é!")).await;
    let body = json!({"prompt": "p", "max_tokens": 3, "logprobs": 1});
    let answer = both_ways(&server, &body).await;
    let lists = &answer["choices"][0]["logprobs"];
    assert_eq!(lists["tokens"], json!(["bytes:\\xc3", "bytes:\\xa9", "!"]));
    assert_eq!(lists["text_offset"], json!([0, 0, 1]));
}

#[tokio::test]
async fn under_revision_log_probabilities_are_those_of_the_last_commit() {
    let server = Server::golden().await;
    let body = json!({
        "prompt": "The", "max_tokens": 9, "temperature": 1, "seed": 5, "logprobs": 1,
        "diffusion": {
            "steps": 20,
            "budget": {"ancestral": {"eps": 0.001}},
            "revision": {"remask": {"rescale": 0.9}},
        },
    });
    let answer = both_ways(&server, &body).await;
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
    assert!(logprobs.unwrap().iter().all(|l| l.as_f64().unwrap() <= 0.0));
}

#[tokio::test]
async fn a_bias_decides_which_token_is_drawn() {
    let server = Server::of(Mock::uniform()).await;
    let bias = json!({b'k'.to_string(): 10});
    let body = json!({"prompt": "p", "max_tokens": 3, "logit_bias": bias});
    let answer = server.answer(COMPLETIONS, &body).await;
    assert_eq!(text(&answer), "kkk");
    let body = json!({"text": "{{2}}", "logit_bias": bias});
    let answer = server.answer(INFILL, &body).await;
    assert_eq!(text(&answer), "kk");
    let said = Mock::saying_text(0, "aaaa");
    let server = Server::of(said).await;
    let body = json!({"text": "{{2}}", "logit_bias": {b'a'.to_string(): -100}});
    let answer = server.answer(INFILL, &body).await;
    assert!(!text(&answer).contains('a'));
}

#[tokio::test]
async fn stop_tokens_are_kept_out_of_gaps_with_text_after_them_unless_they_are_allowed() {
    let said = [STOP, STOP, b'-'.into(), STOP, STOP];
    let server = Server::of(Mock::saying(0, said)).await;
    let gaps = |answer: &Value| {
        let gaps = answer["choices"][0]["gaps"].as_array().unwrap().iter();
        gaps.map(|gap| gap["tokens"].clone()).collect::<Vec<_>>()
    };
    let answer = server.answer(INFILL, &json!({"text": "{{2}}-{{2}}"})).await;
    // The last gap ends where it begins: of its tokens one was read.
    assert_eq!(gaps(&answer)[1], json!([]));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let tokens = gaps(&answer)[0].as_array().unwrap().clone();
    assert!(tokens.iter().all(|token| *token != STOP), "{answer}");
    let body = json!({"text": "{{2}}-{{2}}", "diffusion": {"stop_tokens": "anywhere"}});
    let answer = server.answer(INFILL, &body).await;
    assert_eq!(gaps(&answer), [json!([STOP, STOP]), json!([])]);
    // A completion's length is a limit, so that it may end before its suffix.
    let body = json!({"prompt": "p", "suffix": "s", "max_tokens": 4});
    let answer = server.answer(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}
