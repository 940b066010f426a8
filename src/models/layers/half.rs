//! Products with weights in half precision on a CPU. candle would widen a whole weight for every product and round
//! what comes of it; here a part of it at a time is widened, as large as a cache, and everything but the weight is f32.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::linear::product;
use crate::models::row_parts::row_parts;

/// Entries of a weight that are widened together: 4 MB in f32.
const PART: usize = 1 << 20;

/// Entries that one task widens.
const CHUNK: usize = 1 << 14;

/// x wᵀ, `[rows, to]` in the type of x, of `x` `[rows, from]` and `w` `[to, from]` in bf16 or f16, on the CPU. A row does
/// not depend on how many others there are.
pub(super) fn half_product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let transposed = w.t()?;
    match transposed.is_contiguous() && !w.is_contiguous() {
        true => sum_over_inputs(&wide, &transposed)?,
        false => outputs_after_outputs(&wide, w)?,
    }
    .to_dtype(x.dtype())
}

/// x wᵀ of `x` `[rows, from]` and a row-major `w` `[to, from]`.
fn outputs_after_outputs(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (to, from) = w.dims2()?;
    let outputs = row_parts(to, from, PART).map(|rows| {
        let w = widened(&w.narrow(0, rows.start, rows.len())?)?;
        product(x, &w)
    });
    match outputs.collect::<Result<Vec<_>>>()?.as_slice() {
        [] => Tensor::zeros((x.dim(0)?, to), DType::F32, x.device()),
        [output] => Ok(output.clone()),
        outputs => Tensor::cat(outputs, 1),
    }
}

/// x w of `x` `[rows, from]` and a row-major `w` `[from, to]`.
fn sum_over_inputs(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (from, to) = w.dims2()?;
    let mut sum = Tensor::zeros((x.dim(0)?, to), DType::F32, x.device())?;
    for rows in row_parts(from, to, PART) {
        let w = widened(&w.narrow(0, rows.start, rows.len())?)?;
        sum = (sum + product(&x.narrow(1, rows.start, rows.len())?, &w.t()?)?)?;
    }
    Ok(sum)
}

/// `w` in f32.
fn widened(w: &Tensor) -> Result<Tensor> {
    let (storage, layout) = w.storage_and_layout();
    let wide = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::BF16(values)), Some((start, end))) => widen(&values[start..end]),
        (Storage::Cpu(CpuStorage::F16(values)), Some((start, end))) => widen(&values[start..end]),
        _ => return w.to_dtype(DType::F32),
    };
    Tensor::from_vec(wide, w.shape(), &Device::Cpu)
}

fn widen<T: Sync>(values: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut wide = vec![0.0; values.len()];
    wide.par_chunks_mut(CHUNK)
        .zip(values.par_chunks(CHUNK))
        .for_each(|(wide, values)| values.convert_to_f32_slice(wide));
    wide
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;

    fn largest(differences: Tensor) -> Result<f32> {
        differences.abs()?.max(D::Minus1)?.max(0)?.to_scalar()
    }

    #[test]
    fn a_product_is_that_of_the_widened_weight_however_it_lies_and_is_cut() -> Result<()> {
        for dtype in [DType::BF16, DType::F16] {
            for (rows, from, to) in [(1, 1, 1), (3, 40, 7), (5, 2000, 1200), (2, 1 << 20, 3)] {
                let x = Tensor::randn(0f32, 1.0, (rows, from), &Device::Cpu)?;
                let w = Tensor::randn(0f32, 1.0, (to, from), &Device::Cpu)?.to_dtype(dtype)?;
                let wide = x.matmul(&w.to_dtype(DType::F32)?.t()?)?;
                for w in [w.clone(), w.t()?.contiguous()?.t()?] {
                    let apart = largest((half_product(&x, &w)? - &wide)?)?;
                    assert!(apart < 0.02, "{dtype:?} {rows} {from} {to}: {apart}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_how_many_others_there_are() -> Result<()> {
        for (from, to) in [(40, 30), (768, 65), (1500, 1700)] {
            let x = Tensor::randn(0f32, 1.0, (130, from), &Device::Cpu)?;
            let w = Tensor::randn(0f32, 1.0, (to, from), &Device::Cpu)?.to_dtype(DType::BF16)?;
            for w in [w.clone(), w.t()?.contiguous()?.t()?] {
                let all = half_product(&x, &w)?;
                for rows in [1, 3, 64, 65, 129] {
                    let some = half_product(&x.narrow(0, 0, rows)?, &w)?;
                    let apart = largest((some - all.narrow(0, 0, rows)?)?)?;
                    assert_eq!(apart, 0.0, "{rows} of 130 rows, {from} to {to}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn no_rows_give_no_rows() -> Result<()> {
        let x = Tensor::zeros((0, 8), DType::F32, &Device::Cpu)?;
        let w = Tensor::zeros((5, 8), DType::BF16, &Device::Cpu)?;
        assert_eq!(half_product(&x, &w)?.dims(), [0, 5]);
        Ok(())
    }
}
