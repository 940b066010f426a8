//! What the kernels `kernels/ragged_attention.cu`, `kernels/long_attention.cu` and `kernels/attention_merge.cu` are told of
//! a batch, laid out as their structs.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::Heads;
use super::splits::splits;
use crate::kernels::Launch;
use crate::models::batch::Segment;

/// The fewest queries of a segment and key/value head for which products on tensor cores are used, in half precision.
///
/// By the instructions of both kernels, and to be measured: of heads of 128 a block of the one takes some 31 clocks of a
/// multiprocessor a key for its 8 queries, and one of the other 20, or some 31 where nothing else hides its latencies, for 64.
/// 32 queries are four blocks of the one kernel and half of a block of the other: alone on a card, of keys that are not
/// cut, they take about the same time, and where other segments fill the card the other kernel takes a quarter of it or less.
#[cfg(feature = "cuda")]
pub(crate) const LEAST_LONG_QUERIES: usize = 32;

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

/// The results of a tile are over all keys, and are not merged.
const WHOLE: u32 = u32::MAX;

/// The queries of a block, each a head of a row, of heads that share keys and values, and the split of keys that the block
/// goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct QueryTile {
    segment: u32,
    /// Among those of the segment, [rows, heads per key/value head].
    first: u32,
    /// Keys of the segment, its context before its own rows.
    first_key: u32,
    end_key: u32,
    /// Place of the first query's partial result, or [`WHOLE`].
    partial: u32,
}

/// Queries whose partial results a block merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct MergeTile {
    segment: u32,
    /// Among those of the segment, as of a [`QueryTile`].
    first: u32,
    queries: u32,
    /// Place of the first query's partial result over the first split; those of the others follow.
    partial: u32,
    /// Places from those over a split to those over the next.
    stride: u32,
    splits: u32,
}

/// Queries of a block that merges.
const QUERIES_OF_MERGE: usize = 8;

/// Numbers that a partial result has beyond those of the head: what it knows of the scores.
const NUMBERS_OF_SOFT_MAX: usize = 4;

/// Which rows see which: the same for all layers of a forward.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RaggedPlan {
    pub segments: Vec<RaggedSegment>,
    /// Of the segments that the kernel for few queries takes.
    pub tiles: Vec<QueryTile>,
    /// Of the segments that the kernel for many queries takes.
    pub long_tiles: Vec<QueryTile>,
    /// Of the segments whose keys are cut into splits.
    pub merge_tiles: Vec<MergeTile>,
    /// Partial results of each key/value head: of a query as many as there are splits.
    pub partials: usize,
    /// Slots of the pool, of all segments.
    pub context: Vec<u32>,
    /// `[rows]`, from the batch's first row on: the first key of its segment that a row may see, of its context or, where it
    /// sees none of that, of its rows.
    pub first_seen: Vec<u32>,
    /// `[rows]`: so many first rows of its segment a row may see, or where its segment has bits those of them whose bit is
    /// set.
    pub visible: Vec<u32>,
    /// Bits `[len, ⌈len / 32⌉]` of the segments whose rows see others than the first ones.
    pub allowed: Vec<u32>,
}

/// Queries of a block of the kernel for few queries, for heads of width `dim`.
fn queries_of_block(dim: usize) -> usize {
    if dim > 256 { 4 } else { 8 }
}

/// Queries of a block of the kernel for many queries.
fn queries_of_long_block(dim: usize) -> usize {
    if dim > 256 { 32 } else { 64 }
}

/// The instances for heads of width `dim` of the kernel for few queries: of f32, bf16 and f16. None for widths that it is
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

/// The instances for heads of width `dim` of the kernel for many queries: of bf16 and f16. None for widths that it is not
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

/// The instances of the kernel that merges: of f32, bf16 and f16.
pub(crate) const MERGE_KERNELS: [&str; 3] = [
    "attention_merge_f32",
    "attention_merge_bf16",
    "attention_merge_f16",
];

