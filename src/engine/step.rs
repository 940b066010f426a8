//! One denoise step over all running sequences.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use super::sequence::Sequence;
use super::{GenerationError, StepReport};
use crate::canvas::TokenId;
use crate::decode::Candidate;
use crate::models::{
    AttentionPattern, Denoiser, ModelError, ModelSpec, Parameterisation, RaggedBatch, RowInput,
    Segment,
};
use crate::sampling::{self, RowParams, RowSample, SamplingError};

/// Rows that go through the head at once: bounds the memory that logits take.
const HEAD_ROWS: usize = 256;

/// What one step did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepCost {
    pub rows: usize,
    pub committed: usize,
    pub model: Duration,
}

/// A row whose logits are needed, and the row of the unconditional segment if it is guided.
struct ScoredRow {
    conditional: u32,
    unconditional: Option<(u32, f32)>,
    input: RowInput,
    params: RowParams,
}

/// Takes one step with every sequence. Each outcome is the sequence's own; the outer error is the
/// whole batch's.
pub(super) fn step(
    model: &dyn Denoiser,
    sequences: &mut [Sequence],
) -> Result<(Vec<Result<(), GenerationError>>, StepCost), ModelError> {
    let mut batch = RaggedBatch::new();
    let mut scored = Vec::new();
    for sequence in sequences.iter() {
        lay_out(sequence, model.spec(), &mut batch, &mut scored);
    }
    let begun = Instant::now();
    let hidden = model.hidden(&batch, None)?;
    let mut cost = StepCost {
        rows: batch.rows(),
        committed: 0,
        model: begun.elapsed(),
    };
    let mut samples = Vec::with_capacity(scored.len());
    let mut totals = Vec::new();
    for rows in scored.chunks(HEAD_ROWS) {
        let begun = Instant::now();
        let logits = logits(model, &hidden, rows)?;
        cost.model += begun.elapsed();
        let params: Vec<RowParams> = rows.iter().map(|row| row.params).collect();
        samples.extend(sampling::reduce(&logits, &params)?);
        if model.spec().parameterisation == Parameterisation::LogScore {
            totals.extend(score_totals(&logits)?);
        }
    }
    let mut samples = samples.into_iter();
    let mut totals = totals.into_iter();
    let outcomes = sequences
        .iter_mut()
        .map(|sequence| {
            let slots = sequence.decoder.scored_slots(&sequence.canvas);
            let samples: Vec<_> = samples.by_ref().take(slots.len()).collect();
            let totals: Vec<_> = totals.by_ref().take(slots.len()).collect();
            let unmasking = unmasking(model.spec(), sequence, &totals);
            cost.committed += commit(sequence, &slots, samples, &unmasking)?;
            Ok(())
        })
        .collect();
    Ok((outcomes, cost))
}

/// Appends a sequence's rows to the batch, and the rows that the head is to score.
fn lay_out(
    sequence: &Sequence,
    spec: &ModelSpec,
    batch: &mut RaggedBatch,
    scored: &mut Vec<ScoredRow>,
) {
    let canvas = &sequence.canvas;
    let sampling = sequence.sampling;
    let block = sequence.decoder.block();
    let length = match spec.attention {
        AttentionPattern::Bidirectional => canvas.len(),
        // No slot sees the blocks after its own.
        AttentionPattern::BlockCausal { .. } => block.end,
    };
    let positions: Vec<u32> = (0..length as u32).collect();
    let sigma = sequence.decoder.times().and_then(|(t, _)| spec.sigma(t));
    let temperature = sequence.decoder.temperature();
    let mut push = |tokens: Vec<TokenId>| {
        let segment = Segment {
            allowed: spec.attention.allowed_with_block_at(length, block.start),
            sigma,
            ..Segment::default()
        };
        batch.push_segment(&tokens, &positions, segment)
    };
    let rows = push(canvas.tokens().take(length).collect());
    let unconditional = sequence.is_guided().then(|| {
        let without_fixed = (0..length).map(|slot| match canvas.is_fixed(slot) {
            true => canvas.mask(),
            false => canvas.token(slot),
        });
        push(without_fixed.collect())
    });
    for slot in sequence.decoder.scored_slots(canvas) {
        let row = slot.saturating_sub(spec.logit_shift);
        scored.push(ScoredRow {
            conditional: (rows.start + row) as u32,
            unconditional: unconditional
                .as_ref()
                .map(|rows| ((rows.start + row) as u32, sampling.guidance_scale)),
            input: RowInput {
                token: canvas.token(slot),
                sigma,
            },
            params: RowParams {
                temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                filter_order: sampling.filter_order,
                basis: sampling.basis,
                excluded: canvas.mask(),
                excluded_is_impossible: spec.parameterisation != Parameterisation::Logits,
                seed: sampling.seed,
                step: sequence.decoder.steps(),
                slot,
            },
        });
    }
}

