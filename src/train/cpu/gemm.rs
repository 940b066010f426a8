//! Matrix products over slices, one thread each.

use gemm::Parallelism;

/// A matrix in a slice: element (r, c) is `data[r * row_stride + c * column_stride]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Overwrite them.
    Set,
    /// Add to them.
    Add,
}

/// `c = scale * a · b`, or `c += scale * a · b`. `c` is row-major, `[a.rows, b.columns]`, its rows
/// `row_stride` apart.
pub fn multiply(c: &mut [f32], row_stride: usize, write: Write, scale: f32, a: Matrix, b: Matrix) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    assert!(
        fits(c.len(), a.rows, b.columns, row_stride),
        "destination outside its slice"
    );
    // SAFETY: all three matrices lie inside their slices (checked here and in `Matrix::strided`),
    // and `c` is borrowed mutably, so it does not overlap `a` or `b`.
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

/// A linear layer's output: `y = x · wᵀ` (or `y +=`), `x` `[rows, input]`, `w` `[output, input]`.
pub fn linear(
    y: &mut [f32],
    write: Write,
    x: &[f32],
    w: &[f32],
    rows: usize,
    input: usize,
    output: usize,
) {
    multiply(
        y,
        output,
        write,
        1.0,
        Matrix::new(x, rows, input),
        Matrix::new(w, output, input).t(),
    );
}

/// Its gradient to the input: `dx = dy · w` (or `dx +=`).
pub fn linear_input_gradient(
    dx: &mut [f32],
    write: Write,
    dy: &[f32],
    w: &[f32],
    rows: usize,
    input: usize,
    output: usize,
) {
    multiply(
        dx,
        input,
        write,
        1.0,
        Matrix::new(dy, rows, output),
        Matrix::new(w, output, input),
    );
}

/// Its gradient to the weight: `dw += dyᵀ · x`.
pub fn linear_weight_gradient(
    dw: &mut [f32],
    dy: &[f32],
    x: &[f32],
    rows: usize,
    input: usize,
    output: usize,
) {
    multiply(
        dw,
        input,
        Write::Add,
        1.0,
        Matrix::new(dy, rows, output).t(),
        Matrix::new(x, rows, input),
    );
}
