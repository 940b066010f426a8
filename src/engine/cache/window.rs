//! Which slots of a canvas a step recomputes, and which it reads from the cache.

use std::ops::Range;

/// One step's window on a canvas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Window {
    /// The slots that are recomputed.
    pub rows: Range<usize>,
    /// Cached slots that the rows see besides, before and after them.
    pub context: [Range<usize>; 2],
    /// The recomputed slots whose keys and values are kept.
    pub kept: Range<usize>,
    /// Whether the step denoises; else it only prepares the cache.
    pub denoises: bool,
}

impl Window {
    /// The slots `rows` with nothing cached.
    pub fn uncached(rows: Range<usize>) -> Self {
        Self {
            rows,
            context: [0..0, 0..0],
            kept: 0..0,
            denoises: true,
        }
    }
}
