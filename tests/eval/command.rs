//! `unmask eval`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{golden, json};
use crate::texts;

/// Runs `unmask eval` on the golden checkpoint.
fn eval(model: &str, data: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(["eval", "--device", "cpu", "--model"])
        .arg(golden(model))
        .arg("--data")
        .arg(data)
        .args(options)
        .output()
        .unwrap()
}

fn text_file(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("text.zst");
    let text = texts().join("\n<|doc|>\n");
    std::fs::write(&path, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    path
}

const SMALL: &[&str] = &[
    "--context",
    "24",
    "--draws",
    "2",
    "--decode-windows",
    "2",
    "--mask-rates",
    "0.2,0.8",
    "--thresholds",
    "0.01,0.9",
];

/// The keys of a JSON value, one line each, list entries as [].
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                keys(value, &format!("{path}.{key}"), found);
            }
        }
        Value::Array(list) => {
            for value in list {
                keys(value, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn the_command_prints_and_writes_the_same_report_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = text_file(folder.path());
    let out = folder.path().join("new/results");
    let alone = |options: &[&str]| {
        let output = eval("llada", &data, options);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let run = |more: &[&str]| alone(&[SMALL, more].concat());
    let printed = run(&["--json", "--out", out.to_str().unwrap()]);
    assert_eq!(printed, run(&["--json"]));
    let written = std::fs::read_to_string(out.join("eval.json")).unwrap();
    assert_eq!(printed.trim_end(), written.trim_end());
    for name in ["infill.svg", "speed.svg"] {
        let svg = std::fs::read_to_string(out.join(name)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.contains("accuracy"),
            "{name}"
        );
    }
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["data"]["documents"], 3);
    assert_eq!(report["data"]["documents_skipped"], 1);
    let mut found = BTreeSet::new();
    keys(&report, "", &mut found);
    // What a plan is made of is told elsewhere.
    found.retain(|key| !key.starts_with(".run.plan."));
    assert_eq!(report["run"]["plan"]["budget"].as_str(), Some("even"));
    insta::assert_snapshot!(found.into_iter().collect::<Vec<_>>().join("\n"), @r"
    .data.bytes
    .data.characters
    .data.context
    .data.documents
    .data.documents_available
    .data.documents_skipped
    .data.file
    .data.form
    .data.tokens
    .data.windows
    .data.windows_available
    .estimated
    .infill.decoded[].forwards
    .infill.decoded[].mask_rate
    .infill.decoded[].masked_share
    .infill.decoded[].span_exact_match.high
    .infill.decoded[].span_exact_match.low
    .infill.decoded[].span_exact_match.value
    .infill.decoded[].spans
    .infill.decoded[].token_accuracy.high
    .infill.decoded[].token_accuracy.low
    .infill.decoded[].token_accuracy.value
    .infill.decoded[].tokens
    .infill.decoded[].windows
    .infill.one_forward[].mask_rate
    .infill.one_forward[].masked_share
    .infill.one_forward[].token_accuracy.high
    .infill.one_forward[].token_accuracy.low
    .infill.one_forward[].token_accuracy.value
    .infill.one_forward[].token_accuracy_of_decoded.high
    .infill.one_forward[].token_accuracy_of_decoded.low
    .infill.one_forward[].token_accuracy_of_decoded.value
    .infill.one_forward[].tokens
    .infill.one_forward[].windows
    .infill.span
    .likelihood[].bits_per_byte.high
    .likelihood[].bits_per_byte.low
    .likelihood[].bits_per_byte.value
    .likelihood[].bits_per_character.high
    .likelihood[].bits_per_character.low
    .likelihood[].bits_per_character.value
    .likelihood[].by_document[].bytes
    .likelihood[].by_document[].index
    .likelihood[].by_document[].nats
    .likelihood[].by_document[].tokens
    .likelihood[].draws
    .likelihood[].estimator
    .likelihood[].finite_variance
    .likelihood[].monte_carlo_error
    .likelihood[].nats_per_token.high
    .likelihood[].nats_per_token.low
    .likelihood[].nats_per_token.value
    .likelihood[].perplexity_bound.high
    .likelihood[].perplexity_bound.low
    .likelihood[].perplexity_bound.value
    .model
    .process
    .run.device
    .run.dtype
    .run.unmask_version
    .run.weights
    .seed
    .speed.mask_rate
    .speed.points[].forwards
    .speed.points[].masked_share
    .speed.points[].threshold
    .speed.points[].token_accuracy.high
    .speed.points[].token_accuracy.low
    .speed.points[].token_accuracy.value
    .speed.points[].tokens
    .speed.points[].tokens_per_forward.high
    .speed.points[].tokens_per_forward.low
    .speed.points[].tokens_per_forward.value
    .speed.span
    .speed.windows
    ");
    let bound = &report["likelihood"][0];
    let by_document = bound["by_document"].as_array().unwrap();
    let sum = |field: &str| {
        by_document
            .iter()
            .map(|d| d[field].as_f64().unwrap())
            .sum::<f64>()
    };
    let mean = sum("nats") / sum("tokens");
    assert!((mean - bound["nats_per_token"]["value"].as_f64().unwrap()).abs() < 1e-9);
    let indices: Vec<_> = by_document
        .iter()
        .map(|d| d["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 3]);
    let table = run(&[]);
    for part in [
        "1 documents of fewer than 2 tokens",
        "3 of 4 documents, ",
        " of their ",
        "means over all tokens of the data",
        "of the decoded windows",
        "likelihood, exact count, 2 draws",
        "likelihood, continuous time",
        "infinite variance",
        "publish the exact count",
        "bits/character",
        "infilling of spans of 4 tokens",
        "threshold sampler, 48 % masked in spans of 4 tokens",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let options = "--context 24 --draws 2 --json --parts likelihood";
    let options: Vec<&str> = options.split(' ').collect();
    let likelihood_only: Value = serde_json::from_str(&alone(&options)).unwrap();
    assert_eq!(likelihood_only["likelihood"], report["likelihood"]);
    let name = report["likelihood"][1]["estimator"].as_str().unwrap();
    for name in [name, "continuous-time"] {
        let options = [&options[..], &["--estimators", name]].concat();
        let one: Value = serde_json::from_str(&alone(&options)).unwrap();
        assert_eq!(one["likelihood"].as_array().unwrap().len(), 1);
        assert_eq!(one["likelihood"][0], report["likelihood"][1]);
    }
    assert!(likelihood_only["infill"].is_null());
}

#[test]
fn a_plot_that_cannot_be_written_does_not_lose_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let data = text_file(folder.path());
    let out = folder.path().join("results");
    // A file cannot be written where a directory is.
    std::fs::create_dir_all(out.join("infill.svg")).unwrap();
    let options = ["--json", "--out", out.to_str().unwrap()];
    let output = eval("llada", &data, &[SMALL, &options].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("infill.svg"), "{errors}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let written = std::fs::read(out.join("eval.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), printed);
    assert!(printed["speed"]["points"].is_array());
    assert!(out.join("speed.svg").is_file());
}

#[test]
fn the_command_says_what_is_wrong_with_its_input() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let good = write("good.txt", b"some words");
    let missing = folder.path().join("missing.txt");
    let cases: [(&str, &Path, &[&str], &str); 9] = [
        ("llada", &missing, &[], "cannot read"),
        ("llada", &write("empty.txt", b" \n"), &[], "no documents"),
        (
            "llada",
            &write("latin.txt", b"caf\xe9 au lait"),
            &[],
            "not UTF-8: invalid byte at offset 3",
        ),
        (
            "llada",
            &write("short.txt", b"x"),
            &[],
            "none of the 1 chosen documents has 2 tokens",
        ),
        ("llada/bf16", &good, &[], "tokenizer.json: bf16 has none"),
        (
            "llada",
            &good,
            &["--context", "300"],
            "context is 300; allowed: 2 to the model's context of 256",
        ),
        (
            "llada",
            &good,
            &["--mask-rates", "0.5,1"],
            "mask_rates is 1; allowed: more than 0 and less than 1",
        ),
        (
            "llada",
            &good,
            &["--thresholds", "1.5"],
            "thresholds is 1.5; allowed: a probability",
        ),
        ("llada", &good, &["--draws", "0"], "draws is 0"),
    ];
    for (model, data, options, expected) in cases {
        let output = eval(model, data, options);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{expected}");
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
}

#[test]
fn families_that_cannot_be_evaluated_are_refused_before_their_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let data = text_file(folder.path());
    let mut config = json(&golden("bd3lm").join("config.json"));
    config["time_conditioning"] = true.into();
    // A checkpoint whose weights are not there.
    let model = folder.path().join("bd3lm");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    std::fs::write(model.join("model.safetensors"), b"nothing that can be read").unwrap();
    let output = eval(model.to_str().unwrap(), &data, &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let reason = "it is block-causal, and its loss depends on the noise level";
    assert!(errors.contains(reason), "{errors}");
}

#[test]
fn log_scores_are_measured_in_continuous_time_alone_and_their_spans_where_there_are_masks() {
    let folder = tempfile::tempdir().unwrap();
    let data = text_file(folder.path());
    for family in ["sedd_absorb", "sedd_uniform"] {
        let model = folder.path().join(family);
        std::fs::create_dir(&model).unwrap();
        for (from, name) in [
            (family, "config.json"),
            (family, "model.safetensors"),
            ("mdlm", "tokenizer.json"),
            ("mdlm", "tokenizer_config.json"),
        ] {
            std::fs::copy(golden(from).join(name), model.join(name)).unwrap();
        }
        let model = model.to_str().unwrap();
        let output = eval(model, &data, &["--context", "12", "--draws", "4", "--json"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{family}: {errors}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let [bound] = &report["likelihood"].as_array().unwrap()[..] else {
            panic!("one estimator: {report}");
        };
        assert_eq!(bound["estimator"], "continuous_time");
        assert_eq!(bound["finite_variance"], true);
        let nats = bound["nats_per_token"]["value"].as_f64().unwrap();
        assert!(nats > 0.0 && nats.is_finite(), "{nats}");
        let left_out: Vec<&str> = report["left_out"]
            .as_array()
            .unwrap()
            .iter()
            .map(|left_out| left_out["measure"].as_str().unwrap())
            .collect();
        // What log-scores of the uniform process say is no prediction of a span from what is around it.
        let spans: &[&str] = match family {
            "sedd_uniform" => &["infill", "speed"],
            _ => &[],
        };
        assert_eq!(left_out, [&["likelihood, exact count"], spans].concat());
        for part in ["infill", "speed"] {
            assert_eq!(report[part].is_null(), spans.contains(&part), "{report}");
        }
        // As in the report and by the HTTP API, and as other options are spelt.
        for name in ["exact_count", "exact-count"] {
            let output = eval(model, &data, &["--estimators", name]);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                errors.contains("--estimators exact_count is not for this model"),
                "{name}: {errors}"
            );
        }
    }
}

#[test]
fn of_a_block_causal_model_the_likelihood_is_measured_and_the_rest_left_out_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let data = text_file(folder.path());
    let output = eval(
        "sdar",
        &data,
        &["--context", "24", "--draws", "2", "--json"],
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for estimate in report["likelihood"].as_array().unwrap() {
        let nats = estimate["nats_per_token"]["value"].as_f64().unwrap();
        assert!(nats > 0.0 && nats.is_finite(), "{nats}");
    }
    assert_eq!(report["likelihood"].as_array().unwrap().len(), 2);
    let left_out = report["left_out"].as_array().unwrap();
    assert_eq!(left_out.len(), 2);
    for (left_out, measure) in report["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .zip(["infill", "speed"])
    {
        assert_eq!(left_out["measure"], measure);
        let reason = left_out["reason"].as_str().unwrap();
        assert!(reason.contains("block-causal"), "{reason}");
    }
    for (options, expected) in [
        (
            ["--parts", "infill"],
            "--parts infill is not measured of this model",
        ),
        (
            ["--span", "3"],
            "--span is for --parts infill or speed, not measured of this model",
        ),
    ] {
        let output = eval("sdar", &data, &options);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{expected}");
        assert!(errors.contains(expected), "{errors}");
    }
}

#[test]
fn answers_of_pairs_are_scored_after_their_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    let options = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["eval", "--device", "cpu", "--model"])
            .arg(golden("llada"))
            .arg("--pairs")
            .arg(&pairs)
            .args(["--draws", "2", "--mask-rates", "0.5", "--thresholds", "0.9"])
            .args(more)
            .output()
            .unwrap()
    };
    let lines = ["Readability", "In the face"]
        .map(|answer| {
            let prompt = "<|start_header_id|>user<|end_header_id|>Say it.<|eot_id|>";
            serde_json::json!({"prompt": prompt, "answer": answer}).to_string()
        })
        .join("\n");
    std::fs::write(&pairs, lines).unwrap();
    let output = options(&["--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["data"]["form"], "pairs");
    assert_eq!(report["data"]["documents"], 2);
    assert_eq!(report["data"]["bytes"], 22);
    let tokens = report["data"]["tokens"].as_u64().unwrap();
    assert!((4..=22).contains(&tokens), "{tokens}");
    let masked = report["infill"]["one_forward"][0]["tokens"]
        .as_u64()
        .unwrap();
    assert!(masked < tokens, "{masked} of the answers' {tokens}");
    let output = options(&["--json", "--guidance-scale", "1"]);
    let guided: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(guided["likelihood"], report["likelihood"]);
    assert_eq!(guided["infill"], report["infill"]);

    for (line, expected) in [
        (
            r#"{"prompt": "a <|mdm_mask|>", "answer": "b"}"#,
            "line 1: prompt holds the mask token",
        ),
        (r#"{"prompt": "a"}"#, "line 1: missing field `answer`"),
    ] {
        std::fs::write(&pairs, line).unwrap();
        let output = options(&[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(expected),
            "{errors}"
        );
    }
    let without_prompts = eval(
        "llada",
        &text_file(folder.path()),
        &["--guidance-scale", "1"],
    );
    assert!(String::from_utf8_lossy(&without_prompts.stderr).contains("--pairs"));
    let both = options(&["--windows", "2"]);
    assert!(String::from_utf8_lossy(&both.stderr).contains("--windows"));
}

#[test]
fn special_tokens_that_a_text_spells_out_are_text() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("text.txt");
    let documents = ["<|mdm_mask|> stands for a token", "and <|endoftext|> ends."];
    std::fs::write(&data, documents.join("\n<|doc|>\n")).unwrap();
    let options = ["--parts", "likelihood", "--draws", "1", "--json"];
    let output = eval("llada", &data, &options);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lengths = documents.map(str::len);
    assert_eq!(report["data"]["bytes"], lengths[0] + lengths[1]);
}

#[test]
fn an_option_of_a_part_that_is_not_measured_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = text_file(folder.path());
    for (parts, option, value, expected) in [
        (
            "infill",
            "--draws",
            "7",
            "--draws is for --parts likelihood",
        ),
        (
            "infill",
            "--thresholds",
            "0.3",
            "--thresholds is for --parts speed",
        ),
        (
            "likelihood,infill",
            "--speed-mask-rate",
            "0.3",
            "--speed-mask-rate is for --parts speed",
        ),
        (
            "likelihood,speed",
            "--mask-rates",
            "0.3",
            "--mask-rates is for --parts infill",
        ),
        (
            "likelihood",
            "--span",
            "3",
            "--span is for --parts infill or speed",
        ),
        (
            "likelihood",
            "--decode-windows",
            "3",
            "--decode-windows is for --parts infill or speed",
        ),
    ] {
        let output = eval("llada", &data, &["--parts", parts, option, value]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{expected}");
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
}
