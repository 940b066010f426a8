//! The network's shape, and its parameters in one flat buffer.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::draws::{Purpose, Stream};

/// The shape of a LLaDA network with as many key/value heads as query heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkShape {
    /// Size of the vocabulary (V).
    pub vocab: usize,
    /// Slots a window (L).
    pub context: usize,
    /// Width of the residual stream (D).
    pub hidden: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads (H).
    pub heads: usize,
    /// Width of the gated MLP (F).
    pub mlp: usize,
    /// Whether the head is the transposed embedding.
    pub tied: bool,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// RMSNorm's epsilon.
    pub norm_eps: f64,
}

impl NetworkShape {
    /// The width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

/// What a parameter is for, as far as an optimiser cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The embedding.
    Embedding,
    /// A matrix inside a block.
    Matrix,
    /// A norm's factors.
    Norm,
    /// A head of its own.
    Head,
}

impl Role {
    /// Whether weight decay applies.
    pub fn decays(self) -> bool {
        matches!(self, Role::Matrix | Role::Head)
    }
}

/// One parameter of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name in a LLaDA checkpoint.
    pub name: String,
    /// Its shape; matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// Its place in the flat buffer.
    pub range: Range<usize>,
    /// What it is for.
    pub role: Role,
    /// Standard deviation of its initial values; `None` for ones (the norms).
    pub init_std: Option<f64>,
}

/// The places of one block's parameters. `q_proj`, `k_proj`, `v_proj` lie end to end and so make
/// one `[3D, D]` matrix; `ff_proj` and `up_proj` one `[2F, D]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockRanges {
    /// `[D]`.
    pub attn_norm: Range<usize>,
    /// `[3D, D]`.
    pub qkv: Range<usize>,
    /// `[D, D]`.
    pub attn_out: Range<usize>,
    /// `[D]`.
    pub ff_norm: Range<usize>,
    /// `[2F, D]`: gate, then up.
    pub gate_up: Range<usize>,
    /// `[D, F]`.
    pub ff_out: Range<usize>,
}

/// Where each parameter lies in the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// All parameters, in order and without gaps.
    pub parameters: Vec<Parameter>,
    /// The embedding, `[V, D]`.
    pub embedding: Range<usize>,
    /// The blocks.
    pub blocks: Vec<BlockRanges>,
    /// The final norm, `[D]`.
    pub final_norm: Range<usize>,
    /// The head, `[V, D]`; the embedding's range when tied.
    pub head: Range<usize>,
}

impl Layout {
    /// The layout of a shape.
    pub fn new(shape: &NetworkShape) -> Self {
        let (d, f, v) = (shape.hidden, shape.mlp, shape.vocab);
        let mut parameters: Vec<Parameter> = Vec::new();
        let mut add = |name: String, dims: &[usize], role: Role, init_std: Option<f64>| {
            let start = parameters.last().map_or(0, |last| last.range.end);
            let range = start..start + dims.iter().product::<usize>();
            parameters.push(Parameter {
                name: format!("model.transformer.{name}.weight"),
                shape: dims.to_vec(),
                range: range.clone(),
                role,
                init_std,
            });
            range
        };
        const STD: f64 = 0.02;
        // Matrices that write to the residual stream start smaller, by the number of such writes
        // (GPT-2's initialisation).
        let residual_std = STD / (2.0 * shape.layers as f64).sqrt();
        let embedding = add("wte".into(), &[v, d], Role::Embedding, Some(STD));
        let blocks = (0..shape.layers)
            .map(|layer| {
                let mut add = |name: &str, dims: &[usize], role, std| {
                    add(format!("blocks.{layer}.{name}"), dims, role, std)
                };
                let attn_norm = add("attn_norm", &[d], Role::Norm, None);
                let q = add("q_proj", &[d, d], Role::Matrix, Some(STD));
                add("k_proj", &[d, d], Role::Matrix, Some(STD));
                let v = add("v_proj", &[d, d], Role::Matrix, Some(STD));
                let attn_out = add("attn_out", &[d, d], Role::Matrix, Some(residual_std));
                let ff_norm = add("ff_norm", &[d], Role::Norm, None);
                let gate = add("ff_proj", &[f, d], Role::Matrix, Some(STD));
                let up = add("up_proj", &[f, d], Role::Matrix, Some(STD));
                let ff_out = add("ff_out", &[d, f], Role::Matrix, Some(residual_std));
                BlockRanges {
                    attn_norm,
                    qkv: q.start..v.end,
                    attn_out,
                    ff_norm,
                    gate_up: gate.start..up.end,
                    ff_out,
                }
            })
            .collect();
        let final_norm = add("ln_f".into(), &[d], Role::Norm, None);
        // A head of zeros starts at the uniform distribution: a loss of ln V.
        let head = if shape.tied {
            embedding.clone()
        } else {
            add("ff_out".into(), &[v, d], Role::Head, Some(0.0))
        };
        Self {
            parameters,
            embedding,
            blocks,
            final_norm,
            head,
        }
    }

    /// The length of the flat buffer.
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range.end)
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// Initial weights, a function of the seed.
    pub fn initial_weights(&self, seed: u64) -> Vec<f32> {
        let mut weights = vec![1.0; self.len()];
        for (index, parameter) in self.parameters.iter().enumerate() {
            if let Some(std) = parameter.init_std {
                let mut stream = Stream::new(seed, Purpose::Weights, index as u64);
                for weight in &mut weights[parameter.range.clone()] {
                    *weight = (std * stream.normal()) as f32;
                }
            }
        }
        weights
    }
}
