//! Cached keys and values: the memory, who uses which part of it, and what a step recomputes.

mod blocks;
mod memory;
mod room;
mod scheme;
mod sequence;
mod window;

pub(super) use blocks::Contents;
pub(super) use memory::{CacheMemory, block_slots};
pub(super) use room::Room;
pub use scheme::CacheScheme;
pub(super) use sequence::{Place, SequenceCache};
pub(super) use window::Window;
