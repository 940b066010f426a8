//! What the command line refuses.

use crate::refusal;

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    for (arguments, expected) in [
        (&["infill", "a {{x}}"][..], "at byte 2"),
        (&["infill", "no gap"], "write {{8}} where"),
        (
            &[
                "generate",
                "x",
                "--budget",
                "ancestral:0.999999",
                "--steps",
                "10000",
            ],
            "allowed: steps / (1 − eps) of less than 1000000",
        ),
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
        (
            &["generate", "x", "--top-k", "-2"],
            "top_k is -2; allowed: -1 or 0 for all tokens, otherwise at least 1",
        ),
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
        (
            &["generate", "x", "--preset", "magic"],
            "allowed: llada, llada-random, ",
        ),
        (
            &["generate", "x", "--preset", "uniform-ancestral"],
            "preset: uniform-ancestral does not go with this model",
        ),
        (
            &["infill", "{{99999999999999999999}}"],
            "more tokens than any canvas has slots",
        ),
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
            &["generate", "x", "--revise", "remask_cap:0.1"],
            "--revise: revision: re-masking needs the budget `ancestral`",
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
