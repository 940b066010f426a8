//! What the command line says of itself and of a checkpoint.

use std::process::Command;

use serde_json::Value;

use crate::{llada, refusal, stdout};

#[test]
fn help_lists_the_subcommands() {
    insta::assert_snapshot!(stdout(&["--help"]));
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
