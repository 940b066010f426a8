//! Dream (Ye et al., arXiv:2508.15487): Qwen2.5 made bidirectional.
//!
//! `DreamModel` is the class of Dream-7B, DiffuCoder, Dream-Coder and DreamOn, whose fields and tensor
//! names are Qwen2's; held here to the official code (`modeling_dream.py`) on a small checkpoint. It
//! kept the autoregressive offset: the logits of slot i are read at row i − 1. Dream-reasoner, whose
//! class is `DreamForCausalLM`, is block-causal and not shifted, and is not built here.

use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use serde_json::Value;

use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections};
use crate::models::fields::Fields;
use crate::models::layers::{GatedMlp, Mlp, Network, Rotary};
use crate::models::registry::Family;
use crate::models::{ModelError, ModelSpec};

/// The registry's line.
pub(super) const FAMILY: Family = family::<Dream>("dream", &["DreamModel"], &["Dream"]);

struct Dream {
    backbone: Backbone,
    intermediate_size: usize,
}

impl Architecture for Dream {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        fields.only(&[
            ("use_mrope", false.into()),
            ("use_sliding_window", false.into()),
        ])?;
        Ok(Self {
            backbone: Backbone::from_json(config)?,
            intermediate_size: fields.size("intermediate_size")?,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        ModelSpec {
            logit_shift: 1,
            ..self.backbone.spec(FAMILY.name, parameters)
        }
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: VarBuilder) -> Result<Network> {
        let projections = Projections {
            qkv_bias: true,
            out_bias: false,
            qk_norm: false,
        };
        let hidden = self.backbone.hidden_size;
        self.backbone.network(weights, projections, |_, layer| {
            let mlp = GatedMlp::load(hidden, self.intermediate_size, false, layer.pp("mlp"))?;
            Ok(Mlp::Dense(mlp))
        })
    }
}
