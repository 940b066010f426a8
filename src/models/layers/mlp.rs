//! The gated MLP: down(silu(gate(x)) ⊙ up(x)) (SwiGLU, Shazeer, arXiv:2002.05202).

use candle_core::{Result, Tensor};
use candle_nn::Module;
use candle_transformers::models::with_tracing::Linear;

/// A gated MLP without biases of its own choosing: its three layers are given.
#[derive(Debug, Clone)]
pub(in crate::models) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl GatedMlp {
    /// From `gate` and `up`, hidden → intermediate, and `down`, intermediate → hidden.
    pub fn new(gate: Linear, up: Linear, down: Linear) -> Self {
        Self { gate, up, down }
    }

    /// `[rows, hidden]` → `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = (self.gate.forward(x)?.silu()? * self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}
