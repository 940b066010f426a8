//! `unmask generate` and `unmask infill`.

use serde_json::Value;

use crate::support::golden;
use crate::{llada, refusal, stdout};

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
fn a_gap_at_the_end_of_a_text_ends_at_its_first_stop_token_as_a_completion_does() {
    for seed in ["1", "2", "3"] {
        // Stop tokens are likely, and other tokens come after them.
        let options = "--temperature 1 --logit-bias 1:7 --seed".split(' ');
        let options: Vec<&str> = options.chain([seed]).collect();
        let completion = ["generate", "Once upon a time", "--gap", "8"];
        let infilling = ["infill", "Once upon a time{{8}}"];
        assert_eq!(
            stdout(&[&infilling[..], &options].concat()),
            stdout(&[&completion[..], &options].concat())
        );
    }
}

#[test]
fn a_checkpoints_own_top_k_can_be_dropped() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(golden("llada").join(file), directory.path().join(file)).unwrap();
    }
    let options = r#"{"do_sample": true, "top_k": 3}"#;
    std::fs::write(directory.path().join("generation_config.json"), options).unwrap();
    let model = directory.path().to_str().unwrap();
    let top_k = |more: &[&str]| {
        let arguments = ["generate", "--model", model, "x", "--gap", "2", "--json"];
        let json: Value = serde_json::from_str(&stdout(&[&arguments, more].concat())).unwrap();
        json["plan"]["sampling"]["top_k"].clone()
    };
    assert_eq!(top_k(&[]), 3);
    assert_eq!(top_k(&["--top-k", "5"]), 5);
    for all in ["0", "-1"] {
        assert!(top_k(&["--top-k", all]).is_null());
    }
    assert!(top_k(&["--preset", "llada"]).is_null());
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

#[test]
fn what_is_given_and_shown_as_ids_needs_no_tokenizer() {
    let model = golden("llada_moe").display().to_string();
    let generate = [
        "generate",
        "--model",
        &model,
        "--prompt-ids",
        "5,9",
        "--gap",
        "6",
    ];
    let printed = stdout(&[&generate[..], &["--ids"]].concat());
    assert!(printed.starts_with("5,9,"), "{printed}");
    assert_eq!(printed.split(',').count(), 8);
    let infill = stdout(&[
        "infill",
        "--model",
        &model,
        "--canvas-ids",
        "5,504,9",
        "--ids",
    ]);
    assert!(
        infill.starts_with("5,") && infill.trim().ends_with(",9"),
        "{infill}"
    );
    for with_text in [&["--json"][..], &["--ids", "--regex", "a*"]] {
        let error = refusal(&[&generate[..], with_text].concat());
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn short_steps_of_a_noise_schedule_end_at_its_last_time_however_they_are_rounded() {
    let schedule =
        "generate x --gap 8 --seed 1 --temperature 1 --ids --budget ancestral:0 --steps 9997";
    let short = "--finish drawn_after_short_steps --revise remask_cap:0";
    let arguments: Vec<&str> = schedule.split(' ').chain(short.split(' ')).collect();
    let printed = stdout(&arguments);
    assert!(printed.split(',').count() >= 9, "{printed}");
}
