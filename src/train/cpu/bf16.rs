//! Matrix products in bfloat16 with sums in f32, by AVX512-BF16.
//!
//! Both operands are rounded to bfloat16 while they are packed; the instruction multiplies pairs
//! that are neighbours along the inner dimension, exactly, and adds to f32. Packed layout: groups
//! of 16 rows of `a` (or columns of `b`), in each group one `u32` pair for each pair index and row,
//! `[groups, pairs, 16]`, padded with zeros.

use std::arch::x86_64::*;

use super::gemm::{Matrix, Write};

/// Rows of `a`, or columns of `b`, that are packed together; the f32 lanes of a register.
const GROUP: usize = 16;
/// Rows of `c` computed at once. With `COLUMNS` groups of columns they fill 24 of 32 registers.
const ROWS: usize = 8;
/// Groups of columns of `c` computed at once.
const COLUMNS: usize = 3;

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// Memory for packed operands, kept between products.
#[derive(Default)]
pub struct Packing {
    a: Vec<u32>,
    b: Vec<u32>,
}

/// `c = scale * a · b`, or `c += scale * a · b`. The caller has checked the shapes.
///
/// # Safety
/// The processor has the instructions ([`available`]); `c` holds a row-major matrix
/// `[a.rows, b.columns]` with rows `row_stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn multiply(
    packing: &mut Packing,
    c: &mut [f32],
    row_stride: usize,
    write: Write,
    scale: f32,
    a: Matrix,
    b: Matrix,
) {
    let (rows, columns, pairs) = (a.rows, b.columns, a.columns.div_ceil(2));
    if pairs == 0 {
        // Empty sums; nothing is packed that a tile could point into.
        if write == Write::Set {
            for row in 0..rows {
                c[row * row_stride..][..columns].fill(0.0);
            }
        }
        return;
    }
    pack(&mut packing.a, a.t());
    pack(&mut packing.b, b);
    let group_size = pairs * GROUP;
    let column_groups = columns.div_ceil(GROUP);
    let mut first = 0;
    while first < column_groups {
        // Four groups left are two and two, not three and one: a narrow tile is less efficient.
        let left = column_groups - first;
        let count = if left == COLUMNS + 1 {
            2
        } else {
            left.min(COLUMNS)
        };
        let b = &packing.b[first * group_size..(first + count) * group_size];
        let start = first * GROUP;
        let width = (columns - start).min(count * GROUP);
        for row in (0..rows).step_by(ROWS) {
            let tile = Tile {
                // SAFETY: the row group and the offset in it lie inside the packed operand.
                a: unsafe {
                    packing
                        .a
                        .as_ptr()
                        .add(row / GROUP * group_size + row % GROUP)
                },
                b: b.as_ptr(),
                pairs,
                // SAFETY: inside `c`, by the caller's promise.
                c: unsafe { c.as_mut_ptr().add(row * row_stride + start) },
                row_stride,
                rows: (rows - row).min(ROWS),
                last_lanes: (width - (count - 1) * GROUP) as u32,
                write,
                scale,
            };
            // SAFETY: as the fields say.
            unsafe {
                match count {
                    1 => tile.compute::<1>(),
                    2 => tile.compute::<2>(),
                    _ => tile.compute::<3>(),
                }
            }
        }
        first += count;
    }
}

/// A part of `c` that fits the registers.
struct Tile {
    /// The first pair of the tile's first row; the next pair is `GROUP` further.
    a: *const u32,
    /// The first column group; the next is `pairs * GROUP` further.
    b: *const u32,
    pairs: usize,
    c: *mut f32,
    row_stride: usize,
    /// Valid rows; the others are computed from padding and dropped.
    rows: usize,
    /// Valid columns of the last group.
    last_lanes: u32,
    write: Write,
    scale: f32,
}

