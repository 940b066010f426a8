//! Muon in tensor operations: see [`optimizer::muon`](crate::train::optimizer).

use candle_core::{DType, Result, Tensor};

use super::arrangement::GroupPlan;
pub use crate::train::optimizer::muon::MOMENTUM;
use crate::train::optimizer::muon::{COEFFICIENTS, ITERATIONS, size};

/// What the weights of a group lose, `[len]`, of the momentum's direction, `[len]`.
///
/// # Errors
/// When the device fails.
pub fn change(direction: &Tensor, plan: &GroupPlan, lr: f64, dtype: DType) -> Result<Tensor> {
    let mut parts = Vec::with_capacity(plan.stacks.len() + 1);
    let mut end = 0;
    for stack in &plan.stacks {
        let numbers = stack.count * stack.rows * stack.columns;
        let matrices = direction.narrow(0, stack.start, numbers)?.reshape((
            stack.count,
            stack.rows,
            stack.columns,
        ))?;
        let orthogonal = orthogonalized(&matrices, dtype)?;
        let size = size(lr, stack.rows, stack.columns);
        let part = orthogonal.to_dtype(DType::F32)?.affine(size.into(), 0.0)?;
        parts.push(part.flatten_all()?);
        end = stack.start + numbers;
    }
    if end < plan.len {
        let rest = plan.len - end;
        parts.push(Tensor::zeros(rest, DType::F32, direction.device())?);
    }
    Tensor::cat(&parts, 0)
}

/// Brings the singular values of matrices `[count, rows, columns]` near 1 and keeps their singular vectors.
/// Matrices of zeros stay such. The result and all between are of the type `dtype`.
fn orthogonalized(matrices: &Tensor, dtype: DType) -> Result<Tensor> {
    let (_, rows, columns) = matrices.dims3()?;
    let norms = matrices.sqr()?.sum_keepdim(2)?.sum_keepdim(1)?.sqrt()?;
    // 1 in the place of 0.
    let norms = (&norms + norms.eq(&norms.zeros_like()?)?.to_dtype(DType::F32)?)?;
    let mut x = matrices.broadcast_div(&norms)?.to_dtype(dtype)?;
    let [a, b, c] = COEFFICIENTS.map(f64::from);
    for _ in 0..ITERATIONS {
        // The smaller of x xᵀ and xᵀ x; x is multiplied by its polynomial on that side.
        let gram = match rows <= columns {
            true => x.matmul(&x.t()?)?,
            false => x.t()?.matmul(&x)?,
        };
        let polynomial = (gram.affine(b, 0.0)? + gram.matmul(&gram)?.affine(c, 0.0)?)?;
        let product = match rows <= columns {
            true => polynomial.matmul(&x)?,
            false => x.matmul(&polynomial)?,
        };
        x = (x.affine(a, 0.0)? + product)?;
    }
    Ok(x)
}
