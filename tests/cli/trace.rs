//! What `--trace` writes.

use serde_json::Value;

use crate::support::{golden, ids, json};
use crate::{llada, stdout};

#[test]
fn a_trace_holds_every_canvas_from_the_first_on() {
    let case = json(&golden("llada").join("generate.json"))
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["name"] == "semi_ar")
        .unwrap()
        .clone();
    let prompt = ids(&case["prompt_ids"]);
    let prompt_ids = prompt
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    let printed = stdout(&[
        "generate",
        "--model",
        &llada(),
        "--prompt-ids",
        &prompt_ids,
        "--gap",
        "16",
        "--steps",
        "8",
        "--block-length",
        "4",
        "--ids",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    let lines: Vec<Value> = std::fs::read_to_string(&trace)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut start = prompt;
    start.resize(23, 505);
    assert_eq!(ids(&lines[0]["canvas"]), start);
    assert_eq!(lines[0]["committed"], serde_json::json!([]));
    let official = case["canvas_per_step"].as_array().unwrap();
    assert_eq!(lines.len(), official.len() + 1);
    for (step, (line, canvas)) in lines[1..].iter().zip(official).enumerate() {
        assert_eq!(line["step"], step + 1);
        assert_eq!(ids(&line["canvas"]), ids(canvas));
        let committed = line["committed"].as_array().unwrap();
        assert_eq!(committed.len(), 2);
        for slot in committed {
            let at = slot["slot"].as_u64().unwrap() as usize;
            assert_eq!(slot["token"], line["canvas"][at]);
            assert!(slot["probability"].as_f64().unwrap() > 0.0);
        }
    }
    let printed: Vec<u32> = printed
        .trim()
        .split(',')
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(printed, ids(official.last().unwrap()));
}

#[test]
fn a_trace_names_the_steps_that_committed_and_json_counts_the_forwards() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    for (preset, steps) in [("mdlm-ancestral", "64"), ("remdm-cap", "256")] {
        let fixed = [
            "generate", "x", "--gap", "8", "--seed", "1", "--json", "--trace",
        ];
        let more = [
            trace.to_str().unwrap(),
            "--preset",
            preset,
            "--steps",
            steps,
        ];
        let json = stdout(&[&fixed[..], &more].concat());
        let json: Value = serde_json::from_str(&json).unwrap();
        let lines = std::fs::read_to_string(&trace).unwrap();
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let mut committed = std::collections::BTreeMap::new();
        for line in &lines {
            for slot in line["remasked"].as_array().into_iter().flatten() {
                committed.remove(&slot.as_u64().unwrap()).unwrap();
            }
            for slot in line["committed"].as_array().unwrap() {
                committed.insert(slot["slot"].as_u64().unwrap(), line["step"].clone());
            }
        }
        let provenance = json["gaps"][0]["provenance"].as_array().unwrap();
        let steps: Vec<Value> = provenance.iter().map(|slot| slot["step"].clone()).collect();
        assert_eq!(committed.into_values().collect::<Vec<_>>(), steps);
        let committing = lines
            .iter()
            .filter(|line| line["committed"] != serde_json::json!([]));
        assert_eq!(json["nfe"], committing.count(), "{preset}");
        assert!(json["steps"].as_u64() > json["nfe"].as_u64());
        assert!(lines.last().unwrap()["step"].as_u64() <= json["steps"].as_u64());
    }
}
