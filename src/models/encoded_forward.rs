//! A whole forward of a network of [encoded blocks](AttentionPattern::EncodedBlocks): an encoder reads a text, and a
//! decoder the block after it, as DiffusionGemma's official forward has it.

use candle_core::{DType, Device, Tensor};

use super::{AttentionPattern, Denoiser, KvPool, ModelError, RaggedBatch, Segment};
use crate::canvas::TokenId;

/// A text, and the block after it.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// Position of the first token that the encoder reads.
    pub first: usize,
    /// What the encoder reads: the prompt, and blocks that are finished.
    pub encoded: Vec<TokenId>,
    /// What the decoder reads.
    pub block: Vec<TokenId>,
    /// Logits `[block, vocab]` that it predicted in the step before; none at a block's first step.
    pub predicted: Option<Tensor>,
}

impl EncodedText {
    /// Position of the block's first token.
    fn end(&self) -> usize {
        self.first + self.encoded.len()
    }
}

/// Logits `[texts, block, vocab]` of the blocks, in f32 on the CPU. The encoder reads at most `part` positions at
/// once, of all texts together, and leaves keys and values in `pool`, in the slot that `slot_of` says of a text's
/// index and a position.
///
/// # Errors
/// [`ModelError::Batch`] if the network has no encoder, there are no texts, their blocks differ in length, or they
/// do not fit the model or the pool; else if the device fails.
pub fn logits(
    model: &dyn Denoiser,
    texts: &[EncodedText],
    part: usize,
    pool: &KvPool,
    slot_of: impl Fn(usize, usize) -> u32,
) -> Result<Tensor, ModelError> {
    let pattern = model.spec().attention;
    if !matches!(pattern, AttentionPattern::EncodedBlocks { .. }) {
        return Err(ModelError::Batch("the model encodes no blocks".into()));
    }
    let length = texts.first().map_or(0, |text| text.block.len());
    if let Some(other) = texts.iter().find(|text| text.block.len() != length) {
        return Err(ModelError::Batch(format!(
            "a block has {} slots, and the first has {length}; allowed: blocks of one length",
            other.block.len()
        )));
    }
    let longest = texts.iter().map(EncodedText::end).max().unwrap_or(0);
    for start in (0..longest).step_by(part.max(1)) {
        let mut batch = RaggedBatch::new();
        for (index, text) in texts.iter().enumerate() {
            let slots = start.max(text.first)..start.saturating_add(part.max(1)).min(text.end());
            if slots.is_empty() {
                continue;
            }
            let segment = Segment {
                allowed: pattern.allowed_among(slots.clone(), slots.end),
                context: (text.first..slots.start)
                    .map(|slot| slot_of(index, slot))
                    .collect(),
                store: slots.clone().map(|slot| slot_of(index, slot)).collect(),
                encodes: true,
                ..Segment::default()
            };
            let tokens = &text.encoded[slots.start - text.first..slots.end - text.first];
            let positions: Vec<u32> = slots.map(|slot| slot as u32).collect();
            batch.push_segment(tokens, &positions, segment);
        }
        if batch.rows() > 0 {
            model.hidden(&batch, Some(pool))?;
        }
    }

    let mut batch = RaggedBatch::new();
    for (index, text) in texts.iter().enumerate() {
        let told = |logits: &Tensor| model.self_conditioning(&logits.to_device(model.device())?);
        let segment = Segment {
            context: (text.first..text.end())
                .map(|slot| slot_of(index, slot))
                .collect(),
            self_conditioning: text.predicted.as_ref().map(told).transpose()?,
            ..Segment::default()
        };
        let slots = text.end()..text.end() + length;
        let positions: Vec<u32> = slots.map(|slot| slot as u32).collect();
        batch.push_segment(&text.block, &positions, segment);
    }
    let hidden = model.hidden(&batch, Some(pool))?;
    let logits = model.head_rows(&hidden, &batch.row_inputs())?;
    let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    Ok(logits.reshape((texts.len(), length, logits.dim(1)?))?)
}
