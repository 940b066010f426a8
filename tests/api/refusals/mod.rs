//! Fields of requests that are refused, each with an error that names the field, the given and the allowed.

mod completions;
mod infills;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::Mock;
use crate::server::Server;

/// A refused request: the endpoint, the body, the field at fault, and what the message must say.
type Refused = (
    &'static str,
    Value,
    Option<&'static str>,
    &'static [&'static str],
);

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
            &["-1", "0 to 1000"],
        ),
        on(
            json!({"input": "a", "diffusion": {"guidance_scale": 1e30}}),
            "diffusion.guidance_scale",
            &["0 to 1000"],
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
            json!({"prompt": "p", "min_p": 1.5}),
            "min_p",
            &["min_p is 1.5", "0 to 1"],
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
            json!({"input_extra": ["a"]}),
            "input_extra[0]",
            &["\"a\"", "JSON object"],
        ),
        llama(
            json!({"input_extra": [{"txt": "a"}]}),
            "input_extra[0].txt",
            &["unknown field `txt`", "`text`"],
        ),
        llama(
            json!({"typical_p": 0.1}),
            "typical_p",
            &["0.1", "allowed: 1"],
        ),
        llama(
            json!({"repeat_penalty": 1.1}),
            "repeat_penalty",
            &["1.1", "allowed: 1"],
        ),
        llama(json!({"n_probs": 5}), "n_probs", &["5", "allowed: 0"]),
        llama(
            json!({"ignore_eos": true}),
            "ignore_eos",
            &["true", "null, false"],
        ),
        llama(
            json!({"lora": [{"id": 0, "scale": 0.5}]}),
            "lora",
            &["null, []"],
        ),
        llama(
            json!({"logit_bias": [[5, false]]}),
            "logit_bias",
            &["[[5,false]]", "null, []"],
        ),
        llama(json!({"tfs_z": 1}), "tfs_z", &["unknown field `tfs_z`"]),
        llama(json!({"min_p": 2}), "min_p", &["2", "0 to 1"]),
    ]
}

#[tokio::test]
async fn every_refusal_names_the_field_the_given_and_the_allowed() {
    let server = Server::of(Mock::uniform()).await;
    for (path, body, param, says) in [
        completions::refused(),
        infills::refused(),
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
