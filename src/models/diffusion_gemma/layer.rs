//! A layer: attention, then an MLP and a mixture of experts side by side.

use candle_core::{DType, Module, Result, Tensor};

use super::config::{Config, LayerKind, LayerShape};
use crate::kernels::transfer;
use crate::models::attention::Attention;
use crate::models::layers::{
    Activation, GatedMlp, Linear, MixtureOfExperts, RmsNorm, RotaryRows, Router,
};
use crate::models::weights::Weights;

/// The gated MLP of `width` under `weights`.
pub(super) fn mlp(hidden: usize, width: usize, weights: Weights) -> Result<GatedMlp> {
    let mlp = GatedMlp::load(hidden, width, false, weights)?;
    Ok(mlp.with_activation(Activation::GeluTanh))
}

/// A layer (`DiffusionGemmaDecoderTextLayer`, and with another scale `DiffusionGemmaEncoderTextLayer`).
pub(super) struct Layer {
    pub kind: LayerKind,
    attention: SelfAttention,
    norms: Norms,
    mlp: GatedMlp,
    /// Of what the experts of a row are chosen by: x / rms(x) ⊙ scale / √hidden, in f32.
    router_norm: RmsNorm,
    experts: MixtureOfExperts,
    /// What the output is multiplied by in the decoder, and in the encoder.
    scales: [f32; 2],
}

/// Norms over the residual stream, under the checkpoint's names.
struct Norms {
    input: RmsNorm,
    post_attention: RmsNorm,
    pre_feedforward: RmsNorm,
    post_feedforward: RmsNorm,
    post_feedforward_1: RmsNorm,
    pre_feedforward_2: RmsNorm,
    post_feedforward_2: RmsNorm,
}

struct SelfAttention {
    query: Linear,
    key: Linear,
    /// None where values are the keys, before they are normed.
    value: Option<Linear>,
    out: Linear,
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    value_norm: RmsNorm,
    shape: LayerShape,
    heads: usize,
}

impl Layer {
    /// Layer number `index`, from the weights `decoder`, which the encoder shares but for its scale in `encoder`.
    pub fn load(
        config: &Config,
        index: usize,
        decoder: &Weights,
        encoder: &Weights,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let (decoder, encoder) = (
            decoder.pp("layers").pp(index),
            encoder.pp("layers").pp(index),
        );
        let norm = |name: &str| RmsNorm::load(hidden, config.norm_eps, decoder.pp(name));
        let scale = |weights: &Weights| {
            let scale = weights.get_as(1, "layer_scalar", DType::F32)?;
            scale.to_vec1().map(|scale: Vec<f32>| scale[0])
        };
        let router = decoder.pp("router");
        let by = router.get_as(hidden, "scale", DType::F32)?;
        Ok(Self {
            kind: config.layers[index].kind,
            attention: SelfAttention::load(config, config.layers[index], decoder.pp("self_attn"))?,
            norms: Norms {
                input: norm("input_layernorm")?,
                post_attention: norm("post_attention_layernorm")?,
                pre_feedforward: norm("pre_feedforward_layernorm")?,
                post_feedforward: norm("post_feedforward_layernorm")?,
                post_feedforward_1: norm("post_feedforward_layernorm_1")?,
                pre_feedforward_2: norm("pre_feedforward_layernorm_2")?,
                post_feedforward_2: norm("post_feedforward_layernorm_2")?,
            },
            mlp: mlp(hidden, config.intermediate_size, decoder.pp("mlp"))?,
            router_norm: RmsNorm::new((by / (hidden as f64).sqrt())?, config.norm_eps),
            experts: experts(config, &router, &decoder.pp("experts"))?,
            scales: [scale(&decoder)?, scale(&encoder)?],
        })
    }

