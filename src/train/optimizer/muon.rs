//! Muon (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>): momentum whose singular values
//! are made equal, for matrices.
//!
//! The update is scaled as in Liu et al. (arXiv:2502.16982, eq. 4), to the size that AdamW's has, so that
//! both share a learning rate and a weight decay.

use super::{Slices, Update};
use crate::train::config::Precision;
use crate::train::cpu::{Matrix, Products, Write};

/// By what the momentum is multiplied before a gradient is added.
pub const MOMENTUM: f32 = 0.95;
/// The root of the mean square of AdamW's updates, of which Muon's are made.
const UPDATE_RMS: f64 = 0.2;
/// Newton-Schulz iterations, each x ← a x + b (x xᵀ) x + c (x xᵀ)² x: singular values between 0.01 and 1
/// come to lie between 0.7 and 1.2.
pub const ITERATIONS: usize = 5;
pub const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];

/// By what the direction of a matrix `[rows, columns]` is multiplied before the weights lose it.
pub fn size(lr: f64, rows: usize, columns: usize) -> f32 {
    (lr * UPDATE_RMS * (rows.max(columns) as f64).sqrt()) as f32
}

/// Updates one matrix's weights and momentum.
pub(super) fn update(part: &mut Slices, precision: Precision, update: Update) {
    let [rows, columns] = part.parameter.shape[..] else {
        unreachable!("parameters of the role Matrix have two dimensions")
    };
    let scale = part.scale;
    let mut direction = Vec::with_capacity(part.gradient.len());
    for (m, g) in part.first.iter_mut().zip(part.gradient) {
        let g = g * scale;
        *m = MOMENTUM * *m + g;
        direction.push(g + MOMENTUM * *m);
    }
    orthogonalize(&mut direction, rows, columns, precision);
    let size = size(update.lr, rows, columns);
    let keep = update.keep(part.parameter.role.decays());
    for (w, d) in part.weights.iter_mut().zip(&direction) {
        *w = *w * keep - size * d;
    }
}

/// Brings the singular values of a row-major matrix `[rows, columns]` near 1 and keeps its singular
/// vectors. A matrix of zeros stays one.
fn orthogonalize(x: &mut [f32], rows: usize, columns: usize, precision: Precision) {
    let norm = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return;
    }
    for v in x.iter_mut() {
        *v = (f64::from(*v) / norm) as f32;
    }
    let [a, b, c] = COEFFICIENTS;
    // The smaller of x xᵀ and xᵀ x; x is multiplied by its polynomial on that side.
    let side = rows.min(columns);
    let mut products = Products::new(precision);
    let mut gram = vec![0.0; side * side];
    let mut polynomial = vec![0.0; side * side];
    let mut next = vec![0.0; x.len()];
    for _ in 0..ITERATIONS {
        let matrix = Matrix::new(x, rows, columns);
        let (left, right) = match rows <= columns {
            true => (matrix, matrix.t()),
            false => (matrix.t(), matrix),
        };
        products.multiply(&mut gram, side, Write::Set, 1.0, left, right);
        for (p, g) in polynomial.iter_mut().zip(&gram) {
            *p = b * g;
        }
        let square = Matrix::new(&gram, side, side);
        products.multiply(&mut polynomial, side, Write::Add, c, square, square);
        for (n, v) in next.iter_mut().zip(x.iter()) {
            *n = a * v;
        }
        let polynomial = Matrix::new(&polynomial, side, side);
        let (left, right) = match rows <= columns {
            true => (polynomial, matrix),
            false => (matrix, polynomial),
        };
        products.multiply(&mut next, columns, Write::Add, 1.0, left, right);
        x.copy_from_slice(&next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::draws::{Purpose, Stream};

    /// Turns every two neighbouring rows of a matrix by one angle.
    fn turn_rows(x: &mut [f32], columns: usize, angle: f32) {
        let (sin, cos) = angle.sin_cos();
        for pair in x.chunks_exact_mut(2 * columns) {
            let (upper, lower) = pair.split_at_mut(columns);
            for (u, l) in upper.iter_mut().zip(lower) {
                (*u, *l) = (cos * *u - sin * *l, sin * *u + cos * *l);
            }
        }
    }

    #[test]
    fn singular_values_follow_the_polynomial_and_singular_vectors_stay() {
        for (rows, columns) in [(8, 8), (6, 20), (20, 6), (2, 1)] {
            let mut stream = Stream::new(3, Purpose::Weights, (rows * 100 + columns) as u64);
            let values: Vec<f64> = (0..rows.min(columns))
                .map(|_| 0.1 + stream.uniform())
                .collect();
            let mut x = vec![0f32; rows * columns];
            for (i, value) in values.iter().enumerate() {
                x[i * columns + i] = *value as f32;
            }
            turn_rows(&mut x, columns, 0.7);
            orthogonalize(&mut x, rows, columns, Precision::F32);
            turn_rows(&mut x, columns, -0.7);

            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            let [a, b, c] = COEFFICIENTS.map(f64::from);
            for (at, &found) in x.iter().enumerate() {
                let mut expected = 0.0;
                if at / columns == at % columns {
                    expected = values[at / columns] / norm;
                    for _ in 0..ITERATIONS {
                        expected = a * expected + b * expected.powi(3) + c * expected.powi(5);
                    }
                    assert!((0.6..1.3).contains(&expected), "{expected}");
                }
                assert!(
                    (f64::from(found) - expected).abs() < 1e-4,
                    "{found} {expected}"
                );
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut x = vec![0f32; 12];
        orthogonalize(&mut x, 3, 4, Precision::F32);
        assert!(x.iter().all(|v| *v == 0.0));
    }
}
