//! What one sequence has cached.

use std::ops::Range;

use super::blocks::{Before, Contents};
use super::memory::{CacheMemory, Table};
use super::{CacheScheme, Room, Window};
use crate::canvas::Canvas;
use crate::decode::Cache;
use crate::models::{AttentionPattern, ModelSpec};

/// A sequence's part of the key/value memory, and what is in it.
#[derive(Debug)]
pub(in crate::engine) struct SequenceCache {
    scheme: CacheScheme,
    refresh: Option<usize>,
    /// Slots of a block of a block-causal model, and of the canvas's first block that it lacks.
    model_block: Option<(usize, usize)>,
    /// What comes before the block that is denoised is encoded, in steps of its own.
    encodes: bool,
    /// Of the canvas, and with guidance of its unconditional twin.
    tables: Vec<Table>,
    /// For [`CacheScheme::Block`]: as many slots from the canvas's first on are cached.
    cached: usize,
    /// The table's blocks that are published or were found, and the last of them.
    shared: usize,
    before: Before,
    /// For the approximate schemes: the block of the last refresh, and the steps since.
    refreshed: Option<(Range<usize>, usize)>,
}

/// Where a sequence is when its window is chosen.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Place {
    /// The block that it denoises.
    pub block: Range<usize>,
    /// Slots of the canvas.
    pub length: usize,
    /// The first row that is scored.
    pub first_row: usize,
    /// Slots that a block sees, its own among them, if not all before it.
    pub window: Option<usize>,
    /// The most rows that only prepare the cache in one step.
    pub chunk: usize,
}

impl SequenceCache {
    /// Takes the memory for a sequence; none if there is not enough of it now.
    pub fn admit(
        memory: &mut CacheMemory,
        cache: Cache,
        spec: &ModelSpec,
        room: Room,
    ) -> Option<Self> {
        let shift = room.shift();
        let block_slots = memory.block_slots();
        let mut blocks = memory.blocks.take(room.total_blocks())?;
        let tables = (0..room.tables)
            .map(|_| Table {
                blocks: blocks.split_off(blocks.len() - room.blocks),
                shift,
                block_slots,
            })
            .collect();
        Some(Self {
            scheme: room.scheme,
            refresh: cache.refresh,
            model_block: room.model_block,
            encodes: matches!(spec.attention, AttentionPattern::EncodedBlocks { .. }),
            tables,
            cached: 0,
            shared: 0,
            before: Before::Nothing(shift),
            refreshed: None,
        })
    }

    /// Gives the memory back, last blocks first: what is found by what comes before it is of no use without
    /// that, so that the beginning of a canvas is to be forgotten last.
    pub fn release(self, memory: &mut CacheMemory) {
        for table in self.tables {
            let blocks = table.blocks.into_iter().rev();
            blocks.for_each(|block| memory.blocks.give_back(block));
        }
    }

    /// Takes what other sequences have computed of this canvas's beginning in the place of its own; the
    /// number of slots that need not be computed.
    pub fn reuse(
        &mut self,
        memory: &mut CacheMemory,
        canvas: &Canvas,
        block: &Range<usize>,
    ) -> usize {
        let before = self.cached;
        while let Some(contents) = self.next_contents(canvas, block.start) {
            let Some((id, number)) = memory.blocks.find(&contents) else {
                break;
            };
            let table = &mut self.tables[0];
            let own = std::mem::replace(&mut table.blocks[self.shared], id);
            memory.blocks.give_back(own);
            self.cached = table.canvas_slots(self.shared).end;
            self.before = Before::Published(number);
            self.shared += 1;
        }
        self.cached - before
    }

    /// What the next block of the pool will hold, if it is one that can be shared: whole, before slot
    /// `end`, and nothing of it is computed yet.
    pub fn next_contents(&self, canvas: &Canvas, end: usize) -> Option<Contents> {
        let table = self.tables.first()?;
        let slots = table.canvas_slots(self.shared);
        let is_next = self.scheme == CacheScheme::Block
            && self.tables.len() == 1
            && slots.start == self.cached
            && slots.end <= end;
        is_next.then(|| self.contents(canvas, slots))
    }

    fn contents(&self, canvas: &Canvas, slots: Range<usize>) -> Contents {
        Contents {
            before: self.before,
            tokens: slots.map(|slot| canvas.token(slot)).collect(),
        }
    }

