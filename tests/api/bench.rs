//! `unmask bench serve` and `unmask bench engine` as processes.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::mock::Mock;
use crate::server::{Server, Setup, eventually};
use crate::support::golden;
use unmask::server::{Access, ApiKeys};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unmask"))
        .arg("bench")
        .args(arguments)
        .env_remove("RUST_LOG")
        .env_remove("UNMASK_API_KEY")
        .output()
        .unwrap()
}

fn report(output: Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the generator says of a server in this process.
async fn against(server: &Server, arguments: &[&str]) -> Output {
    let mut all = vec!["serve".to_owned(), "--url".into(), server.url.clone()];
    all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let run = move || bench(&all.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn file(folder: &Path, lines: &[Value]) -> String {
    let path = folder.join("requests.jsonl");
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path.display().to_string()
}

#[test]
fn every_load_counts_its_requests_tokens_and_times_in_a_table_json_and_a_plot() {
    let folder = tempfile::tempdir().unwrap();
    let [json, plot] = ["load.json", "load.svg"].map(|name| folder.path().join(name));
    let arguments = "serve --device cpu --concurrency 1,3 --rate 50 --requests-count 5 --warm-up 1 --seed 3 \
                     --prompt-tokens 3..5 --gap-tokens 2,4 --frames-every 2";
    let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
    arguments.extend([
        "--json",
        json.to_str().unwrap(),
        "--plot",
        plot.to_str().unwrap(),
    ]);
    let output = bench(&arguments);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for load in ["1 at a time", "3 at a time", "50/s"] {
        assert!(table.contains(load), "{table}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let levels = report["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 3);
    assert_eq!(levels[0]["concurrency"], 1);
    assert_eq!(levels[1]["concurrency"], 3);
    assert_eq!(levels[2]["rate"], 50.0);
    for level in levels {
        assert_eq!(level["requests"], 5);
        assert_eq!(level["errors"], json!({}));
        assert_eq!(level["hung_up"], 0);
        assert!(level["health_ms"]["count"].as_u64().unwrap() > 0);
        assert_eq!(level["health_failures"], 0);
        let tokens = level["completion_tokens"].as_u64().unwrap();
        assert!((1..=20).contains(&tokens), "{tokens}");
        let prompts = level["prompt_tokens"].as_u64().unwrap();
        assert!((15..=25).contains(&prompts), "{prompts}");
        let seconds = level["seconds"].as_f64().unwrap();
        let rate = level["tokens_per_second"].as_f64().unwrap();
        assert!((rate * seconds / tokens as f64 - 1.0).abs() < 1e-9);
        assert!(level["tokens_per_forward"].as_f64().unwrap() > 0.0);
        assert_eq!(level["latency_ms"]["count"], 5);
        assert_eq!(level["queued_ms"]["count"], 5);
        // The first, the third and the fifth ask for frames.
        assert_eq!(level["first_commit_ms"]["count"], 3);
        let at = |name: &str| level["latency_ms"][name].as_f64().unwrap();
        assert!(at("p50") <= at("p90") && at("p90") <= at("p99") && at("p99") <= at("max"));
        let engine = &level["engine"];
        assert!(engine["steps"].as_u64().unwrap() > 0);
        assert!(engine["floor_step_ms"].as_f64().unwrap() > 0.0);
        let phases = engine["phases"].as_object().unwrap();
        let sum: f64 = phases.values().map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{phases:?}");
    }
    let plot = std::fs::read_to_string(plot).unwrap();
    assert!(
        plot.starts_with("<svg") && plot.contains("latency"),
        "{plot}"
    );
}

/// A server that asks for the key `sk-key`.
async fn keyed_server() -> Server {
    let access = Access {
        keys: ApiKeys::new(["sk-key"]).unwrap(),
        ..Access::default()
    };
    let setup = Setup {
        access,
        ..Setup::default()
    };
    Server::with(Mock::uniform(), setup).await
}

#[tokio::test]
async fn a_file_of_requests_is_sent_to_a_running_server_and_errors_are_counted_by_status() {
    let folder = tempfile::tempdir().unwrap();
    let requests = file(
        folder.path(),
        &[
            json!({"prompt": "ab", "max_tokens": 3, "seed": 1}),
            json!({"prompt": "ab", "max_tokens": 0}),
        ],
    );
    let server = keyed_server().await;
    let arguments = [
        "--requests",
        &requests,
        "--concurrency",
        "1",
        "--requests-count",
        "4",
        "--warm-up",
        "0",
        "--json",
        "-",
    ];
    let keyed = [&arguments[..], &["--api-key", "sk-key"]].concat();
    let report = report(against(&server, &keyed).await);
    let level = &report["levels"][0];
    assert_eq!(level["requests"], 2);
    assert_eq!(level["errors"], json!({"400": 2}));
    let message = level["first_errors"]["400"].as_str().unwrap();
    assert!(message.contains("max_tokens"), "{message}");
    assert_eq!(level["completion_tokens"], 6);
    assert_eq!(level["prompt_tokens"], 4);
    assert_eq!(level["tokens_per_forward"], 1.0);
    assert_eq!(level["engine"], Value::Null);
    assert_eq!(server.engine.status().committed, 6);

    let warm = [&arguments[..6], &["--json", "-"]].concat();
    let refused = against(&server, &warm).await;
    assert!(!refused.status.success());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("401"), "{error}");
}

#[tokio::test]
async fn a_measurement_outlives_a_file_that_cannot_be_written_and_fails_where_nothing_is_answered()
{
    let folder = tempfile::tempdir().unwrap();
    let server = Server::of(Mock::uniform()).await;
    let load = "--concurrency 1 --requests-count 3 --warm-up 0";
    let load: Vec<&str> = load.split(' ').collect();
    let run = async |more: &[&str]| {
        let output = against(&server, &[&load[..], more].concat()).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (table, error) = (text(output.stdout), text(output.stderr));
        (output.status.code(), table, error)
    };
    let requests = |max_tokens: u64| {
        let request = json!({"prompt": "ab", "max_tokens": max_tokens});
        file(folder.path(), &[request])
    };
    let [lost, plot] = ["no-such-folder/load.svg", "load.svg"].map(|name| folder.path().join(name));
    let [lost, plot] = [&lost, &plot].map(|path| path.to_str().unwrap());
    let json = folder.path().join("load.json");
    let json = json.to_str().unwrap();

    let good = requests(2);
    let (status, table, error) = run(&["--requests", &good, "--plot", lost, "--json", json]).await;
    assert_eq!(status, Some(1));
    assert!(error.contains("--plot") && error.contains(lost), "{error}");
    assert!(table.contains("1 at a time"), "{table}");
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["levels"][0]["requests"], 3);
    let (status, table, error) = run(&["--requests", &good, "--plot", plot, "--json", lost]).await;
    assert_eq!(status, Some(1));
    assert!(error.contains("--json") && error.contains(lost), "{error}");
    assert!(
        table.contains("1 at a time") && Path::new(plot).exists(),
        "{table}"
    );

    let bad = requests(0);
    let (status, table, error) = run(&["--requests", &bad]).await;
    assert_eq!(status, Some(1));
    assert!(table.contains("1 at a time"), "{table}");
    assert!(
        error.contains("no request was answered: 400: max_tokens"),
        "{error}"
    );
}

#[test]
fn a_key_without_the_server_that_asks_for_it_is_refused_unless_it_is_the_environment_s() {
    let output = bench(&["serve", "--api-key", "sk-key"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("--url"), "{error}");
    let load =
        "bench serve --device cpu --concurrency 1 --requests-count 1 --warm-up 0 --gap-tokens 2";
    let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(load.split(' '))
        .env("UNMASK_API_KEY", "sk-key")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

#[tokio::test]
async fn the_environment_s_key_is_sent_to_the_server_at_the_url() {
    let server = keyed_server().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
    let load = "bench serve --concurrency 1 --requests-count 1 --warm-up 0 --gap-tokens 2 --url";
    command.args(load.split(' ')).arg(&server.url);
    command.env("UNMASK_API_KEY", "sk-key");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

#[tokio::test]
async fn clients_hang_up_where_that_is_asked_for_and_idle_connections_are_held() {
    let (model, gate) = Mock::uniform().gated();
    let server = Server::of(model).await;
    let arguments = [
        "--hang-ups",
        "1",
        "--idle",
        "20",
        "--concurrency",
        "3",
        "--requests-count",
        "3",
        "--warm-up",
        "0",
        "--prompt-tokens",
        "2",
        "--gap-tokens",
        "4",
        "--json",
        "-",
    ];
    let report = report(against(&server, &arguments).await);
    let level = &report["levels"][0];
    assert_eq!(
        (&level["hung_up"], &level["requests"]),
        (&json!(3), &json!(0))
    );
    assert_eq!(level["errors"], json!({}));
    assert!(level["health_ms"]["count"].as_u64().unwrap() > 0);
    drop(gate);
    eventually("nothing runs", || {
        let status = server.engine.status();
        status.running == 0 && status.queued == 0
    })
    .await;
}

#[test]
fn loads_that_make_no_sense_are_refused_by_the_name_of_their_option() {
    let folder = tempfile::tempdir().unwrap();
    let streaming = file(folder.path(), &[json!({"prompt": "a", "stream": true})]);
    for (arguments, expected) in [
        ("serve --url http://127.0.0.1:1 --model x", "--model"),
        ("serve --url https://127.0.0.1:1", "allowed: http://HOST"),
        ("serve --url http://127.0.0.1:1 --rate 0", "--rate"),
        ("serve --concurrency 0", "--concurrency"),
        ("serve --gap-tokens 5..3", "--gap-tokens"),
        ("serve --prompt-tokens 0", "--prompt-tokens"),
        (
            "serve --prompt-tokens 250..255",
            "do not fit the model's context of 256",
        ),
        ("serve --requests-count 1 --duration 2", "--duration"),
        ("serve --plot load.png", ".svg"),
        ("serve --diffusion 3", "--diffusion"),
        ("serve --requests no-such-file", "no-such-file"),
        ("engine --only nothing", "--only"),
        ("engine --dtype bf16", "--dtype f32"),
        ("--gap 3 serve", "--gap"),
    ] {
        let output = bench(&arguments.split(' ').collect::<Vec<_>>());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments} was accepted");
        assert!(error.contains(expected), "{arguments}: {error}");
    }
    let output = bench(&["serve", "--requests", &streaming]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("line 1: stream is set"), "{error}");
}

#[test]
fn a_device_s_rates_and_the_reduction_s_times_come_with_their_floors() {
    let arguments = "device --device cpu --rows 3 --vocab 500 --tries 1 --json";
    let output = bench(&arguments.split(' ').collect::<Vec<_>>());
    let report = report(output);
    assert_eq!(report["device"], "cpu");
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    assert!(positive(&report["copy_gb_per_second"]) && positive(&report["launch_microseconds"]));
    assert_eq!(report["products"][0]["dtype"], "f32");
    assert!(positive(&report["products"][0]["tflops"]));
    let reductions = report["reductions"].as_array().unwrap();
    assert_eq!(reductions.len(), 4);
    for reduction in reductions {
        assert!(positive(&reduction["milliseconds"]), "{reduction}");
        // Copies of one thread are no bound of what all do.
        assert_eq!(reduction["floor_milliseconds"], Value::Null);
        assert_eq!(reduction["share_of_copy_rate"], Value::Null);
        let read = reduction["gb_per_second"].as_f64().unwrap() * 1e9;
        let seconds = reduction["milliseconds"].as_f64().unwrap() / 1e3;
        let logits = 3.0 * 500.0 * 4.0;
        assert!((read * seconds / logits - 1.0).abs() < 1e-9, "{reduction}");
        // There is no kernel.
        assert_eq!(reduction["kernel"], Value::Null);
        assert_eq!(reduction["device_bytes"], Value::Null);
    }
    let too_many = bench(&["device", "--rows", "65536", "--vocab", "262144"]);
    let error = String::from_utf8(too_many.stderr).unwrap();
    assert!(
        error.contains("are 17179869184 logits; allowed:"),
        "{error}"
    );
    let refused = bench(&["device", "--rows", "0"]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("--rows"), "{error}");
}

#[test]
fn the_engine_is_not_measured_on_a_model_of_encoded_blocks_and_says_why() {
    let model = golden("diffusion_gemma");
    let output = bench(&[
        "engine",
        "--device",
        "cpu",
        "--only",
        "overhead",
        "--model",
        model.to_str().unwrap(),
    ]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    let reason =
        "a diffusion_gemma model has no masks: it denoises all slots of a block in every step";
    assert!(error.contains(reason), "{error}");
}

#[test]
fn the_engine_s_figures_come_with_their_bars_and_floors_or_say_why_not() {
    let arguments = "engine --device cpu --json --only overhead,head,cache --rounds 1";
    let output = bench(&arguments.split(' ').collect::<Vec<_>>());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    // A figure that misses its bar is told by the exit status too.
    let missed = report["figures"].as_array().unwrap().iter();
    let missed = missed.filter(|figure| figure["holds"] == false).count();
    assert_eq!(output.status.success(), missed == 0, "{error}");
    assert_eq!(error.contains("not held to its bar"), missed > 0, "{error}");
    assert!(report["matrix_gflops"].as_f64().unwrap() > 0.0);
    let [overhead, head, cache] = report["figures"].as_array().unwrap().as_slice() else {
        panic!("{report}");
    };
    let share = overhead["value"].as_f64().unwrap();
    assert!(share > 0.0 && share < 1.0, "{share}");
    assert_eq!(overhead["bar"], json!({"below": 0.03}));
    assert_eq!(overhead["holds"], share < 0.03);
    assert!(overhead["details"]["floor, ms a step"].as_f64().unwrap() > 0.0);
    assert!(head["value"].as_f64().unwrap() > 0.0);
    assert!(head["floor"].as_f64().unwrap() > 1.0);
    assert_eq!(cache["value"], Value::Null);
    assert_eq!(cache["not_measured"], "the model's context is 256 slots");
}
