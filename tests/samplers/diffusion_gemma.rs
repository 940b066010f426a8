//! DiffusionGemma's sampler: what it accepts, its temperatures, when it stops, and whole runs whose random draws were
//! recorded.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use serde_json::{Value, json};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{
    Budget, Candidate, DecodePlan, Decoder, EarlyStop, Revision, TemperatureSchedule, preset,
};
use unmask::engine::{CacheScheme, Engine, EngineConfig, SubmitError};
use unmask::models::{
    AttentionPattern, Checkpoint, Denoiser, KvPool, ModelSpec, RaggedBatch, Segment,
};
use unmask::sampling::{Basis, RowParams, RowSample, reduce};

use crate::support::{denoise, engine, golden, ids, integers, json as read, load};

const NAME: &str = "diffusion_gemma";

/// Largest difference from the entropies of a run, in nats. An error of 10⁻⁵ in the logits of a block's first step,
/// which is that of f32, has grown to 10⁻² by its third, as each step is told what the one before it predicted.
const GROWN_ERROR: f32 = 0.1;

fn goldens() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(NAME).join("sampler.safetensors"), &Device::Cpu).unwrap()
}

fn plan() -> DecodePlan {
    preset::by_name("diffusion-gemma").unwrap().plan().clone()
}

fn gap(vocab: usize, slots: usize) -> Canvas {
    let blank = unmask::canvas::Blank::Noise { vocab };
    Canvas::builder(blank).gap(slots).build().unwrap()
}

/// The samples of `logits` `[rows, vocab]` by the plan's basis, for slots from `first` on.
fn samples(logits: &Tensor, plan: &DecodePlan, decoder: &Decoder, first: usize) -> Vec<RowSample> {
    let params = |row| RowParams {
        temperature: decoder.temperature(),
        basis: Basis::Sampling,
        seed: plan.sampling.seed,
        step: decoder.steps(),
        slot: first + row,
        ..RowParams::default()
    };
    let params: Vec<RowParams> = (0..logits.dim(0).unwrap()).map(params).collect();
    let samples = reduce(logits, None, &params).unwrap();
    samples.into_iter().map(Result::unwrap).collect()
}

fn candidate(slot: usize, sample: &RowSample) -> Candidate {
    Candidate {
        slot,
        token: sample.token,
        probability: sample.probability,
        most_probable: sample.most_probable,
        best: sample.best,
        second: sample.second,
        entropy: sample.entropy,
        uniform: sample.uniform,
        unmasking: None,
    }
}

#[test]
fn the_least_entropies_within_the_bound_are_accepted_and_all_others_are_noised_anew() {
    let goldens = goldens();
    let logits = &goldens["accept.logits"];
    let (rows, slots, vocab) = logits.dims3().unwrap();
    let bounds: Vec<f32> = goldens["accept.entropy_bounds"].to_vec1().unwrap();
    for bound in bounds {
        let mut plan = plan();
        plan.block_length = Some(slots);
        plan.budget = Budget::EntropyBound(bound);
        plan.sampling.temperature = 1.0;
        plan.sampling.temperature_schedule = TemperatureSchedule::Constant;
        for row in 0..rows {
            let of = |name: &str| goldens[name].i(row).unwrap();
            let held = integers(&of("accept.current_canvas"));
            let drawn = integers(&of("accept.denoiser_canvas"));
            let mut canvas = gap(vocab, slots).noised(|slot| held[slot]);
            let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
            let samples = samples(&logits.i(row).unwrap(), &plan, &decoder, 0);
            let entropies: Vec<f32> = of("accept.token_entropy").to_vec1().unwrap();
            let candidates: Vec<Candidate> = samples
                .iter()
                .enumerate()
                .map(|(slot, sample)| {
                    assert!((sample.entropy - entropies[slot]).abs() < 1e-5);
                    Candidate {
                        token: drawn[slot],
                        ..candidate(slot, sample)
                    }
                })
                .collect();
            let change = decoder.advance(&mut canvas, &candidates);
            let name = format!("{bound:?}");
            let mask: Vec<u8> = of(&format!("accept.mask.{name}")).to_vec1().unwrap();
            let accepted = integers(&of(&format!("accept.canvas.{name}")));
            for slot in 0..slots {
                let is_accepted = mask[slot] != 0;
                assert_eq!(!canvas.is_masked(slot), is_accepted, "{bound} {row} {slot}");
                if is_accepted {
                    assert_eq!(canvas.token(slot), accepted[slot]);
                }
            }
            assert_eq!(change.committed.len() + change.noise.len(), slots);
            let noise = change.noise.iter();
            assert!(
                noise
                    .clone()
                    .all(|(slot, token)| canvas.token(*slot) == *token)
            );
        }
    }
}

