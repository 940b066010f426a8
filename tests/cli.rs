//! Promises of the command line.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device};
use serde_json::Value;
use support::{golden, ids, json, max_difference};

fn unmask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = unmask(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = unmask(arguments);
    assert!(!output.status.success(), "{arguments:?} was accepted");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn llada() -> String {
    golden("llada").display().to_string()
}

#[test]
fn help_lists_the_subcommands() {
    insta::assert_snapshot!(stdout(&["--help"]));
}

#[test]
fn ready_succeeds_only_where_a_server_says_that_it_is_ready() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        for answer in [
            "200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
            "503 Service Unavailable\r\ncontent-length: 7\r\nconnection: close\r\n\r\nstalled",
        ] {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut lines = BufReader::new(&connection);
            lines.read_line(&mut request).unwrap();
            assert_eq!(request.trim(), "GET /ready HTTP/1.1");
            while lines.read_line(&mut request).unwrap() > 2 {}
            connection
                .write_all(format!("HTTP/1.1 {answer}").as_bytes())
                .unwrap();
        }
    });
    assert_eq!(stdout(&["ready", "--port", &port]), "{}\n");
    let url = format!("http://127.0.0.1:{port}/");
    let refused = refusal(&["ready", "--url", &url]);
    assert!(
        refused.contains("is not ready: status 503") && refused.contains("stalled"),
        "{refused}"
    );
    server.join().unwrap();
    let refused = refusal(&["ready", "--port", &port]);
    assert!(
        refused.contains(&format!("no server answers at http://127.0.0.1:{port}")),
        "{refused}"
    );
}

#[test]
fn ready_goes_by_its_url_whatever_port_the_environment_names() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(["ready", "--url", &url])
        .env("UNMASK_PORT", "9000")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains(&format!("no server answers at {url}")),
        "{error}"
    );
}

#[test]
fn ready_asks_this_machine_past_every_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let server = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
        connection.write_all(answer).unwrap();
        let mut request = BufReader::new(connection).lines();
        assert_eq!(request.next().unwrap().unwrap(), "GET /ready HTTP/1.1");
    });
    // A port at which nothing listens.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let proxy = format!("http://{}", proxy.unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
    command.args(["ready", "--port", &port]);
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    for name in ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy"] {
        command.env(name, &proxy);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    server.join().unwrap();
}

#[test]
fn help_of_generate_lists_every_decode_option() {
    insta::assert_snapshot!(stdout(&["generate", "--help"]));
}

