//! LLaDA-MoE (Zhu et al., arXiv:2509.24389): LLaDA with a mixture of experts, bidirectional.
//!
//! `LLaDAMoEModelLM` is held to the official code (`modeling_lladamoe.py`) on a small checkpoint; its
//! variants (dense layers, a shared expert, the router's bias, biases of attention) to a plain
//! transcription of that code. The released config.json names the class `LLaDAMoEModel`, and says
//! `model_type` "llada" like dense LLaDA.
//!
//! As in the official code the router is a softmax whose weights are the chosen probabilities as they
//! are: `norm_topk_prob`, `moe_router_score_function`, `routed_scaling_factor` and the router's groups
//! are not read.

use candle_core::{DType, Device, Result};
use serde_json::Value;

use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections, experts};
use crate::models::checkpoint::config_error;
use crate::models::fields::Fields;
use crate::models::layers::{
    ExpertShape, GatedMlp, MixtureOfExperts, Mlp, Network, Rotary, Router,
};
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

/// The registry's line.
pub(super) const FAMILY: Family = family::<LladaMoe>(
    "llada_moe",
    &["LLaDAMoEModelLM", "LLaDAMoEModel"],
    &["lladamoe"],
);

struct LladaMoe {
    backbone: Backbone,
    projections: Projections,
    experts: ExpertShape,
    expert_bias: bool,
    /// For each layer, whether it has experts.
    has_experts: Vec<bool>,
    /// Width of the layers without experts; 0 if there is none.
    dense_width: usize,
    shared_width: Option<usize>,
}

impl Architecture for LladaMoe {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        fields.only(&[("clip_qkv", Value::Null)])?;
        let backbone = Backbone::from_json(config)?;
        let frequency: Vec<i64> = fields.required("moe_layer_freq")?;
        if frequency.len() != backbone.layers {
            return Err(config_error(format!(
                "moe_layer_freq has {} entries; it must have one for each of num_hidden_layers {}",
                frequency.len(),
                backbone.layers
            )));
        }
        let has_experts: Vec<bool> = frequency.into_iter().map(|f| f != 0).collect();
        let dense_width = if has_experts.contains(&false) {
            fields.size("dense_intermediate_size")?
        } else {
            0
        };
        let flag = |name| Ok::<bool, ModelError>(fields.optional(name)?.unwrap_or(false));
        let attention_bias = flag("attention_bias")?;
        Ok(Self {
            projections: Projections {
                qkv_bias: attention_bias,
                out_bias: attention_bias,
                qk_norm: flag("qk_layernorm")?,
            },
            experts: experts(&fields, backbone.hidden_size, "expert_intermediate_size")?,
            expert_bias: flag("moe_router_enable_expert_bias")?,
            has_experts,
            dense_width,
            shared_width: fields.optional_size("shared_expert_intermediate_size")?,
            backbone,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        self.backbone.spec(FAMILY.name, parameters)
    }

    fn experts(&self) -> Option<ExpertShape> {
        Some(self.experts)
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: Weights) -> Result<Network> {
        self.backbone
            .network(weights, self.projections, |layer, weights| {
                let mlp = weights.pp("mlp");
                if self.has_experts[layer] {
                    Ok(Mlp::Experts(self.mixture(weights, &mlp)?))
                } else {
                    let (hidden, width) = (self.backbone.hidden_size, self.dense_width);
                    Ok(Mlp::Dense(GatedMlp::load(hidden, width, false, mlp)?))
                }
            })
    }
}

impl LladaMoe {
    /// The shared expert's weights lie beside the mixture's, not within.
    fn mixture(&self, layer: &Weights, mlp: &Weights) -> Result<MixtureOfExperts> {
        let hidden = self.backbone.hidden_size;
        let bias = self
            .expert_bias
            .then(|| {
                let count = self.experts.experts;
                mlp.get_as(count, "expert_bias", DType::F32)?.to_vec1()
            })
            .transpose()?;
        let shared = self
            .shared_width
            .map(|width| GatedMlp::load(hidden, width, false, layer.pp("shared_expert")))
            .transpose()?;
        let router = Router::Softmax {
            bias,
            normalized: false,
            scales: None,
        };
        MixtureOfExperts::load(self.experts, router, shared, mlp)
    }
}
