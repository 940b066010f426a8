//! `unmask serve` as a process.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::golden;

/// A server whose end the test sees to.
struct Process(Child);

impl Process {
    /// Where it says that it listens.
    fn url(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.strip_prefix("listening on ").unwrap().trim_end();
        url.to_owned()
    }

    #[cfg(unix)]
    fn terminate(&self) {
        let pid = self.0.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// All that it wrote to standard error, once it has ended.
    fn log(&mut self) -> String {
        let mut log = String::new();
        let stderr = self.0.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Process {
    Process(serve(arguments).spawn().unwrap())
}

/// `unmask serve`, the output of which is piped.
fn serve(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
    command
        .arg("serve")
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_port_that_is_taken_is_found_out_before_a_model_is_loaded() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut process = start(&["--port", &port, "--model", "nowhere"]);
    assert!(!process.0.wait().unwrap().success());
    let said = process.log();
    let expected = format!("cannot listen on 127.0.0.1 port {port}; choose another --port");
    assert!(
        said.contains(&expected) && !said.contains("nowhere"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn serve_says_where_it_listens_answers_and_ends_at_sigterm() {
    let model = golden("llada");
    let arguments = [
        "--port",
        "0",
        "--log-format",
        "json",
        "--api-key",
        "alice:sk-hidden",
        "--model",
    ];
    let mut process = start(&[&arguments[..], &[model.to_str().unwrap()]].concat());
    let url = process.url();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");

    let answer: Value = reqwest::blocking::Client::new()
        .post(format!("{url}/v1/completions"))
        .bearer_auth("sk-hidden")
        .header("x-request-id", "request-7")
        .json(&json!({"model": "llada", "prompt": "a secret prompt", "max_tokens": 3}))
        .send()
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");

    process.terminate();
    assert!(process.0.wait().unwrap().success());

    let logs = process.log();
    for line in logs.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(record["level"].is_string(), "{line}");
    }
    assert!(logs.contains("/v1/completions"));
    // Nothing ran any more when it was told to end.
    assert!(!logs.contains("does not end"), "{logs}");
    assert!(!logs.contains("secret"), "{logs}");
    assert!(!logs.contains("sk-hidden"), "{logs}");
    for line in logs.lines().filter(|line| line.contains("/v1/completions")) {
        assert!(
            line.contains("request-7") && line.contains("alice"),
            "{line}"
        );
    }
}

#[cfg(unix)]
#[test]
fn an_idle_server_that_is_told_to_end_waits_for_no_step() {
    // The end of its engine and the end of the wait for it come at about the same time, in either order.
    for run in 0..12 {
        let arguments = small();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = start(&arguments);
        process.url();
        process.terminate();
        assert!(process.0.wait().unwrap().success());
        let log = process.log();
        assert!(log.contains("draining"), "{log}");
        assert!(!log.contains("does not end"), "run {run}: {log}");
    }
}

/// What every server of these tests serves.
#[cfg(unix)]
fn small() -> Vec<String> {
    let model = golden("llada").to_str().unwrap().to_owned();
    ["--port", "0", "--model", &model].map(String::from).into()
}

#[cfg(unix)]
#[test]
fn a_log_that_nobody_reads_or_that_has_no_room_holds_no_request_up() {
    let (unread, pipe) = std::io::pipe().unwrap();
    let (closed, of_nobody) = std::io::pipe().unwrap();
    drop(closed);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let full = full.ok().map(Stdio::from);
    // More than a pipe holds, a line a request.
    let path = "a".repeat(900);
    let logs = [Some(pipe.into()), Some(of_nobody.into()), full];
    for log in logs.into_iter().flatten() {
        let arguments = small();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = Process(serve(&arguments).stderr(log).spawn().unwrap());
        let url = process.url();
        let client = reqwest::blocking::Client::new();
        for _ in 0..200 {
            let answer = client.get(format!("{url}/{path}")).send().unwrap();
            assert_eq!(answer.status(), 404);
        }
        process.terminate();
        assert!(process.0.wait().unwrap().success());
    }
    drop(unread);
}

#[cfg(unix)]
#[test]
fn a_server_whose_output_nobody_reads_serves() {
    let (closed, of_nobody) = std::io::pipe().unwrap();
    drop(closed);
    let arguments = small();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut process = Process(serve(&arguments).stdout(of_nobody).spawn().unwrap());
    let mut log = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let address = log.find_map(|line| Some(line.unwrap().split_once("address=")?.1.to_owned()));
    let url = format!("http://{}/health", address.unwrap());
    assert_eq!(reqwest::blocking::get(url).unwrap().status(), 200);
    process.terminate();
    assert!(process.0.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_server_that_is_told_to_end_while_it_loads_a_model_ends() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    let made = Command::new("mkfifo").arg(&config).status();
    assert!(made.unwrap().success());
    let model = directory.path().to_str().unwrap();
    let mut process = start(&["--port", "0", "--model", model]);
    // It opens when the server reads it, which then waits for what never comes.
    let _held = std::fs::OpenOptions::new()
        .write(true)
        .open(&config)
        .unwrap();
    process.terminate();
    assert!(process.0.wait().unwrap().success());
    let log = process.log();
    assert!(log.contains("SIGTERM"), "{log}");
}

#[cfg(not(feature = "otel"))]
#[test]
fn a_build_without_traces_warns_where_the_environment_asks_for_them() {
    for name in [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["serve", "--port", "0", "--model", "/nonexistent/model"])
            .env_remove("RUST_LOG")
            .env(name, "http://127.0.0.1:4318")
            .output()
            .unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        let line = log.lines().find(|line| line.contains("WARN")).unwrap();
        assert!(
            line.contains(name) && line.contains("--features otel"),
            "{line}"
        );
        // It went on to the model.
        assert!(log.contains("there is no such directory"), "{log}");
    }
}

fn generate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unmask"))
        .arg("generate")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn generate_fills_up_the_last_block_and_returns_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    for (model, file) in [
        ("sdar", "config.json"),
        ("sdar", "model.safetensors"),
        ("llada", "tokenizer.json"),
    ] {
        std::fs::copy(golden(model).join(file), directory.path().join(file)).unwrap();
    }
    let model = directory.path().to_str().unwrap();
    let trace = directory.path().join("trace.jsonl");
    let run = [
        "--model",
        model,
        "--device",
        "cpu",
        "--prompt-ids",
        "5,6",
        "--gap",
        "3",
        "--early-stop",
        "never",
        "--trace",
        trace.to_str().unwrap(),
    ];
    let output = generate(&[&run[..], &["--ids"]].concat());
    assert!(output.status.success(), "{output:?}");
    let ids = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ids.trim_end().split(',').count(), 5, "{ids}");
    let trace = std::fs::read_to_string(&trace).unwrap();
    for line in trace.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["canvas"].as_array().unwrap().len(), 8);
    }
    let output = generate(&[&run[..], &["--json"]].concat());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["gaps"].as_array().unwrap().len(), 1);
    assert_eq!(json["gaps"][0]["provenance"].as_array().unwrap().len(), 3);

