//! Runs of official samplers whose random numbers were recorded: MDLM's ancestral sampling, SEDD's predictors and
//! BD3-LM's samplers. How their draws are replayed is said in `src/selftest/goldens/replay.rs`.

use candle_core::{DType, Device};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::preset::{self, Preset};
use unmask::decode::{Budget, DecodePlan, Decoder, Revision};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Checkpoint, Denoiser};
use unmask::sampling::philox::{Draws, Stream};
use unmask::selftest::goldens::folder::Golden;
use unmask::selftest::goldens::replay::{self, BlockReplay, Recording, candidate};

use crate::support::{denoise, engine, golden, json, load, trace};

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
fn plans_that_do_not_go_with_log_scores_are_refused_with_those_that_do() {
    let (engine, uniform) = (engine("sedd_absorb"), engine("sedd_uniform"));
    let canvas = |engine: &Engine| {
        let builder = Canvas::builder(engine.blank()).gap(4);
        builder.build().unwrap()
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
    let renoised = |plan: &DecodePlan| DecodePlan {
        revision: Revision::Renoise,
        ..plan.clone()
    };
    let ancestral = DecodePlan {
        budget: Budget::Ancestral { eps: 1e-5 },
        ..renoised(&default)
    };
    for (engine, plan, says) in [
        (&engine, &guided, "guidance_scale"),
        (&engine, &blocks, "block_length"),
        (&uniform, &ancestral, "sedd-analytic"),
        (&uniform, &renoised(&blocks), "block_length"),
    ] {
        let error = engine.submit(canvas(engine), plan).unwrap_err().to_string();
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

/// Names of the presets that a model goes with, each of which fills a canvas.
fn presets_that_fill(engine: &Engine) -> Vec<&'static str> {
    let spec = engine.spec();
    let mask = spec.mask_token().unwrap();
    let fills = |preset: &Preset| {
        let mut plan = spec.plan(preset);
        (plan.steps, plan.sampling.seed) = (plan.steps_per_block.is_none().then_some(5), 7);
        let canvas = Canvas::builder(mask).fixed(&[7, 8]).gap(5).fixed(&[4]);
        let canvas = canvas.gap(2).build().unwrap();
        let (steps, finished) = denoise(engine, canvas, &plan);
        assert!(!steps.is_empty(), "{}", preset.name);
        assert!(
            tokens(&finished).iter().all(|t| *t != mask),
            "{}",
            preset.name
        );
        preset.name
    };
    spec.presets().iter().map(fills).collect()
}

#[test]
fn networks_that_are_told_the_noise_level_go_with_other_families_presets() {
    let all: Vec<&str> = preset::all().iter().map(|preset| preset.name).collect();
    let none_of = |left_out: &[&str]| -> Vec<&str> {
        let names = all.iter().copied();
        names.filter(|name| !left_out.contains(name)).collect()
    };
    let sliding_or_other = [
        "dreamon",
        "bd3lm-first-hitting",
        "bd3lm-ddpm",
        "uniform-ancestral",
        "diffusion-gemma",
    ];
    let of_absorbing = none_of(&[&sliding_or_other[..], &["llada2.1"]].concat());
    assert_eq!(presets_that_fill(&engine("sedd_absorb")), of_absorbing);
    let folder = tempfile::tempdir().unwrap();
    let mut config = json(&golden("mdlm").join("config.json"));
    config["time_conditioning"] = true.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(golden("mdlm").join(weights), folder.path().join(weights)).unwrap();
    let model = Checkpoint::open(folder.path()).unwrap();
    let model = model.load(DType::F32, &Device::Cpu).unwrap();
    let told = Engine::start(model, EngineConfig::unshared()).unwrap();
    assert!(told.spec().noise_conditioned);
    let of_logits = none_of(
        &[
            &sliding_or_other[..],
            &["llada2.1", "sedd-analytic", "sedd-euler"],
        ]
        .concat(),
    );
    assert_eq!(presets_that_fill(&told), of_logits);
    let uniform = engine("sedd_uniform");
    let names = uniform
        .spec()
        .presets()
        .into_iter()
        .map(|preset| preset.name);
    assert_eq!(names.collect::<Vec<_>>(), ["sedd-analytic", "sedd-euler"]);
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
