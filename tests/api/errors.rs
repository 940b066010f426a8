//! Requests that are refused, each with an error that names the field, the given and the allowed.

use reqwest::StatusCode;
use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::server::Limits;
use unmask::text::{TextError, Tokenizer};

use crate::mock::{CONTEXT, MASK, Mock};
use crate::server::{Server, Setup};

const COMPLETIONS: &str = "/v1/completions";
const INFILL: &str = "/v1/infill";

/// A refused request: the endpoint, the body, the field at fault, and what the message must say.
type Refused = (
    &'static str,
    Value,
    Option<&'static str>,
    &'static [&'static str],
);

fn refused_completions() -> Vec<Refused> {
    let on =
        |body: Value, param, says: &'static [&'static str]| (COMPLETIONS, body, Some(param), says);
    vec![
        on(json!({}), "prompt", &["missing", "a string"]),
        on(json!({"prompt": null}), "prompt", &["missing"]),
        on(
            json!({"prompt": 5}),
            "prompt",
            &["`5`", "a string, or a list"],
        ),
        on(json!({"prompt": {"a": 1}}), "prompt", &["map", "a string"]),
        on(
            json!({"prompt": []}),
            "prompt",
            &["empty list", "at least one"],
        ),
        on(json!({"prompt": ["a", 1]}), "prompt[1]", &["a string"]),
        on(json!({"prompt": [1, [2]]}), "prompt[1]", &["a token id"]),
        on(
            json!({"prompt": [[1], "a"]}),
            "prompt[1]",
            &["a list of token ids"],
        ),
        on(
            json!({"prompt": ["a", null]}),
            "prompt[1]",
            &["null", "a string"],
        ),
        on(
            json!({"prompt": [1, 260]}),
            "prompt[1]",
            &["260", "0 to 259"],
        ),
        on(
            json!({"prompt": [[1], [2, 99999]]}),
            "prompt[1][1]",
            &["99999", "259"],
        ),
        on(
            json!({"prompt": [1, -3]}),
            "prompt[1]",
            &["`-3`", "token id"],
        ),
        on(
            json!({"prompt": [1, 1.5]}),
            "prompt[1]",
            &["1.5", "token id"],
        ),
        on(
            json!({"prompt": [1, MASK]}),
            "prompt[1]",
            &["mask token 257", "/v1/infill"],
        ),
        on(json!({"prompt": vec!["p"; 17]}), "prompt", &["17", "16"]),
        on(json!({"prompt": vec!["p"; 6], "n": 3}), "n", &["18", "16"]),
        on(json!({"prompt": "p", "n": 0}), "n", &["0", "1 to 16"]),
        on(json!({"prompt": "p", "n": 17}), "n", &["17", "1 to 16"]),
        on(
            json!({"prompt": "p", "n": "2"}),
            "n",
            &["\"2\"", "a whole number"],
        ),
        on(json!({"prompt": "p", "n": u64::MAX}), "n", &["1 to 16"]),
        on(
            json!({"prompt": "p", "max_tokens": 0}),
            "max_tokens",
            &["0", "at least 1"],
        ),
        on(
            json!({"prompt": "p", "max_tokens": -1}),
            "max_tokens",
            &["`-1`", "at least 0"],
        ),
        on(
            json!({"prompt": "p", "max_tokens": 2.5}),
            "max_tokens",
            &["2.5", "whole number"],
        ),
        on(
            json!({"prompt": "p", "max_tokens": 256}),
            "max_tokens",
            &["257", "256 slots"],
        ),
        on(
            json!({"prompt": "p", "max_tokens": u64::MAX}),
            "max_tokens",
            &["256 slots"],
        ),
        on(
            json!({"prompt": "p".repeat(256)}),
            "prompt",
            &["256", "272", "256 slots"],
        ),
        on(
            json!({"prompt": "p".repeat(300)}),
            "prompt",
            &["300 bytes", "256 slots"],
        ),
        on(
            json!({"prompt": "p", "suffix": "s".repeat(257)}),
            "suffix",
            &["257 bytes", "256 slots"],
        ),
        on(
            json!({"prompt": ["a", "p".repeat(256)]}),
            "prompt[1]",
            &["prompt[1] has 256", "256 slots"],
        ),
        on(
            json!({"prompt": "p", "suffix": "s".repeat(250)}),
            "max_tokens",
            &["suffix has 250", "267", "256 slots"],
        ),
        on(
            json!({"prompt": "p", "temperature": -1}),
            "temperature",
            &["-1", "at least 0"],
        ),
        on(
            json!({"prompt": "p", "temperature": 1e40}),
            "temperature",
            &["1e+40", "3.4e38"],
        ),
        on(
            json!({"prompt": "p", "temperature": "hot"}),
            "temperature",
            &["hot", "a number"],
        ),
        on(
            json!({"prompt": "p", "top_p": 0}),
            "top_p",
            &["0", "more than 0"],
        ),
        on(
            json!({"prompt": "p", "top_p": 1.5}),
            "top_p",
            &["1.5", "at most 1"],
        ),
        on(
            json!({"prompt": "p", "top_k": -2}),
            "top_k",
            &["-2", "at least 1"],
        ),
        on(
            json!({"prompt": "p", "top_k": 0.5}),
            "top_k",
            &["0.5", "a whole number"],
        ),
        on(
            json!({"prompt": "p", "seed": -1}),
            "seed",
            &["`-1`", "at least 0"],
        ),
        on(
            json!({"prompt": "p", "seed": 1.0}),
            "seed",
            &["1.0", "whole number"],
        ),
        on(
            json!({"prompt": "p", "stop": ""}),
            "stop",
            &["0 bytes", "1 to 256"],
        ),
        on(
            json!({"prompt": "p", "stop": ["a", ""]}),
            "stop[1]",
            &["0 bytes", "1 to 256"],
        ),
        on(
            json!({"prompt": "p", "stop": ["a", "b", "c", 7]}),
            "stop[3]",
            &["`7`", "string"],
        ),
        on(
            json!({"prompt": "p", "stop": "é".repeat(129)}),
            "stop",
            &["258 bytes", "256"],
        ),
        on(
            json!({"prompt": "p", "stop": vec!["a"; 17]}),
            "stop",
            &["17", "at most 16"],
        ),
        on(
            json!({"prompt": "p", "stop": 4}),
            "stop",
            &["`4`", "a string or a list"],
        ),
        on(
            json!({"prompt": "p", "echo": "yes"}),
            "echo",
            &["yes", "boolean"],
        ),
        on(
            json!({"prompt": "p", "stream": 1}),
            "stream",
            &["`1`", "boolean"],
        ),
        on(
            json!({"prompt": "p", "user": 1}),
            "user",
            &["`1`", "string"],
        ),
        on(
            json!({"prompt": "p", "stream_options": {}}),
            "stream_options",
            &["stream = true"],
        ),
        on(
            json!({"prompt": "p", "stream": true, "stream_options": {"usage": true}}),
            "stream_options.usage",
            &["unknown field `usage`", "`include_usage`"],
        ),
        on(
            json!({"prompt": "p", "presence_penalty": 0.5}),
            "presence_penalty",
            &["0.5", "0"],
        ),
        on(
            json!({"prompt": "p", "frequency_penalty": -1}),
            "frequency_penalty",
            &["-1", "0"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"50": 101}}),
            "logit_bias.50",
            &["101", "-100 to 100"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"50": "1"}}),
            "logit_bias.50",
            &["\"1\"", "a number"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"the": 1}}),
            "logit_bias.the",
            &["no token id", "whole number"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"5": 100, "05": 100}}),
            "logit_bias.05",
            &["no token id", "leading zeros"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"+5": 1}}),
            "logit_bias.+5",
            &["no token id", "without sign"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"260": 1}}),
            "logit_bias.260",
            &["260", "0 to 259"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": {"257": 1}}),
            "logit_bias.257",
            &["mask token 257"],
        ),
        on(
            json!({"prompt": "p", "logit_bias": [1]}),
            "logit_bias",
            &["sequence", "map"],
        ),
        on(
            json!({"prompt": "p", "best_of": 3}),
            "best_of",
            &["3", "here 1"],
        ),
        on(
            json!({"prompt": "p", "logprobs": 21}),
            "logprobs",
            &["21", "0 to 20"],
        ),
        on(
            json!({"prompt": "p", "logprobs": true}),
            "logprobs",
            &["true", "whole number"],
        ),
        on(
            json!({"prompt": "p", "min_p": 0.1}),
            "min_p",
            &["unknown field `min_p`", "`top_p`"],
        ),
        on(
            json!({"prompt": "p", "diffusion": 3}),
            "diffusion",
            &["`3`", "a JSON object"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"foo": 1}}),
            "diffusion.foo",
            &["unknown field `foo`", "`preset`"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"preset": "gpt"}}),
            "diffusion.preset",
            &["gpt", "llada"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"steps": 0}}),
            "diffusion.steps",
            &["is 0", "1 to"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"steps": 1, "block_length": 8}}),
            "diffusion.steps",
            &["diffusion.steps is 1", "2 blocks"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"steps": 1_000_000}}),
            "diffusion.steps",
            &["1000000", "1 to"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"steps_per_block": 4}}),
            "diffusion.steps_per_block",
            &["needs block_length"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"revision": {"remask": {"cap": 0.5}}}}),
            "diffusion.revision",
            &["ancestral"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"revision": {"remask": {"cup": 0.5}}}}),
            "diffusion.revision.remask",
            &["`cup`", "`cap`"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"block_length": 0}}),
            "diffusion.block_length",
            &["0", "at least 1"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"ancestral": {}}, "revision": {"edit": {"threshold": 0.5, "max_post_steps": 3}}}}),
            "diffusion.revision",
            &["by chance"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"block_length": 1, "revision": {"edit": {"threshold": 0.5, "max_post_steps": 10000}}}}),
            "diffusion.steps",
            &["at most 10000"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"block_origin": "end"}}),
            "diffusion.block_origin",
            &["end", "`gap` or `canvas`"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"score": "best"}}),
            "diffusion.score",
            &["best", "`confidence`"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": "most"}}),
            "diffusion.budget",
            &["most", "`threshold`"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"threshold": 1.5}}}),
            "diffusion.budget",
            &["1.5", "[0, 1]"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"threshold": "x"}}}),
            "diffusion.budget.threshold",
            &["x"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"guidance_scale": -1}}),
            "diffusion.guidance_scale",
            &["-1", "at least 0"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"negative_prompt": "n"}}),
            "diffusion.negative_prompt",
            &["guidance_scale above 0"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {
                "negative_prompt": "n", "guidance_scale": 1, "cache": {"policy": "dual"}}}),
            "diffusion.cache.policy",
            &["auto, none"],
        ),
        on(
            json!({"prompt": "p", "max_tokens": CONTEXT - 2, "diffusion": {
                "negative_prompt": "xyz", "guidance_scale": 1}}),
            "diffusion.negative_prompt",
            &["has 3 tokens", "256"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {
                "temperature_schedule": {"linear": 0.1}, "budget": {"threshold": 0.9}}}),
            "diffusion.temperature_schedule",
            &["steps_per_block"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"temperature_schedule": {"linear": -1}}}),
            "diffusion.temperature_schedule",
            &["-1", "at least 0"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"temperature_schedule": "cosine"}}),
            "diffusion.temperature_schedule",
            &["cosine", "linear"],
        ),
        on(
            json!({"prompt": "p", "diffusion": []}),
            "diffusion",
            &["sequence", "a JSON object"],
        ),
        (
            COMPLETIONS,
            json!(["mini", "p"]),
            None,
            &["sequence", "a JSON object"],
        ),
        (COMPLETIONS, json!("p"), None, &["\"p\"", "a JSON object"]),
    ]
}

