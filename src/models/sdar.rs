//! SDAR (Cheng et al., arXiv:2510.06303): Qwen3, adapted to denoise block after block.
//!
//! `SDARForCausalLM` has Qwen3's fields and tensor names and is held to the official code
//! (`modeling_sdar.py`) on a small checkpoint. `SDARMoeForCausalLM` (SDAR-30B-A3B) has those of
//! Qwen3-MoE, by lmdeploy's `sdar_moe.py`: it is built from that and not held to the official code.
//! Slots see their own block of `block_size` slots and the blocks before it. The default plan is that of
//! the official `generate.py`, but greedy unless generation_config.json says otherwise.
//!
//! The released config.json gives neither the mask token, which is the tokenizer's, nor the block length,
//! which is an option of `generate.py` with the default 4. That is what the models without a length in their
//! name were trained with; `block_size` in config.json says another.

use candle_core::{DType, Device, Result};
use serde_json::Value;

use crate::decode::preset;
use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections, experts};
use crate::models::fields::Fields;
use crate::models::layers::{
    ExpertShape, GatedMlp, MixtureOfExperts, Mlp, Network, Rotary, Router,
};
use crate::models::registry::{Family, class_of};
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

const MOE: [&str; 2] = ["SDARMoeForCausalLM", "sdar_moe"];

/// `block_length` of the official `generate.py`.
const BLOCK_LENGTH: usize = 4;

/// The registry's line.
pub(super) const FAMILY: Family =
    family::<Sdar>("sdar", &["SDARForCausalLM", MOE[0]], &["sdar", MOE[1]]);

struct Sdar {
    backbone: Backbone,
    attention_bias: bool,
    block_length: usize,
    intermediate_size: usize,
    experts: Option<Experts>,
}

/// The fields of Qwen3-MoE.
struct Experts {
    shape: ExpertShape,
    normalized: bool,
    /// Layers without experts.
    mlp_only_layers: Vec<usize>,
    /// Of the other layers, each whose number (from 1) is a multiple has experts.
    sparse_step: usize,
}

impl Experts {
    fn from_json(config: &Value, hidden: usize) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        Ok(Self {
            shape: experts(&fields, hidden, "moe_intermediate_size")?,
            normalized: fields.required("norm_topk_prob")?,
            mlp_only_layers: fields.optional("mlp_only_layers")?.unwrap_or_default(),
            sparse_step: fields.optional_size("decoder_sparse_step")?.unwrap_or(1),
        })
    }

    fn are_in(&self, layer: usize) -> bool {
        !self.mlp_only_layers.contains(&layer) && (layer + 1).is_multiple_of(self.sparse_step)
    }
}

impl Architecture for Sdar {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        let backbone = Backbone::from_json(config)?;
        let experts = MOE
            .contains(&class_of(config))
            .then(|| Experts::from_json(config, backbone.hidden_size))
            .transpose()?;
        Ok(Self {
            attention_bias: fields.optional("attention_bias")?.unwrap_or(false),
            block_length: fields.optional_size("block_size")?.unwrap_or(BLOCK_LENGTH),
            intermediate_size: fields.size("intermediate_size")?,
            experts,
            backbone,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        self.backbone
            .spec(FAMILY.name, parameters)
            .block_causal(self.block_length, preset::sdar_dynamic())
    }

    fn experts(&self) -> Option<ExpertShape> {
        self.experts.as_ref().map(|experts| experts.shape)
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: Weights) -> Result<Network> {
        let projections = Projections {
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            qk_norm: true,
        };
        let hidden = self.backbone.hidden_size;
        self.backbone
            .network(weights, projections, |layer, weights| {
                let weights = weights.pp("mlp");
                match &self.experts {
                    Some(experts) if experts.are_in(layer) => {
                        let router = Router::Softmax {
                            bias: None,
                            normalized: experts.normalized,
                            scales: None,
                        };
                        let experts =
                            MixtureOfExperts::load(experts.shape, router, None, &weights)?;
                        Ok(Mlp::Experts(experts))
                    }
                    _ => {
                        let width = self.intermediate_size;
                        Ok(Mlp::Dense(GatedMlp::load(hidden, width, false, weights)?))
                    }
                }
            })
    }
}