impl Tile {
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn compute<const N: usize>(self) {
        let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
        for pair in 0..self.pairs {
            // SAFETY: pairs, groups and the 8 rows of the tile lie inside the packed operands, which
            // are padded to whole groups.
            unsafe {
                let mut columns = [_mm512_setzero_si512(); N];
                for (n, column) in columns.iter_mut().enumerate() {
                    *column =
                        _mm512_loadu_si512(self.b.add((n * self.pairs + pair) * GROUP).cast());
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = _mm512_set1_epi32(*self.a.add(pair * GROUP + r) as i32);
                    for (sum, column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm512_dpbf16_ps(*sum, as_bf16(row), as_bf16(*column));
                    }
                }
            }
        }
        let scale = _mm512_set1_ps(self.scale);
        let last = ((1u32 << self.last_lanes) - 1) as __mmask16;
        for (r, sums) in sums.iter().enumerate() {
            if r < self.rows {
                for (n, sum) in sums.iter().enumerate() {
                    let mask = if n + 1 == N { last } else { !0 };
                    // SAFETY: the row is valid and the mask leaves the valid columns.
                    unsafe {
                        let c = self.c.add(r * self.row_stride + n * GROUP);
                        let value = match self.write {
                            Write::Set => _mm512_mul_ps(*sum, scale),
                            Write::Add => {
                                _mm512_fmadd_ps(*sum, scale, _mm512_maskz_loadu_ps(mask, c))
                            }
                        };
                        _mm512_mask_storeu_ps(c, mask, value);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn as_bf16(value: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(value) }
}

#[target_feature(enable = "avx512f")]
fn as_integers(value: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(value) }
}

/// A mask of the first `count` lanes, of all when there are more.
fn first_lanes(count: usize) -> __mmask16 {
    if count >= GROUP { !0 } else { (1 << count) - 1 }
}

/// Packs a matrix whose rows are the inner dimension, `[inner, outer]`, in groups of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(packed: &mut Vec<u32>, matrix: Matrix) {
    let groups = matrix.columns.div_ceil(GROUP);
    let pairs = matrix.rows.div_ceil(2);
    let needed = groups * pairs * GROUP;
    if packed.len() < needed {
        packed.resize(needed, 0);
    }
    let packed = &mut packed[..needed];
    if matrix.column_stride == 1 {
        pack_rows(packed, matrix, pairs);
    } else {
        assert_eq!(matrix.row_stride, 1, "one dimension is contiguous");
        pack_columns(packed, matrix, pairs);
    }
}

/// [`pack`] for a matrix with contiguous rows: two rows are interleaved.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows(packed: &mut [u32], matrix: Matrix, pairs: usize) {
    let mut order = [0u16; 32];
    for (i, lane) in order.iter_mut().enumerate() {
        *lane = (i / 2 + i % 2 * GROUP) as u16;
    }
    // SAFETY: 32 lanes of 2 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for pair in 0..pairs {
        let even = &matrix.data[2 * pair * matrix.row_stride..];
        let odd = matrix
            .data
            .get((2 * pair + 1) * matrix.row_stride..)
            .unwrap_or_default();
        let has_odd = 2 * pair + 1 < matrix.rows;
        for (group, column) in (0..matrix.columns).step_by(GROUP).enumerate() {
            let mask = first_lanes(matrix.columns - column);
            // SAFETY: the mask leaves columns of rows that exist, and the group and the pair lie
            // inside `packed`.
            unsafe {
                let low = _mm512_maskz_loadu_ps(mask, even.as_ptr().add(column));
                let high = if has_odd {
                    _mm512_maskz_loadu_ps(mask, odd.as_ptr().add(column))
                } else {
                    _mm512_setzero_ps()
                };
                let both = as_integers(_mm512_cvtne2ps_pbh(high, low));
                let out = packed.as_mut_ptr().add((group * pairs + pair) * GROUP);
                _mm512_storeu_si512(out.cast(), _mm512_permutexvar_epi16(order, both));
            }
        }
    }
}

/// [`pack`] for a matrix with contiguous columns: 16 columns of 16 pairs are transposed at once.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_columns(packed: &mut [u32], matrix: Matrix, pairs: usize) {
    let stride = matrix.column_stride;
    for (group, first) in (0..matrix.columns).step_by(GROUP).enumerate() {
        for pair in (0..pairs).step_by(GROUP) {
            let left = matrix.rows - 2 * pair;
            let (low_mask, high_mask) =
                (first_lanes(left), first_lanes(left.saturating_sub(GROUP)));
            let mut tile = [_mm512_setzero_si512(); GROUP];
            for (column, tile) in (first..matrix.columns).zip(&mut tile) {
                // SAFETY: the column exists and the masks leave its rows.
                unsafe {
                    let from = matrix.data.as_ptr().add(column * stride + 2 * pair);
                    let low = _mm512_maskz_loadu_ps(low_mask, from);
                    let high = _mm512_maskz_loadu_ps(high_mask, from.wrapping_add(GROUP));
                    *tile = as_integers(_mm512_cvtne2ps_pbh(high, low));
                }
            }
            transpose(&mut tile);
            for (pair, row) in (pair..pairs).zip(&tile) {
                // SAFETY: the group and the pair lie inside `packed`.
                unsafe {
                    let out = packed.as_mut_ptr().add((group * pairs + pair) * GROUP);
                    _mm512_storeu_si512(out.cast(), *row);
                }
            }
        }
    }
}

/// Transposes 16 × 16 values.
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; GROUP]) {
    let mut other = *rows;
    for i in (0..GROUP).step_by(2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for i in (0..GROUP).step_by(4) {
        rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
    // Now row 4q + i holds, in its 128-bit part p, column 4p + i of rows 4q..4q+4: a 4 × 4
    // transposition of parts, for each i, is left.
    for i in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(rows[i], rows[i + 4]);
        let high = _mm512_shuffle_i32x4::<0xdd>(rows[i], rows[i + 4]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(rows[i + 8], rows[i + 12]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(rows[i + 8], rows[i + 12]);
        other[i] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        other[i + 8] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        other[i + 4] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        other[i + 12] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    *rows = other;
}
