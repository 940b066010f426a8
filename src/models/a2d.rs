//! A2D: an autoregressive Qwen2, Qwen3 or Llama whose causal mask is removed (dllm's
//! `pipelines/a2d`).
//!
//! Fields and tensor names are those of the base model; the class names are dllm's. The Qwen3 form is
//! held to the official code on a small checkpoint, masked and block-causal. The Qwen2 and Llama
//! forms differ from it as their classes in transformers do (biases, norms of queries and keys).
//!
//! The config.json names no mask token: it is the tokenizer's `mask_token`. Nor does it tell a model
//! trained with full attention from one trained with block diffusion. Attention is bidirectional
//! unless the config.json gives a `block_size`, the field that SDAR uses, which may be added by hand.
//! The default plan is that of dllm's `MDLMSampler`, or with blocks its `BD3LMSampler`.

use candle_core::{DType, Device, Result};
use serde_json::Value;

use crate::decode::preset;
use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections};
use crate::models::checkpoint::config_error;
use crate::models::fields::Fields;
use crate::models::layers::{GatedMlp, Mlp, Network, Rotary};
use crate::models::registry::{Family, class_of};
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

const QWEN2: [&str; 2] = ["A2DQwen2LMHeadModel", "a2d-qwen2"];
const QWEN3: [&str; 2] = ["A2DQwen3LMHeadModel", "a2d-qwen3"];
const LLAMA: [&str; 2] = ["A2DLlamaLMHeadModel", "a2d-llama"];

/// The registry's line.
pub(super) const FAMILY: Family = family::<A2d>(
    "a2d",
    &[QWEN2[0], QWEN3[0], LLAMA[0]],
    &[QWEN2[1], QWEN3[1], LLAMA[1]],
);

struct A2d {
    backbone: Backbone,
    projections: Projections,
    intermediate_size: usize,
    mlp_bias: bool,
    block_length: Option<usize>,
}

impl Architecture for A2d {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        let flag = |name| Ok::<_, ModelError>(fields.optional(name)?.unwrap_or(false));
        let (qkv_bias, out_bias, qk_norm, mlp_bias) = match class_of(config) {
            base if QWEN2.contains(&base) => (true, false, false, false),
            base if QWEN3.contains(&base) => {
                let bias = flag("attention_bias")?;
                (bias, bias, true, false)
            }
            base if LLAMA.contains(&base) => {
                let bias = flag("attention_bias")?;
                (bias, bias, false, flag("mlp_bias")?)
            }
            other => {
                return Err(config_error(format!(
                    "{other:?} is no A2D model; known: {QWEN2:?}, {QWEN3:?}, {LLAMA:?}"
                )));
            }
        };
        Ok(Self {
            backbone: Backbone::from_json(config)?,
            projections: Projections {
                qkv_bias,
                out_bias,
                qk_norm,
            },
            intermediate_size: fields.size("intermediate_size")?,
            mlp_bias,
            block_length: fields.optional_size("block_size")?,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        let spec = self.backbone.spec(FAMILY.name, parameters);
        match self.block_length {
            Some(block_length) => spec.block_causal(block_length, preset::dllm_blocks()),
            None => ModelSpec {
                default_plan: preset::dllm(),
                ..spec
            },
        }
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: Weights) -> Result<Network> {
        let hidden = self.backbone.hidden_size;
        self.backbone
            .network(weights, self.projections, |_, layer| {
                let (width, bias) = (self.intermediate_size, self.mlp_bias);
                let mlp = GatedMlp::load(hidden, width, bias, layer.pp("mlp"))?;
                Ok(Mlp::Dense(mlp))
            })
    }
}