    // Both ways of giving steps replace the default plan's.
    for steps in [["--steps", "4"], ["--steps-per-block", "2"]] {
        let output = generate(&[&run[..], &steps[..]].concat());
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn serve_takes_origins_as_browsers_send_them() {
    let origins = [
        "*",
        "https://a.example",
        "http://localhost:3000",
        "http://[::1]:8080",
        "vscode-webview://0a1b",
        "http://127.0.0.1",
    ];
    let options = origins.iter().flat_map(|origin| ["--cors-origin", *origin]);
    let model = ["--port", "0", "--model", "/nonexistent/model"];
    let arguments: Vec<&str> = options.chain(model).collect();
    let output = serve(&arguments).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    // It went on to the model.
    assert!(log.contains("there is no such directory"), "{log}");
}

#[test]
fn serve_says_of_its_variables_which_is_wrong_or_not_read() {
    let model = ["--model", "/nonexistent/model"];
    let run = |command: &mut Command| String::from_utf8(command.output().unwrap().stderr).unwrap();
    let said = run(serve(&model).env("UNMASK_PORT", "tcp://10.0.0.1:80"));
    assert!(said.contains("UNMASK_PORT") && said.contains("tcp://10.0.0.1:80"));
    let keyed = ["--port", "0", "--api-key", "alice:sk-1", model[0], model[1]];
    let said = run(serve(&keyed).env("UNMASK_API_KEYS", "bob:sk-2"));
    assert!(said.contains("UNMASK_API_KEYS"), "{said}");
    assert!(!said.contains("sk-"), "{said}");
    let said = run(serve(&keyed[..2])
        .args(model)
        .env("UNMASK_API_KEYS", "bob:sk-2"));
    assert!(
        said.contains("bob") && !said.contains("UNMASK_API_KEYS"),
        "{said}"
    );
}

#[test]
fn serve_says_what_is_wrong_with_its_arguments() {
    for (arguments, says) in [
        (
            &["--model", "/nonexistent/model"][..],
            "there is no such directory",
        ),
        (&["--max-queue", "0"], "at least 1"),
        (&["--max-rows", "many"], "at least 1"),
        (&["--log-format", "xml"], "json"),
        (&["--host", "nowhere"], "nowhere"),
        (&["--request-timeout", "0"], "above 0"),
        (&["--api-key", "a b"], "visible ASCII"),
        (&["--cors-origin", "a\nb"], "--cors-origin"),
        (&["--cors-origin", ""], "--cors-origin"),
        (&["--cors-origin", "a.example"], "scheme"),
        (&["--cors-origin", "https://a.example/"], "no slash"),
        (&["--cors-origin", "https://a.example/path"], "no path"),
        (&["--cors-origin", "https://A.example"], "small letters"),
        (&["--cors-origin", "https://a.example:443"], "own"),
        (
            &["--cors-origin", "https://a.example,https://b.example"],
            "one origin",
        ),
        #[cfg(not(feature = "otel"))]
        (
            &["--otlp-endpoint", "http://127.0.0.1:4318"],
            "--features otel",
        ),
    ] {
        let mut process = start(&[&["--port", "0"], arguments].concat());
        assert!(!process.0.wait().unwrap().success(), "{arguments:?}");
        let errors = process.log();
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
}