fn refused_infills() -> Vec<Refused> {
    let on = |body: Value, param, says: &'static [&'static str]| (INFILL, body, Some(param), says);
    let gap = |tokens: Value| json!({"segments": ["a", {"gap": {"tokens": tokens}}]});
    vec![
        on(json!({}), "text", &["missing", "text or segments"]),
        on(
            json!({"text": "{{1}}", "segments": []}),
            "segments",
            &["both", "one of them"],
        ),
        on(json!({"text": "no gap"}), "text", &["no gap", "{{8}}"]),
        on(json!({"text": ""}), "text", &["no gap"]),
        on(
            json!({"segments": ["a"]}),
            "segments",
            &["no gap", "at least one"],
        ),
        on(json!({"segments": []}), "segments", &["no gap"]),
        on(json!({"text": "a {{x}}"}), "text", &["byte 2", "{{8}}"]),
        on(
            json!({"text": "{{0}}"}),
            "text",
            &["byte 0", "number of tokens"],
        ),
        on(
            json!({"text": "a{{256}}"}),
            "text",
            &["257 slots", "256 slots"],
        ),
        on(
            json!({"text": "{{99999999999}}"}),
            "text",
            &["99999999999", "256 slots"],
        ),
        on(
            json!({"text": "a".repeat(250) + "{{7}}"}),
            "text",
            &["257", "256 slots"],
        ),
        on(json!({"text": 1}), "text", &["`1`", "string"]),
        on(gap(json!(0)), "segments[1].gap.tokens", &["0", "1 to 256"]),
        on(
            gap(json!(null)),
            "segments[1].gap.tokens",
            &["missing", "1 to 256"],
        ),
        on(
            gap(json!(-4)),
            "segments[1].gap.tokens",
            &["`-4`", "at least 0"],
        ),
        on(
            gap(json!("8")),
            "segments[1].gap.tokens",
            &["\"8\"", "a whole number"],
        ),
        on(gap(json!(1_000_000)), "segments", &["1000000", "256 slots"]),
        on(
            json!({"segments": [{"gap": {}}]}),
            "segments[0].gap.tokens",
            &["missing"],
        ),
        on(
            json!({"segments": [{"gap": 3}]}),
            "segments[0].gap",
            &["`3`", "a JSON object"],
        ),
        on(
            json!({"segments": [{}]}),
            "segments[0]",
            &["missing field `gap`"],
        ),
        on(
            json!({"segments": [3]}),
            "segments[0]",
            &["`3`", "a string or"],
        ),
        on(
            json!({"segments": [{"hole": {}}]}),
            "segments[0].hole",
            &["unknown field `hole`"],
        ),
        on(
            json!({"segments": [{"gap": {"tokens": 1, "size": 2}}]}),
            "segments[0].gap.size",
            &["unknown field `size`", "`tokens`"],
        ),
        on(
            json!({"segments": [
                {"gap": {"tokens": 1, "name": "x"}}, "a", {"gap": {"tokens": 1, "name": "x"}},
            ]}),
            "segments[2].gap.name",
            &["\"x\"", "segments[0]"],
        ),
        on(
            json!({"segments": [{"gap": {"tokens": 1, "name": "x".repeat(257)}}]}),
            "segments[0].gap.name",
            &["257 bytes", "256"],
        ),
        on(
            json!({"segments": [{"gap": {"tokens": 1, "max_tokens": 2}}]}),
            "segments[0].gap.max_tokens",
            &["twice", "one of tokens"],
        ),
        on(
            json!({"segments": [{"gap": {"tokens": 1, "choices": ["a"]}}]}),
            "segments[0].gap.choices",
            &["twice", "one of tokens"],
        ),
        on(
            json!({"segments": [{"gap": {"tokens": 1, "min_tokens": 1}}]}),
            "segments[0].gap.min_tokens",
            &["only with max_tokens"],
        ),
        on(
            json!({"segments": [{"gap": {"min_tokens": 3, "max_tokens": 2}}]}),
            "segments[0].gap.min_tokens",
            &["3", "1 to max_tokens, which is 2"],
        ),
        on(
            json!({"segments": [{"gap": {"max_tokens": 300}}]}),
            "segments",
            &["300", "256 slots"],
        ),
        on(
            json!({"segments": [{"gap": {"max_tokens": 3}}], "n": 9}),
            "n",
            &["9", "16 sequences"],
        ),
        on(
            json!({"segments": [{"gap": {"max_tokens": 3}}], "stream": true}),
            "stream",
            &["true", "false"],
        ),
        on(
            json!({"segments": [{"gap": {"choices": []}}]}),
            "segments[0].gap.choices",
            &["0 texts", "1 to 256"],
        ),
        on(
            json!({"segments": [{"gap": {"choices": ["a", ""]}}]}),
            "segments[0].gap.choices[1]",
            &["empty"],
        ),
        on(
            json!({"segments": [{"gap": {"choices": ["a", "b", "a"]}}]}),
            "segments[0].gap.choices[2]",
            &["same as choice 0"],
        ),
        on(
            json!({"segments": [{"gap": {"choices": ["a"], "stop": "b"}}]}),
            "segments[0].gap.stop",
            &["not allowed with choices"],
        ),
        on(
            json!({"segments": [{"gap": {"choices": ["a".repeat(90), "b".repeat(90), "c".repeat(90)]}}]}),
            "segments",
            &["more than 256 forwards", "at most 256"],
        ),
        on(
            json!({"segments": [{"gap": {"tokens": 1, "stop": ""}}]}),
            "segments[0].gap.stop",
            &["0 bytes", "1 to 256"],
        ),
        on(json!({"text": "{{1}}", "n": 40}), "n", &["40", "1 to 16"]),
        on(
            json!({"text": "{{1}}", "stop": "a"}),
            "stop",
            &["unknown field `stop`"],
        ),
        on(
            json!({"text": "{{1}}", "logprobs": 3}),
            "logprobs",
            &["`3`", "boolean"],
        ),
        on(
            json!({"text": "{{1}}", "top_logprobs": 3}),
            "top_logprobs",
            &["3", "logprobs = true"],
        ),
        on(
            json!({"text": "{{1}}", "logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            &["21", "0 to 20"],
        ),
        on(
            json!({"text": "{{1}}", "diffusion": {"stop_tokens": "never"}}),
            "diffusion.stop_tokens",
            &["never", "`anywhere` or `at_end`"],
        ),
        on(
            json!({"text": "{{1}}", "temperature": -2}),
            "temperature",
            &["-2", "at least 0"],
        ),
        on(
            json!({"text": "{{9}}", "diffusion": {"steps": 2, "block_length": 3}}),
            "diffusion.steps",
            &["2", "3 blocks"],
        ),
    ]
}

fn refused_scores() -> Vec<Refused> {
    let on = |body, param, says: &'static [&'static str]| ("/v1/score", body, Some(param), says);
    vec![
        on(json!({}), "input", &["missing", "a string or a list"]),
        on(json!({"input": ["a", ""]}), "input[1]", &["empty"]),
        on(json!({"input": ""}), "input", &["empty"]),
        on(json!({"input": []}), "input", &["0 texts"]),
        on(
            json!({"input": "a", "samples": 0}),
            "samples",
            &["0", "1 to 4096"],
        ),
        on(
            json!({"input": ["a", "b"], "samples": 3000}),
            "input",
            &["2 texts", "4096 samples"],
        ),
        on(
            json!({"input": "a", "samples": 8, "strata": 3}),
            "strata",
            &["3", "divisor", "8"],
        ),
        on(
            json!({"input": "a", "estimator": "guess"}),
            "estimator",
            &["guess", "exact_count"],
        ),
        on(
            json!({"input": "b".repeat(200), "prompt": "a".repeat(100)}),
            "input",
            &["300", "256 slots"],
        ),
        on(
            json!({"input": "a", "diffusion": {"guidance_scale": -1}}),
            "diffusion.guidance_scale",
            &["-1", "at least 0"],
        ),
        on(
            json!({"input": "a", "diffusion": {"steps": 3}}),
            "diffusion.steps",
            &["unknown field `steps`"],
        ),
    ]
}

