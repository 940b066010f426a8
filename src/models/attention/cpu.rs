//! Attention in f32 on the CPU, without materialising scores of `[rows, keys]` for all heads.
//!
//! Rows that see the same slots are multiplied together, with those slots alone: what a row gets
//! depends neither on the other segments nor on whether its keys are cached or recomputed beside it.

use std::borrow::Cow;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::Heads;
use crate::models::batch::Segment;
use crate::simd::softmax;

/// Rows whose scores are held at once.
const TILE: usize = 128;

/// One layer's queries, keys and values of a batch, and the cached ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer<'a> {
    pub heads: Heads,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// `[rows, heads.query, heads.dim]`, rotated.
    pub q: &'a [f32],
    /// `[rows, heads.key_value, heads.dim]`, rotated.
    pub k: &'a [f32],
    /// `[rows, heads.key_value, heads.dim]`.
    pub v: &'a [f32],
    /// Keys and values of the pool, each `[slots, heads.key_value, heads.dim]`; empty without a pool.
    pub cached: (&'a [f32], &'a [f32]),
}

/// Rows of a segment that see the same slots.
#[derive(Debug)]
struct Tile {
    rows: Range<usize>,
    /// The first slot of the context that they see; they see all after it.
    context_from: usize,
    visible: Visible,
}

/// Which rows of their segment the rows of a tile see, besides the context.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Visible {
    /// The first so many.
    First(usize),
    /// Those at these places.
    At(Vec<usize>),
}

impl Visible {
    fn of(allowed: &[bool]) -> Self {
        let first = allowed.iter().take_while(|allowed| **allowed).count();
        if allowed[first..].contains(&true) {
            let places = allowed.iter().enumerate();
            Self::At(
                places
                    .filter(|(_, a)| **a)
                    .map(|(place, _)| place)
                    .collect(),
            )
        } else {
            Self::First(first)
        }
    }
}

/// The rows of a segment, numbered from 0, in tiles.
fn tiles(segment: &Segment) -> Vec<Tile> {
    let length = segment.rows.len();
    let rows: Vec<(usize, Option<&[bool]>)> = (0..length)
        .map(|row| {
            let from = segment.context_from.get(row).copied().unwrap_or(0);
            let allowed = segment.allowed.as_deref();
            let allowed = allowed.map(|allowed| &allowed[row * length..(row + 1) * length]);
            (from, allowed)
        })
        .collect();
    let mut tiles = Vec::new();
    let mut start = 0;
    for alike in rows.chunk_by(|a, b| a == b) {
        let (context_from, allowed) = alike[0];
        let visible = allowed.map_or(Visible::First(length), Visible::of);
        let end = start + alike.len();
        tiles.extend((start..end).step_by(TILE).map(|from| Tile {
            rows: from..(from + TILE).min(end),
            context_from,
            visible: visible.clone(),
        }));
        start = end;
    }
    tiles
}

/// What the rows of a segment may see of one key/value head: its context, then its own rows, each `[slots, dim]`. It is
/// gathered once for all tiles, since of causal rows each is a tile of its own, which sees one slot more than the last.
struct Seen {
    k: Vec<f32>,
    v: Vec<f32>,
    /// Slots of the context.
    context: usize,
}

impl Seen {
    fn of(segment: &Segment, head: usize, layer: Layer) -> Self {
        let Heads { key_value, dim, .. } = layer.heads;
        let gather = |cached: &[f32], own: &[f32]| {
            let slots = segment.context.len() + segment.rows.len();
            let mut gathered = Vec::with_capacity(slots * dim);
            let mut take = |from: &[f32], slot: usize| {
                let at = (slot * key_value + head) * dim;
                gathered.extend_from_slice(&from[at..at + dim]);
            };
            let context = segment.context.iter();
            context.for_each(|slot| take(cached, *slot as usize));
            segment.rows.clone().for_each(|row| take(own, row));
            gathered
        };
        Self {
            k: gather(layer.cached.0, layer.k),
            v: gather(layer.cached.1, layer.v),
            context: segment.context.len(),
        }
    }

    /// What the rows of `tile` see of `all`, which is one of the two: `[keys, dim]`.
    fn by<'a>(&self, tile: &Tile, all: &'a [f32], dim: usize) -> Cow<'a, [f32]> {
        let from = tile.context_from.min(self.context);
        let slots = |slots: Range<usize>| &all[slots.start * dim..slots.end * dim];
        match &tile.visible {
            Visible::First(count) => Cow::Borrowed(slots(from..self.context + count)),
            Visible::At(places) => {
                let mut seen = slots(from..self.context).to_vec();
                let places = places.iter().map(|place| self.context + place);
                places.for_each(|slot| seen.extend_from_slice(slots(slot..slot + 1)));
                Cow::Owned(seen)
            }
        }
    }
}

