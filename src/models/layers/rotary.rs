//! Rotary position embedding (Su et al., arXiv:2104.09864), half-split as in Llama.

use std::f64::consts::TAU;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Module, Result, Tensor};

use crate::kernels::transfer;
use crate::models::layers::RmsNorm;
#[cfg(feature = "cuda")]
use crate::models::layers::cuda;
use crate::models::layers::elementwise::rotated;

/// Rotates heads, or their first dimensions, by an angle that grows with the position.
///
/// Cosines and sines are kept for as many positions as were asked for so far, not for all that a model
/// knows: released models name contexts of which a server uses a small part.
#[derive(Debug)]
pub(crate) struct Rotary {
    frequencies: Vec<f64>,
    positions: usize,
    dtype: DType,
    device: Device,
    table: Mutex<Table>,
}

/// Cosines and sines, each `[positions, dim / 2]`.
#[derive(Debug)]
struct Table {
    cos: Tensor,
    sin: Tensor,
}

/// The cosines and sines of a batch's rows, each `[rows, dim / 2]`.
pub(crate) struct RotaryRows {
    cos: Tensor,
    sin: Tensor,
}

/// How Llama 3 stretches a context beyond the one it was pre-trained with (`rope_type` "llama3" of
/// transformers' `modeling_rope_utils.py`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::models) struct Llama3Scaling {
    /// What the slowest frequencies are divided by.
    pub factor: f64,
    /// Frequencies that turn fewer times than this within the original context are divided.
    pub low_freq_factor: f64,
    /// Frequencies that turn more often than this within the original context are kept.
    pub high_freq_factor: f64,
    /// The context of pre-training, in slots.
    pub original_context: f64,
}

/// The frequencies base^(−2i / dim) for i < dim / 2.
pub(in crate::models) fn frequencies(dim: usize, base: f64) -> Vec<f64> {
    (0..dim / 2)
        .map(|i| base.powf(-((2 * i) as f64) / dim as f64))
        .collect()
}

impl Llama3Scaling {
    /// The scaled frequency: kept, divided, or in between a mix of both.
    pub fn scale(&self, frequency: f64) -> f64 {
        let turns = self.original_context * frequency / TAU;
        let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let kept = kept.clamp(0.0, 1.0);
        frequency * (kept + (1.0 - kept) / self.factor)
    }
}

impl Rotary {
    /// For heads of width `head_dim`, of which all is rotated, and at most `positions` positions:
    /// angles position · base^(−2i / head_dim), computed in f64.
    pub fn new(
        head_dim: usize,
        base: f64,
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::from_frequencies(frequencies(head_dim, base), positions, dtype, device)
    }

    /// Angles position · frequency: the first 2 · `frequencies.len()` dimensions of a head are
    /// rotated, the others are left as they are.
    pub fn from_frequencies(
        frequencies: Vec<f64>,
        positions: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        // Not empty: a CUDA device does not convert a tensor without numbers.
        let table = Table::new(&frequencies, 1, dtype, device)?;
        Ok(Self {
            frequencies,
            positions,
            dtype,
            device: device.clone(),
            table: Mutex::new(table),
        })
    }

    /// The angles of rows at `positions`.
    pub fn rows(&self, positions: &[u32]) -> Result<RotaryRows> {
        let placed = transfer::to_device(positions, positions.len(), &self.device)?;
        self.rows_at(positions, &placed)
    }

    /// The angles of rows at `positions`, which are on the device already as `placed` `[rows]`.
    pub fn rows_at(&self, positions: &[u32], placed: &Tensor) -> Result<RotaryRows> {
        let needed = positions.iter().max().map_or(0, |last| *last as usize + 1);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.cos.dim(0)? < needed {
            let grown = needed.next_power_of_two().min(self.positions).max(needed);
            *table = Table::new(&self.frequencies, grown, self.dtype, &self.device)?;
        }
        Ok(RotaryRows {
            cos: table.cos.index_select(placed, 0)?,
            sin: table.sin.index_select(placed, 0)?,
        })
    }
}

