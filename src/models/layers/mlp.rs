//! The gated MLP: down(silu(gate(x)) ⊙ up(x)) (SwiGLU, Shazeer, arXiv:2002.05202).

use candle_core::{Module, Result, Tensor};

use crate::models::layers::elementwise::silu_times;
use crate::models::layers::{Linear, MixtureOfExperts};
use crate::models::weights::Weights;

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
    pub fn load(hidden: usize, intermediate: usize, bias: bool, weights: Weights) -> Result<Self> {
        Ok(Self {
            gate: weights.pp("gate_proj").linear(hidden, intermediate, bias)?,
            up: weights.pp("up_proj").linear(hidden, intermediate, bias)?,
            down: weights.pp("down_proj").linear(intermediate, hidden, bias)?,
        })
    }

    /// The weights gate, up and down, of which none is quantised or has a bias beside it.
    #[cfg(feature = "cuda")]
    pub fn float_weights(&self) -> Option<[&Tensor; 3]> {
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(Linear::float_weight);
        Some([gate?, up?, down?])
    }

    /// `[rows, hidden]` → `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = Linear::forward_each([&self.gate, &self.up], x)?;
        self.down.forward(&silu_times(&gate, &up)?)
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