/// The launch of `kernel`, one for few queries, over so many `tiles` of a plan.
pub(crate) fn launch(kernel: &'static str, tiles: usize, kv_heads: usize) -> Launch {
    over_tiles(kernel, 256, tiles, kv_heads)
}

/// The launch of `kernel`, one for many queries and heads of width `dim`, over so many `tiles` of a plan.
pub(crate) fn long_launch(
    kernel: &'static str,
    dim: usize,
    tiles: usize,
    kv_heads: usize,
) -> Launch {
    let threads = if dim > 128 { 256 } else { 128 };
    over_tiles(kernel, threads, tiles, kv_heads)
}

/// The launch of `kernel`, one that merges, over so many `tiles` of a plan for heads of width `dim`: 8 numbers a thread.
pub(crate) fn merge_launch(
    kernel: &'static str,
    dim: usize,
    tiles: usize,
    kv_heads: usize,
) -> Launch {
    over_tiles(kernel, QUERIES_OF_MERGE * dim / 8, tiles, kv_heads)
}

/// A block of so many `threads` for each tile and key/value head.
fn over_tiles(kernel: &'static str, threads: usize, tiles: usize, kv_heads: usize) -> Launch {
    Launch {
        kernel,
        grid: [tiles as u32, kv_heads as u32, 1],
        block: [threads as u32, 1, 1],
    }
}

