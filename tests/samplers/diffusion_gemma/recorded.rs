//! What the official sampler accepts, its temperatures, when it stops, and whole runs whose random draws were recorded.

use std::collections::HashMap;

use candle_core::{DType, Device, IndexOp, Tensor};
use serde_json::Value;
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Budget, Candidate, DecodePlan, Decoder, Revision, TemperatureSchedule};
use unmask::models::{Denoiser, ModelSpec};

use super::{NAME, Text, candidate, plan, samples};
use crate::support::{golden, ids, integers, json as read, load};

/// Largest difference from the entropies of a run, in nats. An error of 10⁻⁵ in the logits of a block's first step,
/// which is that of f32, has grown to 10⁻² by its third, as each step is told what the one before it predicted.
const GROWN_ERROR: f32 = 0.1;

fn goldens() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(NAME).join("sampler.safetensors"), &Device::Cpu).unwrap()
}

fn gap(vocab: usize, slots: usize) -> Canvas {
    let blank = unmask::canvas::Blank::Noise { vocab };
    Canvas::builder(blank).gap(slots).build().unwrap()
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
