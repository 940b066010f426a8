//! Runs of official samplers whose random numbers were recorded: MDLM's ancestral sampling, SEDD's predictors and
//! BD3-LM's samplers. How their draws are replayed is said in `src/selftest/goldens/replay.rs`.

use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{DecodePlan, Decoder, Revision, preset};
use unmask::engine::Engine;
use unmask::models::Denoiser;
use unmask::sampling::philox::{Draws, Stream};
use unmask::selftest::goldens::folder::Golden;
use unmask::selftest::goldens::replay::{self, BlockReplay, Recording, candidate};

use crate::support::{denoise, engine, golden, load, trace};

fn folder(family: &str) -> Golden {
    Golden::new(&golden(family))
}

fn recording(family: &str, name: &str) -> Recording {
    Recording::open(&folder(family), name, name).unwrap()
}

/// The network's output `[slots, vocab]` for a canvas.
fn output(model: &dyn Denoiser, tokens: &[TokenId], sigma: Option<f32>) -> Vec<Vec<f32>> {
    replay::output(model, tokens, sigma).unwrap()
}

fn tokens(canvas: &Canvas) -> Vec<TokenId> {
    canvas.tokens().collect()
}

#[test]
fn ancestral_sampling_equals_mdlms_and_evaluates_the_network_only_where_a_slot_changes() {
    let model = load("mdlm");
    for name in ["ddpm_cache", "ddpm"] {
        let run = recording("mdlm", name);
        assert!(run.canvases().len() > 1);
        replay::ancestral(&*model, &run).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn both_predictors_of_the_absorbing_process_equal_sedds() {
    let model = load("sedd_absorb");
    for name in ["analytic", "euler"] {
        let followed = replay::absorbing_predictor(&*model, &recording("sedd_absorb", name), name);
        followed.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn both_predictors_of_the_uniform_process_equal_sedds() {
    let model = load("sedd_uniform");
    for name in ["analytic", "euler"] {
        let preset = preset::by_name(&format!("sedd-{name}")).unwrap();
        assert_eq!(model.spec().plan(&preset).revision, Revision::Renoise);
        let followed = replay::uniform_predictor(&*model, &recording("sedd_uniform", name), name);
        followed.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_engine_denoises_with_sedd_of_the_uniform_process() {
    let engine = engine("sedd_uniform");
    let canvas = || {
        let builder = Canvas::builder(engine.blank()).fixed(&[7, 8, 9]).gap(9);
        builder.fixed(&[4]).build().unwrap()
    };
    for name in ["sedd-analytic", "sedd-euler"] {
        let mut plan = engine.spec().plan(&preset::by_name(name).unwrap());
        (plan.steps, plan.sampling.seed) = (Some(8), 3);
        let (steps, finished) = denoise(&engine, plan.noised(canvas()), &plan);
        assert_eq!((steps.len(), finished.masked()), (8, 0));
        assert_eq!(tokens(&finished)[..3], [7, 8, 9]);
        assert_eq!(finished.token(12), 4);
        assert_eq!(denoise(&engine, canvas(), &plan).1, finished, "{name}");
        plan.sampling.seed = 4;
        assert_ne!(denoise(&engine, canvas(), &plan).1, finished, "{name}");
    }
    let error = engine.submit(
        canvas(),
        preset::by_name("uniform-ancestral").unwrap().plan(),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("sedd-analytic"), "{error}");
}

/// A slot is unmasked in a step just if its draw is below (e^Δσ − 1) Σ s(y), as the predictor has it.
#[test]
fn the_engine_denoises_with_sedd_as_the_predictor_does() {
    let engine: Engine = engine("sedd_absorb");
    let model = load("sedd_absorb");
    let mask = engine.mask_token().unwrap();
    let mut plan = engine.spec().default_plan.clone();
    assert_eq!(plan, *preset::by_name("sedd-analytic").unwrap().plan());
    (plan.steps, plan.sampling.seed) = (Some(5), 3);
    let prompt = [7, 8, 9];
    let canvas = Canvas::builder(mask)
        .fixed(&prompt)
        .gap(9)
        .fixed(&[4])
        .build()
        .unwrap();
    let start = tokens(&canvas);
    let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
    let mut before = start.clone();
    for (step, after) in trace(&engine, canvas, &plan).iter().enumerate() {
        let (t, s) = decoder.times().unwrap();
        let sigma = |t| model.spec().sigma(t).unwrap();
        let growth = f64::from(sigma(t) - sigma(s)).exp_m1();
        let rows = output(&*model, &before, Some(sigma(t)));
        for slot in 0..before.len() {
            if before[slot] != mask {
                assert_eq!(after[slot], before[slot]);
                continue;
            }
            let total: f64 = rows[slot].iter().map(|x| f64::from(*x).exp()).sum::<f64>() - 1.0;
            let draw = f64::from(Draws::new(3, step, slot, Stream::Score).uniform());
            let unmasked = step == 4 || draw < growth * total;
            assert_eq!(after[slot] != mask, unmasked, "step {step}, slot {slot}");
        }
        let changed: Vec<_> = decoder.scored_slots(&Canvas::from_ids(&before, mask).unwrap());
        let mut canvas = Canvas::from_ids(&before, mask).unwrap();
        let candidates: Vec<_> = changed.iter().map(|slot| candidate(*slot, 1)).collect();
        decoder.advance(&mut canvas, &candidates);
        before.clone_from(after);
    }
    assert!(!before.contains(&mask));
}

#[test]
fn plans_that_do_not_go_with_log_scores_are_refused_with_the_one_that_does() {
    let engine = engine("sedd_absorb");
    let canvas = || {
        Canvas::builder(engine.mask_token().unwrap())
            .gap(4)
            .build()
            .unwrap()
    };
    let default = engine.spec().default_plan.clone();
    let guided = {
        let mut plan = default.clone();
        plan.sampling.guidance_scale = 1.0;
        plan
    };
    let blocks = DecodePlan {
        block_length: Some(2),
        ..default.clone()
    };
    for (plan, says) in [
        (DecodePlan::default(), "sedd-analytic"),
        (guided, "guidance_scale"),
        (blocks, "block_length"),
    ] {
        let error = engine.submit(canvas(), &plan).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let llada = crate::support::engine("llada");
    let canvas = Canvas::builder(llada.mask_token().unwrap())
        .gap(4)
        .build()
        .unwrap();
    let error = llada.submit(canvas, &default).unwrap_err().to_string();
    assert!(error.contains("log-scores"), "{error}");
}

#[test]
fn one_random_slot_a_step_equals_bd3lms_first_hitting_within_and_beyond_the_context() {
    let model = load("bd3lm");
    for (name, uniforms) in [
        ("first_hitting_kv", "first_hitting_kv"),
        ("first_hitting_nocache", "first_hitting_kv"),
        ("first_hitting_kv_sliding", "first_hitting_kv_sliding"),
    ] {
        let run = [name, uniforms, "bd3lm-first-hitting"];
        let run = BlockReplay::open(&*model, &folder("bd3lm"), run).unwrap();
        let followed = run.first_hitting();
        followed.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn ancestral_sampling_in_blocks_equals_bd3lms_and_evaluates_the_network_only_where_a_slot_changes()
{
    let model = load("bd3lm");
    let run = ["ddpm_kv", "first_hitting_kv", "bd3lm-ddpm"];
    let run = BlockReplay::open(&*model, &folder("bd3lm"), run).unwrap();
    run.ancestral().unwrap();
}
