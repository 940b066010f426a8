//! Attention in f32 on the CPU, without materialising scores of `[rows, keys]` for all heads.
//!
//! Rows that see the same slots are multiplied together, with those slots alone: what a row gets
//! depends neither on the other segments nor on whether its keys are cached or recomputed beside it.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use crate::models::batch::Segment;
use crate::simd::softmax;

/// Rows whose scores are held at once.
const TILE: usize = 128;

/// The shape of a layer's attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Query heads, a multiple of `key_value`.
    pub query: usize,
    /// Key/value heads.
    pub key_value: usize,
    /// Width of a head.
    pub dim: usize,
}

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

    fn len(&self) -> usize {
        match self {
            Self::First(count) => *count,
            Self::At(places) => places.len(),
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

/// Dot-product attention, of products times `layer.scale`, of every row to its segment's context and rows:
/// `[rows, heads.query · heads.dim]`. A row that sees nothing gets zeros.
pub(super) fn attend(segments: &[Segment], layer: Layer) -> Vec<f32> {
    let Heads { query, dim, .. } = layer.heads;
    let tiled: Vec<(&Segment, Tile)> = segments
        .iter()
        .flat_map(|segment| tiles(segment).into_iter().map(move |tile| (segment, tile)))
        .collect();
    let tasks: Vec<(&Segment, &Tile, usize)> = tiled
        .iter()
        .flat_map(|(segment, tile)| {
            (0..layer.heads.key_value).map(move |head| (*segment, tile, head))
        })
        .collect();
    let outputs: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|(segment, tile, head)| attend_tile(segment, tile, *head, layer))
        .collect();
    let mut attended = vec![0.0; layer.q.len()];
    let group = query / layer.heads.key_value;
    for ((segment, tile, head), output) in tasks.into_iter().zip(outputs) {
        let first = segment.rows.start + tile.rows.start;
        for (row, output) in output.chunks_exact(group * dim).enumerate() {
            let at = ((first + row) * query + head * group) * dim;
            attended[at..at + group * dim].copy_from_slice(output);
        }
    }
    attended
}

/// The rows of `tile` through the query heads that read key/value head `head`:
/// `[rows, query heads a key/value head · dim]`.
fn attend_tile(segment: &Segment, tile: &Tile, head: usize, layer: Layer) -> Vec<f32> {
    let Heads {
        query,
        key_value,
        dim,
    } = layer.heads;
    let group = query / key_value;
    let rows = tile.rows.len();
    let context = segment.context.get(tile.context_from..).unwrap_or(&[]);
    let keys = context.len() + tile.visible.len();
    let mut output = vec![0.0; rows * group * dim];
    if keys == 0 {
        return output;
    }
    let start = segment.rows.start;
    let seen = (context, start, &tile.visible);
    let k = gather(seen, head, layer.heads, layer.cached.0, layer.k);
    let v = gather(seen, head, layer.heads, layer.cached.1, layer.v);
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

/// What the rows of a tile see of one head of `own` and of the `cached`, `[keys, dim]`: slots of the context, and
/// rows of the segment that begins at `start`.
fn gather(
    (context, start, visible): (&[u32], usize, &Visible),
    head: usize,
    heads: Heads,
    cached: &[f32],
    own: &[f32],
) -> Vec<f32> {
    let Heads { key_value, dim, .. } = heads;
    let mut gathered = Vec::with_capacity((context.len() + visible.len()) * dim);
    let mut take = |from: &[f32], slot: usize| {
        let at = (slot * key_value + head) * dim;
        gathered.extend_from_slice(&from[at..at + dim]);
    };
    for slot in context {
        take(cached, *slot as usize);
    }
    match visible {
        Visible::First(count) => (0..*count).for_each(|row| take(own, start + row)),
        Visible::At(places) => places.iter().for_each(|row| take(own, start + row)),
    }
    gathered
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
