//! What is trained: weights, their gradient, the optimiser's moments and the average of the weights.
//!
//! Two hold it: [`HostLearner`] in the host's memory, for the CPU, and
//! [`DeviceLearner`](super::device::DeviceLearner) on a device.

mod host;

use std::borrow::Cow;

use super::batch::Batch;
use super::checkpoint::State;
use super::error::TrainError;
use super::optimizer::Update;
pub use host::HostLearner;

/// What a step found before it changed the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The objective, the mean over the passes, in nats per token or per masked token.
    pub loss: f64,
    /// The global norm of its gradient, before clipping.
    pub grad_norm: f64,
}

impl Measured {
    /// Whether the step changed anything.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// A host copy of all that is trained, each one number a weight, by [`Layout`](super::layout::Layout).
#[derive(Debug, Clone, PartialEq)]
pub struct Buffers<'a> {
    /// The weights.
    pub weights: Cow<'a, [f32]>,
    /// Their moving average.
    pub average: Cow<'a, [f32]>,
    /// AdamW's first moment, or Muon's momentum.
    pub first: Cow<'a, [f32]>,
    /// AdamW's second moment; of a matrix that Muon updates, zeros.
    pub second: Cow<'a, [f32]>,
}

impl<'a> From<&'a State> for Buffers<'a> {
    fn from(state: &'a State) -> Self {
        Self {
            weights: Cow::Borrowed(&state.weights),
            average: Cow::Borrowed(&state.average),
            first: Cow::Borrowed(&state.moments.first),
            second: Cow::Borrowed(&state.moments.second),
        }
    }
}

/// A network in training.
pub trait Learner: Send {
    /// One step on the mean of the losses of `passes`, whose gradients are added up. Where the loss or the norm
    /// of its gradient is not finite, all that is trained stays as it was.
    ///
    /// `meanwhile` is what the host may do while a device computes; it is called once, or not at all where
    /// nothing would be gained.
    ///
    /// # Errors
    /// When the tensor library fails. What is trained may then be in part that of before the step.
    fn step(
        &mut self,
        passes: &[Batch],
        update: &Update,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Measured, TrainError>;

    /// The loss of the averaged weights on a batch, in nats per token.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn average_loss(&mut self, batch: &Batch) -> Result<f64, TrainError>;

    /// Measures how many floating-point operations a second the machine does in the matrix products of the
    /// network's widest layer alone, `[rows, D] × [D, 2F]` as a step has them, in the network's precision and
    /// on all that a step runs on.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn product_rate(&mut self) -> Result<f64, TrainError>;

    /// The weights that are trained, by [`Layout`](super::layout::Layout).
    ///
    /// # Errors
    /// When they cannot be read from the device.
    fn weights(&self) -> Result<Cow<'_, [f32]>, TrainError>;

    /// Their moving average.
    ///
    /// # Errors
    /// When it cannot be read from the device.
    fn average(&self) -> Result<Cow<'_, [f32]>, TrainError>;

    /// All that is trained, from which another learner continues.
    ///
    /// # Errors
    /// When it cannot be read from the device.
    fn buffers(&self) -> Result<Buffers<'_>, TrainError>;
}
