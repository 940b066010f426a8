//! Arithmetic between a network's products, which candle does on one thread of the CPU: here on all, and on a CUDA
//! device in one pass.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::floats::with_floats;
#[cfg(feature = "cuda")]
use crate::models::layers::cuda;
use crate::simd::{exp, wide};

/// Values that one task computes.
const CHUNK: usize = 1 << 12;

fn is_on_cpu_in_f32(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// What the gate of an MLP goes through, numbered as in `kernels/activation.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Activation {
    /// silu(x) = x / (1 + e^−x).
    Silu = 0,
    /// gelu in its tanh approximation (Hendrycks & Gimpel, arXiv:1606.08415):
    /// x (1 + tanh u) / 2 = x / (1 + e^−2u) with u = √(2/π) (x + 0.044715 x³).
    GeluTanh = 1,
}

/// activation(gate) ⊙ up of two tensors of the same shape.
pub(crate) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(product) = cuda::gated(activation, gate, up)? {
        return Ok(product);
    }
    if !is_on_cpu_in_f32(gate) {
        let activated = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        return activated * up;
    }
    let write = match activation {
        Activation::Silu => write_silu_times,
        Activation::GeluTanh => write_gelu_times,
    };
    let product = with_floats([gate, up], |[gate, up]| {
        let mut product = vec![0.0; gate.len()];
        product
            .par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
            .for_each(|(product, (gate, up))| write(product, gate, up));
        product
    })?;
    Tensor::from_vec(product, gate.shape(), gate.device())
}

wide! {
    /// product = gelu(gate) ⊙ up
    pub fn write_gelu_times(product: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((product, gate), up) in product.iter_mut().zip(gate).zip(up) {
            // −2 √(2/π)
            let exponent = -1.595_769 * (gate + 0.044_715 * gate * gate * gate);
            *product = gate * up / (1.0 + exp(exponent));
        }
    }
}

wide! {
    /// product = silu(gate) ⊙ up
    pub fn write_silu_times(product: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((product, gate), up) in product.iter_mut().zip(gate).zip(up) {
            *product = gate * up / (1.0 + exp(-gate));
        }
    }
}

/// `x` `[rows, width]` + `bias` `[width]`. candle's addition uploads both shapes for each sum on a CUDA device.
pub(crate) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(sum) = cuda::add_bias(x, bias)? {
        return Ok(sum);
    }
    x.broadcast_add(bias)
}

/// `x` `[rows, heads, head_dim]` with the first 2 · half dimensions of every head rotated by its row's angles,
/// whose cosines and sines are `[rows, half]`: dimension i with dimension half + i. `None` where candle has to
/// do it.
pub(super) fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Option<Tensor>> {
    #[cfg(feature = "cuda")]
    if let Some(rotated) = cuda::rotated(x, None, cos, sin)? {
        return Ok(Some(rotated));
    }
    if !(is_on_cpu_in_f32(x) && is_on_cpu_in_f32(cos)) {
        return Ok(None);
    }
    let (_, heads, head_dim) = x.dims3()?;
    let half = cos.dim(1)?;
    if half == 0 || heads * head_dim == 0 {
        return Ok(Some(x.clone()));
    }
    let values = with_floats([x, cos, sin], |[x, cos, sin]| {
        let mut values = x.to_vec();
        values
            .par_chunks_mut(heads * head_dim)
            .zip(cos.par_chunks(half).zip(sin.par_chunks(half)))
            .for_each(|(row, (cos, sin))| rotate(row, head_dim, cos, sin));
        values
    })?;
    Tensor::from_vec(values, x.shape(), x.device()).map(Some)
}

wide! {
    /// Rotates the heads of one row.
    pub fn rotate(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
        for head in row.chunks_exact_mut(head_dim) {
            let (first, rest) = head.split_at_mut(cos.len());
            let pairs = first.iter_mut().zip(rest).zip(cos.iter().zip(sin));
            for ((a, b), (cos, sin)) in pairs {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(shape: (usize, usize, usize), scale: f32) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let values: Vec<f32> = (0..count)
            .map(|i| (i as f32 * 0.37).sin() * scale)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn most(a: &Tensor, b: &Tensor) -> f32 {
        let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        difference.max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn the_product_equals_candles() -> Result<()> {
        let (gate, up) = (values((5, 7, 300), 20.0), values((5, 7, 300), 3.0));
        for (activation, activated) in [
            (Activation::Silu, gate.silu()?),
            (Activation::GeluTanh, gate.gelu()?),
        ] {
            let expected = (activated * &up)?;
            assert!(most(&gated(activation, &gate, &up)?, &expected) < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn the_rotation_equals_candles() -> Result<()> {
        let x = values((6, 3, 10), 1.0);
        let angles = values((1, 6, 4), 3.0).squeeze(0)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let got = rotated(&x, &cos, &sin)?.unwrap();
        let part = x.narrow(2, 0, 8)?.unsqueeze(0)?.contiguous()?;
        let expected = candle_nn::rotary_emb::rope_thd(&part, &cos, &sin)?.squeeze(0)?;
        assert!(most(&got.narrow(2, 0, 8)?, &expected) < 1e-6);
        assert_eq!(most(&got.narrow(2, 8, 2)?, &x.narrow(2, 8, 2)?), 0.0);
        Ok(())
    }
}