#[test]
fn the_temperature_falls_as_the_official_one() {
    let goldens = goldens();
    let [last, first, steps]: [f32; 3] = goldens["temperature.t_min_t_max_N"]
        .to_vec1()
        .unwrap()
        .try_into()
        .unwrap();
    let mut plan = plan();
    plan.block_length = Some(3);
    plan.steps_per_block = Some(steps as usize);
    plan.sampling.temperature = first;
    plan.sampling.temperature_schedule = TemperatureSchedule::LinearInBlock(last);
    plan.revision = Revision::RenoiseRest {
        stable_steps: 1,
        max_entropy: 0.0,
    };
    // In every block anew.
    let mut canvas = gap(9, 6);
    let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
    let mut temperatures = Vec::new();
    while !decoder.is_done() {
        temperatures.push(decoder.temperature());
        let slots = decoder.scored_slots(&canvas);
        let candidates: Vec<Candidate> = slots.into_iter().map(|slot| bare(slot, 0, 1.0)).collect();
        decoder.advance(&mut canvas, &candidates);
    }
    let steps = steps as usize;
    assert_eq!(temperatures.len(), 2 * steps);
    assert_eq!(temperatures[..steps], temperatures[steps..]);
    let left = integers(
        &goldens["temperature.cur_step"]
            .to_dtype(DType::I64)
            .unwrap(),
    );
    let values: Vec<f32> = goldens["temperature.value"].to_vec1().unwrap();
    for (left, value) in left.into_iter().zip(values) {
        let got = temperatures[steps - left as usize];
        assert!(
            (got - value).abs() < 1e-6,
            "{left} steps left: {got} {value}"
        );
    }
}

fn bare(slot: usize, most_probable: TokenId, entropy: f32) -> Candidate {
    Candidate {
        slot,
        token: most_probable,
        probability: 0.5,
        most_probable,
        best: 0.5,
        second: 0.0,
        entropy,
        uniform: 0.0,
        unmasking: None,
    }
}

#[test]
fn a_block_stops_where_the_official_one_is_stable_and_certain() {
    let goldens = goldens();
    let logits = &goldens["stop.stability0.logits"];
    let (steps, rows, slots, vocab) = logits.dims4().unwrap();
    for stable_steps in [0, 1, 2] {
        let field = |name: &str| &goldens[&format!("stop.stability{stable_steps}.{name}")];
        let mut plan = plan();
        plan.block_length = Some(slots);
        plan.steps_per_block = Some(100);
        plan.sampling.temperature = 1.0;
        plan.sampling.temperature_schedule = TemperatureSchedule::Constant;
        plan.revision = Revision::RenoiseRest {
            stable_steps,
            max_entropy: field("confidence_threshold").to_scalar().unwrap(),
        };
        for row in 0..rows {
            let mut canvas = gap(vocab, slots);
            let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
            let mut stopped = None;
            for step in 0..steps {
                let samples = samples(&logits.i((step, row)).unwrap(), &plan, &decoder, 0);
                let expected = integers(&field("argmax_canvas").i((step, row)).unwrap());
                let candidates: Vec<Candidate> = samples
                    .iter()
                    .enumerate()
                    .map(|(slot, sample)| candidate(slot, sample))
                    .collect();
                let most_probable: Vec<_> = samples.iter().map(|s| s.most_probable).collect();
                assert_eq!(most_probable, expected);
                decoder.advance(&mut canvas, &candidates);
                if decoder.is_done() {
                    assert_eq!(canvas.tokens().collect::<Vec<_>>(), expected);
                    stopped = Some(step);
                    break;
                }
            }
            let stops: Vec<u8> = field("stop").i((.., row)).unwrap().to_vec1().unwrap();
            let official = stops.iter().position(|stop| *stop != 0);
            assert_eq!(stopped, official, "{stable_steps} stable steps, row {row}");
        }
    }
}

