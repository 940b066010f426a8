//! Forwards of a decoder over a block whose prompt an encoder has read, as DiffusionGemma's official code has them.

use candle_core::{DType, IndexOp, Tensor};

use super::folder::{Tensors, bits, integers, tensor};
use super::forward::outputs;
use crate::canvas::TokenId;
use crate::models::{AttentionPattern, Denoiser, KvPool, ModelError, RaggedBatch, Segment};

/// A row of a case.
struct Row {
    /// Slots of padding on its left, which nothing sees.
    padding: usize,
    /// What the encoder reads, padding included: the prompt, and blocks that are finished.
    encoded: Vec<TokenId>,
    /// What the decoder reads.
    block: Vec<TokenId>,
    /// Logits `[block, V]` that it predicted before.
    predicted: Option<Tensor>,
}

impl Row {
    fn read(goldens: &Tensors, case: &str, row: usize) -> Result<Self, ModelError> {
        let there = |name: &str| {
            let tensor = goldens.get(&format!("{case}.{name}"));
            tensor.map(|tensor| tensor.i(row)).transpose()
        };
        let needed = |name: &str| tensor(goldens, &format!("{case}.{name}"))?.i(row);
        let mut encoded = integers(&needed("input_ids")?)?;
        if let Some(finished) = there("encoded_canvas_ids")? {
            encoded.extend(integers(&finished)?);
        }
        let valid = there("attention_mask")?
            .map(|mask| bits(&mask))
            .transpose()?;
        let padding = valid.map_or(0, |valid| valid.iter().filter(|valid| !**valid).count());
        let is_told = match there("self_conditioning_mask")? {
            Some(told) => told.to_dtype(DType::F32)?.to_scalar::<f32>()? != 0.0,
            None => true,
        };
        Ok(Self {
            padding,
            encoded,
            block: integers(&needed("decoder_input_ids")?)?,
            predicted: there("self_conditioning_logits")?.filter(|_| is_told),
        })
    }
}

/// Logits `[B, block, V]` of a case, whose prompts are encoded in parts of at most `part` tokens, the rows of a batch
/// together.
///
/// # Errors
/// If the golden lacks a tensor, the model is of another kind, or it cannot be run.
pub fn logits(
    model: &dyn Denoiser,
    goldens: &Tensors,
    case: &str,
    part: usize,
) -> Result<Tensor, ModelError> {
    let pattern = model.spec().attention;
    let AttentionPattern::EncodedBlocks { block_length } = pattern else {
        return Err(ModelError::Batch("the model encodes no blocks".into()));
    };
    let count = tensor(goldens, &format!("{case}.input_ids"))?.dim(0)?;
    let rows = (0..count).map(|row| Row::read(goldens, case, row));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let longest = rows.iter().map(|row| row.encoded.len()).max().unwrap_or(0);
    // Slots are neither in order nor next to each other.
    let room = 2 * longest;
    let pool = KvPool::new(model.spec(), room * count, model.dtype(), model.device())?;
    let slot_of = |row: usize| move |slot: usize| (room * (row + 1) - 1 - 2 * slot) as u32;

    for first in (0..longest).step_by(part) {
        let mut batch = RaggedBatch::new();
        for (index, row) in rows.iter().enumerate() {
            let slots = first.max(row.padding)..(first + part).min(row.encoded.len());
            if slots.is_empty() {
                continue;
            }
            let positions: Vec<u32> = slots.clone().map(|slot| slot as u32).collect();
            let segment = Segment {
                allowed: pattern.allowed_among(slots.clone(), slots.end),
                context: (row.padding..slots.start).map(slot_of(index)).collect(),
                store: slots.clone().map(slot_of(index)).collect(),
                encodes: true,
                ..Segment::default()
            };
            batch.push_segment(&row.encoded[slots], &positions, segment);
        }
        model.hidden(&batch, Some(&pool))?;
    }

    let mut batch = RaggedBatch::new();
    for (index, row) in rows.iter().enumerate() {
        let slots = row.encoded.len()..row.encoded.len() + row.block.len();
        let positions: Vec<u32> = slots.map(|slot| slot as u32).collect();
        let told = |logits: &Tensor| model.self_conditioning(&logits.to_device(model.device())?);
        let segment = Segment {
            context: (row.padding..row.encoded.len())
                .map(slot_of(index))
                .collect(),
            self_conditioning: row.predicted.as_ref().map(told).transpose()?,
            ..Segment::default()
        };
        batch.push_segment(&row.block, &positions, segment);
    }
    let logits = outputs(model, &batch, Some(&pool))?;
    Ok(logits.reshape((count, block_length, logits.dim(1)?))?)
}
