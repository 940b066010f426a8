//! What the kernels `kernels/ragged_attention.cu` and `kernels/long_attention.cu` are told of a batch, laid out as their
//! structs.

use bytemuck::{Pod, Zeroable};

use crate::kernels::Launch;
use crate::models::batch::Segment;

/// The fewest rows of a segment for which products on tensor cores are used, in half precision.
///
/// By the instructions of both kernels, and to be measured: of heads of 128 a block of the one takes some 31 clocks of a
/// multiprocessor a key for its 8 queries, and one of the other 16, or 31 where nothing else hides its latencies, for 64. A
/// segment of 32 rows whose heads share no keys is four blocks of the one kernel and half of a block of the other: alone on
/// a card they take about the same time, and where other segments fill the card the other kernel takes an eighth of it.
#[cfg(feature = "cuda")]
pub(crate) const LEAST_LONG_ROWS: usize = 32;

/// No bits of allowed rows.
const ALL: u32 = u32::MAX;

/// A segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RaggedSegment {
    first_row: u32,
    rows: u32,
    first_context: u32,
    context: u32,
    allowed: u32,
}

/// The queries of a block, each a head of a row, of heads that share keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryTile {
    segment: u32,
    /// Among those of the segment, [rows, heads per key/value head].
    first: u32,
}

/// Which rows see which: the same for all layers of a forward.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RaggedPlan {
    pub segments: Vec<RaggedSegment>,
    /// Of the segments that the kernel for few rows takes.
    pub tiles: Vec<QueryTile>,
    /// Of the segments that the kernel for many rows takes.
    pub long_tiles: Vec<QueryTile>,
    /// Slots of the pool, of all segments.
    pub context: Vec<u32>,
    /// `[rows]`, from the batch's first row on: the first slot of its segment's context that a row may see.
    pub context_from: Vec<u32>,
    /// `[rows]`: so many first rows of its segment a row may see, or where its segment has bits those of them whose bit is
    /// set.
    pub visible: Vec<u32>,
    /// Bits `[len, ⌈len / 32⌉]` of the segments whose rows see others than the first ones.
    pub allowed: Vec<u32>,
}

/// Queries of a block of the kernel for few rows, for heads of width `dim`.
fn queries_of_block(dim: usize) -> usize {
    if dim > 256 { 4 } else { 8 }
}

/// Queries of a block of the kernel for many rows.
fn queries_of_long_block(dim: usize) -> usize {
    if dim > 256 { 32 } else { 64 }
}

/// The instances for heads of width `dim` of the kernel for few rows: of f32, bf16 and f16. None for widths that it is
/// not built for.
pub(crate) fn kernels(dim: usize) -> Option<[&'static str; 3]> {
    match dim {
        64 => Some([
            "ragged_attention_f32_64",
            "ragged_attention_bf16_64",
            "ragged_attention_f16_64",
        ]),
        128 => Some([
            "ragged_attention_f32_128",
            "ragged_attention_bf16_128",
            "ragged_attention_f16_128",
        ]),
        256 => Some([
            "ragged_attention_f32_256",
            "ragged_attention_bf16_256",
            "ragged_attention_f16_256",
        ]),
        512 => Some([
            "ragged_attention_f32_512",
            "ragged_attention_bf16_512",
            "ragged_attention_f16_512",
        ]),
        _ => None,
    }
}

/// The instances for heads of width `dim` of the kernel for many rows: of bf16 and f16. None for widths that it is not
/// built for.
pub(crate) fn long_kernels(dim: usize) -> Option<[&'static str; 2]> {
    match dim {
        64 => Some(["long_attention_bf16_64", "long_attention_f16_64"]),
        128 => Some(["long_attention_bf16_128", "long_attention_f16_128"]),
        256 => Some(["long_attention_bf16_256", "long_attention_f16_256"]),
        512 => Some(["long_attention_bf16_512", "long_attention_f16_512"]),
        _ => None,
    }
}

/// The launch of `kernel`, one for few rows, over so many `tiles` of a plan.
pub(crate) fn launch(kernel: &'static str, tiles: usize, kv_heads: usize) -> Launch {
    Launch {
        kernel,
        grid: [tiles as u32, kv_heads as u32, 1],
        block: [256, 1, 1],
    }
}

/// The launch of `kernel`, one for many rows and heads of width `dim`, over so many `tiles` of a plan.
pub(crate) fn long_launch(
    kernel: &'static str,
    dim: usize,
    tiles: usize,
    kv_heads: usize,
) -> Launch {
    Launch {
        kernel,
        grid: [tiles as u32, kv_heads as u32, 1],
        block: [if dim > 128 { 256 } else { 128 }, 1, 1],
    }
}

impl RaggedPlan {
    /// For heads of width `dim`, of which `group` share keys and values. Segments of at least `least_long_rows` rows go to
    /// the kernel for many rows: what a segment's rows get does not depend on the other segments.
    pub fn new(segments: &[Segment], dim: usize, group: usize, least_long_rows: usize) -> Self {
        let mut plan = Self::default();
        for segment in segments {
            let length = segment.rows.len();
            plan.visible.resize(segment.rows.start, 0);
            plan.context_from.resize(segment.rows.start, 0);
            let index = plan.segments.len() as u32;
            let (tiles, queries) = match length >= least_long_rows {
                true => (&mut plan.long_tiles, queries_of_long_block(dim)),
                false => (&mut plan.tiles, queries_of_block(dim)),
            };
            let firsts = (0..length * group).step_by(queries);
            tiles.extend(firsts.map(|first| QueryTile {
                segment: index,
                first: first as u32,
            }));
            let allowed = plan.see(length, segment.allowed.as_deref());
            let from = segment.context_from.iter();
            plan.context_from
                .extend(from.map(|from| segment.context.len().min(*from) as u32));
            plan.context_from.resize(plan.visible.len(), 0);
            plan.segments.push(RaggedSegment {
                first_row: segment.rows.start as u32,
                rows: length as u32,
                first_context: plan.context.len() as u32,
                context: segment.context.len() as u32,
                allowed,
            });
            plan.context.extend(&segment.context);
        }
        plan
    }

    /// Adds which of `length` rows each of them sees; the place of their bits.
    fn see(&mut self, length: usize, allowed: Option<&[bool]>) -> u32 {
        let Some(allowed) = allowed else {
            self.visible.extend(vec![length as u32; length]);
            return ALL;
        };
        let rows = || allowed.chunks(length.max(1));
        let end = |row: &[bool]| row.iter().rposition(|allowed| *allowed).map_or(0, |i| i + 1);
        self.visible.extend(rows().map(|row| end(row) as u32));
        if rows().all(|row| !row[..end(row)].contains(&false)) {
            return ALL;
        }
        let place = self.allowed.len() as u32;
        for row in rows() {
            self.allowed.extend(row.chunks(32).map(|bits| {
                let set = (0u32..).zip(bits).filter(|(_, bit)| **bit);
                set.fold(0, |word, (i, _)| word | 1 << i)
            }));
        }
        place
    }
}