/// What bash offers for the last of `words`.
fn offered_by_bash(words: &str) -> String {
    let script = r#"
        source <("$UNMASK" completions bash)
        COMP_WORDS=($WORDS)
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _unmask unmask "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["-c", script])
        .env("UNMASK", env!("CARGO_BIN_EXE_unmask"))
        .env("WORDS", words)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn bash_completes_subcommands_options_and_values() {
    assert_eq!(offered_by_bash("unmask inf"), "infill");
    assert_eq!(offered_by_bash("unmask serve --max-q"), "--max-queue");
    assert_eq!(offered_by_bash("unmask generate --dtype q"), "q8_0");
}

#[test]
fn other_shells_get_scripts_of_their_own() {
    assert!(stdout(&["completions", "zsh"]).starts_with("#compdef unmask"));
    assert!(stdout(&["completions", "fish"]).contains("complete -c unmask"));
    assert!(refusal(&["completions", "tcsh"]).contains("[possible values: bash"));
}

#[test]
fn inspect_tells_what_a_checkpoint_is() {
    insta::assert_snapshot!(stdout(&["inspect", "--device", "cpu", "--model", &llada()]));
    let json: Value = serde_json::from_str(&stdout(&[
        "inspect",
        "--json",
        "--device",
        "cpu",
        "--model",
        &llada(),
    ]))
    .unwrap();
    assert_eq!(json["spec"]["family"], "llada");
    assert_eq!(json["spec"]["parameters"], 147_776);
    assert_eq!(json["spec"]["mask_token"], 505);
    assert_eq!(json["weight_bytes"], 4 * 147_776);
    assert_eq!(
        json["tensors"]["model.transformer.wte.weight"],
        serde_json::json!([512, 64])
    );
}

#[test]
fn the_embedded_model_fills_gaps_and_leaves_the_rest_of_the_text_as_it_is() {
    let text = "The {{3}} was — “very” {{2}} of \\{{x}} his garden.";
    let arguments = [
        "infill",
        text,
        "--json",
        "--seed",
        "5",
        "--temperature",
        "0.7",
    ];
    let first = stdout(&arguments);
    let json: Value = serde_json::from_str(&first).unwrap();
    let whole = json["text"].as_str().unwrap();
    let mut rest = whole;
    for (gap, before) in json["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .zip(["The ", " was — “very” "])
    {
        rest = rest.strip_prefix(before).unwrap();
        rest = rest.strip_prefix(gap["text"].as_str().unwrap()).unwrap();
        let bytes = gap["start_byte"].as_u64().unwrap() as usize
            ..gap["end_byte"].as_u64().unwrap() as usize;
        assert_eq!(&whole[bytes], gap["text"].as_str().unwrap());
    }
    assert_eq!(rest, " of {{x}} his garden.");
    let again: Value = serde_json::from_str(&stdout(&arguments)).unwrap();
    assert_eq!(again["gaps"], json["gaps"], "a seed repeats");
}

#[test]
fn a_trace_holds_every_canvas_from_the_first_on() {
    let case = json(&golden("llada").join("generate.json"))
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["name"] == "semi_ar")
        .unwrap()
        .clone();
    let prompt = ids(&case["prompt_ids"]);
    let prompt_ids = prompt
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    let printed = stdout(&[
        "generate",
        "--model",
        &llada(),
        "--prompt-ids",
        &prompt_ids,
        "--gap",
        "16",
        "--steps",
        "8",
        "--block-length",
        "4",
        "--ids",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    let lines: Vec<Value> = std::fs::read_to_string(&trace)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut start = prompt;
    start.resize(23, 505);
    assert_eq!(ids(&lines[0]["canvas"]), start);
    assert_eq!(lines[0]["committed"], serde_json::json!([]));
    let official = case["canvas_per_step"].as_array().unwrap();
    assert_eq!(lines.len(), official.len() + 1);
    for (step, (line, canvas)) in lines[1..].iter().zip(official).enumerate() {
        assert_eq!(line["step"], step + 1);
        assert_eq!(ids(&line["canvas"]), ids(canvas));
        let committed = line["committed"].as_array().unwrap();
        assert_eq!(committed.len(), 2);
        for slot in committed {
            let at = slot["slot"].as_u64().unwrap() as usize;
            assert_eq!(slot["token"], line["canvas"][at]);
            assert!(slot["probability"].as_f64().unwrap() > 0.0);
        }
    }
    let printed: Vec<u32> = printed
        .trim()
        .split(',')
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(printed, ids(official.last().unwrap()));
}

#[test]
fn a_trace_names_the_steps_that_committed_and_json_counts_the_forwards() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    for (preset, steps) in [("mdlm-ancestral", "64"), ("remdm-cap", "256")] {
        let fixed = [
            "generate", "x", "--gap", "8", "--seed", "1", "--json", "--trace",
        ];
        let more = [
            trace.to_str().unwrap(),
            "--preset",
            preset,
            "--steps",
            steps,
        ];
        let json = stdout(&[&fixed[..], &more].concat());
        let json: Value = serde_json::from_str(&json).unwrap();
        let lines = std::fs::read_to_string(&trace).unwrap();
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let mut committed = std::collections::BTreeMap::new();
        for line in &lines {
            for slot in line["remasked"].as_array().into_iter().flatten() {
                committed.remove(&slot.as_u64().unwrap()).unwrap();
            }
            for slot in line["committed"].as_array().unwrap() {
                committed.insert(slot["slot"].as_u64().unwrap(), line["step"].clone());
            }
        }
        let provenance = json["gaps"][0]["provenance"].as_array().unwrap();
        let steps: Vec<Value> = provenance.iter().map(|slot| slot["step"].clone()).collect();
        assert_eq!(committed.into_values().collect::<Vec<_>>(), steps);
        let committing = lines
            .iter()
            .filter(|line| line["committed"] != serde_json::json!([]));
        assert_eq!(json["nfe"], committing.count(), "{preset}");
        assert!(json["steps"].as_u64() > json["nfe"].as_u64());
        assert!(lines.last().unwrap()["step"].as_u64() <= json["steps"].as_u64());
    }
}

#[test]
fn steps_take_the_place_of_a_presets_steps_per_block() {
    let preset = ["generate", "x", "--preset", "sdar-static", "--gap", "7"];
    stdout(&[&preset[..], &["--steps", "4"]].concat());
}

/// The last step draws what is left, or takes the most probable tokens, whatever the temperature.
#[test]
fn how_a_noise_schedule_ends_can_be_chosen() {
    let ending = |finish: &str| {
        // All slots wait for the last step: the one before it ends at time 0.999.
        let budget = "generate x --budget ancestral:0.999 --steps 2 --gap 16 --temperature 5";
        let mut arguments: Vec<&str> = budget.split(' ').collect();
        arguments.extend(["--json", "--finish", finish, "--seed"]);
        let json = |seed| -> Value {
            let text = stdout(&[&arguments[..], &[seed]].concat());
            serde_json::from_str(&text).unwrap()
        };
        let (one, other) = (json("1"), json("2"));
        assert_eq!(one["plan"]["finish"], finish);
        one["text"] == other["text"]
    };
    assert!(ending("most_probable"));
    assert!(!ending("drawn"));
}

#[test]
fn a_budget_by_chance_takes_the_place_of_what_the_default_plan_ranks_by() {
    let budget = ["generate", "x", "--budget", "ancestral:1e-5", "--gap", "4"];
    let json: Value = serde_json::from_str(&stdout(&[&budget[..], &["--json"]].concat())).unwrap();
    assert_eq!(json["plan"]["score_temperature"], 0.0);
    for (option, number) in [("--score-temperature", "0.3"), ("--at-least", "2")] {
        let error = refusal(&[&budget[..], &[option, number]].concat());
        let field = option.trim_start_matches('-').replace('-', "_");
        assert!(error.contains(&format!("{field}: this budget")), "{error}");
    }
}

#[test]
fn a_token_that_is_biased_away_is_not_drawn_and_one_to_commit_last_comes_last() {
    let filled = |more: &[&str]| -> Vec<(u64, u64)> {
        let fixed = ["generate", "Once upon a time", "--gap", "6", "--json"];
        let greedy = ["--seed", "1", "--preset", "llada"];
        let json = stdout(&[&fixed[..], &greedy, more].concat());
        let json: Value = serde_json::from_str(&json).unwrap();
        let slots = json["gaps"][0]["provenance"].as_array().unwrap();
        let number = |slot: &Value, name: &str| slot[name].as_u64().unwrap();
        slots
            .iter()
            .map(|slot| (number(slot, "token"), number(slot, "step")))
            .collect()
    };
    let (token, step) = filled(&[])[0];
    let bias = format!("{token}:-100,5:0.5");
    let banned = filled(&["--logit-bias", &bias]);
    assert!(banned.iter().all(|(drawn, _)| *drawn != token));
    let last = filled(&["--commit-last", &token.to_string()]);
    for (drawn, at) in &last {
        let is_before = last
            .iter()
            .all(|(other, step)| *other == token || step < at);
        assert!(*drawn != token || is_before, "{last:?}");
    }
    assert_ne!(last[0], (token, step));
}

#[test]
fn several_completions_are_those_of_the_seeds_one_after_the_other() {
    let generate = |more: &[&str]| {
        let fixed = ["generate", "Once upon a time", "--gap", "6"];
        let warm = ["--temperature", "1"];
        stdout(&[&fixed[..], &warm, more].concat())
    };
    let lines = generate(&["--n", "3", "--seed", "7", "--json"]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    let mut texts = Vec::new();
    for (line, seed) in lines.iter().zip(["7", "8", "9"]) {
        let alone = generate(&["--seed", seed]);
        assert_eq!(format!("{}\n", line["text"].as_str().unwrap()), alone);
        assert_eq!(line["plan"]["sampling"]["seed"].to_string(), seed);
        texts.push(alone);
    }
    assert_eq!(generate(&["--n", "3", "--seed", "7"]), texts.join("\n"));
    let ids = generate(&["--n", "2", "--seed", "7", "--ids"]);
    assert_eq!(ids.lines().count(), 2);
}

#[test]
fn a_canvas_given_as_ids_is_filled_at_its_masks() {
    let printed = stdout(&[
        "infill",
        "--model",
        &llada(),
        "--canvas-ids",
        "505,295,45,505,505",
        "--ids",
    ]);
    let printed: Vec<u32> = printed
        .trim()
        .split(',')
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(printed.len(), 5);
    assert_eq!(printed[1..3], [295, 45]);
    assert!(!printed.contains(&505));
}

fn forward(input: &Path, output: &Path) -> Output {
    unmask(&[
        "forward",
        "--model",
        &llada(),
        "--input",
        input.to_str().unwrap(),
        "--output",
        output.to_str().unwrap(),
    ])
}

#[test]
fn forward_writes_the_official_logits() {
    let goldens =
        candle_core::safetensors::load(golden("llada").join("forward.safetensors"), &Device::Cpu)
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    for (case, tensors) in [
        ("case0", &[("input_ids", "input_ids")][..]),
        (
            "case1",
            &[
                ("input_ids", "input_ids"),
                ("attention_mask", "attention_mask"),
            ],
        ),
        (
            "case3",
            &[
                ("input_ids", "input_ids"),
                ("allowed_mask", "attention_bias"),
            ],
        ),
    ] {
        let inputs = tensors
            .iter()
            .map(|(name, golden)| (*name, goldens[&format!("{case}.{golden}")].clone()))
            .collect();
        candle_core::safetensors::save(&inputs, &input).unwrap();
        let run = forward(&input, &output);
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
        let logits = candle_core::safetensors::load(&output, &Device::Cpu)
            .unwrap()
            .remove("logits")
            .unwrap();
        assert_eq!(logits.dtype(), DType::F32);
        let difference = max_difference(&logits, &goldens[&format!("{case}.logits")]);
        assert!(difference < 1e-4, "{case}: {difference}");
    }
    let unused = (
        "sigma",
        candle_core::Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(),
    );
    let inputs = [("input_ids", goldens["case0.input_ids"].clone()), unused];
    candle_core::safetensors::save(&inputs.into(), &input).unwrap();
    let error = String::from_utf8(forward(&input, &output).stderr).unwrap();
    assert!(error.contains("sigma is not used"), "{error}");
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    for (arguments, expected) in [
        (&["infill", "a {{x}}"][..], "at byte 2"),
        (&["infill", "no gap"], "write {{8}} where"),
        (&["infill", "a {{0}} b"], "at least 1"),
        (
            &["generate", "x", "--temperature", "-1"],
            "temperature is -1",
        ),
        (&["generate", "x", "--steps", "0"], "steps is 0"),
        (&["generate", "x", "--gap", "0"], "gap 0 has no slots"),
        (
            &["generate", "x", "--gap", "100000"],
            "the limit is 256, that of the model",
        ),
        (&["generate", "x", "--top-p", "0"], "top_p is 0"),
        (&["generate", "x", "--min-p", "1.1"], "min_p is 1.1"),
        (&["generate", "x", "--score", "magic"], "confidence, margin"),
        (
            &["generate", "x", "--finish", "drawn"],
            "finish: the budget even follows no noise schedule",
        ),
        (&["generate", "x", "--logit-bias", "5:101"], "-100 to 100"),
        (&["generate", "x", "--logit-bias", "5"], "as in 50:-100"),
        (
            &["generate", "x", "--logit-bias", "4096:1"],
            "allowed: 0 to 4095",
        ),
        (&["generate", "x", "--logit-bias", "0:1"], "the mask token"),
        (&["generate", "x", "--logit-bias", "5:1,5:1"], "given twice"),
        (
            &["generate", "x", "--commit-last", "4096"],
            "commit_last is token 4096",
        ),
        (&["generate", "x", "--preset", "magic"], "llada"),
        (
            &[
                "generate",
                "x",
                "--budget",
                "ancestral:0.001",
                "--score-temperature",
                "0",
                "--score",
                "margin",
            ],
            "score: the budget ancestral:0.001 unmasks slots by chance",
        ),
        (
            &["generate", "x", "--budget", "threshold:2"],
            "a probability in [0, 1]",
        ),
        (
            &["generate", "x", "--revision", "remask_cap:0.1"],
            "ancestral",
        ),
        (&["generate", "x<|mask|>"], "holds the mask token"),
        (
            &["generate", "x", "--grammar", "root ::= ["],
            "(line 1, column 10)",
        ),
        (
            &["generate", "x", "--grammar-file", "nowhere.gbnf"],
            "--grammar-file nowhere.gbnf",
        ),
        (
            &["infill", "{{2}}", "--grammar", "start: \"a\" | b"],
            "b is not defined (line 1, column 14)",
        ),
        (
            &["infill", "{{2}} {{2}}", "--grammar", "start: \"a\"+"],
            "there are 2 gaps",
        ),
        (
            &[
                "generate",
                "x",
                "--regex",
                "a",
                "--grammar",
                "root ::= \"a\"",
            ],
            "cannot be used with",
        ),
        (
            &["generate", "x", "--negative-prompt", "y"],
            "--guidance-scale",
        ),
        (
            &["generate", "x", "--temperature-schedule", "cosine"],
            "linear:END",
        ),
        (
            &["generate", "x", "--model", "nowhere"],
            "there is no such directory",
        ),
        (
            &["generate", "x", "--model", "Cargo.toml"],
            "it is a file; give the directory",
        ),
        (
            &["generate", "x", "--json-schema", "{}"],
            "takes a file with a schema",
        ),
        (
            &["generate", "x", "--gap", "1000000000000000000"],
            "more than 16777216 slots",
        ),
        (
            &["infill", "a {{18446744073709551615}}"],
            "more than 16777216 slots",
        ),
        (
            &["infill", "a {{3}}", "--early-stop", "at_once"],
            "early_stop",
        ),
        (&["generate", "x", "--n", "0"], "1..=1000000"),
        (
            &["generate", "x", "--n", "2", "--trace", "t"],
            "cannot be used with",
        ),
        (&["generate"], "required"),
    ] {
        let error = refusal(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert!(!error.contains("stack backtrace"), "{error}");
    }
}

#[test]
fn bench_has_a_floor_for_the_products_that_it_measures_and_says_why_there_is_none_for_others() {
    let bench = |more: &[&str]| {
        let few = "bench --device cpu --gap 2 --requests 1 --concurrency 1";
        let arguments: Vec<&str> = few.split(' ').chain(more.iter().copied()).collect();
        stdout(&arguments)
    };
    let floor = |dtype: &str| {
        let report: Value = serde_json::from_str(&bench(&["--json", "--dtype", dtype])).unwrap();
        report["floor"].clone()
    };
    assert!(floor("f32")["step_ms"].as_f64().unwrap() > 0.0);
    assert!(floor("q8_0").is_null());
    let text = bench(&["--dtype", "q8_0"]);
    assert!(
        text.contains("floor                   not measured: it is for f32"),
        "{text}"
    );
}

#[test]
fn the_minutes_of_a_selftest_have_a_limit() {
    for minutes in ["10081", "18446744073709551615", "307445734561825861"] {
        let error = refusal(&["selftest", "--device", "cpu", "--soak", minutes]);
        assert!(
            error.contains("--soak <MINUTES>") && error.contains("10080"),
            "{error}"
        );
    }
}

#[test]
fn selftest_without_a_gpu_checks_the_model_and_says_what_it_did_not_run() {
    let report = stdout(&["selftest", "--device", "cpu"]);
    assert!(report.contains("not run  categorical: "), "{report}");
    for passed in [
        "passed   model: a canvas's logits are the same in any batch",
        "passed   engine: answers keep their promises",
    ] {
        assert!(report.contains(passed), "{report}");
    }
    let families = report.lines().filter(|line| line.contains("--goldens"));
    assert_eq!(families.count(), 1, "{report}");
    assert!(
        report.contains("not run  engine: goes on without memory: "),
        "{report}"
    );
    assert!(report.contains("2 passed, 0 failed"), "{report}");
}

#[test]
fn selftest_checks_the_goldens_it_is_given_and_fails_for_one_it_cannot_use() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(goldens.join(from)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
    };
    copy("sdar", "sdar");
    std::fs::create_dir(folder.path().join("notes")).unwrap();
    let directory = folder.path().to_str().unwrap().to_owned();
    let arguments = ["selftest", "--device", "cpu", "--goldens", &directory];
    let report = stdout(&arguments);
    assert!(report.contains("passed   golden sdar: logits"), "{report}");
    assert!(
        report.contains("passed   golden sdar: canvases"),
        "{report}"
    );
    assert!(report.contains("without a checkpoint: notes"), "{report}");
    copy("sdar", "broken");
    std::fs::remove_file(folder.path().join("broken/config.json")).unwrap();
    let output = unmask(&arguments);
    assert!(!output.status.success());
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        report.contains("FAILED   golden broken: logits"),
        "{report}"
    );
    assert!(
        report.contains("passed   golden sdar: canvases"),
        "{report}"
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("2 checks failed"), "{error}");
}
