//! Weights in blocks that candle multiplies: on a CUDA device, and on processors without instructions for Q8_0.

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Result, Tensor};

/// Rows up to which candle has another kernel on a CUDA device, one for each number of them.
const MOST_ROWS_OF_MMVQ: usize = 8;

/// A weight `[to, from]` in blocks along `from`.
#[derive(Debug, Clone)]
pub(crate) struct BlockWeight {
    product: QMatMul,
    to: usize,
}

impl BlockWeight {
    /// `weight` `[to, from]` in `blocks` on `device`.
    ///
    /// # Errors
    /// If `from` is no multiple of the block's size, or the device fails.
    pub fn new(weight: &Tensor, blocks: GgmlDType, device: &Device) -> Result<Self> {
        let (to, from) = weight.dims2()?;
        let weight = weight.to_device(&Device::Cpu)?;
        let quantized = match device.is_cpu() {
            true => QTensor::quantize(&weight, blocks)?,
            false => on_device(&weight, blocks, (to, from), device)?,
        };
        let product = QMatMul::from_qtensor(quantized)?;
        Ok(Self { product, to })
    }

    /// x wᵀ, `[rows, to]` of `x` `[rows, from]`.
    ///
    /// # Errors
    /// If x is not as wide as w, or the device fails.
    pub fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        match x.dim(0)? {
            // candle's kernels refuse what has no rows.
            0 => Tensor::zeros((0, self.to), x.dtype(), x.device()),
            _ => self.product.forward(&x.contiguous()?),
        }
    }
}

/// `weight` `[to, from]` of the CPU in `blocks` on `device`.
///
/// candle's kernels read beyond a weight, where `QTensor::quantize` leaves memory that nobody wrote. A product of nine
/// rows or more reads 256 columns at a time: of another width the last row takes scales from beyond the end, times sums
/// of zeros, which is NaN where a scale is not finite. Storage that is made of bytes has zeros there. A product of two to
/// eight rows reads two rows of the weight at a time: one of an odd number gets a row of zeros, which the shape does not
/// count.
fn on_device(
    weight: &Tensor,
    blocks: GgmlDType,
    shape: (usize, usize),
    device: &Device,
) -> Result<QTensor> {
    let padded = weight.pad_with_zeros(0, 0, shape.0 % 2)?;
    let quantized = QTensor::quantize(&padded, blocks)?;
    let storage = QStorage::from_data(quantized.data()?, device, blocks)?;
    QTensor::new(storage, shape)
}

/// A product that a device computes wrongly.
#[derive(Debug)]
pub(in crate::models) struct WrongProduct {
    /// Rows of x.
    pub rows: usize,
    /// What the device gave.
    pub got: f32,
    /// What it is.
    pub wanted: f32,
}

/// The first product of `device` with a weight in `blocks` that is wrong, of few rows or of more.
///
/// candle's kernels for such weights are machine code for the compute capability that a build is for, where all others
/// are compiled for the card that is there. On a card that the code is not for nothing is launched, no error is
/// told, and the product is what its memory held before.
///
/// # Errors
/// If the device fails.
pub(in crate::models) fn wrong_product(
    blocks: GgmlDType,
    device: &Device,
) -> Result<Option<WrongProduct>> {
    let from = 3 * blocks.block_size();
    // Row number n, from 1 on, is n everywhere.
    let matrix = |rows: usize| {
        let numbers = (0..rows * from).map(|place| (place / from + 1) as f32);
        Tensor::from_iter(numbers, &Device::Cpu)?.reshape((rows, from))
    };
    let weight = BlockWeight::new(&matrix(5)?, blocks, device)?;
    for rows in [MOST_ROWS_OF_MMVQ, MOST_ROWS_OF_MMVQ + 1] {
        let product = weight.multiply(&matrix(rows)?.to_device(device)?)?;
        for (row, outputs) in product.to_vec2::<f32>()?.into_iter().enumerate() {
            for (output, got) in outputs.into_iter().enumerate() {
                let wanted = (from * (row + 1) * (output + 1)) as f32;
                // Scales of blocks have 11 bits.
                if got.is_nan() || (got - wanted).abs() > wanted / 100.0 {
                    return Ok(Some(WrongProduct { rows, got, wanted }));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q8_0: GgmlDType = GgmlDType::Q8_0;

    #[test]
    fn a_weight_on_a_device_has_the_blocks_of_one_on_the_cpu_and_zeros_behind_an_odd_row()
    -> Result<()> {
        for (to, from) in [(1, 32), (4, 96), (7, 64)] {
            let weight = Tensor::randn(0f32, 1.0, (to, from), &Device::Cpu)?;
            let there = on_device(&weight, Q8_0, (to, from), &Device::Cpu)?;
            let here = QTensor::quantize(&weight, Q8_0)?;
            assert_eq!(there.shape().dims(), [to, from]);
            let (there, here) = (there.data()?, here.data()?);
            let (blocks, behind) = there.split_at(here.len());
            assert_eq!(blocks, &*here);
            assert_eq!(behind, vec![0; to % 2 * here.len() / to]);
        }
        Ok(())
    }

    #[test]
    fn the_known_products_are_right_on_the_cpu() -> Result<()> {
        assert!(wrong_product(Q8_0, &Device::Cpu)?.is_none());
        Ok(())
    }

    #[test]
    fn no_rows_give_no_rows() -> Result<()> {
        let weight = Tensor::randn(0f32, 1.0, (5, 64), &Device::Cpu)?;
        let weight = BlockWeight::new(&weight, Q8_0, &Device::Cpu)?;
        let x = Tensor::zeros((0, 64), candle_core::DType::F32, &Device::Cpu)?;
        assert_eq!(weight.multiply(&x)?.dims(), [0, 5]);
        Ok(())
    }
}