/// A text that the network goes on from, outside of any engine: its first token is at position `first`.
struct Text<'a> {
    model: &'a dyn Denoiser,
    pool: KvPool,
    first: usize,
    encoded: usize,
}

impl<'a> Text<'a> {
    fn new(model: &'a dyn Denoiser, first: usize) -> Self {
        Self {
            model,
            pool: KvPool::new(model.spec(), 64, DType::F32, &Device::Cpu).unwrap(),
            first,
            encoded: first,
        }
    }

    fn context(&self) -> Vec<u32> {
        (self.first as u32..self.encoded as u32).collect()
    }

    fn push(&self, tokens: &[TokenId], segment: Segment) -> Tensor {
        let positions: Vec<u32> = (self.encoded..self.encoded + tokens.len())
            .map(|position| position as u32)
            .collect();
        let segment = Segment {
            context: self.context(),
            store: match segment.encodes {
                true => positions.clone(),
                false => Vec::new(),
            },
            ..segment
        };
        let mut batch = RaggedBatch::new();
        batch.push_segment(tokens, &positions, segment);
        self.model.hidden(&batch, Some(&self.pool)).unwrap()
    }

    fn encode(&mut self, tokens: &[TokenId]) {
        let pattern = AttentionPattern::EncodedBlocks { block_length: 8 };
        let segment = Segment {
            allowed: pattern.allowed_among(0..tokens.len(), tokens.len()),
            encodes: true,
            ..Segment::default()
        };
        self.push(tokens, segment);
        self.encoded += tokens.len();
    }

    /// Logits `[block, vocab]` of a block.
    fn logits(&self, block: &[TokenId], signal: Option<Tensor>) -> Tensor {
        let segment = Segment {
            self_conditioning: signal,
            ..Segment::default()
        };
        self.model.head(&self.push(block, segment)).unwrap()
    }
}

/// The plan of a run's arguments, on the default plan.
fn recorded_plan(spec: &ModelSpec, params: &Value) -> DecodePlan {
    let number = |name: &str| params[name].as_f64().unwrap() as f32;
    let mut plan = spec.default_plan.clone();
    plan.steps_per_block = Some(params["max_denoising_steps"].as_u64().unwrap() as usize);
    plan.budget = Budget::EntropyBound(number("entropy_bound"));
    plan.sampling.temperature = number("t_max");
    plan.sampling.temperature_schedule = TemperatureSchedule::LinearInBlock(number("t_min"));
    plan.revision = Revision::RenoiseRest {
        stable_steps: params["stability_threshold"].as_u64().unwrap() as usize,
        max_entropy: number("confidence_threshold"),
    };
    plan
}

#[test]
fn whole_runs_equal_the_official_ones_step_by_step() {
    let model = load(NAME);
    let spec = model.spec();
    let Value::Array(cases) = read(&golden(NAME).join("generate.json")) else {
        panic!("generate.json holds a list of cases");
    };
    assert_eq!(cases.len(), 3);
    for case in &cases {
        let plan = recorded_plan(spec, &case["params"]);
        for row in 0..case["prompt_ids"].as_array().unwrap().len() {
            replay(&*model, &plan, case, row);
        }
    }
}

