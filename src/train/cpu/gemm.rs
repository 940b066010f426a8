//! Matrix products over slices, on one thread, in f32 or bfloat16.

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use super::bf16;
use crate::train::config::Precision;

/// A matrix in a slice: element (r, c) is `data[r * row_stride + c * column_stride]`. One of the
/// strides is 1.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix without gaps.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows start `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            fits(data.len(), rows, columns, row_stride),
            "matrix outside its slice"
        );
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transposed matrix, over the same slice.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// Whether a row-major matrix lies inside a slice of `len`.
fn fits(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    columns <= row_stride && (rows == 0 || (rows - 1) * row_stride + columns <= len)
}

/// What a product does with the values already in its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Overwrite them.
    Set,
    /// Add to them.
    Add,
}

/// Multiplies matrices.
pub struct Products {
    #[cfg(target_arch = "x86_64")]
    bf16: Option<bf16::Packing>,
}

impl Products {
    /// Products in a precision. bfloat16 is f32 where the processor lacks it: ask
    /// [`bf16_available`] first.
    pub fn new(precision: Precision) -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self {
            bf16: (precision == Precision::Bf16 && bf16_available()).then(Default::default),
        };
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = precision;
            Self {}
        }
    }

    /// `c = scale * a · b`, or `c += scale * a · b`. `c` is row-major, `[a.rows, b.columns]`, its
    /// rows `row_stride` apart.
    pub fn multiply(
        &mut self,
        c: &mut [f32],
        row_stride: usize,
        write: Write,
        scale: f32,
        a: Matrix,
        b: Matrix,
    ) {
        assert_eq!(a.columns, b.rows, "inner dimensions");
        assert!(
            fits(c.len(), a.rows, b.columns, row_stride),
            "destination outside its slice"
        );
        #[cfg(target_arch = "x86_64")]
        if let Some(packing) = &mut self.bf16 {
            // SAFETY: the processor has the instructions (checked in `new`), the shapes agree and
            // `c` is large enough.
            unsafe { bf16::multiply(packing, c, row_stride, write, scale, a, b) };
            return;
        }
        // SAFETY: all three matrices lie inside their slices (checked here and in
        // `Matrix::strided`), and `c` is borrowed mutably, so it does not overlap `a` or `b`.
        unsafe {
            gemm::gemm(
                a.rows,
                b.columns,
                a.columns,
                c.as_mut_ptr(),
                1,
                row_stride as isize,
                write == Write::Add,
                a.data.as_ptr(),
                a.column_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    /// A linear layer's output: `y = x · wᵀ` (or `y +=`).
    pub fn linear(&mut self, y: &mut [f32], write: Write, x: &[f32], w: &[f32], size: Linear) {
        let Linear {
            rows,
            input,
            output,
        } = size;
        self.multiply(
            y,
            output,
            write,
            1.0,
            Matrix::new(x, rows, input),
            Matrix::new(w, output, input).t(),
        );
    }

    /// Its gradient to the input: `dx = dy · w`.
    pub fn linear_input_gradient(&mut self, dx: &mut [f32], dy: &[f32], w: &[f32], size: Linear) {
        let Linear {
            rows,
            input,
            output,
        } = size;
        let (dy, w) = (Matrix::new(dy, rows, output), Matrix::new(w, output, input));
        self.multiply(dx, input, Write::Set, 1.0, dy, w);
    }

    /// Its gradient to the weight: `dw += dyᵀ · x`.
    pub fn linear_weight_gradient(&mut self, dw: &mut [f32], dy: &[f32], x: &[f32], size: Linear) {
        let Linear {
            rows,
            input,
            output,
        } = size;
        let (dy, x) = (Matrix::new(dy, rows, output), Matrix::new(x, rows, input));
        self.multiply(dw, input, Write::Add, 1.0, dy.t(), x);
    }
}

/// The size of a linear layer's product: `x` is `[rows, input]`, `w` `[output, input]`.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// Rows of the input and of the output.
    pub rows: usize,
    /// Width of the input.
    pub input: usize,
    /// Width of the output.
    pub output: usize,
}

/// Whether the processor multiplies bfloat16.
pub fn bf16_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return bf16::available();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::train::draws::{Purpose, Stream};

    /// The product in f64 of operands rounded as the precision says.
    fn reference(
        a: &dyn Fn(usize, usize) -> f32,
        b: &dyn Fn(usize, usize) -> f32,
        size: [usize; 3],
    ) -> Vec<f64> {
        let [m, n, k] = size;
        (0..m * n)
            .map(|at| {
                (0..k)
                    .map(|i| f64::from(a(at / n, i)) * f64::from(b(i, at % n)))
                    .sum()
            })
            .collect()
    }

    #[test]
    fn an_empty_inner_dimension_gives_empty_sums() {
        for precision in [Precision::F32, Precision::Bf16] {
            for (write, expected) in [(Write::Set, 0.0), (Write::Add, 2.0)] {
                let mut c = vec![2.0f32; 3 * 20];
                let (a, b) = (
                    Matrix::strided(&[], 3, 0, 0),
                    Matrix::strided(&[], 0, 18, 18),
                );
                Products::new(precision).multiply(&mut c, 20, write, 0.5, a, b);
                for (at, value) in c.iter().enumerate() {
                    let expected = if at % 20 < 18 { expected } else { 2.0 };
                    assert_eq!(*value, expected, "{precision:?} {write:?} {at}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn products_equal_the_sum_of_products(
            m in 1usize..40, n in 1usize..120, k in 1usize..90,
            a_transposed in any::<bool>(), b_transposed in any::<bool>(), add in any::<bool>(),
            gap in 0usize..5, half in any::<bool>(),
        ) {
            let mut stream = Stream::new(1, Purpose::Weights, (m * n * k) as u64);
            let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| stream.normal() as f32).collect() };
            let (a_rows, a_columns) = if a_transposed { (k, m) } else { (m, k) };
            let (b_rows, b_columns) = if b_transposed { (n, k) } else { (k, n) };
            let a_data = draw(a_rows * (a_columns + gap));
            let b_data = draw(b_rows * (b_columns + gap));
            let mut c = draw(m * (n + gap));
            let before = c.clone();
            let a = Matrix::strided(&a_data, a_rows, a_columns, a_columns + gap);
            let b = Matrix::strided(&b_data, b_rows, b_columns, b_columns + gap);
            let a = if a_transposed { a.t() } else { a };
            let b = if b_transposed { b.t() } else { b };
            let (precision, write) = (
                if half { Precision::Bf16 } else { Precision::F32 },
                if add { Write::Add } else { Write::Set },
            );
            Products::new(precision).multiply(&mut c, n + gap, write, 0.5, a, b);
            let round = |x: f32| if half && bf16_available() { bf16::from_f32(x).to_f32() } else { x };
            let element = |m: Matrix, r: usize, c: usize| round(m.data[r * m.row_stride + c * m.column_stride]);
            let expected = reference(&|r, c| element(a, r, c), &|r, c| element(b, r, c), [m, n, k]);
            for row in 0..m {
                for column in 0..n + gap {
                    let at = row * (n + gap) + column;
                    if column >= n {
                        prop_assert_eq!(c[at], before[at], "the gap is untouched");
                        continue;
                    }
                    let old = if add { f64::from(before[at]) } else { 0.0 };
                    let expected = old + 0.5 * expected[row * n + column];
                    prop_assert!((f64::from(c[at]) - expected).abs() < 1e-4, "{} {}", c[at], expected);
                }
            }
        }
    }
}
