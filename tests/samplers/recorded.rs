//! Runs of official samplers whose random numbers were recorded: MDLM's ancestral sampling, SEDD's predictors and
//! BD3-LM's samplers.
//!
//! The official code draws a slot's next token, the mask among them, as the arg-max of p(v) / E(v) with E(v) =
//! 10⁻¹⁰ − ln(u(v) + 10⁻¹⁰). Here chance decides first whether a slot is unmasked, by one uniform number, and
//! then draws its token. With A = 1 / max p(v) / E(v) over the tokens, p normalised over them, and B = E(mask)
//! that number is A / (A + B): it is uniform, and below the probability c of being unmasked just if the best
//! token's c p(v) / E(v) is above the mask's (1 − c) / B.

use std::ops::Range;

use candle_core::{Device, Tensor};
use serde_json::Value;
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Candidate, DecodePlan, Decoder, Revision, preset};
use unmask::engine::Engine;
use unmask::models::{Denoiser, RaggedBatch, Segment};
use unmask::sampling::philox::{Draws, Stream};
use unmask::sampling::score::uniform_reverse;

use crate::support::{denoise, engine, golden, ids, json, load, trace};

/// A run of a golden's generate.json.
struct Recording {
    case: Value,
    /// `[calls, slots, vocab]`
    uniforms: Vec<Vec<Vec<f32>>>,
}

impl Recording {
    fn open(family: &str, name: &str, uniforms: &str) -> Self {
        let cases = json(&golden(family).join("generate.json"));
        let cases = cases["cases"].as_array().or(cases.as_array()).unwrap();
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let file = golden(family).join("sampler.safetensors");
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        Self {
            case: case.clone(),
            uniforms: tensors[&format!("{uniforms}.uniforms")].to_vec3().unwrap(),
        }
    }

    fn number(&self, name: &str) -> usize {
        self.case["params"][name].as_u64().unwrap() as usize
    }

    fn canvases(&self) -> Vec<Vec<TokenId>> {
        let canvases = self.case["canvas_per_step"].as_array().unwrap();
        canvases.iter().map(ids).collect()
    }
}

/// What a recorded draw makes of a slot's weights over the tokens.
struct Replayed {
    token: TokenId,
    /// The sum of the weights.
    total: f64,
    /// The number that decides whether the slot is unmasked.
    uniform: f32,
}

