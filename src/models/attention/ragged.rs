//! What the kernel `kernels/ragged_attention.cu` is told of a batch, laid out as its structs.

use bytemuck::{Pod, Zeroable};

use crate::kernels::Launch;
use crate::models::batch::Segment;

/// Threads of a block, as the kernel has it.
const THREADS: u32 = 256;

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
    pub tiles: Vec<QueryTile>,
    /// Slots of the pool, of all segments.
    pub context: Vec<u32>,
    /// `[rows]`, from the batch's first row on: so many first rows of its segment a row may see, unless its segment has bits.
    pub visible: Vec<u32>,
    /// Bits `[len, ⌈len / 32⌉]` of the segments whose rows see others than the first ones.
    pub allowed: Vec<u32>,
}

/// Queries of a block, for heads of width `dim`.
fn queries_of_block(dim: usize) -> usize {
    if dim > 256 { 4 } else { 8 }
}

/// The kernel's instances for heads of width `dim`: of f32, bf16 and f16. None for widths that it is not
/// built for.
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

/// The launch of `kernel` over so many `tiles` of a plan.
pub(crate) fn launch(kernel: &'static str, tiles: usize, kv_heads: usize) -> Launch {
    Launch {
        kernel,
        grid: [tiles as u32, kv_heads as u32, 1],
        block: [THREADS, 1, 1],
    }
}

impl RaggedPlan {
    /// For heads of width `dim`, of which `group` share keys and values.
    pub fn new(segments: &[Segment], dim: usize, group: usize) -> Self {
        let mut plan = Self::default();
        for segment in segments {
            let length = segment.rows.len();
            plan.visible.resize(segment.rows.start, 0);
            let index = plan.segments.len() as u32;
            let firsts = (0..length * group).step_by(queries_of_block(dim));
            plan.tiles.extend(firsts.map(|first| QueryTile {
                segment: index,
                first: first as u32,
            }));
            let allowed = plan.see(length, segment.allowed.as_deref());
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

    /// Adds what each of `length` rows sees; the place of their bits.
    fn see(&mut self, length: usize, allowed: Option<&[bool]>) -> u32 {
        let Some(allowed) = allowed else {
            self.visible.extend(vec![length as u32; length]);
            return ALL;
        };
        let rows = || allowed.chunks(length.max(1));
        let firsts = |row: &[bool]| row.iter().take_while(|allowed| **allowed).count();
        if rows().all(|row| !row[firsts(row)..].contains(&true)) {
            self.visible.extend(rows().map(|row| firsts(row) as u32));
            return ALL;
        }
        let place = self.allowed.len() as u32;
        self.visible.extend(vec![length as u32; length]);
        for row in rows() {
            self.allowed.extend(row.chunks(32).map(|bits| {
                let set = (0u32..).zip(bits).filter(|(_, bit)| **bit);
                set.fold(0, |word, (i, _)| word | 1 << i)
            }));
        }
        place
    }
}