    /// `[rows, hidden]` → `[rows, hidden]`, as layer number `layer`; `encodes` says of each row whether it is the
    /// encoder's.
    pub fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
        encodes: &[bool],
    ) -> Result<Tensor> {
        let norms = &self.norms;
        let normed = norms.input.forward(x)?;
        let attended = self.attention.forward(&normed, layer, rotary, attention)?;
        let attended = norms.post_attention.forward(&attended)?;
        let [x, normed] = norms.pre_feedforward.forward_sum(x, &attended)?;
        let dense = self.mlp.forward(&normed)?;
        let routed_by = self.router_norm.forward(&x.to_dtype(DType::F32)?)?;
        let routed = self
            .experts
            .forward_by(&norms.pre_feedforward_2.forward(&x)?, &routed_by)?;
        let [dense, routed] = [
            norms.post_feedforward_1.forward(&dense)?,
            norms.post_feedforward_2.forward(&routed)?,
        ];
        let sum = (x + norms.post_feedforward.forward(&(dense + routed)?)?)?;
        let scales: Vec<f32> = encodes
            .iter()
            .map(|encodes| self.scales[usize::from(*encodes)])
            .collect();
        let scales = transfer::to_device(&scales, (encodes.len(), 1), sum.device())?;
        sum.broadcast_mul(&scales.to_dtype(sum.dtype())?)
    }
}

/// The experts, whose weights are stacked, and the router, whose weights lie beside them.
fn experts(config: &Config, router: &Weights, weights: &Weights) -> Result<MixtureOfExperts> {
    let shape = config.experts;
    let (count, hidden, width) = (shape.experts, shape.hidden, shape.intermediate);
    // The choice of experts jumps: it is made in f32 whatever the weights' type.
    let gate = router
        .pp("proj")
        .get_as((count, hidden), "weight", DType::F32)?;
    let scales = router.get_as(count, "per_expert_scale", DType::F32)?;
    let inner = weights.stacked_linear_parts("gate_up_proj", count, hidden, [width, width])?;
    let outer = weights.stacked_linear_parts("down_proj", count, width, [hidden])?;
    let experts = inner.into_iter().zip(outer).map(|([gate, up], [down])| {
        GatedMlp::new(gate, up, down).with_activation(Activation::GeluTanh)
    });
    let router = Router::ScaledSoftmax {
        scales: scales.to_vec1()?,
    };
    MixtureOfExperts::new(gate, router, experts.collect(), shape.per_row, None)
}

impl SelfAttention {
    fn load(config: &Config, shape: LayerShape, weights: Weights) -> Result<Self> {
        let (hidden, heads, dim) = (config.hidden_size, config.heads, shape.kv.head_dim);
        let linear = |name, from, to| weights.pp(name).linear(from, to, false);
        let norm = |name| RmsNorm::load(dim, config.norm_eps, weights.pp(name));
        let kv = shape.kv.heads * dim;
        let has_values = shape.kind == LayerKind::Sliding;
        Ok(Self {
            query: linear("q_proj", hidden, heads * dim)?,
            key: linear("k_proj", hidden, kv)?,
            value: has_values
                .then(|| linear("v_proj", hidden, kv))
                .transpose()?,
            out: linear("o_proj", heads * dim, hidden)?,
            query_norm: norm("q_norm")?,
            key_norm: norm("k_norm")?,
            value_norm: RmsNorm::without_weight(
                dim,
                config.norm_eps,
                weights.dtype(),
                weights.device(),
            )?,
            shape,
            heads,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
    ) -> Result<Tensor> {
        let (q, k, v) = match &self.value {
            Some(value) => {
                let [q, k, v] = Linear::forward_each([&self.query, &self.key, value], x)?;
                (q, k, v)
            }
            None => {
                let [q, k] = Linear::forward_each([&self.query, &self.key], x)?;
                (q, k.clone(), k)
            }
        };
        let dim = self.shape.kv.head_dim;
        let by_head = |x: &Tensor, heads| x.reshape((x.dim(0)?, heads, dim));
        let q = rotary.apply_normed(&by_head(&q, self.heads)?, &self.query_norm)?;
        let k = rotary.apply_normed(&by_head(&k, self.shape.kv.heads)?, &self.key_norm)?;
        let v = self
            .value_norm
            .forward(&by_head(&v, self.shape.kv.heads)?)?;
        // Products are not divided by √head_dim: queries and keys are normed.
        let attended = attention.attend_scaled(layer, 1.0, &q, &k, &v)?;
        self.out.forward(&attended)
    }
}
