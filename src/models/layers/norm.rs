//! The root-mean-square norm: x / rms(x) ⊙ weight (Zhang & Sennrich, arXiv:1910.07467).

use candle_core::{Module, Result, Tensor};

use crate::models::weights::Weights;

/// A norm over the last dimension.
#[derive(Debug, Clone)]
pub(in crate::models) struct RmsNorm {
    /// `[dim]`
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// From `weight` `[dim]`.
    ///
    /// # Errors
    /// If it is missing or of the wrong shape, or the device fails.
    pub fn load(dim: usize, eps: f64, weights: Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.get(dim, "weight")?,
            eps: eps as f32,
        })
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.eps)
    }
}