fn replay(weights: &[f64], uniforms: &[f32], mask: TokenId) -> Replayed {
    let exponential = |token: usize| 1e-10 - (f64::from(uniforms[token]) + 1e-10).ln();
    let tokens = || (0..weights.len()).filter(|token| *token != mask as usize);
    let total: f64 = tokens().map(|token| weights[token]).sum();
    let (token, best) = tokens()
        .map(|token| (token, weights[token] / total / exponential(token)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    let (a, b) = (1.0 / best, exponential(mask as usize));
    Replayed {
        token: token as TokenId,
        total,
        uniform: (a / (a + b)) as f32,
    }
}

/// The network's output `[slots, vocab]` for a canvas.
fn output(model: &dyn Denoiser, tokens: &[TokenId], sigma: Option<f32>) -> Vec<Vec<f32>> {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let segment = Segment {
        allowed: model.spec().attention.allowed(tokens.len()),
        sigma,
        ..Segment::default()
    };
    let mut batch = RaggedBatch::new();
    batch.push_segment(tokens, &positions, segment);
    let hidden = model.hidden(&batch, None).unwrap();
    let output: Tensor = model.head_rows(&hidden, &batch.row_inputs()).unwrap();
    output.to_vec2().unwrap()
}

/// e^x of each entry, up to a factor.
fn weights(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().map(|x| f64::from(x - max).exp()).collect()
}

fn most_probable(row: &[f32], mask: TokenId) -> TokenId {
    let tokens = (0..row.len()).filter(|token| *token != mask as usize);
    tokens.max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as TokenId
}

fn candidate(slot: usize, token: TokenId) -> Candidate {
    Candidate {
        slot,
        token,
        probability: 0.5,
        most_probable: token,
        best: 0.5,
        second: 0.0,
        entropy: 0.0,
        uniform: 0.0,
        unmasking: None,
    }
}

fn tokens(canvas: &Canvas) -> Vec<TokenId> {
    canvas.tokens().collect()
}

/// Both predictors unmask with the same probability: their move chances are t and (1 − 10⁻³) t.
#[test]
fn ancestral_sampling_equals_mdlms_and_evaluates_the_network_only_where_a_slot_changes() {
    let model = load("mdlm");
    let mask = model.spec().mask_token().unwrap();
    for name in ["ddpm_cache", "ddpm"] {
        let run = Recording::open("mdlm", name, name);
        let (steps, recorded) = (run.number("num_steps"), run.canvases());
        let length = recorded[0].len();
        let before = |step: usize| match step {
            0 => vec![mask; length],
            step => recorded[step - 1].clone(),
        };
        let replayed: Vec<Vec<Replayed>> = (0..steps)
            .map(|step| {
                let rows = output(&*model, &before(step), None);
                let rows = rows.iter().zip(&run.uniforms[step]);
                rows.map(|(row, uniforms)| replay(&weights(row), uniforms, mask))
                    .collect()
            })
            .collect();
        let draws = replayed
            .iter()
            .map(|slots| slots.iter().map(|r| r.uniform).collect());
        let mut plan = preset::by_name("mdlm-ancestral").unwrap().plan().clone();
        plan.steps = Some(steps + 1);

        let mut canvas = Canvas::builder(mask).gap(length).build().unwrap();
        let mut decoder = Decoder::replay(&plan, &canvas, &[], draws.collect()).unwrap();
        let (mut nfe, mut canvases) = (0, vec![tokens(&canvas); decoder.steps()]);
        while !decoder.is_done() {
            let step = decoder.steps();
            let last = output(&*model, &tokens(&canvas), None);
            assert_eq!(decoder.temperature(), if step == steps { 0.0 } else { 1.0 });
            let candidates: Vec<Candidate> = decoder
                .scored_slots(&canvas)
                .into_iter()
                .map(|slot| match replayed.get(step) {
                    Some(slots) => candidate(slot, slots[slot].token),
                    None => candidate(slot, most_probable(&last[slot], mask)),
                })
                .collect();
            decoder.advance(&mut canvas, &candidates);
            nfe += 1;
            canvases.resize(decoder.steps(), tokens(&canvas));
        }
        assert_eq!(canvases[..steps], recorded, "{name}");
        assert_eq!(tokens(&canvas), ids(&run.case["output_ids"]), "{name}");
        let changed = (0..steps).filter(|step| before(*step) != recorded[*step]);
        let all_at_once = usize::from(recorded[steps - 1].contains(&mask));
        assert_eq!(nfe, changed.count() + all_at_once, "{name}");
        assert!(nfe <= run.case["nfe"].as_u64().unwrap() as usize, "{name}");
    }
}

#[test]
fn both_predictors_of_the_absorbing_process_equal_sedds() {
    for name in ["analytic", "euler"] {
        the_predictor_of_the_absorbing_process_equals_sedds(name);
    }
}

fn the_predictor_of_the_absorbing_process_equals_sedds(name: &str) {
    let model = load("sedd_absorb");
    let mask = model.spec().mask_token().unwrap();
    let run = Recording::open("sedd_absorb", name, name);
    let steps = run.number("steps");
    let mut plan = preset::by_name(&format!("sedd-{name}"))
        .unwrap()
        .plan()
        .clone();
    plan.steps = Some(steps + 1);

    let start = ids(&run.case["initial_canvas"]);
    let mut canvas = Canvas::from_ids(&start, mask).unwrap();
    let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
    for (step, recorded) in run.canvases().iter().enumerate() {
        // The official steps go on when nothing is left to do.
        if decoder.is_done() {
            assert_eq!(tokens(&canvas), *recorded, "step {step}");
            continue;
        }
        let (t, s) = decoder.times().unwrap();
        let reverse = model.spec().score_step(plan.budget, t, s).unwrap();
        let rows = output(&*model, &tokens(&canvas), model.spec().sigma(t));
        let candidates: Vec<Candidate> = decoder
            .scored_slots(&canvas)
            .into_iter()
            .map(|slot| {
                let scores: Vec<f64> = rows[slot].iter().map(|x| f64::from(*x).exp()).collect();
                let replayed = replay(&scores, &run.uniforms[step][slot], mask);
                Candidate {
                    uniform: replayed.uniform,
                    unmasking: Some(reverse.unmasking(replayed.total as f32)),
                    ..candidate(slot, replayed.token)
                }
            })
            .collect();
        decoder.advance(&mut canvas, &candidates);
        assert_eq!(tokens(&canvas), *recorded, "step {step}");
    }
    assert!(decoder.is_done());
    assert_eq!(tokens(&canvas), ids(&run.case["output_ids"]));
}

/// Of the uniform process every slot is drawn in every step, from the distribution that `uniform_reverse` gives.
#[test]
fn both_predictors_of_the_uniform_process_equal_sedds() {
    let model = load("sedd_uniform");
    let spec = model.spec();
    for name in ["analytic", "euler"] {
        let run = Recording::open("sedd_uniform", name, name);
        let mut plan = spec.plan(&preset::by_name(&format!("sedd-{name}")).unwrap());
        assert_eq!(plan.revision, Revision::Renoise);
        plan.steps = Some(run.number("steps") + 1);
        let start = ids(&run.case["initial_canvas"]);
        let canvas = Canvas::builder(spec.blank()).gap(start.len());
        let mut canvas = canvas.build().unwrap().noised(|slot| start[slot]);
        let mut decoder = Decoder::new(&plan, &canvas, &[]).unwrap();
        for (step, recorded) in run.canvases().iter().enumerate() {
            let held = tokens(&canvas);
            let (t, s) = decoder.times().unwrap();
            let reverse = spec.score_step(plan.budget, t, s).unwrap();
            let rows = output(&*model, &held, spec.sigma(t));
            let shape = (held.len(), spec.vocab_size);
            let rows = Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap();
            let reversed = uniform_reverse(&rows, &held, &vec![reverse; held.len()]).unwrap();
            let reversed: Vec<Vec<f32>> = reversed.to_vec2().unwrap();
            let drawn = reversed
                .iter()
                .zip(&run.uniforms[step])
                .map(|(row, uniforms)| {
                    let race = |token: usize| {
                        let exponential = 1e-10 - (f64::from(uniforms[token]) + 1e-10).ln();
                        f64::from(row[token]) - exponential.ln()
                    };
                    (0..row.len()).max_by(|a, b| race(*a).total_cmp(&race(*b)))
                });
            let candidates: Vec<Candidate> = drawn
                .enumerate()
                .map(|(slot, token)| candidate(slot, token.unwrap() as TokenId))
                .collect();
            assert_eq!(decoder.scored_slots(&canvas).len(), candidates.len());
            decoder.advance(&mut canvas, &candidates);
            assert_eq!(tokens(&canvas), *recorded, "{name} {step}");
        }
        assert!(decoder.is_done() && canvas.masked() == 0);
        assert_eq!(tokens(&canvas), ids(&run.case["output_ids"]), "{name}");
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

/// The network's output `[slots, vocab]` for a canvas whose blocks see the last slots of the model's context.
fn output_within_window(model: &dyn Denoiser, tokens: &[TokenId]) -> Vec<Vec<f32>> {
    let spec = model.spec();
    let window = spec.sliding_window.unwrap().slots;
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let segment = Segment {
        allowed: spec
            .attention
            .allowed_within(Some(window), 0..tokens.len(), 0),
        ..Segment::default()
    };
    let mut batch = RaggedBatch::new();
    batch.push_segment(tokens, &positions, segment);
    let hidden = model.hidden(&batch, None).unwrap();
    model.head(&hidden).unwrap().to_vec2().unwrap()
}

/// A run of BD3-LM's sampler: a canvas that begins with its first token, and what each of its steps left of
/// the context's last slots.
struct Bd3lmRun {
    model: Box<dyn Denoiser>,
    mask: TokenId,
    run: Recording,
    plan: DecodePlan,
    canvas: Canvas,
}

impl Bd3lmRun {
    fn open(name: &str, uniforms: &str, preset: &str) -> Self {
        let model = load("bd3lm");
        let mask = model.spec().mask_token().unwrap();
        let run = Recording::open("bd3lm", name, uniforms);
        let plan = model.spec().plan(&preset::by_name(preset).unwrap());
        model.spec().check_plan(&plan).unwrap();
        let block = run.number("block_size");
        assert_eq!(plan.block_length, Some(block));
        assert_eq!(
            model.spec().sliding_window.unwrap().slots,
            run.number("context_size")
        );
        let length = block * run.number("num_strides");
        let bos = [run.number("bos_token_id") as TokenId];
        let canvas = Canvas::builder(mask).fixed(&bos).gap(length - 1);
        Self {
            mask,
            run,
            plan,
            canvas: canvas.build().unwrap(),
            model,
        }
    }

    /// What the slots of `block` become at the recorded `step`, by slot.
    fn replayed(&self, step: usize, held: &[TokenId], block: &Range<usize>) -> Vec<Replayed> {
        let rows = output_within_window(&*self.model, &held[..block.end]);
        let rows = rows[block.clone()].iter().zip(&self.run.uniforms[step]);
        rows.map(|(row, uniforms)| replay(&weights(row), uniforms, self.mask))
            .collect()
    }

    fn assert_recorded(&self, canvas: &Canvas, block: &Range<usize>, recorded: &[TokenId]) {
        let start = block.end.saturating_sub(self.run.number("context_size"));
        assert_eq!(tokens(canvas)[start..block.end], *recorded);
    }
}

/// First hitting unmasks one slot of the block at a time, each masked one as likely as the others. The official
/// time is not used, since the network embeds σ = 0.
#[test]
fn one_random_slot_a_step_equals_bd3lms_first_hitting_within_and_beyond_the_context() {
    for (name, uniforms) in [
        ("first_hitting_kv", "first_hitting_kv"),
        ("first_hitting_nocache", "first_hitting_kv"),
        ("first_hitting_kv_sliding", "first_hitting_kv_sliding"),
    ] {
        let replaying = Bd3lmRun::open(name, uniforms, "bd3lm-first-hitting");
        let mut canvas = replaying.canvas.clone();
        let mut decoder = Decoder::new(&replaying.plan, &canvas, &[]).unwrap();
        let indices = replaying.run.case["index_draws"].as_array().unwrap();
        for (step, recorded) in replaying.run.canvases().iter().enumerate() {
            let block = decoder.block();
            let replayed = replaying.replayed(step, &tokens(&canvas), &block);
            let masked = decoder.scored_slots(&canvas);
            let chosen = masked[indices[step].as_u64().unwrap() as usize];
            let candidates: Vec<Candidate> = masked
                .into_iter()
                .map(|slot| Candidate {
                    uniform: if slot == chosen { 0.9 } else { 0.1 },
                    ..candidate(slot, replayed[slot - block.start].token)
                })
                .collect();
            decoder.advance(&mut canvas, &candidates);
            replaying.assert_recorded(&canvas, &block, recorded);
        }
        assert!(decoder.is_done());
        let output = ids(&replaying.run.case["output_ids"]);
        assert_eq!(tokens(&canvas), output, "{name}");
    }
}

#[test]
fn ancestral_sampling_in_blocks_equals_bd3lms_and_evaluates_the_network_only_where_a_slot_changes()
{
    let mut replaying = Bd3lmRun::open("ddpm_kv", "first_hitting_kv", "bd3lm-ddpm");
    replaying.plan.steps_per_block = Some(replaying.run.number("num_steps"));
    let recorded = replaying.run.canvases();
    let block_length = replaying.run.number("block_size");
    let length = replaying.canvas.len();
    // The official steps end with the last masked slot of a block; ours are counted alike.
    let (mut before, mut draws, mut drawn) = (tokens(&replaying.canvas), Vec::new(), Vec::new());
    for (step, after) in recorded.iter().enumerate() {
        let block = after.len() - block_length..after.len();
        let replayed = replaying.replayed(step, &before, &block);
        let mut uniforms = vec![1.0; length];
        let mut row = vec![replaying.mask; length];
        for (slot, replayed) in block.clone().zip(&replayed) {
            (uniforms[slot], row[slot]) = (replayed.uniform, replayed.token);
        }
        draws.push(uniforms);
        drawn.push(row);
        before[..after.len()].copy_from_slice(after);
    }
    let mut canvas = replaying.canvas.clone();
    let mut decoder = Decoder::replay(&replaying.plan, &canvas, &[], draws).unwrap();
    let mut nfe = 0;
    while !decoder.is_done() {
        let (step, block) = (decoder.steps(), decoder.block());
        let scored = decoder.scored_slots(&canvas);
        let candidates: Vec<Candidate> = scored
            .into_iter()
            .map(|slot| candidate(slot, drawn[step][slot]))
            .collect();
        decoder.advance(&mut canvas, &candidates);
        replaying.assert_recorded(&canvas, &block, &recorded[step]);
        nfe += 1;
    }
    assert_eq!(decoder.steps(), recorded.len());
    assert_eq!(tokens(&canvas), ids(&replaying.run.case["output_ids"]));
    let sampling_steps = replaying.run.case["sampling_steps"].as_u64().unwrap();
    assert_eq!(nfe, sampling_steps);
}