    /// The window of the next step.
    pub fn window(&self, place: &Place) -> Window {
        let Place {
            ref block,
            length,
            first_row,
            chunk,
            ..
        } = *place;
        match self.scheme {
            // No slot sees the blocks after its own.
            CacheScheme::None if self.model_block.is_some() => Window::uncached(0..block.end),
            CacheScheme::None => Window::uncached(0..length),
            CacheScheme::Block if self.encodes => self.encoded_window(block, chunk),
            CacheScheme::Block => self.block_window(place, chunk),
            _ if self.is_due(block) => Window {
                kept: 0..length,
                ..Window::uncached(0..length)
            },
            scheme => {
                let start = first_row.min(block.start);
                let end = match scheme {
                    CacheScheme::Dual => block.end,
                    _ => length,
                };
                Window {
                    rows: start..end,
                    context: [0..start, end..length],
                    kept: 0..0,
                    denoises: true,
                }
            }
        }
    }

    /// What is not encoded yet of what comes before `block`, at most `chunk` slots, or else the block.
    fn encoded_window(&self, block: &Range<usize>, chunk: usize) -> Window {
        let end = self.cached.saturating_add(chunk.max(1)).min(block.start);
        let denoises = self.cached >= block.start;
        let rows = match denoises {
            true => block.clone(),
            false => self.cached..end,
        };
        Window {
            context: [0..rows.start, 0..0],
            kept: match denoises {
                true => block.start..block.start,
                false => rows.clone(),
            },
            rows,
            denoises,
        }
    }

    fn block_window(&self, place: &Place, chunk: usize) -> Window {
        let block = &place.block;
        let (length, missing) = self.model_block.unwrap_or((1, 0));
        let window = place.window.map(|slots| slots.max(length));
        // The canvas's last block may be shorter than the model's.
        let whole = |end: usize| (end + missing).next_multiple_of(length) - missing;
        let seen_from = |end: usize| window.map_or(0, |slots| whole(end).saturating_sub(slots));
        let lag = block.start - self.cached.min(block.start);
        // All rows of a step see the same cached slots.
        if lag > chunk || (lag > 0 && seen_from(block.end) > 0) {
            // As many whole blocks of the model as fit the chunk, and at least one.
            let after = |slot: usize| (slot + missing) / length * length;
            let next = after(self.cached) + length;
            let mut end = after(self.cached + chunk).max(next) - missing;
            if let Some(window) = window.filter(|_| seen_from(end) > 0) {
                end = after(window).max(next) - missing;
            }
            let rows = self.cached..end.min(block.start);
            return Window {
                context: [seen_from(rows.end)..rows.start, 0..0],
                kept: rows.clone(),
                rows,
                denoises: false,
            };
        }
        let rows = self.cached.min(place.first_row)..block.end;
        Window {
            context: [seen_from(block.end).min(rows.start)..rows.start, 0..0],
            kept: self.cached..block.start,
            rows,
            denoises: true,
        }
    }

    /// Whether an approximate scheme has to recompute everything.
    fn is_due(&self, block: &Range<usize>) -> bool {
        match &self.refreshed {
            Some((refreshed, steps)) => {
                refreshed != block || self.refresh.is_some_and(|refresh| steps + 1 >= refresh)
            }
            None => true,
        }
    }

    /// Notes that a step with `window` was taken on `canvas`, as it is after the step, in `block`.
    pub fn stepped(
        &mut self,
        memory: &mut CacheMemory,
        window: &Window,
        canvas: &Canvas,
        block: &Range<usize>,
    ) {
        match self.scheme {
            CacheScheme::None => {}
            CacheScheme::Block => {
                self.cached = self.cached.max(window.kept.end);
                self.publish(memory, canvas);
            }
            _ if window.kept.is_empty() => {
                if let Some((_, steps)) = &mut self.refreshed {
                    *steps += 1;
                }
            }
            _ => self.refreshed = Some((block.clone(), 0)),
        }
    }

    /// Lets others find the blocks that are full.
    fn publish(&mut self, memory: &mut CacheMemory, canvas: &Canvas) {
        let [table] = self.tables.as_slice() else {
            return;
        };
        let mut shared = self.shared;
        let mut before = self.before;
        while shared < table.blocks.len() {
            let slots = table.canvas_slots(shared);
            if slots.end > self.cached {
                break;
            }
            let contents = Contents {
                before,
                tokens: slots.map(|slot| canvas.token(slot)).collect(),
            };
            before = Before::Published(memory.blocks.publish(table.blocks[shared], contents));
            shared += 1;
        }
        self.shared = shared;
        self.before = before;
    }

    /// The pool's slots of `slots` of the canvas, or of its `twin`.
    pub fn slots(&self, twin: bool, slots: impl IntoIterator<Item = usize>) -> Vec<u32> {
        match self.tables.get(usize::from(twin)) {
            Some(table) => slots.into_iter().map(|slot| table.slot(slot)).collect(),
            None => Vec::new(),
        }
    }
}
