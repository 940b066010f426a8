//! `unmask serve` as a process.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::golden;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Process {
    let child = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .arg("serve")
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Process(child)
}

#[cfg(unix)]
#[test]
fn serve_says_where_it_listens_answers_and_ends_at_sigterm() {
    let model = golden("llada");
    let arguments = ["--port", "0", "--log-format", "json", "--model"];
    let mut process = start(&[&arguments[..], &[model.to_str().unwrap()]].concat());
    let mut line = String::new();
    BufReader::new(process.0.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = line.strip_prefix("listening on ").unwrap().trim_end();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");

    let answer: Value = reqwest::blocking::Client::new()
        .post(format!("{url}/v1/completions"))
        .json(&json!({"model": "llada", "prompt": "a secret prompt", "max_tokens": 3}))
        .send()
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");

    let pid = process.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(process.0.wait().unwrap().success());

    let mut logs = String::new();
    process
        .0
        .stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut logs)
        .unwrap();
    for line in logs.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(record["level"].is_string(), "{line}");
    }
    assert!(logs.contains("/v1/completions"));
    assert!(!logs.contains("secret"), "{logs}");
}

#[test]
fn serve_says_what_is_wrong_with_its_arguments() {
    for (arguments, says) in [
        (&["--model", "/nonexistent/model"][..], "config.json"),
        (&["--max-queue", "0"], "at least 1"),
        (&["--max-rows", "many"], "at least 1"),
        (&["--log-format", "xml"], "json"),
        (&["--host", "nowhere"], "nowhere"),
    ] {
        let mut process = start(arguments);
        assert!(!process.0.wait().unwrap().success(), "{arguments:?}");
        let mut errors = String::new();
        process
            .0
            .stderr
            .as_mut()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        assert!(errors.contains(says), "{arguments:?}: {errors}");
    }
}
