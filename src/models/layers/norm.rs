//! The root-mean-square norm: x / rms(x) ⊙ weight (Zhang & Sennrich, arXiv:1910.07467).

use candle_core::{DType, Device, Module, Result, Tensor};

#[cfg(feature = "cuda")]
use crate::models::layers::cuda;
use crate::models::weights::Weights;

/// A norm over the last dimension.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    /// `[dim]`
    pub(super) weight: Tensor,
    pub(super) eps: f32,
}

impl RmsNorm {
    /// With a weight `[dim]`.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        let eps = eps as f32;
        Self { weight, eps }
    }

    /// From `weight` `[dim]`.
    ///
    /// # Errors
    /// If it is missing or of the wrong shape, or the device fails.
    pub(in crate::models) fn load(dim: usize, eps: f64, weights: Weights) -> Result<Self> {
        Ok(Self::new(weights.get(dim, "weight")?, eps))
    }

    /// x / rms(x) over `dim` entries, without a weight.
    ///
    /// # Errors
    /// If the device fails.
    pub(in crate::models) fn without_weight(
        dim: usize,
        eps: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self::new(Tensor::ones(dim, dtype, device)?, eps))
    }

    /// x + residual, and its norm.
    pub fn forward_sum(&self, x: &Tensor, residual: &Tensor) -> Result<[Tensor; 2]> {
        #[cfg(feature = "cuda")]
        if let Some(both) = cuda::add_rms_norm(x, residual, self)? {
            return Ok(both);
        }
        let sum = (x + residual)?;
        let normed = self.forward(&sum)?;
        Ok([sum, normed])
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.eps)
    }
}