fn refused_fims() -> Vec<Refused> {
    let fim = |body, param, says: &'static [&'static str]| {
        ("/v1/fim/completions", body, Some(param), says)
    };
    let llama = |body, param, says: &'static [&'static str]| ("/infill", body, Some(param), says);
    vec![
        fim(
            json!({"suffix": "s"}),
            "prompt",
            &["missing", "before the gap"],
        ),
        fim(json!({"prompt": ["p"]}), "prompt", &["sequence", "string"]),
        fim(
            json!({"prompt": "p", "min_tokens": 3}),
            "min_tokens",
            &["3", "/v1/infill"],
        ),
        fim(
            json!({"prompt": "p", "seed": 1, "random_seed": 2}),
            "seed",
            &["both", "random_seed"],
        ),
        fim(
            json!({"prompt": "p", "echo": true}),
            "echo",
            &["unknown field `echo`"],
        ),
        fim(
            json!({"prompt": "p", "presence_penalty": 1}),
            "presence_penalty",
            &["1", "0"],
        ),
        llama(json!({"n_predict": -1}), "n_predict", &["-1", "at least 0"]),
        llama(json!({"seed": -2}), "seed", &["-2", "-1 for a random one"]),
        llama(
            json!({"stream": true, "n_indent": 4}),
            "n_indent",
            &["4", "stream"],
        ),
        llama(
            json!({"input_extra": ["a"]}),
            "input_extra[0]",
            &["\"a\"", "JSON object"],
        ),
        llama(
            json!({"input_extra": [{"txt": "a"}]}),
            "input_extra[0].txt",
            &["unknown field `txt`", "`text`"],
        ),
        llama(json!({"min_p": 0.1}), "min_p", &["unknown field `min_p`"]),
    ]
}

