use serde_json::json;

use super::{Refused, Value};
use crate::mock::{CONTEXT, MASK};

const COMPLETIONS: &str = "/v1/completions";

pub fn refused() -> Vec<Refused> {
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
            &["mask token 257", "/v1/infill", "{{8}}"],
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
            json!({"prompt": "p", "min_p": 1.5}),
            "min_p",
            &["min_p is 1.5", "0 to 1"],
        ),
        on(
            json!({"prompt": "p", "min_p": -0.1}),
            "min_p",
            &["min_p is -0.1", "0 to 1"],
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
            json!({"prompt": "p", "stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
            &["true", "allowed: false"],
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
            &["257 is the mask token", "never drawn"],
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
            json!({"prompt": "p", "typical_p": 0.1}),
            "typical_p",
            &["unknown field `typical_p`", "`top_p`"],
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
            json!({"prompt": "p", "diffusion": {"preset": "diffusion-gemma"}}),
            "diffusion.preset",
            &[
                "diffusion-gemma does not go with",
                "fills masks",
                "allowed: llada, ",
            ],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"preset": "remdm-cap", "sliding_window": true}}),
            "diffusion.sliding_window",
            &["end with its context"],
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
            json!({"prompt": "p", "diffusion": {"budget": {"ancestral": {"eps": 0.001}}, "score": "margin"}}),
            "diffusion.score",
            &["ancestral:0.001", "chooses without a score"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"ancestral": {}}, "score_temperature": 0.3}}),
            "diffusion.score_temperature",
            &["by chance"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"ancestral": {}}, "commit_last": [256]}}),
            "diffusion.commit_last",
            &["by chance"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"finish": "drawn"}}),
            "diffusion.finish",
            &["even", "no noise schedule"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"ancestral": {}}, "finish": "soon"}}),
            "diffusion.finish",
            &["soon", "most_probable"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"commit_last": [256, 260]}}),
            "diffusion.commit_last[1]",
            &["260", "0 to 259"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"commit_last": vec![5; 65]}}),
            "diffusion.commit_last",
            &["65 tokens", "at most 64"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"preset": "mdlm-ancestral", "score": "random"}}),
            "diffusion.score",
            &["chooses without a score"],
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
            "diffusion.budget.threshold",
            &["1.5", "[0, 1]"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"ancestral": {"eps": 1}}}}),
            "diffusion.budget.ancestral.eps",
            &["is 1", "less than 1"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"budget": {"threshold": "x"}}}),
            "diffusion.budget.threshold",
            &["x"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"guidance_scale": -1}}),
            "diffusion.guidance_scale",
            &["-1", "0 to 1000"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"guidance_scale": 1e30}}),
            "diffusion.guidance_scale",
            &["0 to 1000"],
        ),
        on(
            json!({"prompt": "p", "diffusion": {"revision": {"remask": {"loop":
                {"eta": 0.5, "t_on": 0.3, "t_off": 0.55, "alpha_on": 0.9}}}}}),
            "diffusion.revision",
            &["t_on 0.3 and t_off 0.55", "t_off of at most t_on"],
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
