//! How much of the key/value memory a sequence takes.

use super::CacheScheme;
use super::memory::block_slots;
use crate::canvas::Canvas;
use crate::decode::Decoder;
use crate::models::{AttentionPattern, ModelSpec};

/// What a sequence takes of the pool to be denoised.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) struct Room {
    pub(super) scheme: CacheScheme,
    /// Slots of a block of a block-causal model, and of the canvas's first block that it lacks.
    pub(super) model_block: Option<(usize, usize)>,
    /// One for the canvas, and with guidance another for its unconditional twin; none without a cache.
    pub(super) tables: usize,
    /// Blocks of the pool a table.
    pub(super) blocks: usize,
}

/// Slots that the canvas's first block lacks where blocks of `length` slots are counted so that one begins at
/// slot `start`.
fn missing(length: usize, start: usize) -> usize {
    (length - start % length) % length
}

impl Room {
    /// For `canvas`, which `decoder` is about to denoise: slots before its last block where finished blocks are kept,
    /// as nothing reads what the last would leave, and otherwise the canvas's slots.
    pub fn of(
        scheme: CacheScheme,
        spec: &ModelSpec,
        canvas: &Canvas,
        decoder: &Decoder,
        is_guided: bool,
    ) -> Self {
        let model_block = match spec.attention {
            AttentionPattern::BlockCausal { block_length } => {
                Some((block_length, missing(block_length, decoder.block().start)))
            }
            AttentionPattern::Bidirectional | AttentionPattern::EncodedBlocks { .. } => None,
        };
        let slots = match scheme {
            CacheScheme::None => 0,
            CacheScheme::Block => decoder.last_block().start,
            CacheScheme::Prefix | CacheScheme::Dual => canvas.len(),
        };
        let room = Self {
            scheme,
            model_block,
            tables: match scheme {
                CacheScheme::None => 0,
                _ => 1 + usize::from(is_guided),
            },
            blocks: 0,
        };
        Self {
            blocks: (slots + room.shift()).div_ceil(block_slots(spec)),
            ..room
        }
    }

    /// Slots of a table before the canvas's first.
    pub(super) fn shift(&self) -> usize {
        self.model_block.map_or(0, |(_, missing)| missing)
    }

    /// Blocks of the pool, of all tables.
    pub fn total_blocks(&self) -> usize {
        self.tables * self.blocks
    }
}
