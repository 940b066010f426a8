//! Rotary position embedding (Su et al., arXiv:2104.09864), half-split as in Llama.

use candle_core::{DType, Device, Result, Tensor};

/// Cosines and sines of every position that the model knows, each `[positions, head_dim / 2]`.
#[derive(Debug, Clone)]
pub(in crate::models) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

/// The cosines and sines of a batch's rows, each `[rows, head_dim / 2]`.
pub(in crate::models) struct RotaryRows {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Angles position · base^(−2i / head_dim) for i < head_dim / 2, computed in f64.
    pub fn new(
        head_dim: usize,
        base: f64,
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let frequencies: Vec<f64> = (0..head_dim / 2)
            .map(|i| base.powf(-((2 * i) as f64) / head_dim as f64))
            .collect();
        Self::with_frequencies(&frequencies, positions, dtype, device)
    }

    /// Angles position · frequency of `[head_dim / 2]` frequencies, computed in f64.
    pub fn with_frequencies(
        frequencies: &[f64],
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let angles = |of: fn(f64) -> f64| {
            let values: Vec<f32> = (0..positions)
                .flat_map(|position| {
                    frequencies
                        .iter()
                        .map(move |f| of(position as f64 * f) as f32)
                })
                .collect();
            Tensor::from_vec(values, (positions, frequencies.len()), device)?.to_dtype(dtype)
        };
        Ok(Self {
            cos: angles(f64::cos)?,
            sin: angles(f64::sin)?,
        })
    }

    /// The angles of rows at `positions`.
    pub fn rows(&self, positions: &[u32]) -> Result<RotaryRows> {
        let positions = Tensor::from_slice(positions, positions.len(), self.cos.device())?;
        Ok(RotaryRows {
            cos: self.cos.index_select(&positions, 0)?,
            sin: self.sin.index_select(&positions, 0)?,
        })
    }
}

impl RotaryRows {
    /// Rotates `x` `[rows, heads, head_dim]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.unsqueeze(0)?.contiguous()?;
        candle_nn::rotary_emb::rope_thd(&x, &self.cos, &self.sin)?.squeeze(0)
    }
}