impl RaggedPlan {
    /// For `heads`. Segments of at least `least_long_queries` queries a key/value head go to the kernel for many queries: what
    /// a segment's rows get does not depend on the other segments.
    pub fn new(segments: &[Segment], heads: Heads, least_long_queries: usize) -> Self {
        let mut plan = Self::default();
        for segment in segments {
            let length = segment.rows.len();
            plan.visible.resize(segment.rows.start, 0);
            plan.first_seen.resize(segment.rows.start, 0);
            let context = segment.context.len();
            let is_long = length * heads.group() >= least_long_queries;
            plan.cut(length, context, heads, is_long);
            let from = segment.context_from.iter();
            plan.first_seen
                .extend(from.map(|from| context.min(*from) as u32));
            plan.first_seen.resize(segment.rows.end, 0);
            let allowed = plan.see(segment.rows.clone(), context, segment.allowed.as_deref());
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

    /// Adds the tiles of the next segment, of `length` rows after so many cached keys.
    fn cut(&mut self, length: usize, context: usize, heads: Heads, is_long: bool) {
        let segment = self.segments.len() as u32;
        let (tiles, of_block) = match is_long {
            true => (&mut self.long_tiles, queries_of_long_block(heads.dim)),
            false => (&mut self.tiles, queries_of_block(heads.dim)),
        };
        let all = length * heads.group();
        let splits = splits(context + length, all.div_ceil(of_block) * heads.key_value);
        // The last first: causal rows see more the later they are, and what takes longest is to begin first.
        for first in (0..all).step_by(of_block).rev() {
            let tile = QueryTile {
                segment,
                first: first as u32,
                first_key: 0,
                end_key: u32::MAX,
                partial: WHOLE,
            };
            if splits.is_empty() {
                tiles.push(tile);
                continue;
            }
            let queries = of_block.min(all - first);
            let partial = self.partials;
            tiles.extend(splits.iter().enumerate().map(|(i, split)| QueryTile {
                first_key: split.start as u32,
                end_key: split.end as u32,
                partial: (partial + i * queries) as u32,
                ..tile
            }));
            let merged = (0..queries).step_by(QUERIES_OF_MERGE);
            self.merge_tiles.extend(merged.map(|offset| MergeTile {
                segment,
                first: (first + offset) as u32,
                queries: QUERIES_OF_MERGE.min(queries - offset) as u32,
                partial: (partial + offset) as u32,
                stride: queries as u32,
                splits: splits.len() as u32,
            }));
            self.partials += queries * splits.len();
        }
    }

    /// Numbers of f32 that all partial results take; 0 where no keys are cut.
    ///
    /// Of a segment they are at most those of as many blocks as one that is cut has: 1.1 MB of the kernel for few queries, 8.5 MB
    /// of the one for many.
    pub fn partial_numbers(&self, heads: Heads) -> usize {
        self.partials * heads.key_value * (heads.dim + NUMBERS_OF_SOFT_MAX)
    }

    /// Adds which of `rows`, after a context of so many slots, each of them sees; the place of their bits.
    fn see(&mut self, rows: Range<usize>, context: usize, allowed: Option<&[bool]>) -> u32 {
        let length = rows.len();
        let Some(allowed) = allowed else {
            self.visible.extend(vec![length as u32; length]);
            return ALL;
        };
        let seen = || allowed.chunks(length.max(1));
        let mut has_gaps = false;
        for (first_seen, seen) in self.first_seen[rows].iter_mut().zip(seen()) {
            let end = seen.iter().rposition(|seen| *seen).map_or(0, |i| i + 1);
            let mut first = 0;
            if *first_seen as usize == context {
                first = seen.iter().position(|seen| *seen).unwrap_or(0);
                *first_seen += first as u32;
            }
            has_gaps |= seen[first..end].contains(&false);
            self.visible.push(end as u32);
        }
        if !has_gaps {
            return ALL;
        }
        let place = self.allowed.len() as u32;
        for row in seen() {
            self.allowed.extend(row.chunks(32).map(|bits| {
                let set = (0u32..).zip(bits).filter(|(_, bit)| **bit);
                set.fold(0, |word, (i, _)| word | 1 << i)
            }));
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of these numbers of rows, end to end.
    fn segments(lengths: &[usize]) -> Vec<Segment> {
        let mut first = 0;
        let of = |length: &usize| {
            let rows = first..first + length;
            first = rows.end;
            Segment {
                rows,
                ..Segment::default()
            }
        };
        lengths.iter().map(of).collect()
    }

    /// Of width `dim`, of which `group` share keys and values.
    fn heads(dim: usize, group: usize) -> Heads {
        Heads {
            query: 2 * group,
            key_value: 2,
            dim,
        }
    }

    #[test]
    fn every_query_is_in_one_tile_of_the_kernel_for_its_segment_whatever_is_beside_it() {
        let lengths = [31, 32, 0, 1, 70, 33];
        for (dim, group) in [(64, 1), (128, 7), (256, 4), (512, 3)] {
            let plan = RaggedPlan::new(&segments(&lengths), heads(dim, group), 32);
            for (index, length) in lengths.into_iter().enumerate() {
                let own = |tiles: &[QueryTile]| {
                    let own = tiles.iter().filter(|tile| tile.segment == index as u32);
                    own.map(|tile| tile.first as usize).collect::<Vec<_>>()
                };
                let (few, many) = (own(&plan.tiles), own(&plan.long_tiles));
                let (firsts, none, step) = match length * group >= 32 {
                    true => (many, few, queries_of_long_block(dim)),
                    false => (few, many, queries_of_block(dim)),
                };
                let wanted: Vec<usize> = (0..length * group).step_by(step).rev().collect();
                assert_eq!(firsts, wanted, "{length} rows, heads of {dim}");
                assert!(none.is_empty(), "{length} rows, heads of {dim}");
            }
        }
    }

    #[test]
    fn of_a_cut_segment_each_query_meets_each_key_once_and_what_its_splits_give_is_merged() {
        // Rows, and keys before them; the last but one is not cut.
        let shapes = [(4, 1024), (40, 700), (1, 600), (3, 20), (20, 4000)];
        let mut segments = segments(&shapes.map(|(rows, _)| rows));
        for (segment, (_, cached)) in segments.iter_mut().zip(shapes) {
            segment.context = (0..cached).collect();
        }
        for (dim, group) in [(64, 1), (128, 4), (512, 3)] {
            let plan = RaggedPlan::new(&segments, heads(dim, group), 32);
            let tiles: Vec<&QueryTile> = plan.tiles.iter().chain(&plan.long_tiles).collect();
            let mut places = Vec::new();
            for (index, (rows, cached)) in shapes.into_iter().enumerate() {
                let index = index as u32;
                let of_block = match rows * group >= 32 {
                    true => queries_of_long_block(dim),
                    false => queries_of_block(dim),
                };
                let (keys, queries) = (rows + cached as usize, rows * group);
                let merged = plan.merge_tiles.iter().filter(|m| m.segment == index);
                let merged: Vec<&MergeTile> = merged.collect();
                let own = tiles.iter().filter(|tile| tile.segment == index);
                for query in 0..queries as u32 {
                    let is_in = |tile: &&&QueryTile| {
                        (tile.first..tile.first + of_block as u32).contains(&query)
                    };
                    let mut splits: Vec<_> = own.clone().filter(is_in).collect();
                    splits.sort_by_key(|tile| tile.first_key);
                    let end = |tile: &QueryTile| tile.end_key.min(keys as u32);
                    assert_eq!(splits[0].first_key, 0);
                    assert!(splits.windows(2).all(|two| end(two[0]) == two[1].first_key));
                    assert_eq!(end(splits[splits.len() - 1]), keys as u32);
                    let is_merged =
                        |m: &&&MergeTile| (m.first..m.first + m.queries).contains(&query);
                    let merges: Vec<_> = merged.iter().filter(is_merged).collect();
                    if cached == 20 {
                        assert_eq!((splits.len(), splits[0].partial), (1, WHOLE));
                        assert!(merges.is_empty());
                        continue;
                    }
                    let [merge] = merges[..] else {
                        panic!("query {query} is merged {} times", merges.len());
                    };
                    assert!(splits.len() > 1 && merge.splits as usize == splits.len());
                    for (split, tile) in (0..).zip(&splits) {
                        let place = tile.partial + query - tile.first;
                        let read = merge.partial + query - merge.first + split * merge.stride;
                        assert_eq!(place, read);
                        places.push(place as usize);
                    }
                }
            }
            places.sort_unstable();
            assert!(places.into_iter().eq(0..plan.partials), "heads of {dim}");
            // Company changes no cut.
            for segment in &segments {
                let index = |tile: &QueryTile| segments[tile.segment as usize].rows.start;
                let cut = |tile: &QueryTile| (tile.first, tile.first_key, tile.end_key);
                let alone = RaggedPlan::new(std::slice::from_ref(segment), heads(dim, group), 32);
                let alone = alone.tiles.iter().chain(&alone.long_tiles).map(cut);
                let beside = tiles
                    .iter()
                    .filter(|tile| index(tile) == segment.rows.start);
                assert!(alone.eq(beside.map(|tile| cut(tile))));
            }
        }
    }

    #[test]
    fn a_plan_says_which_rows_and_slots_a_row_sees() {
        let length = 37;
        let patterns: [fn(usize, usize) -> bool; 6] = [
            |row, other| other <= row,
            |row, other| row < 5 || row - 3 <= other && other <= row,
            |row, other| row / 4 == other / 4,
            |row, other| (row * 7 + other * 3) % 5 == 0,
            |row, _| row % 2 == 0,
            |_, _| false,
        ];
        for sees in patterns {
            let allowed = (0..length * length).map(|i| sees(i / length, i % length));
            let segment = Segment {
                rows: 3..3 + length,
                allowed: Some(allowed.collect()),
                context: (0..5).collect(),
                context_from: (0..length).map(|row| row.min(9)).collect(),
                ..Segment::default()
            };
            let plan = RaggedPlan::new(&[segment], heads(64, 1), 32);
            let words = length.div_ceil(32);
            for row in 0..length {
                let from = plan.first_seen[3 + row] as usize;
                assert_eq!(from.min(5), row.min(5));
                let seen = (0..length).filter(|other| {
                    let bits = plan.segments[0].allowed;
                    let is_set = || {
                        let word = plan.allowed[bits as usize + row * words + other / 32];
                        word >> (other % 32) & 1 == 1
                    };
                    let is_within =
                        (from..plan.visible[3 + row] as usize + 5).contains(&(5 + other));
                    is_within && (bits == ALL || is_set())
                });
                let wanted = (0..length).filter(|other| sees(row, *other));
                assert!(seen.eq(wanted), "row {row}");
            }
        }
    }
}
