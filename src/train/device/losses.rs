//! The loss of logits, and its gradient.

use candle_core::{D, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax_last_dim};

use super::inputs::Inputs;
use crate::train::network::{UniformSlots, plug_in_divergences};

/// The weighted sum of the scored slots' losses, from their logits `[scored, V]` in f32.
///
/// # Errors
/// When the device fails.
pub fn loss(logits: &Tensor, inputs: &Inputs) -> Result<Tensor> {
    match &inputs.uniform {
        Some(slots) => divergence(logits, inputs, slots),
        None => {
            let probabilities = softmax_last_dim(logits)?;
            cross_entropy(logits, &probabilities, inputs)
        }
    }
}

/// The same, and the gradient `[scored, V]` of the logits.
///
/// # Errors
/// When the device fails.
pub fn loss_and_gradient(logits: &Tensor, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
    match &inputs.uniform {
        Some(slots) => {
            let logits = Var::from_tensor(logits)?;
            let loss = divergence(&logits, inputs, slots)?;
            let gradient = loss.backward()?.remove(&logits);
            let gradient = gradient.map_or_else(|| logits.zeros_like(), Ok)?;
            Ok((loss.detach(), gradient))
        }
        None => {
            let probabilities = softmax_last_dim(logits)?;
            let loss = cross_entropy(logits, &probabilities, inputs)?;
            let gradient = probabilities.broadcast_mul(&inputs.weights)?;
            gradient.scatter_add_set(&inputs.clean, &inputs.weights.neg()?, 1)?;
            Ok((loss, gradient))
        }
    }
}

fn cross_entropy(logits: &Tensor, probabilities: &Tensor, inputs: &Inputs) -> Result<Tensor> {
    // ln Σ e^x from the largest logit and its probability, which is no smaller than 1 / V: that of the clean
    // token may be 0 in f32.
    let largest = probabilities.max_keepdim(D::Minus1)?.log()?;
    let log_sum = (logits.max_keepdim(D::Minus1)? - largest)?;
    let losses = (log_sum - logits.gather(&inputs.clean, 1)?)?;
    (losses * &inputs.weights)?.sum_all()
}

/// By candle's gradient, which keeps some ten tensors of `[scored, V]`.
fn divergence(logits: &Tensor, inputs: &Inputs, slots: &UniformSlots) -> Result<Tensor> {
    let log_probabilities = log_softmax(logits, D::Minus1)?;
    let clean = log_probabilities.gather(&inputs.clean, 1)?;
    let losses = plug_in_divergences(&log_probabilities, &clean, slots)?;
    (losses * &inputs.weights)?.sum_all()
}
