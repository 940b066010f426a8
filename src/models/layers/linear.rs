//! Linear layers.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Module, Result, Tensor};

/// A linear layer `[rows, from]` → `[rows, to]`.
#[derive(Debug, Clone)]
pub(in crate::models) struct Linear {
    weight: Weight,
    /// `[to]`
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[to, from]`
    Float(Tensor),
    Quantized(QMatMul),
}

impl Linear {
    /// From `weight` `[to, from]`, in the order in memory that products are to read it in, and `bias`
    /// `[to]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let weight = Weight::Float(weight);
        Self { weight, bias }
    }

    /// From `weight` `[to, from]`, which is quantised in `blocks` along `from`, and `bias` `[to]`.
    ///
    /// # Errors
    /// If `from` is no multiple of the block's size, or the device fails.
    pub fn quantized(weight: &Tensor, blocks: GgmlDType, bias: Option<Tensor>) -> Result<Self> {
        let weight = QMatMul::from_qtensor(QTensor::quantize(weight, blocks)?)?;
        let weight = Weight::Quantized(weight);
        Ok(Self { weight, bias })
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Float(weight) => product(x, weight)?,
            Weight::Quantized(weight) => weight.forward(x)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Entries of a product up to which the CPU's kernels sum in another order.
const SMALL_PRODUCT: usize = 256;

/// x wᵀ for `x` `[rows, from]` and `w` `[to, from]`, each row of which does not depend on how many others
/// there are.
pub(in crate::models) fn product(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (rows, to) = (x.dim(0)?, w.dim(0)?);
    let enough = (SMALL_PRODUCT / to + 1).max(2);
    if rows == 0 || rows >= enough || !x.device().is_cpu() {
        return x.matmul(&w.t()?);
    }
    x.pad_with_zeros(0, 0, enough - rows)?
        .matmul(&w.t()?)?
        .narrow(0, 0, rows)
}
