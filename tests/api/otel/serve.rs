//! What `unmask serve` makes of flags and of the environment for traces.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
#[cfg(unix)]
use std::time::{Duration, Instant};

#[cfg(unix)]
use reqwest::StatusCode;
#[cfg(unix)]
use serde_json::json;

#[cfg(unix)]
use super::{PARENT, PATH, PROMPT, TRACE, children, requests};
#[cfg(unix)]
use crate::collector::{Collector, Manner};
use crate::support::golden;

/// `unmask serve` as a process, without what the surroundings say of traces and proxies.
struct Process(Child);

impl Process {
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            if lower.starts_with("otel_") || lower.ends_with("_proxy") || lower == "rust_log" {
                command.env_remove(name);
            }
        }
        let child = command
            .arg("serve")
            .args(arguments)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Serves a golden checkpoint on a free port; the URL.
    fn serving(variables: &[(&str, &str)], more: &[&str]) -> (Self, String) {
        let model = golden("llada");
        let arguments = ["--port", "0", "--model", model.to_str().unwrap()];
        let mut process = Self::start(&[&arguments[..], more].concat(), variables);
        let mut line = String::new();
        let stdout = process.0.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let url = line.strip_prefix("listening on ").unwrap().trim_end();
        let url = url.to_owned();
        (process, url)
    }

    /// Waits for its end; what it wrote into the log, and whether it succeeded.
    fn ended(mut self) -> (String, bool) {
        let mut log = String::new();
        let stderr = self.0.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        (log, self.0.wait().unwrap().success())
    }

    /// Asks it to end, and waits; what it wrote into the log.
    #[cfg(unix)]
    fn stop(self) -> String {
        let pid = self.0.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(kill.unwrap().success());
        let (log, success) = self.ended();
        assert!(success, "{log}");
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

#[cfg(unix)]
fn complete(url: &str) {
    let answer = reqwest::blocking::Client::new()
        .post(format!("{url}{PATH}"))
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .json(&json!({"prompt": PROMPT, "max_tokens": 3}))
        .send();
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
}

#[cfg(unix)]
#[test]
fn serve_sends_what_is_left_when_it_ends() {
    let collector = Collector::start(Manner::Takes);
    let traces_url = format!("{}/own/path", collector.url);
    let base = format!("{}/", collector.url);
    let flag: &[&str] = &["--otlp-endpoint", &base];
    let key = ("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=k%20k");
    let elsewhere = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    for (more, variables, path, service) in [
        (flag, &[key, elsewhere][..], "/v1/traces", "unmask"),
        (
            &[],
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &*base),
                ("OTEL_SERVICE_NAME", "mine"),
                key,
            ],
            "/v1/traces",
            "mine",
        ),
        (
            &[],
            &[
                ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*traces_url),
                ("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=ours"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
                elsewhere,
                key,
            ],
            "/own/path",
            "ours",
        ),
    ] {
        let (process, url) = Process::serving(variables, more);
        complete(&url);
        let log = process.stop();
        assert!(!log.contains("cannot be sent"), "{log}");
        assert!(!log.contains("secret"), "{log}");
        let spans = collector.spans();
        assert_eq!(spans.len(), 3, "{spans:?}");
        let request = requests(&spans).next().unwrap();
        assert_eq!((&*request.trace, &*request.parent), (TRACE, PARENT));
        assert_eq!(children(&spans, request).len(), 2);
        assert_eq!(request.resource["service.name"], service);
        assert_eq!(
            request.resource["service.version"],
            env!("CARGO_PKG_VERSION")
        );
        for received in collector.received().drain(..) {
            assert_eq!(received.path, path);
            assert_eq!(received.headers["content-type"], "application/x-protobuf");
            assert_eq!(received.headers["x-collector-key"], "k k");
            assert!(!String::from_utf8_lossy(&received.body).contains("secret"));
        }
    }
}

#[cfg(unix)]
#[test]
fn serve_follows_the_sampler_of_the_environment() {
    let collector = Collector::start(Manner::Takes);
    let flag = ["--otlp-endpoint", &collector.url];
    let (process, url) = Process::serving(&[("OTEL_TRACES_SAMPLER", "always_off")], &flag);
    complete(&url);
    process.stop();
    assert_eq!(collector.received().len(), 0);
}

#[cfg(unix)]
#[test]
fn a_collector_that_takes_nothing_is_one_line_of_the_log() {
    let collector = Collector::start(Manner::Refuses);
    let flag = ["--otlp-endpoint", &collector.url];
    let (process, url) = Process::serving(&[("OTEL_BSP_SCHEDULE_DELAY", "1")], &flag);
    for batch in 1..=3 {
        complete(&url);
        let begun = Instant::now();
        while collector.received().len() < batch {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "never: batch {batch}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let log = process.stop();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("traces")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].contains("sending traces"), "{log}");
    assert!(
        lines[1].contains("WARN") && lines[1].contains("403"),
        "{log}"
    );
}

#[test]
fn an_endpoint_that_is_none_is_refused_before_the_model_is_loaded() {
    for (url, says) in [
        ("collector", "allowed: http:// or https://"),
        ("collector:4318", "allowed: http:// or https://"),
        ("grpc://collector:4317", "allowed: http:// or https://"),
        ("http://", "allowed: http:// or https://"),
        ("http:///v1", "allowed: http:// or https://"),
        ("http://a b", "allowed: http:// or https://"),
        ("http://me:hidden@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
        (
            "http://me:hidden word@collector",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ),
        ("http://collector?key=hidden", "OTEL_EXPORTER_OTLP_HEADERS"),
    ] {
        let missing = ["--port", "0", "--model", "/nonexistent/model"];
        let by_flag = [&missing[..], &["--otlp-endpoint", url]].concat();
        for (name, arguments, variables) in [
            ("--otlp-endpoint", &by_flag[..], &[][..]),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &missing,
                &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)],
            ),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                &missing,
                &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)],
            ),
        ] {
            let (log, success) = Process::start(arguments, variables).ended();
            assert!(!success);
            assert!(log.contains(name) && log.contains(says), "{url}: {log}");
            assert!(!log.contains("hidden"), "{log}");
            assert!(!log.contains("nonexistent"), "{log}");
        }
    }
}

#[test]
fn an_environment_that_asks_for_other_traces_than_there_are_is_a_warning() {
    // An endpoint for gRPC is no URL of ours, which does not matter where there are no traces.
    let of_grpc = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
    let of_http = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    for (endpoint, name, value, says) in [
        (
            of_grpc,
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "allowed: http/protobuf",
        ),
        (
            of_http,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "http/json",
            "allowed: http/protobuf",
        ),
        (of_grpc, "OTEL_TRACES_EXPORTER", "none", "allowed: otlp"),
        (of_grpc, "OTEL_SDK_DISABLED", "true", "no traces are sent"),
        (
            of_http,
            "OTEL_TRACES_SAMPLER",
            "xray",
            "every request is traced",
        ),
        (
            of_http,
            "OTEL_TRACES_SAMPLER",
            "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG",
        ),
    ] {
        let arguments = ["--port", "0", "--model", "/nonexistent/model"];
        let (log, _) = Process::start(&arguments, &[endpoint, (name, value)]).ended();
        let line = log.lines().find(|line| line.contains("WARN"));
        let line = line.unwrap_or_else(|| panic!("{name}: {log}"));
        assert!(line.contains(name) && line.contains(says), "{line}");
        // It went on to the model.
        assert!(log.contains("there is no such directory"), "{log}");
    }
}
