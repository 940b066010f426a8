//! The order in memory in which the CPU multiplies weights fastest.
//!
//! A product x Wᵀ in f32 reads the transposed weight, and on few rows packing it is a large part of the time: a
//! weight `[to, from]` is laid out transposed, so that its transpose is contiguous. One in half precision is widened
//! some outputs at a time and stays as it is.

use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Rows of the transposed matrix that are written together, so that what is read is still in the cache
/// for the next row.
const ROWS: usize = 16;

/// `weight` `[to, from]` in that order if it is in f32 on a CPU; as it is if it is not.
///
/// # Errors
/// If the device fails.
pub(super) fn transposed(weight: Tensor) -> Result<Tensor> {
    if weight.device().is_cpu() && weight.dtype() == DType::F32 {
        weight.t()?.contiguous()?.t()
    } else {
        Ok(weight)
    }
}

/// The weight `[to, from]` whose row-major values are `bytes`, in f32 and in that order, without another
/// copy; `None` if `dtype` is no type that is converted here.
///
/// # Errors
/// If `bytes` are not as many as the shape asks for.
pub(super) fn transposed_from_bytes(
    bytes: &[u8],
    dtype: Dtype,
    [to, from]: [usize; 2],
) -> Result<Option<Tensor>> {
    let values = match dtype {
        Dtype::F32 => transpose::<4>(bytes, to, from, f32::from_le_bytes),
        Dtype::BF16 => transpose::<2>(bytes, to, from, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => transpose::<2>(bytes, to, from, |b| f16::from_le_bytes(b).to_f32()),
        _ => return Ok(None),
    };
    Tensor::from_vec(values, (from, to), &Device::Cpu)?
        .t()
        .map(Some)
}

/// `[from, to]`, row-major, of the row-major `[to, from]` in `bytes`.
fn transpose<const SIZE: usize>(
    bytes: &[u8],
    to: usize,
    from: usize,
    decode: impl Fn([u8; SIZE]) -> f32 + Sync,
) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    let mut values = vec![0.0; elements.len()];
    if to == 0 || from == 0 {
        return values;
    }
    values
        .par_chunks_mut(ROWS * to)
        .enumerate()
        .for_each(|(block, rows)| {
            let first = block * ROWS;
            let count = rows.len() / to;
            for (column, row) in elements.chunks_exact(from).enumerate() {
                let read = &row[first..first + count];
                for (i, element) in read.iter().enumerate() {
                    rows[i * to + column] = decode(*element);
                }
            }
        });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_laying_out_keep_every_value_at_its_place() -> Result<()> {
        for (to, from) in [(1, 1), (3, 40), (40, 3), (17, 33)] {
            let count = (to * from) as f32;
            let weight = Tensor::arange(0f32, count, &Device::Cpu)?.reshape((to, from))?;
            let bytes: Vec<u8> = (0..to * from)
                .flat_map(|i| (i as f32).to_le_bytes())
                .collect();
            let halves: Vec<u8> = (0..to * from)
                .flat_map(|i| f16::from_f32(i as f32).to_le_bytes())
                .collect();
            let expected: Vec<Vec<f32>> = weight.to_vec2()?;
            let laid_out = transposed(weight)?;
            let read = transposed_from_bytes(&bytes, Dtype::F32, [to, from])?.unwrap();
            let half = transposed_from_bytes(&halves, Dtype::F16, [to, from])?.unwrap();
            for tensor in [laid_out, read, half] {
                assert!(tensor.t()?.is_contiguous());
                assert_eq!(tensor.to_vec2::<f32>()?, expected);
            }
        }
        assert!(transposed_from_bytes(&[0; 8], Dtype::F64, [1, 1])?.is_none());
        Ok(())
    }
}
