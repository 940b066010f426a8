//! Forwards of a decoder over a block whose prompt an encoder has read, as DiffusionGemma's official code has them.

use candle_core::{DType, IndexOp, Tensor};

use super::folder::{Tensors, bits, integers, tensor};
use crate::models::encoded_forward::{self, EncodedText};
use crate::models::{Denoiser, KvPool, ModelError};

/// A row of a case: the prompt, and blocks that are finished, which the encoder reads, and the block after them.
fn text(goldens: &Tensors, case: &str, row: usize) -> Result<EncodedText, ModelError> {
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
    // Padding is on the left.
    let padding = valid.map_or(0, |valid| valid.iter().filter(|valid| !**valid).count());
    let is_told = match there("self_conditioning_mask")? {
        Some(told) => told.to_dtype(DType::F32)?.to_scalar::<f32>()? != 0.0,
        None => true,
    };
    Ok(EncodedText {
        first: padding,
        encoded: encoded.split_off(padding.min(encoded.len())),
        block: integers(&needed("decoder_input_ids")?)?,
        predicted: there("self_conditioning_logits")?.filter(|_| is_told),
    })
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
    let count = tensor(goldens, &format!("{case}.input_ids"))?.dim(0)?;
    let texts = (0..count).map(|row| text(goldens, case, row));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    let ends = texts.iter().map(|text| text.first + text.encoded.len());
    // Slots are neither in order nor next to each other.
    let room = 2 * ends.max().unwrap_or(0);
    let pool = KvPool::new(model.spec(), room * count, model.dtype(), model.device())?;
    let slot_of = |row: usize, slot: usize| (room * (row + 1) - 1 - 2 * slot) as u32;
    encoded_forward::logits(model, &texts, part, &pool, slot_of)
}
