//! One denoise step over all running sequences.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use super::sequence::Sequence;
use super::{GenerationError, StepReport};
use crate::canvas::TokenId;
use crate::decode::Candidate;
use crate::models::{AttentionPattern, Denoiser, ModelError, ModelSpec, RaggedBatch, Segment};
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
    for rows in scored.chunks(HEAD_ROWS) {
        let begun = Instant::now();
        let logits = logits(model, &hidden, rows)?;
        cost.model += begun.elapsed();
        let params: Vec<RowParams> = rows.iter().map(|row| row.params.clone()).collect();
        samples.extend(sampling::reduce(&logits, &params)?);
    }
    let mut samples = samples.into_iter();
    let outcomes = sequences
        .iter_mut()
        .map(|sequence| {
            let slots = sequence.decoder.scored_slots(&sequence.canvas);
            let samples: Vec<_> = samples.by_ref().take(slots.len()).collect();
            cost.committed += commit(sequence, &slots, samples)?;
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
    let block = sequence.decoder.block();
    let length = match spec.attention {
        AttentionPattern::Bidirectional => canvas.len(),
        // No slot sees the blocks after its own.
        AttentionPattern::BlockCausal { .. } => block.end,
    };
    let positions: Vec<u32> = (0..length as u32).collect();
    let mut push = |tokens: Vec<TokenId>| {
        let segment = Segment {
            allowed: spec.attention.allowed_with_block_at(length, block.start),
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
            unconditional: unconditional.as_ref().map(|rows| {
                (
                    (rows.start + row) as u32,
                    sequence.row_params.guidance_scale(),
                )
            }),
            params: sequence.row_params.params(slot, sequence.decoder.steps()),
        });
    }
}

/// Logits `[rows, vocab]` of the scored rows, guided where asked for.
fn logits(model: &dyn Denoiser, hidden: &Tensor, rows: &[ScoredRow]) -> Result<Tensor, ModelError> {
    let select = |indices: Vec<u32>| -> Result<Tensor, ModelError> {
        let count = indices.len();
        let indices = Tensor::from_vec(indices, count, hidden.device())?;
        model.head(&hidden.index_select(&indices, 0)?)
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

/// Lets the sequence's policy choose among its samples, and reports what it committed.
fn commit(
    sequence: &mut Sequence,
    slots: &[usize],
    samples: Vec<Result<RowSample, SamplingError>>,
) -> Result<usize, GenerationError> {
    let mut logprobs = Vec::new();
    let candidates = slots
        .iter()
        .zip(samples)
        .map(|(&slot, sample)| {
            let sample = sample?;
            logprobs.extend(sample.logprobs.map(|logprobs| (slot, logprobs)));
            Ok(Candidate {
                slot,
                token: sample.token,
                probability: sample.probability,
                best: sample.best,
                second: sample.second,
                entropy: sample.entropy,
                uniform: sample.uniform,
            })
        })
        .collect::<Result<Vec<_>, SamplingError>>()
        .map_err(|error| GenerationError::Step(error.to_string()))?;
    sequence.nfe += 1;
    let change = sequence.decoder.advance(&mut sequence.canvas, &candidates);
    logprobs.retain(|(slot, _)| change.committed.binary_search(slot).is_ok());
    let committed: Vec<_> = change
        .committed
        .into_iter()
        .filter_map(|slot| Some((slot, *sequence.canvas.provenance(slot)?)))
        .collect();
    let count = committed.len();
    sequence.report(StepReport {
        step: sequence.decoder.steps(),
        committed,
        logprobs,
        remasked: change.remasked,
        statistics: sequence.statistics(),
    })?;
    Ok(count)
}