/// Replays one row of a run in which no row stopped before its last step.
fn replay(model: &dyn Denoiser, plan: &DecodePlan, case: &Value, row: usize) {
    let spec = model.spec();
    let name = case["name"].as_str().unwrap();
    let at = |field: &str, index: usize| ids(&case[field][index][row]);
    let prompt = ids(&case["prompt_ids"][row]);
    let padding = match &case["attention_mask"] {
        Value::Null => 0,
        mask => ids(&mask[row]).iter().filter(|valid| **valid == 0).count(),
    };
    let steps = plan.steps_per_block.unwrap();
    let asked = case["params"]["max_new_tokens"].as_u64().unwrap() as usize;
    let builder = Canvas::builder(spec.blank()).fixed(&prompt[padding..]);
    let canvas = spec.with_scratch(plan, builder.gap(asked).build().unwrap());
    let start = prompt.len() - padding;
    // The draws of a block are those that it begins with, then those of each of its steps.
    let initial = |slot: usize| {
        let (block, place) = ((slot - start) / 8, (slot - start) % 8);
        at("initialize_canvas_draws", block * (steps + 1))[place]
    };
    let mut canvas = canvas.noised(initial);
    let mut decoder = Decoder::new(plan, &canvas, &spec.stop_tokens).unwrap();
    let mut text = Text::new(model, padding);
    text.encode(&prompt[padding..]);
    let (mut signal, mut step) = (None, 0);
    while !decoder.is_done() {
        let (block, recorded) = (decoder.block(), &case["steps"][step]);
        let held: Vec<TokenId> = block.clone().map(|slot| canvas.token(slot)).collect();
        assert_eq!(
            held,
            ids(&recorded["current_canvas"][row]),
            "{name} step {step}"
        );
        let logits = text.logits(&held, signal.take());
        let temperature = f64::from(decoder.temperature());
        signal = model
            .self_conditioning(&(&logits / temperature).unwrap())
            .ok();
        let samples = samples(&logits, plan, &decoder, block.start);
        let drawn = at("multinomial_draws", step);
        let entropies = recorded["token_entropy"][row].as_array().unwrap();
        let candidates: Vec<Candidate> = samples
            .iter()
            .enumerate()
            .map(|(place, sample)| {
                let official = entropies[place].as_f64().unwrap() as f32;
                assert!(
                    (sample.entropy - official).abs() < GROWN_ERROR,
                    "{name} step {step}"
                );
                Candidate {
                    token: drawn[place],
                    ..candidate(block.start + place, sample)
                }
            })
            .collect();
        let most_probable: Vec<_> = samples.iter().map(|sample| sample.most_probable).collect();
        assert_eq!(
            most_probable,
            ids(&recorded["argmax_canvas"][row]),
            "{name} step {step}"
        );
        decoder.advance(&mut canvas, &candidates);
        let (index, in_block) = (step / steps, step % steps);
        if decoder.block() == block {
            let noise = at(
                "initialize_canvas_draws",
                index * (steps + 1) + 1 + in_block,
            );
            let accepted = ids(&recorded["accept_mask"][row]);
            for (place, slot) in block.clone().enumerate() {
                assert_eq!(
                    canvas.is_masked(slot),
                    accepted[place] == 0,
                    "{name} step {step}"
                );
                if canvas.is_masked(slot) {
                    canvas.gap_slot_mut(slot).unwrap().renoise(noise[place]);
                }
            }
        } else {
            assert_eq!(in_block + 1, steps, "{name} step {step}");
            let finished: Vec<TokenId> = block.map(|slot| canvas.token(slot)).collect();
            assert_eq!(finished, most_probable, "{name} step {step}");
            text.encode(&finished);
            signal = None;
        }
        step += 1;
    }
    assert_eq!(step as u64, case["nfe"].as_u64().unwrap());
    let tokens: Vec<TokenId> = canvas.tokens().collect();
    assert_eq!(tokens, ids(&case["output_ids"][row])[padding..], "{name}");
}

fn goes_on(engine: &Engine, prompt: &[TokenId], slots: usize, plan: &DecodePlan) -> Canvas {
    let builder = Canvas::builder(engine.blank()).fixed(prompt).gap(slots);
    engine.spec().with_scratch(plan, builder.build().unwrap())
}