#[tokio::test]
async fn every_refusal_names_the_field_the_given_and_the_allowed() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body, param, says) in [
        refused_completions(),
        refused_infills(),
        refused_fims(),
        refused_scores(),
    ]
    .concat()
    {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error", "{body}: {answer}");
        assert_eq!(error["param"], json!(param), "{body}: {answer}");
        assert!(error["code"].is_string(), "{body}: {answer}");
        let message = error["message"].as_str().unwrap();
        for part in says {
            assert!(message.contains(part), "{part:?} not in {answer}");
        }
        if let Some(param) = param {
            assert!(message.contains(param), "{param:?} not in {answer}");
        }
    }
    assert_eq!(server.engine.status().steps, 0, "nothing was denoised");
}

#[tokio::test]
async fn a_canvas_that_is_too_long_has_openais_code() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "p", "max_tokens": 256})),
        (INFILL, json!({"text": "p{{256}}"})),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["code"], "context_length_exceeded");
    }
}

#[tokio::test]
async fn another_model_is_not_found() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body) in [
        (COMPLETIONS, json!({"model": "gpt-4", "prompt": "p"})),
        (INFILL, json!({"model": "gpt-4", "text": "{{1}}"})),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let error = &answer["error"];
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "model");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("gpt-4") && message.contains("mini"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn the_mask_token_written_out_in_a_text_is_refused() {
    let server = Server::golden().await;
    for (path, body, param) in [
        (
            COMPLETIONS,
            json!({"prompt": ["a", "b <|mdm_mask|>"]}),
            "prompt[1]",
        ),
        (
            COMPLETIONS,
            json!({"prompt": "a", "suffix": "<|mdm_mask|>"}),
            "suffix",
        ),
        (INFILL, json!({"text": "<|mdm_mask|>{{1}}"}), "text"),
        (
            INFILL,
            json!({"segments": [{"gap": {"tokens": 1}}, "<|mdm_mask|>"]}),
            "segments[1]",
        ),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("mask token 505")
        );
    }
}

