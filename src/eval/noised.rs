//! The NELBO of models whose loss depends on the noise level itself, by Monte Carlo over times and noise: those
//! of the uniform process, of log-scores, and those that have to be told the level.
//!
//! A draw takes u uniformly from (0, 1), stratified over the draws of a group, and t = u²; noises every
//! scored slot at time t of the schedule; and weighs the sum of the slots' losses with 2u = dt/du:
//!
//! ```text
//! NELBO = ∫₀¹ E[S(x_t)] dt = ∫₀¹ 2u E[S(x_{u²})] du
//!
//! uniform process, logits:  S(x_t) = −α′/(α K) Σ_i plug_in_divergence_i           (UDLM, arXiv:2412.10193)
//! log-scores:               S(x_t) = −α′/α Σ_i score_entropy_i                      (SEDD, arXiv:2310.16834)
//! logits, told the level:   S(x_t) = −α′/(1 − α) Σ_{i masked} −ln p(x_i | x_t, t)   (MDLM, arXiv:2406.07524)
//! ```
//!
//! S has a second moment of about L c/t at small t, as the masked one has, so that times drawn uniformly
//! would give an infinite variance; with t = u² it is ∫ 4u² L c/u² du = 4 L c. (`docs/mathematics.md`)
//!
//! The schedule is the network's own, and log-linear if it has none. Where it stops short of pure noise or of clean
//! text, the prior and the reconstruction term at its ends are left out, as the official code leaves them out.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::log_softmax;
use rayon::prelude::*;

use super::batches::batches;
use super::likelihood::Settings;
use super::supported::check_guidance;
use super::words::Words;
use super::{EvalError, Target};
use crate::canvas::TokenId;
use crate::diffusion::elbo::{plug_in_divergence, score_entropy};
use crate::diffusion::{NoiseLevel, Process, Schedule};
use crate::models::{
    Corruption, Denoiser, HEAD_ROWS, ModelSpec, Parameterisation, RaggedBatch, RowInput, Segment,
};
use crate::sampling::philox::Stream;

/// What a slot loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// A leave-one-out posterior of the uniform process.
    PlugIn,
    /// A log-score.
    ScoreEntropy,
    /// The cross-entropy of masked slots.
    CrossEntropy,
}

impl Loss {
    /// # Errors
    /// [`EvalError::Unsupported`].
    fn of(spec: &ModelSpec) -> Result<Self, EvalError> {
        match (spec.parameterisation, spec.corruption) {
            (Parameterisation::LogScore, _) => Ok(Self::ScoreEntropy),
            (_, Corruption::Absorbing { .. }) => Ok(Self::CrossEntropy),
            (Parameterisation::Logits, Corruption::Uniform) => Ok(Self::PlugIn),
            (Parameterisation::Subs, Corruption::Uniform) => Err(EvalError::Unsupported {
                family: spec.family,
                reason: "its output is not plain logits",
            }),
        }
    }

    /// What S(x_t) is weighted with at time t, before dt/du.
    fn weight(self, schedule: &Schedule, process: &Process, time: f64) -> f64 {
        match self {
            Self::PlugIn => schedule.rate(time) / process.states() as f64,
            Self::ScoreEntropy => schedule.rate(time),
            Self::CrossEntropy => schedule.weight(time),
        }
    }
}

/// The process, the schedule and the loss of a model.
struct Objective {
    process: Process,
    schedule: Schedule,
    loss: Loss,
    /// A masked slot's token.
    mask: Option<TokenId>,
    /// Under SUBS, −∞ is put in the place of the mask's logit.
    subs: bool,
}

impl Objective {
    fn of(spec: &ModelSpec) -> Result<Self, EvalError> {
        let process = match spec.corruption {
            Corruption::Absorbing { mask_token } => {
                Process::absorbing(spec.vocab_size, mask_token as usize)?
            }
            Corruption::Uniform => Process::uniform(spec.vocab_size)?,
        };
        Ok(Self {
            process,
            schedule: spec.noise_schedule.clone().unwrap_or(Schedule::LogLinear),
            loss: Loss::of(spec)?,
            mask: spec.mask_token(),
            subs: spec.parameterisation == Parameterisation::Subs,
        })
    }

    /// Whether a slot that holds `seen` can lose anything.
    fn is_scored(&self, seen: TokenId) -> bool {
        self.mask.is_none_or(|mask| mask == seen)
    }

    /// The loss of one slot, from its row of the network's output: log-scores, or log-probabilities.
    fn slot_loss(&self, draw: &Draw, slot: usize, output: &[f32]) -> Result<f64, EvalError> {
        let (seen, clean) = (draw.tokens[slot], draw.target.tokens[slot]);
        let (seen, clean) = (seen as usize, clean as usize);
        let as_f64 = || output.iter().map(|number| f64::from(*number));
        Ok(match self.loss {
            Loss::PlugIn => {
                let others: Vec<f64> = as_f64().map(f64::exp).collect();
                plug_in_divergence(self.process.signal(draw.level), seen, clean, &others)
            }
            Loss::ScoreEntropy => {
                let log_scores: Vec<f64> = as_f64().collect();
                score_entropy(&self.process, draw.level, seen, clean, &log_scores)?
            }
            Loss::CrossEntropy => -f64::from(output[clean]),
        })
    }
}

