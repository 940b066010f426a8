//! Products with weights in GGUF's Q8_0, blocks of 32 numbers of 8 bits with a 16-bit scale, on processors with
//! AVX512-VNNI.
//!
//! Inputs are quantised likewise, in blocks of 32 with a 32-bit scale. With x = a p and w = b q in a block, its part
//! of x · w is a b Σ p q, whose sum is exact. The processor multiplies unsigned by signed numbers: what is kept of a
//! weight is q + 128, and a block's sum begins at −128 Σ p. Every row is computed in the same order, whatever
//! others there are.

use rayon::prelude::*;

use crate::simd::wide;

/// Numbers of a block.
pub(super) const BLOCK: usize = 32;

/// Bytes of a block in GGUF: the scale in f16, then the numbers.
const BLOCK_BYTES: usize = 2 + BLOCK;

/// Outputs that are computed together: the 32-bit lanes of a register.
const LANES: usize = 16;

/// Whether this processor computes such products.
pub(super) fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// A weight `[to, from]`, `from` a multiple of [`BLOCK`], in the order in which products read it.
#[derive(Debug)]
pub(super) struct Q8Weight {
    to: usize,
    from: usize,
    /// `[⌈to / LANES⌉, from / BLOCK]`; outputs beyond `to` are zeros.
    quants: Vec<Quants>,
    /// In f16, as `quants`.
    scales: Vec<[u16; LANES]>,
}

/// q + 128 of a block for every lane: `[BLOCK / 4, LANES, 4]`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Quants([u8; BLOCK * LANES]);

impl Q8Weight {
    /// From GGUF's blocks `[to, from / BLOCK]`.
    ///
    /// # Panics
    /// If there are not as many bytes.
    pub fn from_gguf(to: usize, from: usize, bytes: &[u8]) -> Self {
        let blocks = from / BLOCK;
        assert_eq!(bytes.len(), to * blocks * BLOCK_BYTES);
        let tiles = to.div_ceil(LANES);
        let mut quants = vec![Quants([128; BLOCK * LANES]); tiles * blocks];
        let mut scales = vec![[0; LANES]; tiles * blocks];
        for (index, bytes) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let (output, block) = (index / blocks, index % blocks);
            let (place, lane) = (output / LANES * blocks + block, output % LANES);
            scales[place][lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
            for (input, quant) in bytes[2..].iter().enumerate() {
                // As a signed number, + 128.
                quants[place].0[(input / 4 * LANES + lane) * 4 + input % 4] = quant ^ 0x80;
            }
        }
        Self {
            to,
            from,
            quants,
            scales,
        }
    }

    /// Width of the output.
    pub fn to(&self) -> usize {
        self.to
    }

    /// x wᵀ, `[rows, to]`.
    ///
    /// # Panics
    /// If x is not as wide as w, or the processor does not compute such products.
    pub fn multiply(&self, x: &Q8Rows) -> Vec<f32> {
        assert!(x.from == self.from && is_supported());
        let mut product = vec![0.0; x.rows * self.to];
        #[cfg(target_arch = "x86_64")]
        vnni::multiply(self, x, &mut product);
        product
    }
}

/// Quantised rows.
#[derive(Debug)]
pub(super) struct Q8Rows {
    rows: usize,
    from: usize,
    /// `[rows, from]`
    quants: Vec<i8>,
    /// `[rows, from / BLOCK]`
    scales: Vec<f32>,
    /// −128 Σ p of every block, as `scales`.
    starts: Vec<i32>,
}

impl Q8Rows {
    /// Of x `[rows, from]`, `from` a positive multiple of [`BLOCK`].
    pub fn quantize(x: &[f32], from: usize) -> Self {
        let (rows, blocks) = (x.len() / from, from / BLOCK);
        let mut quants = vec![0; x.len()];
        let mut scales = vec![0.0; rows * blocks];
        let mut starts = vec![0; rows * blocks];
        quants
            .par_chunks_exact_mut(from)
            .zip(x.par_chunks_exact(from))
            .zip(scales.par_chunks_exact_mut(blocks))
            .zip(starts.par_chunks_exact_mut(blocks))
            .for_each(|(((quants, x), scales), starts)| quantize(x, quants, scales, starts));
        Self {
            rows,
            from,
            quants,
            scales,
            starts,
        }
    }
}

