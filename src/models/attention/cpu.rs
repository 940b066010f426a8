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
    visible: Visible,
}

/// Which rows of their segment the rows of a tile see, besides all of the context.
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
    let groups: Vec<(usize, Visible)> = match &segment.allowed {
        None => vec![(length, Visible::First(length))],
        Some(allowed) => {
            let rows: Vec<&[bool]> = allowed.chunks(length.max(1)).collect();
            let groups = rows.chunk_by(|a, b| a == b);
            groups
                .map(|rows| (rows.len(), Visible::of(rows[0])))
                .collect()
        }
    };
    let mut tiles = Vec::new();
    let mut start = 0;
    for (count, visible) in groups {
        let end = start + count;
        tiles.extend((start..end).step_by(TILE).map(|from| Tile {
            rows: from..(from + TILE).min(end),
            visible: visible.clone(),
        }));
        start = end;
    }
    tiles
}

/// Scaled dot-product attention of every row to its segment's context and rows:
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
    let keys = segment.context.len() + tile.visible.len();
    let mut output = vec![0.0; rows * group * dim];
    if keys == 0 {
        return output;
    }
    let k = gather(
        segment,
        &tile.visible,
        head,
        layer.heads,
        layer.cached.0,
        layer.k,
    );
    let v = gather(
        segment,
        &tile.visible,
        head,
        layer.heads,
        layer.cached.1,
        layer.v,
    );
    let mut scores = vec![0.0; rows * keys];
    let scale = 1.0 / (dim as f32).sqrt();
    for in_group in 0..group {
        let first = segment.rows.start + tile.rows.start;
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

/// What the rows of a tile see of one head of `own` and of the `cached`, `[keys, dim]`.
fn gather(
    segment: &Segment,
    visible: &Visible,
    head: usize,
    heads: Heads,
    cached: &[f32],
    own: &[f32],
) -> Vec<f32> {
    let Heads { key_value, dim, .. } = heads;
    let mut gathered = Vec::with_capacity((segment.context.len() + visible.len()) * dim);
    let mut take = |from: &[f32], slot: usize| {
        let at = (slot * key_value + head) * dim;
        gathered.extend_from_slice(&from[at..at + dim]);
    };
    for slot in &segment.context {
        take(cached, *slot as usize);
    }
    let start = segment.rows.start;
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
