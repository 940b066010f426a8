//! What a report calls final.

use std::collections::BTreeSet;

use unmask::canvas::Canvas;
use unmask::decode::{Budget, DecodePlan, EarlyStop, Remasking, Revision, preset};
use unmask::engine::Engine;

use crate::support::{denoise, engine};

const BLOCK: usize = 8;
const PROMPT: [u32; 3] = [7, 8, 9];

fn canvas(engine: &Engine, plan: &DecodePlan) -> Canvas {
    let room = engine.spec().canvas_limit() - PROMPT.len();
    let canvas = Canvas::builder(engine.blank())
        .fixed(&PROMPT)
        .gap(room.min(3 * BLOCK));
    plan.noised(canvas.build().unwrap())
}

/// Follows the reports of a run and holds every commit that one of them calls final to be in the finished canvas; where
/// finality went, the finished canvas, and how many commits were taken back or replaced.
fn follow(engine: &Engine, plan: &DecodePlan) -> (Vec<usize>, Canvas, usize) {
    let mut followed = canvas(engine, plan);
    let (reports, finished) = denoise(engine, followed.clone(), plan);
    let (mut finals, mut revised) = (Vec::new(), 0);
    for (index, report) in reports.iter().enumerate() {
        revised += report.remasked.len();
        for (slot, commit) in &report.committed {
            revised += usize::from(followed.provenance(*slot).is_some());
            followed.gap_slot_mut(*slot).unwrap().commit(*commit);
        }
        for slot in &report.remasked {
            followed.gap_slot_mut(*slot).unwrap().remask();
        }
        for slot in 0..report.final_before {
            if let Some(commit) = followed.provenance(slot) {
                let step = report.step;
                assert_eq!(
                    finished.provenance(slot),
                    Some(commit),
                    "step {step}, slot {slot}"
                );
            }
        }
        // Steps without a forward that mask slots again follow the one before them at once.
        let next = reports.get(index + 1);
        if next.is_none_or(|next| next.statistics.nfe > report.statistics.nfe) {
            assert_eq!(report.statistics.committed, followed.committed());
        }
        finals.push(report.final_before);
    }
    assert!(finals.is_sorted(), "{finals:?}");
    (finals, finished, revised)
}

/// The plans that revise, each on a network that it goes with, in blocks.
fn revising() -> Vec<(&'static str, DecodePlan)> {
    let blocks = DecodePlan {
        block_length: Some(BLOCK),
        ..DecodePlan::default()
    };
    let edit = DecodePlan {
        revision: Revision::Edit {
            threshold: 0.0,
            max_post_steps: 3,
        },
        steps: Some(12),
        ..blocks.clone()
    };
    let remask = DecodePlan {
        budget: Budget::Ancestral { eps: 1e-3 },
        revision: Revision::Remask(Remasking::Rescale(0.9)),
        steps: Some(36),
        ..blocks
    };
    let gemma = DecodePlan {
        steps_per_block: Some(6),
        budget: Budget::EntropyBound(4.0),
        early_stop: EarlyStop::Never,
        ..engine("diffusion_gemma").spec().default_plan.clone()
    };
    vec![
        ("llada", edit),
        ("llada", remask),
        ("diffusion_gemma", gemma),
    ]
}

#[test]
fn what_is_committed_before_the_block_that_is_denoised_is_final_under_every_revision() {
    for (name, mut plan) in revising() {
        let engine = engine(name);
        let mut revisions = 0;
        for seed in 0..6 {
            plan.sampling.seed = seed;
            plan.sampling.temperature = 1.0;
            let (finals, finished, revised) = follow(&engine, &plan);
            revisions += revised;
            let expected = [0, BLOCK, 2 * BLOCK, 3 * BLOCK].map(|slots| PROMPT.len() + slots);
            let different: BTreeSet<usize> = finals.iter().copied().collect();
            assert_eq!(different, BTreeSet::from(expected), "{}", plan.revision);
            assert_eq!(finals.last(), Some(&finished.len()));
        }
        assert!(revisions > 0, "{}: nothing was revised", plan.revision);
    }
}

#[test]
fn where_one_block_is_revised_to_the_end_nothing_is_final_before_it() {
    let engine = engine("sedd_uniform");
    let mut plan = preset::by_name("sedd-analytic").unwrap().plan().clone();
    plan.revision = Revision::Renoise;
    plan.steps = Some(8);
    let (finals, finished, _) = follow(&engine, &plan);
    let (last, before) = finals.split_last().unwrap();
    assert!(
        before.iter().all(|slot| *slot == PROMPT.len()),
        "{before:?}"
    );
    assert_eq!(*last, finished.len());
}

#[test]
fn without_revision_every_commit_is_final_at_once() {
    let engine = engine("llada");
    let plan = DecodePlan {
        block_length: Some(BLOCK),
        ..DecodePlan::default()
    };
    let (finals, finished, _) = follow(&engine, &plan);
    assert!(finals.iter().all(|slot| *slot == finished.len()));
}