wide! {
    /// Writes p, a and −128 Σ p of a row's blocks: a = max |x| / 127, p = x / a rounded to a whole number.
    pub fn quantize(x: &[f32], quants: &mut [i8], scales: &mut [f32], starts: &mut [i32]) {
        // Adding 1.5 · 2^23 rounds to a whole number, which then sits in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        let (x, _) = x.as_chunks::<BLOCK>();
        let (quants, _) = quants.as_chunks_mut::<BLOCK>();
        for (((x, quants), scale), start) in x.iter().zip(quants).zip(scales).zip(starts) {
            // Magnitudes are in the order of their bits, and what is no number is above them all.
            let mut lanes = [0u32; LANES];
            for i in 0..BLOCK {
                lanes[i % LANES] = lanes[i % LANES].max(x[i].abs().to_bits());
            }
            let most = f32::from_bits(lanes.iter().fold(0, |a, b| a.max(*b)));
            *scale = most / 127.0;
            let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
            let mut sum = 0;
            for i in 0..BLOCK {
                quants[i] = (x[i] * inverse + ROUND).to_bits() as i8;
                sum += i32::from(quants[i]);
            }
            *start = -128 * sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;

    use super::*;

    /// Rows that are computed together: as many as there are registers for.
    const ROWS: usize = 6;

    /// Rows of a task, a multiple of `ROWS`.
    const TASK_ROWS: usize = 16 * ROWS;

    /// The product's first element.
    #[derive(Clone, Copy)]
    struct Product(*mut f32);

    // SAFETY: every task writes elements of its own.
    unsafe impl Send for Product {}
    unsafe impl Sync for Product {}

    impl Product {
        /// The element at `index`.
        fn at(self, index: usize) -> *mut f32 {
            self.0.wrapping_add(index)
        }
    }

    pub fn multiply(w: &Q8Weight, x: &Q8Rows, product: &mut [f32]) {
        let pairs = w.to.div_ceil(2 * LANES);
        let tasks_of_rows = x.rows.div_ceil(TASK_ROWS);
        let product = Product(product.as_mut_ptr());
        (0..pairs * tasks_of_rows).into_par_iter().for_each(|task| {
            let first = task % tasks_of_rows * TASK_ROWS;
            let rows = first..(first + TASK_ROWS).min(x.rows);
            let tile = task / tasks_of_rows * 2;
            // SAFETY: the caller has checked the processor and that both are as wide. The rows are those of x and
            // the tiles those of w; no other task has the same of both, and the product has a place for each.
            unsafe {
                match (tile + 1) * LANES < w.to {
                    true => task_of::<2>(w, x, rows, tile, product),
                    false => task_of::<1>(w, x, rows, tile, product),
                }
            }
        });
    }

    /// `TILES` tiles of outputs of `rows`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn task_of<const TILES: usize>(
        w: &Q8Weight,
        x: &Q8Rows,
        rows: std::ops::Range<usize>,
        tile: usize,
        product: Product,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            // SAFETY: as the caller's.
            unsafe {
                match rows.end - row {
                    1 => dot::<1, TILES>(w, x, row, tile, product),
                    2 => dot::<2, TILES>(w, x, row, tile, product),
                    3 => dot::<3, TILES>(w, x, row, tile, product),
                    4 => dot::<4, TILES>(w, x, row, tile, product),
                    5 => dot::<5, TILES>(w, x, row, tile, product),
                    _ => dot::<ROWS, TILES>(w, x, row, tile, product),
                }
            }
            row += ROWS;
        }
    }

    /// `COUNT` rows from `row` on and `TILES` tiles from `tile` on.
    #[expect(
        clippy::needless_range_loop,
        reason = "rows and tiles count in several arrays alike"
    )]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn dot<const COUNT: usize, const TILES: usize>(
        w: &Q8Weight,
        x: &Q8Rows,
        row: usize,
        tile: usize,
        product: Product,
    ) {
        let blocks = w.from / BLOCK;
        // SAFETY: rows, tiles and blocks are those of x and w, whose vectors are as long as their fields say; a
        // block's four numbers at a time are inside it.
        unsafe {
            let p = x.quants.as_ptr().add(row * x.from);
            let a = x.scales.as_ptr().add(row * blocks);
            let starts = x.starts.as_ptr().add(row * blocks);
            let q = w.quants.as_ptr().add(tile * blocks);
            let b = w.scales.as_ptr().add(tile * blocks);
            let mut sums = [[_mm512_setzero_ps(); TILES]; COUNT];
            for block in 0..blocks {
                let mut dots = [[_mm512_setzero_si512(); TILES]; COUNT];
                for r in 0..COUNT {
                    dots[r] = [_mm512_set1_epi32(*starts.add(r * blocks + block)); TILES];
                }
                for four in 0..BLOCK / 4 {
                    let mut weights = [_mm512_setzero_si512(); TILES];
                    for (t, weights) in weights.iter_mut().enumerate() {
                        let tile = q.add(t * blocks + block).cast::<__m512i>();
                        *weights = _mm512_load_si512(tile.add(four));
                    }
                    for r in 0..COUNT {
                        let inputs = p.add(r * x.from + block * BLOCK + four * 4);
                        let inputs = _mm512_set1_epi32(inputs.cast::<i32>().read_unaligned());
                        for t in 0..TILES {
                            dots[r][t] = _mm512_dpbusd_epi32(dots[r][t], weights[t], inputs);
                        }
                    }
                }
                for t in 0..TILES {
                    let scales = b.add(t * blocks + block).cast::<__m256i>();
                    let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales));
                    for r in 0..COUNT {
                        let scale = _mm512_set1_ps(*a.add(r * blocks + block));
                        let dot = _mm512_cvtepi32_ps(dots[r][t]);
                        let scales = _mm512_mul_ps(scales, scale);
                        sums[r][t] = _mm512_fmadd_ps(dot, scales, sums[r][t]);
                    }
                }
            }
            for t in 0..TILES {
                let first = (tile + t) * LANES;
                let lanes = (w.to - first).min(LANES);
                let mask = u16::MAX >> (LANES - lanes);
                for r in 0..COUNT {
                    let place = product.at((row + r) * w.to + first);
                    _mm512_mask_storeu_ps(place, mask, sums[r][t]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in (−1, 1) without a pattern.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| ((seed * 7919 + i * 104_729) as f32 * 0.618).sin();
        (0..count).map(value).collect()
    }

    /// Blocks `[to, from / BLOCK]` of made-up numbers with scales of 2⁻⁴ and 2⁻⁵, and the weights they are.
    fn weights(to: usize, from: usize) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut floats) = (Vec::new(), Vec::new());
        for block in 0..to * from / BLOCK {
            let (half, scale) = [(0x2c00u16, 1.0 / 16.0), (0x2800, 1.0 / 32.0)][block % 2];
            bytes.extend(half.to_le_bytes());
            for i in 0..BLOCK {
                let quant = ((block * 37 + i * 101) % 256) as u8 as i8;
                bytes.push(quant as u8);
                floats.push(f32::from(quant) * scale);
            }
        }
        (bytes, floats)
    }

    #[test]
    fn a_product_is_that_of_the_quantised_numbers_in_any_shape() {
        if !is_supported() {
            return;
        }
        for (rows, from, to) in [
            (1, 32, 1),
            (5, 96, 17),
            (13, 256, 33),
            (100, 2688, 40),
            (7, 64, 64),
        ] {
            let (bytes, w) = weights(to, from);
            let x = values(rows * from, to);
            let quantized = Q8Rows::quantize(&x, from);
            let got = Q8Weight::from_gguf(to, from, &bytes).multiply(&quantized);
            for (place, got) in got.iter().enumerate() {
                let (row, output) = (place / to, place % to);
                let (mut exact, mut expected, mut size) = (0.0f64, 0.0f64, 0.0f64);
                for i in 0..from {
                    let w = f64::from(w[output * from + i]);
                    let scale = quantized.scales[(row * from + i) / BLOCK];
                    let p = f64::from(quantized.quants[row * from + i]) * f64::from(scale);
                    exact += f64::from(x[row * from + i]) * w;
                    expected += p * w;
                    size += (p * w).abs();
                }
                let got = f64::from(*got);
                assert!(
                    (got - expected).abs() <= 1e-6 * size,
                    "{rows} {from} {to}: {got} {expected}"
                );
                assert!(
                    (got - exact).abs() <= 0.01 * size,
                    "{rows} {from} {to}: {got} {exact}"
                );
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_how_many_others_there_are() {
        if !is_supported() {
            return;
        }
        let (from, to) = (160, 50);
        let weight = Q8Weight::from_gguf(to, from, &weights(to, from).0);
        let x = values(120 * from, 3);
        let all = weight.multiply(&Q8Rows::quantize(&x, from));
        for rows in [1, 2, 3, 5, 6, 7, 95, 97] {
            let some = weight.multiply(&Q8Rows::quantize(&x[..rows * from], from));
            assert_eq!(some, all[..rows * to], "{rows}");
        }
    }

    #[test]
    fn zeros_stay_and_what_is_no_number_is_not_hidden() {
        let zeros = Q8Rows::quantize(&[0.0; 64], 32);
        assert_eq!((zeros.quants, zeros.scales), (vec![0; 64], vec![0.0; 2]));
        for value in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 32];
            x[5] = value;
            assert!(!Q8Rows::quantize(&x, 32).scales[0].is_finite());
        }
    }
}
