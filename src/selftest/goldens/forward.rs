//! Forwards of the official code, computed by a network here: batches that are laid out as its inputs were.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::folder::{Tensors, integers, numbers, scalar, sequences, tensor};
use crate::canvas::TokenId;
use crate::models::{AttentionPattern, Denoiser, KvPool, ModelError, RaggedBatch, Segment};

/// In f32 on the CPU.
fn fetched(logits: Tensor) -> Result<Tensor, ModelError> {
    Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
}

/// The network's output `[rows, V]` of every row of a batch, in f32 on the CPU.
///
/// # Errors
/// If the network cannot be run.
pub fn outputs(
    model: &dyn Denoiser,
    batch: &RaggedBatch,
    pool: Option<&KvPool>,
) -> Result<Tensor, ModelError> {
    let hidden = model.hidden(batch, pool)?;
    fetched(model.head_rows(&hidden, &batch.row_inputs())?)
}

/// Logits `[rows, V]` of a batch of one segment.
fn segment_logits(
    model: &dyn Denoiser,
    tokens: &[TokenId],
    positions: &[u32],
    segment: Segment,
    pool: Option<&KvPool>,
) -> Result<Tensor, ModelError> {
    let mut batch = RaggedBatch::new();
    batch.push_segment(tokens, positions, segment);
    outputs(model, &batch, pool)
}

/// Logits `[B, L, V]` of `input_ids` `[B, L]` as one ragged batch; positions `[B, L]` are 0, 1, … if
/// not given, and `allowed` has an entry a row.
///
/// # Errors
/// If the input has another shape, or the network cannot be run.
pub fn logits(
    model: &dyn Denoiser,
    input_ids: &Tensor,
    positions: Option<&Tensor>,
    allowed: &[Option<Vec<bool>>],
) -> Result<Tensor, ModelError> {
    let (rows, length) = input_ids.dims2()?;
    if allowed.len() != rows {
        let given = allowed.len();
        return Err(ModelError::Batch(format!(
            "{rows} rows, and what {given} of them see"
        )));
    }
    let tokens = integers(input_ids)?;
    let positions = match positions {
        Some(positions) => integers(positions)?,
        None => (0..length as u32).collect::<Vec<_>>().repeat(rows),
    };
    let mut batch = RaggedBatch::new();
    for (row, allowed) in allowed.iter().enumerate() {
        let slots = row * length..(row + 1) * length;
        let segment = Segment {
            allowed: allowed.clone(),
            ..Segment::default()
        };
        batch.push_segment(&tokens[slots.clone()], &positions[slots], segment);
    }
    let logits = outputs(model, &batch, None)?;
    let vocab = logits.dim(1)?;
    Ok(logits.reshape((rows, length, vocab))?)
}

/// A pool that holds a canvas of `length` slots, neither in order nor next to each other.
pub(in crate::selftest) fn scattered_pool(
    model: &dyn Denoiser,
    length: usize,
) -> Result<(KvPool, impl Fn(usize) -> u32 + use<>), ModelError> {
    let slots = 2 * length + 3;
    let pool = KvPool::new(model.spec(), slots, model.dtype(), model.device())?;
    Ok((pool, move |position| (slots - 1 - 2 * position) as u32))
}

/// Fills a pool from a full forward of `input`, then computes `rows` of `tokens` with the slots before
/// them, and with `keys_after` those after them, from the cache; `[rows, V]`.
///
/// # Errors
/// If the network cannot be run.
pub fn cached_logits(
    model: &dyn Denoiser,
    input: &Tensor,
    tokens: &Tensor,
    rows: Range<usize>,
    keys_after: bool,
) -> Result<Tensor, ModelError> {
    let full = integers(input)?;
    let positions: Vec<u32> = (0..full.len() as u32).collect();
    let (pool, slot_of) = scattered_pool(model, full.len())?;
    let segment = Segment {
        store: (0..full.len()).map(&slot_of).collect(),
        ..Segment::default()
    };
    segment_logits(model, &full, &positions, segment, Some(&pool))?;
    let last = if keys_after { full.len() } else { rows.end };
    let context = (0..rows.start).chain(rows.end..last);
    let segment = Segment {
        context: context.map(slot_of).collect(),
        ..Segment::default()
    };
    segment_logits(
        model,
        &integers(tokens)?,
        &positions[rows],
        segment,
        Some(&pool),
    )
}

/// The golden `cache0` of a block-causal model: logits of the prefix, whose keys and values are kept,
/// then of the block after it; each `[1, rows, V]`.
///
/// # Errors
/// If the golden lacks a tensor, or the network cannot be run.
pub fn block_cache_logits(
    model: &dyn Denoiser,
    goldens: &Tensors,
    block_length: usize,
) -> Result<[Tensor; 2], ModelError> {
    let of = |field: &str| integers(tensor(goldens, &format!("cache0.{field}"))?);
    let prefix = of("prefix_input_ids")?;
    let positions: Vec<u32> = (0..prefix.len() as u32).collect();
    let (pool, slot_of) = scattered_pool(model, prefix.len())?;
    let slots: Vec<u32> = (0..prefix.len()).map(slot_of).collect();
    let segment = Segment {
        allowed: AttentionPattern::BlockCausal { block_length }.allowed(prefix.len()),
        store: slots.clone(),
        ..Segment::default()
    };
    let prefix = segment_logits(model, &prefix, &positions, segment, Some(&pool))?;
    let segment = Segment {
        context: slots,
        ..Segment::default()
    };
    let (block, positions) = (of("block_input_ids")?, of("block_position_ids")?);
    let block = segment_logits(model, &block, &positions, segment, Some(&pool))?;
    Ok([prefix.unsqueeze(0)?, block.unsqueeze(0)?])
}

