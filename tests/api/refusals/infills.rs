use serde_json::json;

use super::{Refused, Value};

const INFILL: &str = "/v1/infill";

pub fn refused() -> Vec<Refused> {
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
            json!({"text": "a{{99999999999999999999}}"}),
            "text",
            &["too long", "256 slots"],
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
            json!({"segments": vec![json!({"gap": {"max_tokens": 3}}); 6]}),
            "segments",
            &["6 gaps", "at most 4 such gaps"],
        ),
        on(
            json!({"segments": vec![json!({"gap": {"max_tokens": 3}}); 6], "n": 2}),
            "segments",
            &["6 gaps", "at most 4 such gaps"],
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
            json!({"text": "{{1}}", "min_p": 1.5}),
            "min_p",
            &["min_p is 1.5", "0 to 1"],
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