/// Logits `[rows, vocab]` of the scored rows, guided where asked for.
fn logits(model: &dyn Denoiser, hidden: &Tensor, rows: &[ScoredRow]) -> Result<Tensor, ModelError> {
    let select = |indices: Vec<u32>| -> Result<Tensor, ModelError> {
        let count = indices.len();
        let indices = Tensor::from_vec(indices, count, hidden.device())?;
        let inputs: Vec<RowInput> = rows.iter().map(|row| row.input).collect();
        model.head_rows(&hidden.index_select(&indices, 0)?, &inputs)
    };
    let conditional = select(rows.iter().map(|row| row.conditional).collect())?;
    if rows.iter().all(|row| row.unconditional.is_none()) {
        return Ok(conditional);
    }
    // u + (w + 1)(c − u); a row that is not guided is its own u.
    let (indices, weights): (Vec<u32>, Vec<f32>) = rows
        .iter()
        .map(|row| match row.unconditional {
            Some((index, scale)) => (index, scale + 1.0),
            None => (row.conditional, 1.0),
        })
        .unzip();
    let unconditional = select(indices)?.to_dtype(DType::F32)?;
    let weights = Tensor::from_vec(weights, (rows.len(), 1), hidden.device())?;
    let direction = (conditional.to_dtype(DType::F32)? - &unconditional)?;
    Ok((unconditional + direction.broadcast_mul(&weights)?)?)
}

/// For each row of log-scores `[rows, vocab]` the sum of the scores of all tokens but the row's own, whose
/// score is 1.
fn score_totals(log_scores: &Tensor) -> Result<Vec<f32>, ModelError> {
    let totals = log_scores.exp()?.sum(1)?.affine(1.0, -1.0)?;
    Ok(totals.to_vec1()?)
}

/// The probability that the reverse process unmasks each scored slot of a sequence in this step, by the
/// slots' total scores; none of networks without scores.
///
/// From σ to σ − Δσ a masked slot becomes token y with probability (e^Δσ − 1) s(y), the product of the
/// staggered score and the transition (SEDD, arXiv:2310.16834, theorem 4.1; `AnalyticPredictor`).
fn unmasking(spec: &ModelSpec, sequence: &Sequence, totals: &[f32]) -> Vec<f32> {
    let Some((t, s)) = sequence.decoder.times() else {
        return Vec::new();
    };
    let (Some(sigma_t), Some(sigma_s)) = (spec.sigma(t), spec.sigma(s)) else {
        return Vec::new();
    };
    let growth = (sigma_t - sigma_s).exp_m1();
    totals.iter().map(|total| growth * total).collect()
}

/// Lets the sequence's policy choose among its samples, and reports what it committed.
fn commit(
    sequence: &mut Sequence,
    slots: &[usize],
    samples: Vec<Result<RowSample, SamplingError>>,
    unmasking: &[f32],
) -> Result<usize, GenerationError> {
    let candidates = slots
        .iter()
        .zip(samples)
        .enumerate()
        .map(|(i, (&slot, sample))| {
            let sample = sample?;
            Ok(Candidate {
                slot,
                token: sample.token,
                probability: sample.probability,
                best: sample.best,
                second: sample.second,
                entropy: sample.entropy,
                uniform: sample.uniform,
                unmasking: unmasking.get(i).copied(),
            })
        })
        .collect::<Result<Vec<_>, SamplingError>>()
        .map_err(|error| GenerationError::Step(error.to_string()))?;
    sequence.nfe += 1;
    let change = sequence.decoder.advance(&mut sequence.canvas, &candidates);
    let committed: Vec<_> = change
        .committed
        .into_iter()
        .filter_map(|slot| Some((slot, *sequence.canvas.provenance(slot)?)))
        .collect();
    let count = committed.len();
    sequence.report(StepReport {
        step: sequence.decoder.steps(),
        committed,
        remasked: change.remasked,
        statistics: sequence.statistics(),
    })?;
    Ok(count)
}
