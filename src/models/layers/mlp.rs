//! The gated MLP: down(silu(gate(x)) ⊙ up(x)) (SwiGLU, Shazeer, arXiv:2002.05202).

use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};
use candle_transformers::models::with_tracing::Linear;

use crate::models::layers::{MixtureOfExperts, linear};

/// A gated MLP.
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

    /// From `gate_proj`, `up_proj` and `down_proj`, all with or all without bias.
    pub fn load(
        hidden: usize,
        intermediate: usize,
        bias: bool,
        weights: VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            gate: linear(hidden, intermediate, bias, weights.pp("gate_proj"))?,
            up: linear(hidden, intermediate, bias, weights.pp("up_proj"))?,
            down: linear(intermediate, hidden, bias, weights.pp("down_proj"))?,
        })
    }

    /// `[rows, hidden]` → `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = (self.gate.forward(x)?.silu()? * self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}

/// What follows the attention of a block.
pub(in crate::models) enum Mlp {
    /// One MLP for every row.
    Dense(GatedMlp),
    /// A few of many MLPs for each row.
    Experts(MixtureOfExperts),
}

impl Mlp {
    /// `[rows, hidden]` → `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}
