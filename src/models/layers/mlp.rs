//! The gated MLP: down(activation(gate(x)) ⊙ up(x)) (SwiGLU and GEGLU, Shazeer, arXiv:2002.05202).

use candle_core::{Module, Result, Tensor};

use crate::models::layers::elementwise::{gelu_times, silu_times};
use crate::models::layers::{Linear, MixtureOfExperts};
use crate::models::weights::Weights;

/// What the gate of an MLP goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Activation {
    /// x / (1 + e^−x).
    Silu,
    /// The tanh approximation of gelu.
    GeluTanh,
}

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

    /// The weights gate, up and down, where none is quantised or has a bias beside it, and the activation is silu.
    #[cfg(feature = "cuda")]
    pub fn float_weights_around_silu(&self) -> Option<[&Tensor; 3]> {
        if self.activation != Activation::Silu {
            return None;
        }
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(Linear::float_weight);
        Some([gate?, up?, down?])
    }

    /// `[rows, hidden]` → `[rows, hidden]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [gate, up] = Linear::forward_each([&self.gate, &self.up], x)?;
        let activated = match self.activation {
            Activation::Silu => silu_times(&gate, &up)?,
            Activation::GeluTanh => gelu_times(&gate, &up)?,
        };
        self.down.forward(&activated)
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
