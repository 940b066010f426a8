//! Linear layers.

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Module, Result, Tensor};

use crate::floats::with_floats;
use crate::models::layers::blocks::{BlockRows, BlockWeight};
use crate::models::layers::elementwise::add_bias;
use crate::models::layers::half::half_product;
use crate::models::layers::q8::{self, Q8Rows, Q8Weight};

/// A linear layer `[rows, from]` → `[rows, to]`.
#[derive(Debug, Clone)]
pub(in crate::models) struct Linear {
    weight: Weight,
    /// `[to]`
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[to, from]`, in the type of what is multiplied with it; on a CPU in any floating-point type.
    Float(Tensor),
    /// In blocks that candle multiplies.
    Blocks(BlockWeight),
    /// In Q8_0 on a CPU that has instructions for it.
    Q8(Arc<Q8Weight>),
}

impl Linear {
    /// From `weight` `[to, from]`, in the order in memory that products are to read it in, and `bias`
    /// `[to]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let weight = Weight::Float(weight);
        Self { weight, bias }
    }

    /// From the quantised `rows` of a weight `[to, from]`, which are put on `device`, and `bias` `[to]` there.
    ///
    /// # Errors
    /// If the device fails.
    pub fn quantized(rows: BlockRows, device: &Device, bias: Option<Tensor>) -> Result<Self> {
        let is_q8 = rows.blocks() == GgmlDType::Q8_0;
        let weight = match device.is_cpu() && is_q8 && q8::is_supported() {
            true => {
                let (to, from) = rows.shape();
                Weight::Q8(Arc::new(Q8Weight::from_gguf(to, from, rows.bytes())))
            }
            false => Weight::Blocks(BlockWeight::of_rows(rows, device)?),
        };
        Ok(Self { weight, bias })
    }

    /// What each of `layers` makes of the same `x` `[rows, from]`, which is quantised once where they all are.
    pub fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let weights = layers.map(|layer| match &layer.weight {
            Weight::Q8(weight) => Some(weight),
            _ => None,
        });
        let quantized = match weights.iter().all(Option::is_some) {
            true => Some(quantize(x)?),
            false => None,
        };
        let mut outputs = Vec::with_capacity(N);
        for (layer, weight) in layers.into_iter().zip(weights) {
            outputs.push(match (&quantized, weight) {
                (Some(rows), Some(weight)) => layer.biased(multiply(weight, rows, x)?)?,
                _ => layer.forward(x)?,
            });
        }
        outputs
            .try_into()
            .map_err(|_| candle_core::Error::Msg("as many outputs as layers".into()))
    }

    /// Logits `[rows, to]` of `x` `[rows, from]`, for a head. On a CUDA device they stay in the half precision that
    /// the product is rounded to, which the reduction over the vocabulary widens as it reads them; elsewhere they
    /// are f32.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let logits = self.forward(x)?;
        match (logits.device().is_cuda(), logits.dtype()) {
            (true, DType::BF16 | DType::F16) => Ok(logits),
            _ => logits.to_dtype(DType::F32),
        }
    }

    /// The weight `[to, from]` of a layer without a bias, unless it is quantised.
    #[cfg(feature = "cuda")]
    pub fn float_weight(&self) -> Option<&Tensor> {
        match (&self.weight, &self.bias) {
            (Weight::Float(weight), None) => Some(weight),
            _ => None,
        }
    }

    fn biased(&self, y: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => add_bias(&y, bias),
            None => Ok(y),
        }
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.biased(match &self.weight {
            Weight::Float(weight) => product(x, weight)?,
            Weight::Blocks(weight) => weight.multiply(x)?,
            Weight::Q8(weight) => multiply(weight, &quantize(x)?, x)?,
        })
    }
}

fn quantize(x: &Tensor) -> Result<Q8Rows> {
    let (_, from) = x.dims2()?;
    with_floats([x], |[x]| Q8Rows::quantize(x, from))
}

/// x wᵀ of the rows that x was quantised to.
fn multiply(weight: &Q8Weight, rows: &Q8Rows, x: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(weight.multiply(rows), (x.dim(0)?, weight.to()), x.device())
}

/// Entries of a product up to which the CPU's kernels sum in another order.
const SMALL_PRODUCT: usize = 256;

/// Rows and columns up to which, both together, they cut a long sum elsewhere.
const SMALL_SIDE: usize = 64;

/// x wᵀ for `x` `[rows, from]` and `w` `[to, from]`, each row of which does not depend on how many others
/// there are on a CPU, where x is f32, whatever w is.
pub(in crate::models) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && matches!(w.dtype(), DType::BF16 | DType::F16) {
        return half_product(x, w);
    }
    let (rows, to) = (x.dim(0)?, w.dim(0)?);
    let enough = match to {
        ..=SMALL_SIDE => (SMALL_PRODUCT / to.max(1) + 1).max(SMALL_SIDE + 1),
        _ => (SMALL_PRODUCT / to + 1).max(2),
    };
    if rows == 0 || rows >= enough || !x.device().is_cpu() {
        return x.matmul(&w.t()?);
    }
    x.pad_with_zeros(0, 0, enough - rows)?
        .matmul(&w.t()?)?
        .narrow(0, 0, rows)
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;

    #[test]
    fn a_row_of_a_product_does_not_depend_on_how_many_others_there_are() -> Result<()> {
        for (from, to) in [
            (40, 1),
            (40, 30),
            (768, 64),
            (1500, 17),
            (768, 65),
            (700, 300),
        ] {
            let x = Tensor::randn(0f32, 1.0, (130, from), &Device::Cpu)?;
            let w = Tensor::randn(0f32, 1.0, (to, from), &Device::Cpu)?;
            let all = product(&x, &w)?;
            for rows in [1, 2, 3, 9, 63, 64, 65, 66, 129] {
                let some = product(&x.narrow(0, 0, rows)?, &w)?;
                let differences = (some - all.narrow(0, 0, rows)?)?.abs()?.max(D::Minus1)?;
                let largest = differences.max(0)?.to_scalar::<f32>()?;
                assert_eq!(largest, 0.0, "{rows} of 130 rows, {from} to {to}");
            }
        }
        Ok(())
    }

    #[test]
    fn nor_does_one_of_a_product_with_quantised_weights_in_either_way() -> Result<()> {
        for (from, to) in [(32, 1), (64, 35), (768, 66), (1504, 300)] {
            let x = Tensor::randn(0f32, 1.0, (130, from), &Device::Cpu)?;
            let w = Tensor::randn(0f32, 1.0, (to, from), &Device::Cpu)?;
            let blocks = BlockWeight::new(&w, GgmlDType::Q8_0, &Device::Cpu)?;
            let candles = Linear {
                weight: Weight::Blocks(blocks),
                bias: None,
            };
            let rows = BlockRows::of(&w, GgmlDType::Q8_0)?;
            let chosen = Linear::quantized(rows, &Device::Cpu, None)?;
            for layer in [candles, chosen] {
                let all = layer.forward(&x)?;
                for rows in [1, 2, 3, 9, 63, 64, 65, 66, 129] {
                    let some = layer.forward(&x.narrow(0, 0, rows)?)?;
                    let differences = (some - all.narrow(0, 0, rows)?)?.abs()?.max(D::Minus1)?;
                    let largest = differences.max(0)?.to_scalar::<f32>()?;
                    assert_eq!(largest, 0.0, "{rows} of 130 rows, {from} to {to}");
                }
            }
        }
        Ok(())
    }
}
