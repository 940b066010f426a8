//! `unmask chat` as a process.

mod support;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::{golden, ids, json};

/// Runs `unmask` with `input` as its standard input.
fn unmask(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The process may end before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The golden LLaDA's answers to `input`, of 12 tokens drawn with a seed.
fn chat(more: &[&str], input: &str) -> Output {
    let model = golden("llada");
    let arguments = ["chat", "--model", model.to_str().unwrap(), "--gap", "12"];
    let decode = ["--seed", "3", "--temperature", "1", "--steps", "6"];
    unmask(&[&arguments[..], &decode[..], more].concat(), input)
}

fn said(more: &[&str], input: &str) -> String {
    let output = chat(more, input);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// DiffusionGemma's is printed block by block, each of whose tokens may be revised until it is finished.
#[test]
fn an_answer_is_the_completion_of_the_rendered_chat() {
    let of_llada = ["--gap", "12", "--temperature", "1", "--steps", "6"];
    let of_blocks = ["--gap", "20", "--steps-per-block", "4"];
    for (name, decode) in [("llada", &of_llada[..]), ("diffusion_gemma", &of_blocks)] {
        let model = golden(name);
        let cases = json(&model.join("tokenizer_cases.json"));
        let case = &cases["chat"][0];
        let message = case["messages"][0]["content"].as_str().unwrap();
        let prompt: Vec<String> = ids(&case["ids"]).iter().map(u32::to_string).collect();
        let prompt = prompt.join(",");
        let model = ["--model", model.to_str().unwrap(), "--seed", "3"];
        let generate = ["generate", "--json", "--prompt-ids", &prompt];
        let output = unmask(&[&generate[..], &model, decode].concat(), "");
        let expected: Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = expected["gaps"][0]["text"].as_str().unwrap();
        let chat = [&["chat"][..], &model, decode].concat();
        let answer = unmask(&chat, &format!("{message}\n"));
        assert!(answer.status.success(), "{answer:?}");
        let answer = String::from_utf8(answer.stdout).unwrap();
        assert_eq!(answer, format!("{expected}\n"), "{name}");
    }
}

#[test]
fn what_was_said_and_the_system_prompt_count_until_they_are_forgotten() {
    let once = said(&[], "Hi\n");
    let twice = said(&[], "Hi\n\nHi");
    assert!(twice.starts_with(&once));
    assert_ne!(twice, once.repeat(2), "the second answer sees the first");
    assert_eq!(said(&[], "Hi\n/reset\nHi\n"), once.repeat(2));
    assert_eq!(said(&[], "Hi\n/exit\nHi\n"), once);
    let told = said(&["--system", "Be brief."], "Hi\n");
    assert_ne!(told, once);
    let told_twice = said(&["--system", "Be brief."], "Hi\n/reset\nHi\n");
    assert_eq!(told_twice, told.repeat(2), "the system prompt stays");
    assert_ne!(said(&[], "//Hi\n"), once);
    assert_eq!(said(&[], ""), "");
}

#[test]
fn a_chat_that_cannot_be_is_refused_with_the_reason() {
    let without = error(&unmask(&["chat"], "Hi\n"));
    assert!(
        without.contains("unmask-small has no chat template"),
        "{without}"
    );
    assert!(error(&chat(&[], "/help\n")).contains("/reset, /exit"));
    let masked = error(&chat(&[], "a<|mdm_mask|>b\n"));
    assert!(masked.contains("mask"), "{masked}");
    let long = error(&chat(&[], &"word ".repeat(2000)));
    assert!(long.contains("slots"), "{long}");
    assert!(error(&chat(&["--steps", "0"], "Hi\n")).contains("steps"));
}