/// Dot-product attention, of products times `layer.scale`, of every row to its segment's context and rows:
/// `[rows, heads.query · heads.dim]`. A row that sees nothing gets zeros.
pub(super) fn attend(segments: &[Segment], layer: Layer) -> Vec<f32> {
    let Heads { query, dim, .. } = layer.heads;
    let tiled: Vec<(&Segment, Vec<Tile>)> = segments
        .iter()
        .filter(|segment| !segment.rows.is_empty())
        .map(|segment| (segment, tiles(segment)))
        .collect();
    let tasks: Vec<(&Segment, &[Tile], usize)> = tiled
        .iter()
        .flat_map(|(segment, tiles)| {
            (0..layer.heads.key_value).map(move |head| (*segment, tiles.as_slice(), head))
        })
        .collect();
    let outputs: Vec<Vec<Vec<f32>>> = tasks
        .par_iter()
        .map(|(segment, tiles, head)| {
            let seen = Seen::of(segment, *head, layer);
            let tiles = tiles.par_iter();
            tiles
                .map(|tile| attend_tile(segment.rows.start, tile, &seen, *head, layer))
                .collect()
        })
        .collect();
    let mut attended = vec![0.0; layer.q.len()];
    let group = query / layer.heads.key_value;
    for ((segment, tiles, head), outputs) in tasks.into_iter().zip(outputs) {
        for (tile, output) in tiles.iter().zip(outputs) {
            let first = segment.rows.start + tile.rows.start;
            for (row, output) in output.chunks_exact(group * dim).enumerate() {
                let at = ((first + row) * query + head * group) * dim;
                attended[at..at + group * dim].copy_from_slice(output);
            }
        }
    }
    attended
}

/// The rows of `tile`, of a segment that begins at row `start`, through the query heads that read key/value head
/// `head`, of which its rows see a part of `seen`: `[rows, query heads a key/value head · dim]`.
fn attend_tile(start: usize, tile: &Tile, seen: &Seen, head: usize, layer: Layer) -> Vec<f32> {
    let Heads {
        query,
        key_value,
        dim,
    } = layer.heads;
    let group = query / key_value;
    let rows = tile.rows.len();
    let (k, v) = (seen.by(tile, &seen.k, dim), seen.by(tile, &seen.v, dim));
    let keys = k.len() / dim;
    let mut output = vec![0.0; rows * group * dim];
    if keys == 0 {
        return output;
    }
    let mut scores = vec![0.0; rows * keys];
    let scale = layer.scale;
    for in_group in 0..group {
        let first = start + tile.rows.start;
        let q = &layer.q[(first * query + head * group + in_group) * dim..];
        // scores = scale · q kᵀ
        multiply(
            Product {
                rows,
                columns: keys,
                inner: dim,
            },
            scale,
            Strided {
                data: q,
                row: query * dim,
                column: 1,
            },
            Strided {
                data: &k,
                row: 1,
                column: dim,
            },
            (&mut scores, keys),
        );
        softmax(&mut scores, keys);
        multiply(
            Product {
                rows,
                columns: dim,
                inner: keys,
            },
            1.0,
            Strided {
                data: &scores,
                row: keys,
                column: 1,
            },
            Strided {
                data: &v,
                row: dim,
                column: 1,
            },
            (&mut output[in_group * dim..], group * dim),
        );
    }
    output
}

#[derive(Debug, Clone, Copy)]
struct Product {
    rows: usize,
    columns: usize,
    inner: usize,
}

/// A matrix whose element (r, c) is `data[r · row + c · column]`.
#[derive(Debug, Clone, Copy)]
struct Strided<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl Strided<'_> {
    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// `c = scale · a b` on one thread, with `c` row-major, its rows `c.1` apart. All sizes are at least 1.
fn multiply(size: Product, scale: f32, a: Strided, b: Strided, c: (&mut [f32], usize)) {
    let Product {
        rows,
        columns,
        inner,
    } = size;
    let (c, c_row) = c;
    assert!(a.holds(rows, inner) && b.holds(inner, columns));
    assert!(columns <= c_row && (rows - 1) * c_row + columns <= c.len());
    // SAFETY: every element that the strides reach lies inside its slice, as asserted, and `c` is
    // borrowed mutably, so that it overlaps neither factor.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            c.as_mut_ptr(),
            1,
            c_row as isize,
            false,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
