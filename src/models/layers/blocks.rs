//! Weights in blocks that candle multiplies: on a CUDA device, and on processors without instructions for Q8_0.

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Result, Tensor};

use crate::models::row_parts::row_parts;

/// Rows up to which candle has another kernel on a CUDA device, one for each number of them.
const MOST_ROWS_OF_MMVQ: usize = 8;

/// Entries of a weight that are quantised together: 16 MB in f32.
const PART: usize = 1 << 22;

/// The rows of a weight in blocks, as GGUF stores them, which some rows at a time are added to: no second copy of the
/// weight is held beside it.
#[derive(Debug)]
pub(in crate::models) struct BlockRows {
    blocks: GgmlDType,
    from: usize,
    bytes: Vec<u8>,
}

impl BlockRows {
    /// None of `to` rows of `from` numbers, a multiple of the block's size.
    pub fn with_capacity(to: usize, from: usize, blocks: GgmlDType) -> Self {
        let mut rows = Self {
            blocks,
            from,
            bytes: Vec::new(),
        };
        rows.bytes.reserve_exact(to * rows.row_bytes());
        rows
    }

    /// All rows of `weight` `[to, from]`, wherever it is.
    ///
    /// # Errors
    /// As [`BlockRows::push`].
    pub fn of(weight: &Tensor, blocks: GgmlDType) -> Result<Self> {
        let (to, from) = weight.dims2()?;
        let mut rows = Self::with_capacity(to, from, blocks);
        for part in row_parts(to, from, PART) {
            let part = weight.narrow(0, part.start, part.len())?;
            // candle quantises the whole storage of a tensor, whatever part of it the tensor is.
            rows.push(&part.force_contiguous()?.to_device(&Device::Cpu)?)?;
        }
        Ok(rows)
    }

    /// Adds `rows` `[count, from]`, a whole tensor in f32 on the CPU.
    ///
    /// # Errors
    /// If `from` is no multiple of the block's size.
    pub fn push(&mut self, rows: &Tensor) -> Result<()> {
        let quantized = QTensor::quantize(rows, self.blocks)?;
        self.bytes.extend_from_slice(&quantized.data()?);
        Ok(())
    }

    /// What they are quantised in.
    pub fn blocks(&self) -> GgmlDType {
        self.blocks
    }

    /// Rows and width.
    pub fn shape(&self) -> (usize, usize) {
        (self.bytes.len() / self.row_bytes(), self.from)
    }

    /// Row after row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn row_bytes(&self) -> usize {
        self.from / self.blocks.block_size() * self.blocks.type_size()
    }
}

/// A weight `[to, from]` in blocks along `from`.
#[derive(Debug, Clone)]
pub(crate) struct BlockWeight {
    product: QMatMul,
    to: usize,
}

impl BlockWeight {
    /// `weight` `[to, from]`, wherever it is, in `blocks` on `device`.
    ///
    /// # Errors
    /// If `from` is no multiple of the block's size, or the device fails.
    pub fn new(weight: &Tensor, blocks: GgmlDType, device: &Device) -> Result<Self> {
        Self::of_rows(BlockRows::of(weight, blocks)?, device)
    }

    /// The weight of `rows` on `device`.
    ///
    /// # Errors
    /// If the device fails.
    pub(in crate::models) fn of_rows(rows: BlockRows, device: &Device) -> Result<Self> {
        let (to, _) = rows.shape();
        let product = QMatMul::from_qtensor(on_device(rows, device)?)?;
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

/// The weight of `rows` on `device`.
///
/// candle's kernels read beyond a weight, where `QTensor::quantize` leaves memory that nobody wrote. A product of nine
/// rows or more reads 256 columns at a time: of another width the last row takes scales from beyond the end, times sums
/// of zeros, which is NaN where a scale is not finite. Storage that is made of bytes has zeros there. A product of two to
/// eight rows reads two rows of the weight at a time: one of an odd number gets a row of zeros, which the shape does not
/// count.
fn on_device(mut rows: BlockRows, device: &Device) -> Result<QTensor> {
    let shape = rows.shape();
    let padding = shape.0 % 2 * rows.row_bytes();
    rows.bytes.reserve_exact(padding);
    rows.bytes.resize(rows.bytes.len() + padding, 0);
    let storage = QStorage::from_data(rows.bytes.into(), device, rows.blocks)?;
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
    fn a_weight_has_the_blocks_of_its_rows_together_and_zeros_behind_an_odd_row() -> Result<()> {
        for (to, from) in [(1, 32), (4, 96), (7, 64), (3, PART / 2), (131, PART / 64)] {
            let weight = Tensor::randn(0f32, 1.0, (to, from), &Device::Cpu)?;
            let there = on_device(BlockRows::of(&weight, Q8_0)?, &Device::Cpu)?;
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
