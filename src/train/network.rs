//! The loss of the network and its gradient: what every implementation computes.

mod composed;
mod divergence;
#[cfg(test)]
mod tests;

use super::batch::Batch;
use super::error::TrainError;
pub use composed::ComposedNetwork;
pub(super) use divergence::{UniformSlots, plug_in_divergences};

/// A network whose parameters live outside, in a flat buffer by [`Layout`](super::layout::Layout).
///
/// The network is LLaDA's: pre-norm blocks with RMSNorm, bidirectional attention with rotary
/// positions (half-split pairs), a SiLU-gated MLP, no biases. It is not told the noise level. A slot
/// attends to those of its own text ([`Batch::texts`]); positions are the slots of the window, and since
/// scores depend on their differences only, a text is the same wherever in its window it begins.
pub trait Network: Send {
    /// The NELBO estimate of a batch in nats per token: the sum over scored slots of weight · loss, divided
    /// by the number of all tokens. A slot's loss is the cross-entropy, or for the uniform process
    /// [`plug_in_divergence`](crate::diffusion::elbo::plug_in_divergence), of the softmax of its logits.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn loss(&mut self, weights: &[f32], batch: &Batch) -> Result<f64, TrainError>;

    /// The same, and adds its gradient to `gradient`, which is as long as `weights`.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn loss_and_gradient(
        &mut self,
        weights: &[f32],
        batch: &Batch,
        gradient: &mut [f32],
    ) -> Result<f64, TrainError>;
}
