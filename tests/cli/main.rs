//! Promises of the command line.

mod forward;
mod generate;
mod help;
mod ready;
mod refusals;
mod selftest;
#[path = "../support/mod.rs"]
mod support;
mod trace;

use std::process::{Command, Output};

use support::golden;

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