impl Table {
    fn new(frequencies: &[f64], positions: usize, dtype: DType, device: &Device) -> Result<Self> {
        let angles = |of: fn(f64) -> f64| {
            let values: Vec<f32> = (0..positions)
                .flat_map(|position| {
                    frequencies
                        .iter()
                        .map(move |frequency| of(position as f64 * frequency) as f32)
                })
                .collect();
            Tensor::from_vec(values, (positions, frequencies.len()), device)?.to_dtype(dtype)
        };
        Ok(Self {
            cos: angles(f64::cos)?,
            sin: angles(f64::sin)?,
        })
    }
}

impl RotaryRows {
    /// The same angles; what is rotated is also multiplied by `factor`.
    pub fn times(&self, factor: f64) -> Result<Self> {
        Ok(Self {
            cos: (&self.cos * factor)?,
            sin: (&self.sin * factor)?,
        })
    }

    /// The opposite angles, by which the transposed matrix rotates: the way of a gradient.
    pub fn transposed(&self) -> Result<Self> {
        Ok(Self {
            cos: self.cos.clone(),
            sin: self.sin.neg()?,
        })
    }

    /// Rotates `x` `[rows, heads, head_dim]`, in the type of the cosines and sines.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(rotated) = rotated(x, &self.cos, &self.sin)? {
            return Ok(rotated);
        }
        if x.dtype() != self.cos.dtype() {
            let rotated = self.apply(&x.to_dtype(self.cos.dtype())?)?;
            return rotated.to_dtype(x.dtype());
        }
        let (head_dim, dim) = (x.dim(2)?, 2 * self.cos.dim(1)?);
        let rotated = x.narrow(2, 0, dim)?.unsqueeze(0)?.contiguous()?;
        let rotated =
            candle_nn::rotary_emb::rope_thd(&rotated, &self.cos, &self.sin)?.squeeze(0)?;
        if dim == head_dim {
            return Ok(rotated);
        }
        Tensor::cat(&[&rotated, &x.narrow(2, dim, head_dim - dim)?], 2)
    }

    /// Rotates `x` `[rows, heads, head_dim]`, whose heads are normed first.
    pub fn apply_normed(&self, x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(rotated) = cuda::rotated(x, Some(norm), &self.cos, &self.sin)? {
            return Ok(rotated);
        }
        self.apply(&norm.forward(x)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_fast_divides_slow_and_joins_the_two_without_a_jump() {
        // Llama 3.2 1B.
        let scaling = Llama3Scaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let frequency = |turns: f64| turns * TAU / 8192.0;
        for turns in [4.0, 10.0, 1000.0] {
            assert_eq!(scaling.scale(frequency(turns)), frequency(turns));
        }
        for turns in [1.0, 0.5, 0.001] {
            assert_eq!(scaling.scale(frequency(turns)), frequency(turns) / 32.0);
        }
        let middle = scaling.scale(frequency(2.5)) / frequency(2.5);
        assert!((middle - (0.5 + 0.5 / 32.0)).abs() < 1e-12);
    }

    #[test]
    fn rows_do_not_depend_on_the_positions_asked_for_before() -> Result<()> {
        let rotary = || Rotary::new(8, 1e4, 100, DType::F32, &Device::Cpu);
        let x = Tensor::arange(0f32, 16., &Device::Cpu)?.reshape((1, 2, 8))?;
        let (grown, fresh) = (rotary()?, rotary()?);
        grown.rows(&[3])?;
        for position in [99, 0, 7] {
            let rotated = |rotary: &Rotary| {
                let rotated = rotary.rows(&[position])?.apply(&x)?;
                rotated.flatten_all()?.to_vec1::<f32>()
            };
            assert_eq!(rotated(&grown)?, rotated(&fresh)?);
        }
        Ok(())
    }
}