/// Posts a raw body; status and error.
async fn raw(server: &Server, content_type: Option<&str>, body: &[u8]) -> (StatusCode, Value) {
    let url = format!("{}{COMPLETIONS}", server.url);
    let mut request = server.client.post(url).body(body.to_vec());
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    (status, body["error"].clone())
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused_where_they_are_wrong() {
    let server = Server::of(Mock::uniform()).await;
    for (body, says) in [
        (&b""[..], "EOF"),
        (b"{\"prompt\": \"p\"", "line 1 column 14"),
        (b"{\"prompt\": \"p\"} x", "line 1 column 17"),
        (b"{\"prompt\": 'p'}", "line 1 column 12"),
        (b"{\"prompt\": \"\\ud800\"}", "line 1"),
        (b"{\"prompt\": \"a\xFFb\"}", "byte 13"),
        (b"prompt=p", "line 1 column 1"),
    ] {
        let (status, error) = raw(&server, Some("application/json"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert_eq!(error["code"], "invalid_json", "{error}");
        assert_eq!(error["param"], Value::Null);
        assert!(
            error["message"].as_str().unwrap().contains(says),
            "{says}: {error}"
        );
    }
    let deep = format!("{{\"prompt\": {}", "[".repeat(100_000));
    let (status, _) = raw(&server, Some("application/json"), deep.as_bytes()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let twice = br#"{"prompt": "p", "n": 1, "n": 2}"#;
    let (status, error) = raw(&server, Some("application/json"), twice).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("duplicate field `n`"),
        "{error}"
    );
}

#[tokio::test]
async fn other_media_types_are_refused() {
    let server = Server::of(Mock::uniform()).await;
    let body = br#"{"prompt": "p"}"#;
    for given in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let (status, error) = raw(&server, given, body).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(given.unwrap_or("\"\"")), "{message}");
        assert!(message.contains("application/json"), "{message}");
    }
    let (status, _) = raw(&server, Some("Application/JSON; charset=utf-8"), body).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let limits = Limits {
        body_bytes: 100,
        ..Limits::default()
    };
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    let server = Server::with(Mock::uniform(), setup).await;
    let body = |length: usize| format!("{{\"prompt\": \"p\"{}}}", " ".repeat(length - 15));
    let (status, _) = raw(&server, Some("application/json"), body(100).as_bytes()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, error) = raw(&server, Some("application/json"), body(101).as_bytes()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(error["code"], "body_too_large");
    assert!(error["message"].as_str().unwrap().contains("100 bytes"));
}

/// A tokenizer with a defect.
struct Broken;

impl Tokenizer for Broken {
    fn encode(&self, _: &str) -> Result<Vec<TokenId>, TextError> {
        panic!("what is for the log")
    }

    fn bytes(&self, _: TokenId) -> &[u8] {
        &[]
    }

    fn longest_token(&self) -> Option<usize> {
        None
    }
}

#[tokio::test]
async fn what_a_defect_says_does_not_reach_the_client() {
    let server = Server::speaking(Mock::uniform(), Broken).await;
    let (status, answer) = server.ask(COMPLETIONS, &json!({"prompt": "p"})).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("defect in the server"), "{message}");
    assert!(!message.contains("for the log"), "{message}");
}