/// One draw for one target.
struct Draw<'a> {
    target: &'a Target,
    /// The noised sequence.
    tokens: Vec<TokenId>,
    /// α at its time.
    level: NoiseLevel,
    /// dt/du times the weight of its losses.
    weight: f64,
}

impl Draw<'_> {
    /// σ = −ln α.
    fn sigma(&self) -> f32 {
        -(-self.level.one_minus_alpha()).ln_1p() as f32
    }
}

/// A scored row of a batch.
struct Row {
    /// The draw's place in the batch.
    draw: usize,
    slot: usize,
    /// Where its output is read.
    place: u32,
}

/// 2u S(x_t) of every draw, in nats, target by target and group by group.
///
/// # Errors
/// If the model's loss does not depend on the noise level in one of the ways above, a setting asks for guidance, or
/// the model fails.
pub(super) fn losses(
    model: &dyn Denoiser,
    targets: &[&Target],
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, EvalError> {
    let spec = model.spec();
    super::check(spec)?;
    let objective = Objective::of(spec)?;
    check_guidance(spec, settings.guidance_scale)?;
    for target in targets {
        target.check(spec)?;
    }
    let mut losses = Vec::with_capacity(targets.len() * settings.groups * settings.strata);
    for (index, target) in targets.iter().enumerate() {
        for group in 0..settings.groups {
            let draws = noised(target, &objective, settings, group, index)?;
            for batch in batches(&draws, |draw| draw.tokens.len()) {
                losses.extend(batch_losses(model, &objective, batch)?);
                progress(batch.len());
            }
        }
    }
    Ok(losses)
}

/// The draws of one group.
fn noised<'a>(
    target: &'a Target,
    objective: &Objective,
    settings: &Settings,
    group: usize,
    index: usize,
) -> Result<Vec<Draw<'a>>, EvalError> {
    let Objective {
        process, schedule, ..
    } = objective;
    let mut words = Words::new(settings.seed, group, index, Stream::NoiseTime);
    let shift = words.uniform();
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
                level,
                weight: 2.0 * u * objective.loss.weight(schedule, process, time),
            })
        })
        .collect()
}

fn batch_losses(
    model: &dyn Denoiser,
    objective: &Objective,
    draws: &[Draw],
) -> Result<Vec<f64>, EvalError> {
    let shift = model.spec().logit_shift;
    let mut batch = RaggedBatch::new();
    let mut scored = Vec::new();
    for (index, draw) in draws.iter().enumerate() {
        let positions: Vec<u32> = (0..draw.tokens.len() as u32).collect();
        let segment = Segment {
            sigma: Some(draw.sigma()),
            ..Segment::default()
        };
        let rows = batch.push_segment(&draw.tokens, &positions, segment);
        let slots = draw.target.slots.iter().copied();
        let slots = slots.filter(|slot| objective.is_scored(draw.tokens[*slot]));
        scored.extend(slots.map(|slot| Row {
            draw: index,
            slot,
            place: (rows.start + slot.saturating_sub(shift)) as u32,
        }));
    }
    let mut losses = vec![0.0; draws.len()];
    if scored.is_empty() {
        return Ok(losses);
    }
    let hidden = model.hidden(&batch, None)?;
    let inputs = batch.row_inputs();
    for rows in scored.chunks(HEAD_ROWS) {
        let outputs = outputs(model, objective, &hidden, &inputs, rows)?;
        let of_rows: Vec<f64> = outputs
            .into_par_iter()
            .zip(rows)
            .map(|(output, row)| objective.slot_loss(&draws[row.draw], row.slot, &output))
            .collect::<Result<_, _>>()?;
        for (row, loss) in rows.iter().zip(of_rows) {
            if !loss.is_finite() {
                return Err(EvalError::NotFinite {
                    slot: row.slot,
                    token: draws[row.draw].target.tokens[row.slot],
                    value: loss as f32,
                });
            }
            losses[row.draw] += draws[row.draw].weight * loss;
        }
    }
    Ok(losses)
}

/// Log-scores, or log-probabilities of the clean token, of some rows.
fn outputs(
    model: &dyn Denoiser,
    objective: &Objective,
    hidden: &Tensor,
    inputs: &[RowInput],
    rows: &[Row],
) -> Result<Vec<Vec<f32>>, EvalError> {
    let places: Vec<u32> = rows.iter().map(|row| row.place).collect();
    let inputs: Vec<RowInput> = places.iter().map(|place| inputs[*place as usize]).collect();
    let places = Tensor::from_vec(places, rows.len(), hidden.device())?;
    let output = model.head_rows(&hidden.index_select(&places, 0)?, &inputs)?;
    let output = output.to_dtype(DType::F32)?;
    if objective.loss == Loss::ScoreEntropy {
        return Ok(output.to_vec2()?);
    }
    let output = match objective.mask.filter(|_| objective.subs) {
        Some(mask) => {
            let vocab = output.dim(D::Minus1)?;
            let mut bias = vec![0.0f32; vocab];
            bias[mask as usize] = f32::NEG_INFINITY;
            output.broadcast_add(&Tensor::from_vec(bias, (1, vocab), output.device())?)?
        }
        None => output,
    };
    Ok(log_softmax(&output, D::Minus1)?.to_vec2()?)
}
