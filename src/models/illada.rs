//! iLLaDA (arXiv:2606.25331): LLaDA trained anew, under Llama's names.
//!
//! `ILLaDAForCausalLM` has Llama's fields and tensors, no causal mask, and logits that predict their own slot. It is
//! built from its public code (`modeling_illada.py`) and not held to it. The config.json names no mask token: it is
//! the tokenizer's `<[MASK]>`. The official sampler is LLaDA's.

use candle_core::{DType, Device, Result};
use serde_json::Value;

use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections};
use crate::models::fields::Fields;
use crate::models::layers::{GatedMlp, Mlp, Network, Rotary};
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

/// The registry's line.
pub(super) const FAMILY: Family = family::<Illada>("illada", &["ILLaDAForCausalLM"], &["illada"]);

struct Illada {
    backbone: Backbone,
    attention_bias: bool,
    intermediate_size: usize,
    mlp_bias: bool,
}

impl Architecture for Illada {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        // With it the norms would be LayerNorms.
        fields.only(&[("layer_norm_eps", Value::Null)])?;
        let flag = |name| Ok::<bool, ModelError>(fields.optional(name)?.unwrap_or(false));
        let mut backbone = Backbone::from_json(config)?;
        // transformers leaves its own default out of a file.
        backbone.tied = fields.optional("tie_word_embeddings")?.unwrap_or(true);
        Ok(Self {
            backbone,
            attention_bias: flag("attention_bias")?,
            intermediate_size: fields.size("intermediate_size")?,
            mlp_bias: flag("mlp_bias")?,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        self.backbone.spec(FAMILY.name, parameters)
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: Weights) -> Result<Network> {
        let projections = Projections {
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            qk_norm: false,
        };
        let hidden = self.backbone.hidden_size;
        self.backbone.network(weights, projections, |_, layer| {
            let (width, bias) = (self.intermediate_size, self.mlp_bias);
            Ok(Mlp::Dense(GatedMlp::load(
                hidden,
                width,
                bias,
                layer.pp("mlp"),
            )?))
        })
    }
}