/// A network and a decoder by themselves, and what the engine makes of them.
#[test]
fn the_engine_encodes_and_denoises_block_after_block() {
    let model = load(NAME);
    for (prefill_rows, seed) in [(256, 3), (2, 4)] {
        let config = EngineConfig {
            prefill_rows,
            ..EngineConfig::unshared()
        };
        let engine = Engine::start(load(NAME), config).unwrap();
        let mut plan = engine.spec().default_plan.clone();
        plan.steps_per_block = Some(5);
        plan.budget = Budget::EntropyBound(4.0);
        plan.early_stop = EarlyStop::Never;
        plan.sampling.seed = seed;
        let prompt: Vec<TokenId> = (0..11).map(|i| 7 + 31 * i).collect();
        let canvas = goes_on(&engine, &prompt, 20, &plan);
        assert_eq!((canvas.len(), canvas.scratch()), (11 + 24, 31..35));
        let (reports, finished) = denoise(&engine, canvas.clone(), &plan);
        assert_eq!(reports.len(), 15);

        let mut canvas = plan.noised(canvas);
        let mut told: Vec<TokenId> = canvas.tokens().collect();
        let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
        let mut text = Text::new(&*model, 0);
        text.encode(&prompt);
        let mut signal = None;
        for report in reports {
            let block = decoder.block();
            let held: Vec<TokenId> = block.clone().map(|slot| canvas.token(slot)).collect();
            let logits = text.logits(&held, signal.take());
            let temperature = f64::from(decoder.temperature());
            signal = model
                .self_conditioning(&(&logits / temperature).unwrap())
                .ok();
            let candidates: Vec<Candidate> = samples(&logits, &plan, &decoder, block.start)
                .iter()
                .zip(block.clone())
                .map(|(sample, slot)| candidate(slot, sample))
                .collect();
            decoder.advance(&mut canvas, &candidates);
            for (slot, commit) in report.committed {
                told[slot] = commit.token;
            }
            for (slot, noise) in report.noise {
                told[slot] = noise;
            }
            let tokens: Vec<TokenId> = canvas.tokens().collect();
            assert_eq!(told, tokens, "step {}", report.step);
            if decoder.block() != block {
                text.encode(&tokens[block]);
                signal = None;
            }
        }
        assert!(decoder.is_done());
        assert_eq!(finished.tokens().collect::<Vec<_>>(), told);
        assert_eq!(finished.masked(), 0);
    }
}

#[test]
fn a_stop_token_ends_the_text_after_its_block() {
    let engine = engine(NAME);
    let mut plan = engine.spec().default_plan.clone();
    plan.steps_per_block = Some(2);
    plan.sampling.logit_bias = unmask::sampling::LogitBias::new([(502, 100.0)]);
    let canvas = goes_on(&engine, &[1, 2, 3], 24, &plan);
    let (_, finished) = denoise(&engine, canvas, &plan);
    assert!((3..11).all(|slot| finished.token(slot) == 502));
    assert_eq!(finished.masked(), 16);
}

#[test]
fn the_default_plan_is_what_generation_config_json_says() {
    let official = plan();
    let at_hand = load(NAME).spec().default_plan.clone();
    assert_eq!(
        at_hand,
        DecodePlan {
            block_length: Some(8),
            ..official
        }
    );
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(NAME).join(file), directory.path().join(file)).unwrap();
    }
    let spec = |options: Value| {
        let file = directory.path().join("generation_config.json");
        std::fs::write(file, options.to_string()).unwrap();
        Checkpoint::open(directory.path()).unwrap().spec()
    };
    assert_eq!(spec(json!({})).unwrap().default_plan, at_hand);
    let chosen = spec(json!({
        "max_denoising_steps": 12, "t_min": 0.2, "t_max": 1.5, "stability_threshold": 3,
        "confidence_threshold": 0.5,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 2.0}
    }));
    let chosen = chosen.unwrap().default_plan;
    assert_eq!(chosen.steps_per_block, Some(12));
    assert_eq!(chosen.budget, Budget::EntropyBound(2.0));
    assert_eq!(chosen.sampling.temperature, 1.5);
    let schedule = TemperatureSchedule::LinearInBlock(0.2);
    assert_eq!(chosen.sampling.temperature_schedule, schedule);
    assert_eq!(chosen.revision.to_string(), "renoise_rest:3,0.5");
    for (options, named) in [
        (json!({"max_denoising_steps": 0}), "steps_per_block is 0"),
        (json!({"t_max": "hot"}), "t_max is \"hot\""),
        (
            json!({"sampler_config": {"_cls_name": "OtherConfig"}}),
            "OtherConfig",
        ),
        (
            json!({"sampler_config": {"_cls_name": 7}}),
            "sampler_config._cls_name is 7",
        ),
        (
            json!({"sampler_config": "EntropyBoundSamplerConfig"}),
            "sampler_config is \"EntropyBoundSamplerConfig\"",
        ),
    ] {
        let error = spec(options).unwrap_err().to_string();
        assert!(
            error.starts_with("generation_config.json") && error.contains(named),
            "{error}"
        );
    }
}

