//! Runs of official samplers whose random numbers were recorded: MDLM's ancestral sampling, SEDD's predictors and
//! BD3-LM's samplers.
//!
//! The official code draws a slot's next token, the mask among them, as the arg-max of p(v) / E(v) with E(v) =
//! 10⁻¹⁰ − ln(u(v) + 10⁻¹⁰). Here chance decides first whether a slot is unmasked, by one uniform number, and
//! then draws its token. With A = 1 / max p(v) / E(v) over the tokens, p normalised over them, and B = E(mask)
//! that number is A / (A + B): it is uniform, and below the probability c of being unmasked just if the best
//! token's c p(v) / E(v) is above the mask's (1 − c) / B.

use std::fmt::Debug;
use std::ops::Range;

use candle_core::Tensor;

use super::GoldenError;
use super::folder::Golden;
use super::forward;
use super::plans;
use super::runs::{Case, mask_token};
use crate::canvas::{Canvas, TokenId};
use crate::decode::{Candidate, DecodePlan, Decoder, preset};
use crate::models::{Denoiser, ModelError, RaggedBatch, Segment};
use crate::sampling::score::uniform_reverse;

/// A run of a golden whose random numbers were recorded.
pub struct Recording {
    case: Case,
    /// `[calls, slots, vocab]`
    uniforms: Vec<Vec<Vec<f32>>>,
    canvases: Vec<Vec<TokenId>>,
    output: Vec<TokenId>,
}

impl Recording {
    /// The run called `name`, with the numbers that sampler.safetensors has under `uniforms`.
    ///
    /// # Errors
    /// If a file lacks them.
    pub fn open(golden: &Golden, name: &str, uniforms: &str) -> Result<Self, GoldenError> {
        let tensors = golden.tensors("sampler.safetensors")?;
        let uniforms = super::folder::tensor(&tensors, &format!("{uniforms}.uniforms"))?;
        let case = Case::open(golden, name)?;
        Ok(Self {
            uniforms: uniforms.to_vec3()?,
            canvases: case.canvases()?,
            output: case.ids("output_ids")?,
            case,
        })
    }

    /// The canvas after each step.
    pub fn canvases(&self) -> &[Vec<TokenId>] {
        &self.canvases
    }

    fn number(&self, name: &str) -> Result<usize, GoldenError> {
        self.case.needed(name, self.case.number(name))
    }

    fn count(&self, field: &str) -> Result<usize, GoldenError> {
        let count = self.case.field(field).as_u64();
        Ok(self.case.needed(field, count)? as usize)
    }

