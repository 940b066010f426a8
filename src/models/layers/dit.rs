//! Layers of the diffusion transformer (DiT; Peebles & Xie, arXiv:2212.09748) as SEDD, MDLM and BD3-LM
//! build it for text (`model/transformer.py` of louaaron/Score-Entropy-Discrete-Diffusion).
//!
//! Every norm is modulated by the noise level: x ↦ norm(x) · (1 + scale) + shift, and every branch's
//! output is multiplied by a gate, where shift, scale and gate are linear in the embedded σ (adaLN).
//! A network without adaLN has plain norms and no gates.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{LayerNorm, Module};

use crate::kernels::transfer;
use crate::models::attention::Attention;
use crate::models::layers::{Linear, RotaryRows};
use crate::models::weights::Weights;

/// Width of the sinusoids that σ is embedded by.
pub(in crate::models) const SINUSOIDS: usize = 256;
/// Longest period of a sinusoid is 2π times this.
const MAX_PERIOD: f64 = 10_000.0;
/// Width of the MLP over that of the residual stream.
pub(in crate::models) const MLP_RATIO: usize = 4;
const NORM_EPS: f64 = 1e-5;

/// Embeds noise levels: silu(MLP(\[cos(σ f_i) | sin(σ f_i)\])) with f_i = 10000^(−i / 128).
#[derive(Debug, Clone)]
pub(in crate::models) struct NoiseEmbedding {
    up: Linear,
    down: Linear,
    weights_dtype: DType,
}

impl NoiseEmbedding {
    /// From the weights of `sigma_map`.
    pub fn new(cond_dim: usize, weights: Weights) -> Result<Self> {
        let mlp = weights.pp("mlp");
        Ok(Self {
            up: mlp.pp("0").linear(SINUSOIDS, cond_dim, true)?,
            down: mlp.pp("2").linear(cond_dim, cond_dim, true)?,
            weights_dtype: weights.dtype(),
        })
    }

    /// Conditions a batch's rows on `sigmas`, one a row.
    pub fn condition(&self, sigmas: &[f32], device: &Device) -> Result<Conditioning> {
        let mut levels: Vec<f32> = Vec::new();
        let mut rows = Vec::with_capacity(sigmas.len());
        for sigma in sigmas {
            let known = levels.iter().rposition(|l| l.to_bits() == sigma.to_bits());
            rows.push(known.unwrap_or(levels.len()) as u32);
            if known.is_none() {
                levels.push(*sigma);
            }
        }
        let half = SINUSOIDS / 2;
        let angle = |sigma: f32, i: usize| {
            f64::from(sigma) * (-MAX_PERIOD.ln() * i as f64 / half as f64).exp()
        };
        let sinusoids: Vec<f32> = levels
            .iter()
            .flat_map(|&sigma| {
                let cosines = (0..half).map(move |i| angle(sigma, i).cos() as f32);
                cosines.chain((0..half).map(move |i| angle(sigma, i).sin() as f32))
            })
            .collect();
        let sinusoids = transfer::to_device(&sinusoids, (levels.len(), SINUSOIDS), device)?;
        let hidden = self.up.forward(&sinusoids.to_dtype(self.weights_dtype)?)?;
        let rows = match levels.len() {
            1 => None,
            _ => Some(transfer::to_device(&rows, sigmas.len(), device)?),
        };
        Ok(Conditioning {
            levels: self.down.forward(&hidden.silu()?)?.silu()?,
            rows,
        })
    }
}

/// The embedded noise levels of a batch.
pub(in crate::models) struct Conditioning {
    /// `[levels, cond_dim]`, each level once
    levels: Tensor,
    /// `[rows]`, the level of every row; absent if all rows have the same.
    rows: Option<Tensor>,
}

/// What a norm and its branch are modulated by: `parts` vectors a noise level.
#[derive(Debug, Clone)]
struct AdaLn {
    linear: Linear,
    parts: usize,
}

impl AdaLn {
    fn new(cond_dim: usize, hidden: usize, parts: usize, weights: Weights) -> Result<Self> {
        let linear = weights
            .pp("adaLN_modulation")
            .linear(cond_dim, parts * hidden, true)?;
        Ok(Self { linear, parts })
    }

    /// The parts, each `[rows, hidden]`, or `[1, hidden]` if all rows have the same noise level.
    fn parts(&self, conditioning: &Conditioning) -> Result<Vec<Tensor>> {
        let all = self.linear.forward(&conditioning.levels)?;
        let of_rows = |part: Tensor| match &conditioning.rows {
            Some(rows) => part.contiguous()?.index_select(rows, 0),
            None => Ok(part),
        };
        all.chunk(self.parts, 1)?.into_iter().map(of_rows).collect()
    }
}

/// x · (1 + scale) + shift
fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