/// One segment a sequence, at positions from 0, each with its own noise level.
pub fn noised_batch(sequences: &[Vec<TokenId>], sigmas: &[f32]) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for (tokens, sigma) in sequences.iter().zip(sigmas) {
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let segment = Segment {
            sigma: Some(*sigma),
            ..Segment::default()
        };
        batch.push_segment(tokens, &positions, segment);
    }
    batch
}

/// Segments of [x_t ; x_0], one a sequence of `input`, of which the second half is x_0, as BD3-LM is trained.
pub fn scoring_batch(model: &dyn Denoiser, input: &[Vec<TokenId>], sigmas: &[f32]) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for (tokens, sigma) in input.iter().zip(sigmas) {
        let length = tokens.len() / 2;
        let positions: Vec<u32> = (0..length as u32).collect();
        let segment = Segment {
            allowed: Some(model.spec().attention.allowed_in_scoring(length)),
            sigma: Some(*sigma),
            ..Segment::default()
        };
        batch.push_segment(tokens, &positions.repeat(2), segment);
    }
    batch
}

/// The outputs of the rows of x_t of a [`scoring_batch`], `[B · n, V]`.
///
/// # Errors
/// If the network cannot be run.
pub fn scoring_outputs(model: &dyn Denoiser, batch: &RaggedBatch) -> Result<Tensor, ModelError> {
    let all = outputs(model, batch, None)?;
    let halves = batch
        .segments()
        .iter()
        .map(|segment| all.narrow(0, segment.rows.start, segment.rows.len() / 2))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&halves, 0)?)
}

/// Segments of which each slot sees its own block and those before it.
pub fn block_causal_batch(
    block_length: usize,
    input: &[Vec<TokenId>],
    sigmas: &[f32],
) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for (tokens, sigma) in input.iter().zip(sigmas) {
        let slots = 0..tokens.len();
        let sees = |slot: usize| {
            let others = slots.clone();
            others.map(move |other| other / block_length <= slot / block_length)
        };
        let segment = Segment {
            allowed: Some(slots.clone().flat_map(sees).collect()),
            sigma: Some(*sigma),
            ..Segment::default()
        };
        let positions: Vec<u32> = slots.clone().map(|slot| slot as u32).collect();
        batch.push_segment(tokens, &positions, segment);
    }
    batch
}

/// The golden `cache0` of BD3-LM: prefixes are kept block by block, then a block of each is computed; `[B · n, V]`.
///
/// # Errors
/// If the golden lacks a tensor, or the network cannot be run.
pub fn noised_block_cache_outputs(
    model: &dyn Denoiser,
    goldens: &Tensors,
    block_length: usize,
) -> Result<Tensor, ModelError> {
    let prefixes = sequences(tensor(goldens, "cache0.prefix_input_ids")?)?;
    let blocks = sequences(tensor(goldens, "cache0.block_input_ids")?)?;
    let sigmas = numbers(tensor(goldens, "cache0.timesteps")?)?;
    let length = prefixes.first().map_or(0, Vec::len);
    if !length.is_multiple_of(block_length) || blocks.iter().any(|b| b.len() != block_length) {
        let reason = format!("the golden cache0 is not of blocks of {block_length} slots");
        return Err(ModelError::Batch(reason));
    }
    let slots = length * prefixes.len();
    let pool = KvPool::new(model.spec(), slots, model.dtype(), model.device())?;
    // Cached slots need not be in order, nor next to each other.
    let slot_of =
        |sequence: usize, place: usize| (slots - 1 - (place * prefixes.len() + sequence)) as u32;
    let segment = |sequence: usize, start: usize| Segment {
        context: (0..start).map(|place| slot_of(sequence, place)).collect(),
        sigma: Some(sigmas[sequence]),
        ..Segment::default()
    };
    let positions =
        |start: usize| (start as u32..(start + block_length) as u32).collect::<Vec<_>>();
    for start in (0..length).step_by(block_length) {
        let mut batch = RaggedBatch::new();
        for (sequence, prefix) in prefixes.iter().enumerate() {
            let kept = start..start + block_length;
            let segment = Segment {
                store: kept.clone().map(|place| slot_of(sequence, place)).collect(),
                ..segment(sequence, start)
            };
            batch.push_segment(&prefix[kept], &positions(start), segment);
        }
        model.hidden(&batch, Some(&pool))?;
    }
    let mut batch = RaggedBatch::new();
    for (sequence, tokens) in blocks.iter().enumerate() {
        batch.push_segment(tokens, &positions(length), segment(sequence, length));
    }
    outputs(model, &batch, Some(&pool))
}

/// The rows of a golden's cache of a prefix, from its length to the end of the input.
///
/// # Errors
/// If the golden lacks a tensor.
pub fn suffix_rows(goldens: &Tensors, case: &str) -> candle_core::Result<Range<usize>> {
    let end = tensor(goldens, &format!("{case}.input_ids"))?.dim(1)?;
    Ok(scalar(goldens, &format!("{case}.prefix_len"))?..end)
}
