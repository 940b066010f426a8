//! The way of a gradient through what stands between matrix products.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::sigmoid;

/// From the gradient `dy` of y = x / rms(x) ⊙ w, those of x `[rows, D]` and of w `[D]`; all in f32.
///
/// With r = 1 / rms of a row, dx = r (dy ⊙ w) − x r³ (x · (dy ⊙ w)) / D, and dw is the sum over rows of r dy ⊙ x.
/// Both sums are products: on CUDA candle's sum over rows would read columns.
pub fn rms_norm(x: &Tensor, w: &Tensor, dy: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let share = 1.0 / x.dim(D::Minus1)? as f64;
    let squares = x.sqr()?.sum_keepdim(1)?;
    let by_rms = squares.affine(share, eps)?.sqrt()?.recip()?;
    let products = (dy * x)?;
    let dw = by_rms.t()?.matmul(&products)?.squeeze(0)?;
    let along = products.matmul(&w.unsqueeze(1)?)?;
    let along = ((&by_rms.sqr()? * &by_rms)? * along)?.affine(share, 0.0)?;
    let dx = dy.broadcast_mul(w)?.broadcast_mul(&by_rms)?;
    Ok(((dx - x.broadcast_mul(&along)?)?, dw))
}

/// From the gradient `dy` of y = silu(gate) ⊙ up, those of gate and of up, in their type.
pub fn silu_times(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigmoid = sigmoid(gate)?;
    let silu = (gate * &sigmoid)?;
    // σ + silu (1 − σ), of which the second term is silu − silu σ.
    let slope = (&sigmoid + (&silu * sigmoid.affine(-1.0, 1.0)?)?)?;
    Ok((((dy * up)? * slope)?, (dy * silu)?))
}

/// From the gradient `dp` of the probabilities p = softmax(x) over the last dimension, that of x, p (dp − p · dp), in
/// their type. `along` is p · dp, in f32.
pub fn softmax(p: &Tensor, dp: &Tensor, along: &Tensor) -> Result<Tensor> {
    let difference = dp.to_dtype(DType::F32)?.broadcast_sub(along)?;
    p * difference.to_dtype(p.dtype())?
}