#[test]
fn what_the_network_cannot_do_is_refused_with_the_reason() {
    let engine = engine(NAME);
    let default = engine.spec().default_plan.clone();
    assert_eq!(engine.cache_scheme(&default).unwrap(), CacheScheme::Block);
    let presets = engine.spec().presets();
    assert_eq!(
        presets.iter().map(|p| p.name).collect::<Vec<_>>(),
        ["diffusion-gemma"]
    );
    let refused = |field: &str, value: Value| {
        let mut fields = serde_json::to_value(&default).unwrap();
        let (path, name) = field.rsplit_once('.').unwrap_or(("", field));
        match path {
            "" => fields[name] = value,
            path => fields[path][name] = value,
        }
        fields["sampling"].as_object_mut().unwrap().remove("seed");
        let plan: DecodePlan = serde_json::from_value(fields).unwrap();
        let canvas = goes_on(&engine, &[1, 2], 8, &default);
        engine.submit(canvas, &plan).unwrap_err().to_string()
    };
    for (field, value, named) in [
        ("block_length", json!(16), "blocks of 8 slots and no others"),
        ("block_origin", json!("canvas"), "block_origin"),
        ("left_context", json!(true), "only goes on from a text"),
        ("revision", json!("none"), "renoise_rest"),
        ("revision", json!("renoise"), "renoise"),
        (
            "budget",
            json!("even"),
            "allowed: threshold, factor, entropy_bound",
        ),
        (
            "steps_per_block",
            json!(null),
            "give steps or steps_per_block",
        ),
        ("early_stop", json!("at_once"), "after_block"),
        ("block_entry", json!("first_slot"), "block_entry"),
        (
            "cache",
            json!({"policy": "none", "refresh": null}),
            "allowed: auto, prefix",
        ),
        (
            "cache",
            json!({"policy": "dual", "refresh": null}),
            "allowed: auto, prefix",
        ),
        (
            "cache",
            json!({"policy": "prefix", "refresh": 2}),
            "never grows old",
        ),
        ("sampling.guidance_scale", json!(1.0), "guidance_scale"),
    ] {
        let error = refused(field, value);
        assert!(error.contains(named), "{field}: {error}");
    }
    let builder = || Canvas::builder(engine.blank()).fixed(&[1, 2]).gap(4);
    for canvas in [builder().fixed(&[3]).build(), builder().gap(4).build()] {
        let error = engine.submit(canvas.unwrap(), &default).unwrap_err();
        assert!(
            matches!(error, SubmitError::OnlyGoesOn { gap: 0, .. }),
            "{error}"
        );
    }
    for slots in [4, 12] {
        let canvas = Canvas::builder(engine.blank()).fixed(&[1, 2]).gap(slots);
        let error = engine
            .submit(canvas.build().unwrap(), &default)
            .unwrap_err();
        assert!(error.to_string().contains("a multiple of 8"), "{error}");
    }
    let config = EngineConfig {
        kv_memory: 0,
        ..EngineConfig::unshared()
    };
    let without_memory = Engine::start(load(NAME), config).unwrap();
    let canvas = goes_on(&without_memory, &[1], 8, &default);
    let error = without_memory.submit(canvas, &default).unwrap_err();
    assert!(
        matches!(error, SubmitError::CannotEncode { limit: 0, .. }),
        "{error}"
    );
    // Of other models the preset is not to be had.
    let llada = load("llada");
    assert!(llada.spec().check_plan(&plan()).is_err());
    let uniform = load("sedd_uniform");
    let error = uniform.spec().check_plan(&plan()).unwrap_err().to_string();
    assert!(error.contains("encoded blocks"), "{error}");
}
