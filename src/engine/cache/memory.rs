//! The key/value memory of an engine: a pool of slots, handed out in blocks.

use super::blocks::{BlockId, Blocks};
use crate::engine::StartError;
use crate::models::{AttentionPattern, Denoiser, KvPool, ModelError, ModelSpec};

/// The fewest slots of a block.
const BLOCK_SLOTS: usize = 16;

/// A pool and the books on it.
#[derive(Debug)]
pub(in crate::engine) struct CacheMemory {
    pool: Option<KvPool>,
    pub(super) blocks: Blocks,
    block_slots: usize,
}

impl CacheMemory {
    /// At most `bytes` of memory for the model's keys and values, and no more than `slots` slots, which are
    /// as many as can be asked for at a time.
    ///
    /// # Errors
    /// If the device has not enough memory, or fails.
    pub fn new(model: &dyn Denoiser, bytes: usize, slots: usize) -> Result<Self, StartError> {
        let spec = model.spec();
        let dtype = model.dtype();
        let block_slots = block_slots(spec);
        let slot_bytes = spec.kv_width() * dtype.size_in_bytes();
        let affordable = bytes / slot_bytes.max(1) / block_slots;
        let count = affordable.min(slots.div_ceil(block_slots));
        let pool = (count > 0)
            .then(|| KvPool::new(spec, count * block_slots, dtype, model.device()))
            .transpose()
            .map_err(|error| {
                let error = ModelError::from(error);
                match error.is_out_of_memory() {
                    true => StartError::KvMemory {
                        bytes: count * block_slots * slot_bytes,
                        reason: error.to_string(),
                    },
                    false => StartError::KvPool(error),
                }
            })?;
        Ok(Self {
            pool,
            blocks: Blocks::new(count),
            block_slots,
        })
    }

    /// Begins the books anew: no block is in use, and none holds anything.
    pub fn forget_all(&mut self) {
        self.blocks = Blocks::new(self.blocks.total());
    }

    /// The keys and values; none if there is no memory for a block.
    pub fn pool(&self) -> Option<&KvPool> {
        self.pool.as_ref()
    }

    /// All slots.
    pub fn slots(&self) -> usize {
        self.blocks.total() * self.block_slots
    }

    /// Slots in the blocks that sequences use.
    pub fn used_slots(&self) -> usize {
        (self.blocks.total() - self.blocks.available()) * self.block_slots
    }

    /// Slots a block.
    pub fn block_slots(&self) -> usize {
        self.block_slots
    }
}

/// Slots a block of a model's pool: whole blocks of the model where it denoises in blocks, so that what a
/// block holds depends on nothing after it.
pub(in crate::engine) fn block_slots(spec: &ModelSpec) -> usize {
    match spec.attention {
        // What an encoder leaves of a slot depends on nothing after it.
        AttentionPattern::Bidirectional | AttentionPattern::EncodedBlocks { .. } => BLOCK_SLOTS,
        AttentionPattern::BlockCausal { block_length } => {
            block_length * BLOCK_SLOTS.div_ceil(block_length.max(1))
        }
    }
}

/// The blocks in which a sequence keeps the slots of a canvas, in canvas order.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub blocks: Vec<BlockId>,
    /// Slots of the first block before the canvas's first.
    pub shift: usize,
    pub block_slots: usize,
}

impl Table {
    /// The pool's slot of a canvas slot.
    pub fn slot(&self, slot: usize) -> u32 {
        let place = slot + self.shift;
        let block = self.blocks[place / self.block_slots];
        block * self.block_slots as u32 + (place % self.block_slots) as u32
    }

    /// The canvas slots of the block at `index`; the last may reach beyond the canvas.
    pub fn canvas_slots(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.block_slots;
        start.saturating_sub(self.shift)..start + self.block_slots - self.shift
    }
}
