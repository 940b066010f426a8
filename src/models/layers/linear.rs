//! Linear layers as the CPU multiplies them fastest.

use candle_core::Result;
use candle_nn::VarBuilder;
use candle_transformers::models::with_tracing::Linear;

/// A linear layer `[rows, from]` → `[rows, to]` from `weight` `[to, from]` and, with `bias`, `bias` `[to]`.
///
/// A product reads the transposed weight, and on few rows packing it is a large part of the time: the
/// weight is laid out transposed in memory, so that its transpose is contiguous.
///
/// # Errors
/// If a tensor is missing or of the wrong shape, or the device fails.
pub(in crate::models) fn linear(
    from: usize,
    to: usize,
    bias: bool,
    weights: VarBuilder,
) -> Result<Linear> {
    let weight = weights.get((to, from), "weight")?;
    // Where only the shapes are asked for, a weight is one number broadcast and has to stay it.
    let weight = if weight.is_contiguous() {
        weight.t()?.contiguous()?.t()?
    } else {
        weight
    };
    let bias = bias.then(|| weights.get(to, "bias")).transpose()?;
    Ok(Linear::from_weights(weight, bias))
}
