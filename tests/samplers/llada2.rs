//! LLaDA2.0 and 2.1: `generate` of the official models, and dllm's samplers.

use unmask::decode::{Budget, DecodePlan, EarlyStop, Revision};
use unmask::engine::Engine;

use crate::run::{Case, case, preset_plan, respecified, set_block_length};
use crate::support::{denoise, trace};

const NAME: &str = "llada2_moe";
const EDITING: &str = "llada21";

/// The official samplers take the block length and the end of sequence as arguments.
fn engine(name: &str, case: &Case) -> Engine {
    respecified(name, |spec| {
        set_block_length(spec, case.block_length().unwrap());
        spec.stop_tokens = vec![case.number("eos_id").unwrap() as u32];
    })
}

/// The preset with the arguments of a run of LLaDA2.0.
fn plan(engine: &Engine, case: &Case) -> DecodePlan {
    let steps = case.number("steps").or(case.number("steps_per_block"));
    let gap = case.number("gen_length").or(case.number("max_new_tokens"));
    let at_least = case.number("minimal_topk").unwrap();
    let early_stop = match case.flag("eos_early_stop") {
        true => EarlyStop::AtOnce,
        false => EarlyStop::AfterBlock,
    };
    DecodePlan {
        steps_per_block: steps.min(Some(gap.unwrap() / at_least)),
        budget: Budget::Threshold(case.fraction("threshold").unwrap()),
        early_stop,
        ..preset_plan(engine, "llada2")
    }
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
        case.row()
            .assert_equal(&engine, &plan(&engine, &case), name);
    }
}

/// The official code looks for an end of sequence only in a step that commits one, and so takes a step
/// more here, where a slot before it is committed last.
#[test]
fn completions_of_llada2_stop_as_soon_as_nothing_before_the_end_is_masked() {
    let case = case(NAME, "hf_custom_eos_early");
    let engine = engine(NAME, &case);
    let mut row = case.row();
    row.canvases.pop();
    row.assert_equal(&engine, &plan(&engine, &case), "hf_custom_eos_early");
    let stopped = row.canvases.last().unwrap();
    assert!(stopped[row.prompt.len()..].starts_with(&case.output()));
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
    case.row().assert_equal(&engine, &plan, "dllm_sampler");
}

/// The preset with the arguments of a run of LLaDA2.1, which looks for an end of sequence after each
/// block, and only if asked to.
fn editing_plan(engine: &Engine, case: &Case) -> DecodePlan {
    let mut plan = preset_plan(engine, "llada2.1");
    plan.at_least = case.number("num_to_transfer").unwrap();
    plan.budget = Budget::Threshold(case.fraction("threshold").unwrap());
    plan.revision = Revision::Edit {
        threshold: case.fraction("editing_threshold").unwrap(),
        max_post_steps: case.number("max_post_steps").unwrap(),
    };
    if !case.flag("eos_early_stop") {
        plan.early_stop = EarlyStop::Never;
    }
    plan
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
        case.row()
            .assert_equal(&engine, &editing_plan(&engine, &case), name);
    }
}

#[test]
fn an_edited_slot_says_how_often_and_when_the_official_run_edited_it() {
    for name in ["hf_low_thresholds", "hf_zero_edit"] {
        let case = case(EDITING, name);
        let engine = engine(EDITING, &case);
        let (plan, row) = (editing_plan(&engine, &case), case.row());
        let (mask, start) = (engine.mask_token().unwrap(), row.start(&engine, &plan));
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
    let row = case.row();
    let canvases = trace(&engine, row.start(&engine, &plan), &plan);
    assert_eq!(canvases[..7], row.canvases[..7]);
    let last = canvases.last().unwrap();
    assert!(!last.contains(&engine.mask_token().unwrap()));
}
