//! The NELBO of a model of the uniform process, by Monte Carlo over times and noise.
//!
//! A draw takes u uniformly from (0, 1), stratified over the draws of a group, and t = u²; noises every
//! scored slot at time t of the log-linear schedule; and weighs the sum of the slots' losses with 2u = dt/du:
//!
//! ```text
//! NELBO = ∫₀¹ E[S(x_t)] dt = ∫₀¹ 2u E[S(x_{u²})] du      S(x_t) = −α′/(α K) Σ_i plug_in_divergence_i
//! ```
//!
//! S has a second moment of about L c/t at small t, as the masked one has, so that times drawn uniformly
//! would give an infinite variance; with t = u² it is ∫ 4u² L c/u² du = 4 L c. (`docs/mathematics.md`; UDLM,
//! arXiv:2412.10193.)

use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;
use rayon::prelude::*;

use super::batches::batches;
use super::likelihood::Settings;
use super::words::Words;
use super::{EvalError, Target};
use crate::canvas::TokenId;
use crate::diffusion::elbo::plug_in_divergence;
use crate::diffusion::{Process, Schedule};
use crate::models::{Corruption, Denoiser, HEAD_ROWS, Parameterisation, RaggedBatch};
use crate::sampling::philox::Stream;

/// One draw for one target.
struct Draw<'a> {
    target: &'a Target,
    /// The noised sequence.
    tokens: Vec<TokenId>,
    /// K α/(1 − α).
    signal: f64,
    /// 2u · −α′/(α K).
    weight: f64,
}

/// A scored row of a batch.
struct Row {
    /// The draw's place in the batch.
    draw: usize,
    slot: usize,
    /// Where its logits are read.
    place: u32,
}

/// 2u S(x_t) of every draw, in nats, target by target and group by group.
///
/// # Errors
/// If the model is not of the uniform process or not one of logits, a setting asks for guidance, or the
/// model fails.
pub(super) fn losses(
    model: &dyn Denoiser,
    targets: &[&Target],
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, EvalError> {
    let spec = model.spec();
    let unsupported = |reason| EvalError::Unsupported {
        family: spec.family,
        reason,
    };
    if spec.corruption != Corruption::Uniform {
        return Err(unsupported("it was not trained on the uniform process"));
    }
    super::check(spec)?;
    if spec.parameterisation != Parameterisation::Logits {
        return Err(unsupported("its output is not plain logits"));
    }
    if settings.guidance_scale > 0.0 {
        let allowed =
            "0 for a model of the uniform process, which has no mask to hide a prompt behind";
        let given = settings.guidance_scale;
        return Err(EvalError::setting("guidance_scale", given, allowed));
    }
    let process = Process::uniform(spec.vocab_size)?;
    for target in targets {
        target.check(spec)?;
    }
    let mut losses = Vec::with_capacity(targets.len() * settings.groups * settings.strata);
    for (index, target) in targets.iter().enumerate() {
        for group in 0..settings.groups {
            let draws = noised(target, &process, settings, group, index)?;
            for batch in batches(&draws, |draw| draw.tokens.len()) {
                losses.extend(batch_losses(model, batch)?);
                progress(batch.len());
            }
        }
    }
    Ok(losses)
}

/// The draws of one group.
fn noised<'a>(
    target: &'a Target,
    process: &Process,
    settings: &Settings,
    group: usize,
    index: usize,
) -> Result<Vec<Draw<'a>>, EvalError> {
    let mut words = Words::new(settings.seed, group, index, Stream::NoiseTime);
    let (shift, schedule) = (words.uniform(), Schedule::LogLinear);
    (0..settings.strata)
        .map(|stratum| {
            let u = (stratum as f64 + shift) / settings.strata as f64;
            let time = u * u;
            let level = schedule.level(time)?;
            let mut tokens = target.tokens.clone();
            for &slot in &target.slots {
                let clean = tokens[slot] as usize;
                tokens[slot] = process.corrupt(level, clean, words.uniform())? as TokenId;
            }
            Ok(Draw {
                target,
                tokens,
                signal: process.signal(level),
                weight: 2.0 * u * schedule.rate(time) / process.states() as f64,
            })
        })
        .collect()
}

fn batch_losses(model: &dyn Denoiser, draws: &[Draw]) -> Result<Vec<f64>, EvalError> {
    let shift = model.spec().logit_shift;
    let mut batch = RaggedBatch::new();
    let mut scored = Vec::new();
    for (index, draw) in draws.iter().enumerate() {
        let rows = batch.push(draw.tokens.clone());
        scored.extend(draw.target.slots.iter().map(|&slot| Row {
            draw: index,
            slot,
            place: (rows.start + slot.saturating_sub(shift)) as u32,
        }));
    }
    let hidden = model.hidden(&batch, None)?;
    let mut losses = vec![0.0; draws.len()];
    for rows in scored.chunks(HEAD_ROWS) {
        let places: Vec<u32> = rows.iter().map(|row| row.place).collect();
        let places = Tensor::from_vec(places, rows.len(), hidden.device())?;
        let logits = model.head(&hidden.index_select(&places, 0)?)?;
        let probabilities = log_softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?.exp()?;
        let divergences: Vec<f64> = probabilities
            .to_vec2::<f32>()?
            .into_par_iter()
            .zip(rows)
            .map(|(others, row)| {
                let others: Vec<f64> = others.into_iter().map(f64::from).collect();
                let draw = &draws[row.draw];
                let seen = draw.tokens[row.slot] as usize;
                let clean = draw.target.tokens[row.slot] as usize;
                plug_in_divergence(draw.signal, seen, clean, &others)
            })
            .collect();
        for (row, divergence) in rows.iter().zip(divergences) {
            if !divergence.is_finite() {
                return Err(EvalError::NotFinite {
                    slot: row.slot,
                    token: draws[row.draw].target.tokens[row.slot],
                    value: divergence as f32,
                });
            }
            losses[row.draw] += draws[row.draw].weight * divergence;
        }
    }
    Ok(losses)
}