/// A layer norm with a weight and no bias.
fn norm(hidden: usize, weights: Weights) -> Result<LayerNorm> {
    let weight = weights.get(hidden, "weight")?;
    // candle's fused norm is the one that takes a bias.
    let bias = weight.zeros_like()?;
    Ok(LayerNorm::new(weight, bias, NORM_EPS))
}

/// A block: attention and MLP (GELU, tanh approximation), each behind a norm.
#[derive(Debug, Clone)]
pub(in crate::models) struct DitBlock {
    attention_norm: LayerNorm,
    qkv: Linear,
    attention_out: Linear,
    mlp_norm: LayerNorm,
    mlp_up: Linear,
    mlp_down: Linear,
    /// Shift, scale and gate of the attention branch, then those of the MLP.
    modulation: Option<AdaLn>,
    heads: usize,
}

impl DitBlock {
    /// From the weights of a block; with adaLN if `cond_dim` is given.
    pub fn new(
        hidden: usize,
        heads: usize,
        cond_dim: Option<usize>,
        weights: Weights,
    ) -> Result<Self> {
        let modulation = cond_dim.map(|cond_dim| AdaLn::new(cond_dim, hidden, 6, weights.clone()));
        let mlp = weights.pp("mlp");
        Ok(Self {
            attention_norm: norm(hidden, weights.pp("norm1"))?,
            qkv: weights.pp("attn_qkv").linear(hidden, 3 * hidden, false)?,
            attention_out: weights.pp("attn_out").linear(hidden, hidden, false)?,
            mlp_norm: norm(hidden, weights.pp("norm2"))?,
            mlp_up: mlp.pp("0").linear(hidden, MLP_RATIO * hidden, true)?,
            mlp_down: mlp.pp("2").linear(MLP_RATIO * hidden, hidden, true)?,
            modulation: modulation.transpose()?,
            heads,
        })
    }

    /// `[rows, hidden]` → `[rows, hidden]`. `conditioning` is there if the block has adaLN.
    pub fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
        conditioning: Option<&Conditioning>,
    ) -> Result<Tensor> {
        let (Some(modulation), Some(conditioning)) = (&self.modulation, conditioning) else {
            let normed = self.attention_norm.forward(x)?;
            let x = (x + self.attend(&normed, layer, rotary, attention)?)?;
            return &x + self.mlp(&self.mlp_norm.forward(&x)?)?;
        };
        let parts = modulation.parts(conditioning)?;
        let normed = modulate(&self.attention_norm.forward(x)?, &parts[0], &parts[1])?;
        let attended = self.attend(&normed, layer, rotary, attention)?;
        let x = (x + attended.broadcast_mul(&parts[2])?)?;
        let normed = modulate(&self.mlp_norm.forward(&x)?, &parts[3], &parts[4])?;
        &x + self.mlp(&normed)?.broadcast_mul(&parts[5])?
    }

    fn attend(
        &self,
        normed: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
    ) -> Result<Tensor> {
        let (rows, hidden) = normed.dims2()?;
        let qkv = self.qkv.forward(normed)?;
        let part = |i: usize| {
            let part = qkv.narrow(1, i * hidden, hidden)?.contiguous()?;
            part.reshape((rows, self.heads, hidden / self.heads))
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let attended = attention.attend(layer, &rotary.apply(&q)?, &rotary.apply(&k)?, &v)?;
        self.attention_out.forward(&attended)
    }

    fn mlp(&self, normed: &Tensor) -> Result<Tensor> {
        // `gelu` is the tanh approximation, `gelu_erf` the exact one.
        self.mlp_down.forward(&self.mlp_up.forward(normed)?.gelu()?)
    }
}

/// The norm before the head.
#[derive(Debug, Clone)]
pub(in crate::models) struct FinalNorm {
    norm: LayerNorm,
    /// Shift and scale.
    modulation: Option<AdaLn>,
}

impl FinalNorm {
    /// From the weights of `output_layer`; with adaLN if `cond_dim` is given.
    pub fn new(hidden: usize, cond_dim: Option<usize>, weights: Weights) -> Result<Self> {
        let modulation = cond_dim.map(|cond_dim| AdaLn::new(cond_dim, hidden, 2, weights.clone()));
        Ok(Self {
            norm: norm(hidden, weights.pp("norm_final"))?,
            modulation: modulation.transpose()?,
        })
    }

    /// `[rows, hidden]` → `[rows, hidden]`. `conditioning` is there if the norm has adaLN.
    pub fn forward(&self, x: &Tensor, conditioning: Option<&Conditioning>) -> Result<Tensor> {
        let normed = self.norm.forward(x)?;
        let (Some(modulation), Some(conditioning)) = (&self.modulation, conditioning) else {
            return Ok(normed);
        };
        let parts = modulation.parts(conditioning)?;
        modulate(&normed, &parts[0], &parts[1])
    }
}