    /// The numbers of a step, a row of each of `slots` slots with one for each of `vocab` tokens.
    fn uniforms(
        &self,
        step: usize,
        slots: usize,
        vocab: usize,
    ) -> Result<&[Vec<f32>], GoldenError> {
        let uniforms = self.uniforms.get(step).filter(|uniforms| {
            uniforms.len() == slots && uniforms.iter().all(|row| row.len() == vocab)
        });
        let uniforms = self.case.needed("uniforms of every step", uniforms)?;
        Ok(uniforms)
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

fn exponential(uniform: f32) -> f64 {
    1e-10 - (f64::from(uniform) + 1e-10).ln()
}

fn replay(weights: &[f64], uniforms: &[f32], mask: TokenId) -> Replayed {
    let tokens = || (0..weights.len()).filter(|token| *token != mask as usize);
    let total: f64 = tokens().map(|token| weights[token]).sum();
    let race = tokens().map(|token| (token, weights[token] / total / exponential(uniforms[token])));
    let (token, best) = race
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((mask as usize, 0.0));
    let (a, b) = (1.0 / best, exponential(uniforms[mask as usize]));
    Replayed {
        token: token as TokenId,
        total,
        uniform: (a / (a + b)) as f32,
    }
}

/// The network's output `[slots, vocab]` for a canvas at noise level `sigma`.
///
/// # Errors
/// If the network cannot be run.
pub fn output(
    model: &dyn Denoiser,
    tokens: &[TokenId],
    sigma: Option<f32>,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let segment = Segment {
        allowed: model.spec().attention.allowed(tokens.len()),
        sigma,
        ..Segment::default()
    };
    output_of(model, tokens, segment)
}

/// As [`output`], for a canvas whose blocks see the last slots of the model's context.
fn output_within_window(
    model: &dyn Denoiser,
    tokens: &[TokenId],
) -> Result<Vec<Vec<f32>>, ModelError> {
    let spec = model.spec();
    let window = spec.sliding_window.map(|window| window.slots);
    let slots = 0..tokens.len();
    let segment = Segment {
        allowed: spec.attention.allowed_within(window, slots, 0),
        ..Segment::default()
    };
    output_of(model, tokens, segment)
}

fn output_of(
    model: &dyn Denoiser,
    tokens: &[TokenId],
    segment: Segment,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut batch = RaggedBatch::new();
    batch.push_segment(tokens, &positions, segment);
    Ok(forward::outputs(model, &batch, None)?.to_vec2()?)
}

/// e^x of each entry, up to a factor.
fn weights(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().map(|x| f64::from(x - max).exp()).collect()
}

fn most_probable(row: &[f32], mask: TokenId) -> TokenId {
    let tokens = (0..row.len()).filter(|token| *token != mask as usize);
    let best = tokens.max_by(|a, b| row[*a].total_cmp(&row[*b]));
    best.map_or(mask, |token| token as TokenId)
}

/// A candidate of which no policy reads more than its token, unless it is changed.
pub fn candidate(slot: usize, token: TokenId) -> Candidate {
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

fn same<T: PartialEq + Debug + ?Sized>(
    what: &str,
    got: &T,
    expected: &T,
) -> Result<(), GoldenError> {
    match got == expected {
        true => Ok(()),
        false => Err(GoldenError::Differs(format!(
            "{what}: {got:?} instead of {expected:?}"
        ))),
    }
}

fn times(decoder: &Decoder) -> Result<(f32, f32), GoldenError> {
    let times = decoder.times();
    times.ok_or_else(|| GoldenError::Differs("the plan follows no noise schedule".into()))
}

/// MDLM's ancestral sampling. Both of its predictors unmask with the same probability: their move chances are t and
/// (1 − 10⁻³) t. The network is evaluated only where a slot changes, and once for what is left at the end.
///
/// # Errors
/// If a canvas, the temperature of a step or the number of evaluations is another, or the network cannot be run.
pub fn ancestral(model: &dyn Denoiser, run: &Recording) -> Result<(), GoldenError> {
    let spec = model.spec();
    let mask = mask_token(spec)?;
    let (steps, recorded) = (run.number("num_steps")?, run.canvases());
    same("recorded steps", &recorded.len(), &steps)?;
    let mut plan = preset::by_name("mdlm-ancestral")?.plan().clone();
    plan.steps = Some(steps + 1);
    let length = run.output.len();
    let mut canvas = Canvas::builder(mask).gap(length).build()?;
    // Of a network that is told it, the noise level at a step, or where the rest is drawn.
    let sigma = |step: usize| {
        let last = plan.budget.last_time()?;
        let time = 1.0 - step.min(steps) as f32 / steps as f32 * (1.0 - last);
        spec.sigma(time).filter(|_| spec.noise_conditioned)
    };
    let before = |step: usize| match step {
        0 => vec![mask; length],
        step => recorded[step - 1].clone(),
    };
    let mut replayed: Vec<Vec<Replayed>> = Vec::new();
    for step in 0..steps {
        let rows = output(model, &before(step), sigma(step))?;
        let uniforms = run.uniforms(step, length, spec.vocab_size)?;
        let rows = rows.iter().zip(uniforms);
        replayed.push(
            rows.map(|(row, uniforms)| replay(&weights(row), uniforms, mask))
                .collect(),
        );
    }
    let draws = replayed
        .iter()
        .map(|slots| slots.iter().map(|r| r.uniform).collect());
    let mut decoder = Decoder::replay(&plan, &canvas, &[], draws.collect())?;
    let (mut nfe, mut canvases) = (0, vec![tokens(&canvas); decoder.steps()]);
    while !decoder.is_done() {
        let step = decoder.steps();
        let last = output(model, &tokens(&canvas), sigma(step))?;
        let temperature = if step == steps { 0.0 } else { 1.0 };
        same("the temperature", &decoder.temperature(), &temperature)?;
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
    same(
        "steps that were followed",
        &canvases.len().min(steps),
        &steps,
    )?;
    for (step, (got, recorded)) in canvases.iter().zip(recorded).enumerate() {
        same(
            &format!("the canvas after step {}", step + 1),
            got,
            recorded,
        )?;
    }
    same("the output", &tokens(&canvas), &run.output)?;
    let changed = (0..steps).filter(|step| before(*step) != recorded[*step]);
    let all_at_once = usize::from(before(steps).contains(&mask));
    same("evaluations", &nfe, &(changed.count() + all_at_once))?;
    match nfe <= run.count("nfe")? {
        true => Ok(()),
        false => Err(GoldenError::Differs(format!(
            "{nfe} evaluations, more than the official ones"
        ))),
    }
}

/// A predictor of SEDD's absorbing process, `analytic` or `euler`.
///
/// # Errors
/// If a canvas is another, or the network cannot be run.
pub fn absorbing_predictor(
    model: &dyn Denoiser,
    run: &Recording,
    name: &str,
) -> Result<(), GoldenError> {
    let spec = model.spec();
    let mask = mask_token(spec)?;
    let steps = run.number("steps")?;
    let mut plan = preset::by_name(&format!("sedd-{name}"))?.plan().clone();
    plan.steps = Some(steps + 1);

    let start = run.case.ids("initial_canvas")?;
    let mut canvas = Canvas::from_ids(&start, mask)?;
    let mut decoder = Decoder::new(&plan, &canvas, &[])?;
    for (step, recorded) in run.canvases().iter().enumerate() {
        let what = format!("the canvas after step {}", step + 1);
        // The official steps go on when nothing is left to do.
        if decoder.is_done() {
            same(&what, &tokens(&canvas), recorded)?;
            continue;
        }
        let (t, s) = times(&decoder)?;
        let reverse = spec.score_step(plan.budget, t, s);
        let reverse = run.case.needed("a noise schedule", reverse)?;
        let rows = output(model, &tokens(&canvas), spec.sigma(t))?;
        let uniforms = run.uniforms(step, start.len(), spec.vocab_size)?;
        let candidates: Vec<Candidate> = decoder
            .scored_slots(&canvas)
            .into_iter()
            .map(|slot| {
                let scores: Vec<f64> = rows[slot].iter().map(|x| f64::from(*x).exp()).collect();
                let replayed = replay(&scores, &uniforms[slot], mask);
                Candidate {
                    uniform: replayed.uniform,
                    unmasking: Some(reverse.unmasking(replayed.total as f32)),
                    ..candidate(slot, replayed.token)
                }
            })
            .collect();
        decoder.advance(&mut canvas, &candidates);
        same(&what, &tokens(&canvas), recorded)?;
    }
    same("whether the plan is done", &decoder.is_done(), &true)?;
    same("the output", &tokens(&canvas), &run.output)
}

/// A predictor of SEDD's uniform process, `analytic` or `euler`: every slot is drawn in every step, from the
/// distribution that `uniform_reverse` gives on the model's device.
///
/// # Errors
/// If a canvas is another, or the network cannot be run.
pub fn uniform_predictor(
    model: &dyn Denoiser,
    run: &Recording,
    name: &str,
) -> Result<(), GoldenError> {
    let spec = model.spec();
    let mut plan = plans::preset(spec, &format!("sedd-{name}"))?;
    plan.steps = Some(run.number("steps")? + 1);
    let start = run.case.ids("initial_canvas")?;
    let canvas = Canvas::builder(spec.blank()).gap(start.len());
    let mut canvas = canvas.build()?.noised(|slot| start[slot]);
    let mut decoder = Decoder::new(&plan, &canvas, &[])?;
    for (step, recorded) in run.canvases().iter().enumerate() {
        let held = tokens(&canvas);
        let (t, s) = times(&decoder)?;
        let reverse = spec.score_step(plan.budget, t, s);
        let reverse = run.case.needed("a noise schedule", reverse)?;
        let rows = output(model, &held, spec.sigma(t))?;
        let shape = (held.len(), spec.vocab_size);
        let rows = Tensor::from_vec(rows.concat(), shape, model.device())?;
        let reversed = uniform_reverse(&rows, &held, &vec![reverse; held.len()])?;
        let reversed: Vec<Vec<f32>> = reversed.to_vec2()?;
        let uniforms = run.uniforms(step, held.len(), spec.vocab_size)?;
        let drawn = reversed.iter().zip(uniforms).map(|(row, uniforms)| {
            let race = |token: usize| f64::from(row[token]) - exponential(uniforms[token]).ln();
            let tokens = 0..row.len();
            tokens.max_by(|a, b| race(*a).total_cmp(&race(*b)))
        });
        let candidates: Vec<Candidate> = drawn
            .enumerate()
            .map(|(slot, token)| candidate(slot, token.unwrap_or_default() as TokenId))
            .collect();
        same(
            "scored slots",
            &decoder.scored_slots(&canvas).len(),
            &candidates.len(),
        )?;
        decoder.advance(&mut canvas, &candidates);
        let what = format!("the canvas after step {}", step + 1);
        same(&what, &tokens(&canvas), recorded)?;
    }
    same("whether the plan is done", &decoder.is_done(), &true)?;
    same("masked slots", &canvas.masked(), &0)?;
    same("the output", &tokens(&canvas), &run.output)
}

/// A run of BD3-LM's sampler: a canvas that begins with its first token, and what each of its steps left of
/// the context's last slots.
pub struct BlockReplay<'a> {
    model: &'a dyn Denoiser,
    mask: TokenId,
    run: Recording,
    plan: DecodePlan,
    canvas: Canvas,
}

impl<'a> BlockReplay<'a> {
    /// The run `name`, with the numbers that were recorded as `uniforms`, by a preset.
    ///
    /// # Errors
    /// If the run has another block length or context than the model.
    pub fn open(
        model: &'a dyn Denoiser,
        golden: &Golden,
        [name, uniforms, preset]: [&str; 3],
    ) -> Result<Self, GoldenError> {
        let spec = model.spec();
        let mask = mask_token(spec)?;
        let run = Recording::open(golden, name, uniforms)?;
        let plan = plans::preset(spec, preset)?;
        spec.check_plan(&plan)?;
        let block = run.number("block_size")?;
        same("slots of a block", &plan.block_length, &Some(block))?;
        let window = spec.sliding_window.map(|window| window.slots);
        same(
            "slots of the context",
            &window,
            &Some(run.number("context_size")?),
        )?;
        let length = block * run.number("num_strides")?;
        let bos = [run.number("bos_token_id")? as TokenId];
        let canvas = Canvas::builder(mask).fixed(&bos).gap(length - 1);
        Ok(Self {
            mask,
            run,
            plan,
            canvas: canvas.build()?,
            model,
        })
    }

    /// What the slots of `block` become at the recorded `step`, by slot.
    fn replayed(
        &self,
        step: usize,
        held: &[TokenId],
        block: &Range<usize>,
    ) -> Result<Vec<Replayed>, GoldenError> {
        let rows = output_within_window(self.model, &held[..block.end])?;
        let vocab = self.model.spec().vocab_size;
        let uniforms = self.run.uniforms(step, block.len(), vocab)?;
        let rows = rows[block.clone()].iter().zip(uniforms);
        Ok(rows
            .map(|(row, uniforms)| replay(&weights(row), uniforms, self.mask))
            .collect())
    }

    fn check_recorded(
        &self,
        canvas: &Canvas,
        block: &Range<usize>,
        step: usize,
    ) -> Result<(), GoldenError> {
        let start = block.end.saturating_sub(self.run.number("context_size")?);
        let what = format!("the context after step {}", step + 1);
        same(
            &what,
            &tokens(canvas)[start..block.end],
            &self.run.canvases[step][..],
        )
    }

    /// First hitting unmasks one slot of the block at a time, each masked one as likely as the others. The official
    /// time is not used, since the network embeds σ = 0.
    ///
    /// # Errors
    /// If a canvas is another, or the network cannot be run.
    pub fn first_hitting(&self) -> Result<(), GoldenError> {
        let mut canvas = self.canvas.clone();
        let mut decoder = Decoder::new(&self.plan, &canvas, &[])?;
        for step in 0..self.run.canvases.len() {
            let block = decoder.block();
            let replayed = self.replayed(step, &tokens(&canvas), &block)?;
            let masked = decoder.scored_slots(&canvas);
            let drawn = self.run.case.field("index_draws")[step].as_u64();
            let chosen = drawn.and_then(|index| masked.get(index as usize).copied());
            let chosen = self.run.case.needed("index_draws of every step", chosen)?;
            let candidates: Vec<Candidate> = masked
                .into_iter()
                .map(|slot| Candidate {
                    uniform: if slot == chosen { 0.9 } else { 0.1 },
                    ..candidate(slot, replayed[slot - block.start].token)
                })
                .collect();
            decoder.advance(&mut canvas, &candidates);
            self.check_recorded(&canvas, &block, step)?;
        }
        same("whether the plan is done", &decoder.is_done(), &true)?;
        same("the output", &tokens(&canvas), &self.run.output)
    }

    /// Ancestral sampling in blocks, which evaluates the network only where a slot changes.
    ///
    /// # Errors
    /// If a canvas or the number of evaluations is another, or the network cannot be run.
    pub fn ancestral(mut self) -> Result<(), GoldenError> {
        self.plan.steps_per_block = Some(self.run.number("num_steps")?);
        let block_length = self.run.number("block_size")?;
        let length = self.canvas.len();
        // The official steps end with the last masked slot of a block; ours are counted alike.
        let (mut before, mut draws, mut drawn) = (tokens(&self.canvas), Vec::new(), Vec::new());
        for (step, after) in self.run.canvases.iter().enumerate() {
            let end = Some(after.len()).filter(|end| (block_length..=length).contains(end));
            let end = self.run.case.needed("whole blocks", end)?;
            let block = end - block_length..end;
            let replayed = self.replayed(step, &before, &block)?;
            let mut uniforms = vec![1.0; length];
            let mut row = vec![self.mask; length];
            for (slot, replayed) in block.clone().zip(&replayed) {
                (uniforms[slot], row[slot]) = (replayed.uniform, replayed.token);
            }
            draws.push(uniforms);
            drawn.push(row);
            before[..after.len()].copy_from_slice(after);
        }
        let mut canvas = self.canvas.clone();
        let mut decoder = Decoder::replay(&self.plan, &canvas, &[], draws)?;
        let mut nfe = 0;
        while !decoder.is_done() {
            let (step, block) = (decoder.steps(), decoder.block());
            if step >= drawn.len() {
                let reason = format!("more than the {} recorded steps", drawn.len());
                return Err(GoldenError::Differs(reason));
            }
            let scored = decoder.scored_slots(&canvas);
            let candidates: Vec<Candidate> = scored
                .into_iter()
                .map(|slot| candidate(slot, drawn[step][slot]))
                .collect();
            decoder.advance(&mut canvas, &candidates);
            self.check_recorded(&canvas, &block, step)?;
            nfe += 1;
        }
        same("steps", &decoder.steps(), &self.run.canvases.len())?;
        same("the output", &tokens(&canvas), &self.run.output)?;
        same("evaluations", &nfe, &self.run.count("sampling_steps")?)
    }
}
