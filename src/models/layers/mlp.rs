//! The gated MLP: down(activation(gate(x)) ⊙ up(x)) (SwiGLU and GEGLU, Shazeer, arXiv:2002.05202).

use candle_core::{Module, Result, Tensor};

use crate::models::layers::{Activation, Linear, MixtureOfExperts, gated};
use crate::models::weights::Weights;

/// A gated MLP.
#[derive(Debug, Clone)]
pub(in crate::models) struct GatedMlp {
    activation: Activation,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl GatedMlp {
    /// From `gate` and `up`, hidden → intermediate, and `down`, intermediate → hidden, with the activation silu.
    pub fn new(gate: Linear, up: Linear, down: Linear) -> Self {
        Self {
            activation: Activation::Silu,
            gate,
            up,
            down,
        }
    }

    /// The same with another activation.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// From `gate_proj`, `up_proj` and `down_proj`, all with or all without bias, with the activation silu.
    pub fn load(hidden: usize, intermediate: usize, bias: bool, weights: Weights) -> Result<Self> {
        Ok(Self::new(
            weights.pp("gate_proj").linear(hidden, intermediate, bias)?,
            weights.pp("up_proj").linear(hidden, intermediate, bias)?,
            weights.pp("down_proj").linear(intermediate, hidden, bias)?,
        ))
    }

    /// What the gate goes through.
    #[cfg(feature = "cuda")]
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// The weights gate, up and down, where none is quantised or has a bias beside it.
    #[cfg(feature = "cuda")]
    pub fn float_weights(&self) -> Option<[&Tensor; 3]> {
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(Linear::float_weight);
        Some([gate?, up?, down?])
    }

    /// `[rows, hidden]` → `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = Linear::forward_each([&self.gate, &self.up], x)?;
        self.down.forward(&gated(self.activation, &gate, &up)?)
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
