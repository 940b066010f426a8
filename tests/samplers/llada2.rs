//! LLaDA2.0 and 2.1: `generate` of the official models, and dllm's samplers.

use unmask::decode::{DecodePlan, EarlyStop};
use unmask::engine::Engine;
use unmask::selftest::goldens::plans;

use crate::run::{Case, assert_equal, case, output, respecified_by, row, start};
use crate::support::{denoise, trace};

const NAME: &str = "llada2_moe";
const EDITING: &str = "llada21";

/// The official samplers take the block length and the end of sequence as arguments.
fn engine(name: &str, case: &Case) -> Engine {
    respecified_by(name, |spec| plans::respecify_llada2(spec, case))
}

/// The preset with the arguments of a run of LLaDA2.0.
fn plan(engine: &Engine, case: &Case) -> DecodePlan {
    plans::llada2(engine.spec(), case).unwrap()
}

#[test]
fn completions_of_llada2_equal_the_official_runs() {
    for name in [
        "hf_default_threshold",
        "hf_low_threshold",
        "hf_fewer_steps",
        "hf_minimal_topk",
        "hf_short_prompt",
        "hf_eos_early_stop",
        "hf_eos_no_early_stop",
        "hf_custom_eos_blockwise",
    ] {
        let case = case(NAME, name);
        let engine = engine(NAME, &case);
        assert_equal(&row(&case), &engine, &plan(&engine, &case), name);
    }
}

/// The official code looks for an end of sequence only in a step that commits one, and so takes a step
/// more here, where a slot before it is committed last.
#[test]
fn completions_of_llada2_stop_as_soon_as_nothing_before_the_end_is_masked() {
    let case = case(NAME, "hf_custom_eos_early");
    let engine = engine(NAME, &case);
    let mut row = row(&case);
    row.canvases.pop();
    let plan = plan(&engine, &case);
    assert_equal(&row, &engine, &plan, "hf_custom_eos_early");
    let stopped = row.canvases.last().unwrap();
    assert!(stopped[row.prompt.len()..].starts_with(&output(&case)));
}

/// dllm's sampler goes on after an end of sequence.
#[test]
fn completions_of_llada2_equal_dllms() {
    let case = case(NAME, "dllm_sampler");
    let engine = engine(NAME, &case);
    let plan = DecodePlan {
        early_stop: EarlyStop::Never,
        ..plan(&engine, &case)
    };
    assert_equal(&row(&case), &engine, &plan, "dllm_sampler");
}

/// The preset with the arguments of a run of LLaDA2.1.
fn editing_plan(engine: &Engine, case: &Case) -> DecodePlan {
    plans::llada21(engine.spec(), case).unwrap()
}

#[test]
fn completions_of_llada21_with_edits_equal_the_official_and_dllms_runs() {
    for name in [
        "hf_defaults",
        "hf_low_thresholds",
        "hf_zero_edit",
        "hf_no_edit",
        "dllm_sampler",
        "hf_eos_early_stop",
    ] {
        let case = case(EDITING, name);
        let engine = engine(EDITING, &case);
        assert_equal(&row(&case), &engine, &editing_plan(&engine, &case), name);
    }
}

#[test]
fn an_edited_slot_says_how_often_and_when_the_official_run_edited_it() {
    for name in ["hf_low_thresholds", "hf_zero_edit"] {
        let case = case(EDITING, name);
        let engine = engine(EDITING, &case);
        let (plan, row) = (editing_plan(&engine, &case), row(&case));
        let (mask, start) = (engine.mask_token().unwrap(), start(&row, &engine, &plan));
        let mut edits = vec![0; start.len()];
        let mut written = vec![0; start.len()];
        let mut before: Vec<_> = start.tokens().collect();
        for (step, canvas) in row.canvases.iter().enumerate() {
            for (slot, token) in canvas.iter().enumerate() {
                if *token != before[slot] {
                    edits[slot] += usize::from(before[slot] != mask);
                    written[slot] = step + 1;
                    before[slot] = *token;
                }
            }
        }
        assert!(edits.iter().any(|count| *count > 0), "{name}");
        let (_, finished) = denoise(&engine, start, &plan);
        for (slot, token) in before.iter().enumerate() {
            let Some(commit) = finished.provenance(slot) else {
                continue;
            };
            let edited = finished.gap_slot(slot).unwrap().edited();
            assert_eq!(
                (edited, commit.step),
                (edits[slot], written[slot]),
                "{name} {slot}"
            );
            assert_eq!(commit.token, *token);
        }
    }
}

/// The official code then commits the mask token itself, which is never a candidate here.
#[test]
fn completions_of_llada21_equal_the_official_run_until_it_commits_the_mask_token() {
    let case = case(EDITING, "hf_aligned_prompt");
    let engine = engine(EDITING, &case);
    let plan = editing_plan(&engine, &case);
    let row = row(&case);
    let canvases = trace(&engine, start(&row, &engine, &plan), &plan);
    assert_eq!(canvases[..7], row.canvases[..7]);
    let last = canvases.last().unwrap();
    assert!(!last.contains(&engine.mask_token().unwrap()));
}
