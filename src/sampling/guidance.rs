//! Classifier-free guidance: logits that are led away from others.

use candle_core::{DType, Result, Tensor};

/// What leads rows of logits c: u + (w + 1)(c − u) takes their place.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// u `[rows, vocab]`, of the type of c.
    pub unconditional: Tensor,
    /// w of each row; `None` for a row that is not guided, whose u is its c.
    pub scales: Vec<Option<f32>>,
}

impl Guidance {
    /// The guided logits `[rows, vocab]`, in f32.
    ///
    /// # Errors
    /// If `conditional` is not as u is, or the device fails.
    pub fn apply(&self, conditional: &Tensor) -> Result<Tensor> {
        let weights: Vec<f32> = (self.scales.iter().copied().map(weight)).collect();
        let unconditional = self.unconditional.to_dtype(DType::F32)?;
        let weights = Tensor::from_vec(weights, (self.scales.len(), 1), conditional.device())?;
        let direction = (conditional.to_dtype(DType::F32)? - &unconditional)?;
        unconditional + direction.broadcast_mul(&weights)?
    }
}

/// w + 1 of a row; 1 without guidance.
pub(super) fn weight(scale: Option<f32>) -> f32 {
    scale.map_or(1.0, |scale| scale + 1.0)
}
