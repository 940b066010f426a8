//! What a start without a terminal says while a model is fetched.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use axum::http::StatusCode;
use serde_json::Value;

use crate::server::{COMMIT, REPOSITORY, TestHub, etag};
use crate::support::golden;

const INSPECT: [&str; 3] = ["inspect", "--model", REPOSITORY];

fn said(hub: &TestHub) -> String {
    let output = hub.unmask(&INSPECT, &[]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn line<'a>(said: &'a str, with: &str) -> &'a str {
    let line = said.lines().find(|line| line.contains(with));
    line.unwrap_or_else(|| panic!("{with}: {said}"))
}

fn golden_size(name: &str, ending: &str) -> u64 {
    std::fs::read_dir(golden(name))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().ends_with(ending))
        .map(|entry| entry.metadata().unwrap().len())
        .sum()
}

#[test]
fn a_download_says_when_it_begins_with_how_much_and_when_it_is_done() {
    let hub = TestHub::of("llada/sharded");
    let said = said(&hub);
    let asks = line(&said, "asking the hub");
    assert!(asks.contains(&hub.url) && asks.contains("main"), "{said}");
    let size = golden_size("llada/sharded", ".safetensors");
    let begins = line(&said, "downloading the weights");
    for part in [COMMIT, "files=3", &format!("bytes={size} ")] {
        assert!(begins.contains(part), "{part}: {said}");
    }
    let ends = line(&said, "downloaded the weights");
    assert!(ends.contains("seconds="), "{said}");
}

#[test]
fn what_is_in_the_cache_is_not_said_to_be_downloaded() {
    let hub = TestHub::of("llada");
    let blobs = hub.cache.path().join("hub/models--tiny--llada/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let bytes = std::fs::read(golden("llada").join("model.safetensors")).unwrap();
    let part = blobs.join(format!("{}.part", etag(&bytes)));
    std::fs::write(part, &bytes[..100]).unwrap();
    let left = format!("bytes={} ", bytes.len() - 100);
    let first = said(&hub);
    assert!(
        line(&first, "downloading the weights").contains(&left),
        "{first}"
    );
    let again = said(&hub);
    assert!(again.contains("asking the hub"), "{again}");
    assert!(!again.contains("download"), "{again}");
}

#[test]
fn another_attempt_is_said_with_its_reason_and_the_wait() {
    let hub = TestHub::of("llada");
    hub.change(|contents| {
        contents.failing = vec![("revision/main", StatusCode::SERVICE_UNAVAILABLE)];
        contents.broken.insert("model.safetensors".into(), 1);
    });
    let said = said(&hub);
    for reason in ["status 503", "the download of model.safetensors breaks off"] {
        let again = line(&said, reason);
        for part in ["WARN", "trying again", "seconds=0.25"] {
            assert!(again.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn waiting_for_another_process_is_said() {
    let hub = TestHub::of("llada");
    let bytes = std::fs::read(golden("llada").join("model.safetensors")).unwrap();
    let blobs = hub.cache.path().join("hub/models--tiny--llada/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let lock = std::fs::File::create(blobs.join(format!("{}.lock", etag(&bytes)))).unwrap();
    lock.lock().unwrap();
    let mut command = hub.command(&INSPECT);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let waits = lines.find(|line| line.as_ref().unwrap().contains("waiting"));
    assert!(waits.unwrap().unwrap().contains("model.safetensors"));
    lock.unlock().unwrap();
    // Its log is read to the end, so that it can end.
    assert!(lines.all(|line| line.is_ok()));
    assert!(child.wait().unwrap().success());
}

/// Ends a server that has said enough.
struct Server(std::process::Child);

impl Server {
    fn start(mut command: Command) -> Self {
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn the_log_of_a_server_that_downloads_stays_lines_of_json() {
    let hub = TestHub::of("llada");
    hub.change(|contents| {
        contents.failing = vec![("revision/main", StatusCode::SERVICE_UNAVAILABLE)];
    });
    let arguments = [
        "serve",
        "--port",
        "0",
        "--log-format",
        "json",
        "--model",
        REPOSITORY,
    ];
    let mut server = Server::start(hub.command(&arguments));
    let mut messages = Vec::new();
    for line in BufReader::new(server.0.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let json: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        let message = json["fields"]["message"].as_str().unwrap().to_owned();
        messages.push(message);
        if messages.last().unwrap() == "loading" {
            break;
        }
    }
    for message in [
        "asking the hub",
        "trying again after a wait",
        "downloading the weights",
        "downloaded the weights",
    ] {
        assert!(messages.iter().any(|said| said == message), "{messages:?}");
    }
}
