//! LLaDA2.0 and 2.1 (arXiv:2512.15745): a mixture of experts that denoises block after block.
//!
//! `LLaDA2MoeModelLM` is the class of both; held to the official code (`modeling_llada2_moe.py`) on
//! small checkpoints. Queries, keys and values are one product, whose rows are all query heads, all
//! key heads, all value heads; the first `partial_rotary_factor` of a head is rotated.
//!
//! As in the official code the router's score is a sigmoid with a bias for the choice, and the weights
//! of several experts sum to `routed_scaling_factor`: `score_function`, `norm_topk_prob` and
//! `moe_router_enable_expert_bias` are not read, nor are `rotary_dim` and
//! `moe_shared_expert_intermediate_size`, which repeat what other fields say.
//!
//! The released config.json gives neither the mask token nor the end of a text, which are the tokenizer's
//! `<|mask|>` and `<|endoftext|>`, nor the block length, which is an argument of `generate` with the default
//! 32; a `block_size` in config.json is taken instead where there is one.

use candle_core::{DType, Device, Result};
use serde_json::Value;

use crate::decode::preset;
use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, experts, rope_field};
use crate::models::checkpoint::config_error;
use crate::models::fields::{Fields, check_count, check_size};
use crate::models::layers::{
    Block, ExpertShape, GatedMlp, MixtureOfExperts, Mlp, Network, RmsNorm, Rotary, Router,
    SelfAttention, embedding_and_head,
};
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

/// The registry's line.
pub(super) const FAMILY: Family = family::<Llada2Moe>(
    "llada2_moe",
    &["LLaDA2MoeModelLM"],
    &["llada2_moe", EDITING],
);

/// dllm's name of LLaDA2.1. The released config.json says "llada2_moe" for both, and nothing else tells
/// them apart.
const EDITING: &str = "llada21_moe";

/// `block_length` of the official `generate`.
const BLOCK_LENGTH: usize = 32;

struct Llada2Moe {
    backbone: Backbone,
    block_length: usize,
    /// Committed tokens may be replaced.
    edits: bool,
    qkv_bias: bool,
    out_bias: bool,
    qk_norm: bool,
    /// Layers before this one are dense.
    first_experts: usize,
    /// Width of the dense layers; 0 if there is none.
    dense_width: usize,
    experts: Option<Experts>,
}

struct Experts {
    shape: ExpertShape,
    groups: usize,
    kept_groups: usize,
    scale: f32,
    shared_width: Option<usize>,
}

impl Experts {
    fn from_json(fields: &Fields, hidden: usize) -> std::result::Result<Self, ModelError> {
        let shape = experts(fields, hidden, "moe_intermediate_size")?;
        let (groups, kept_groups) = (fields.size("n_group")?, fields.size("topk_group")?);
        let ExpertShape {
            experts, per_row, ..
        } = shape;
        if !experts.is_multiple_of(groups) || experts / groups < 2 {
            return Err(config_error(format!(
                "n_group {groups} does not divide num_experts {experts} into groups of at least 2"
            )));
        }
        if kept_groups > groups {
            return Err(config_error(format!(
                "topk_group {kept_groups} is more than n_group {groups}"
            )));
        }
        if kept_groups * (experts / groups) < per_row {
            return Err(config_error(format!(
                "topk_group {kept_groups} keeps {} experts, fewer than num_experts_per_tok {per_row}",
                kept_groups * (experts / groups)
            )));
        }
        let shared: usize = fields.optional("num_shared_experts")?.unwrap_or(0);
        if shared > 0 {
            check_count("num_shared_experts", shared)?;
        }
        Ok(Self {
            groups,
            kept_groups,
            scale: fields.positive("routed_scaling_factor")? as f32,
            shared_width: (shared > 0)
                .then(|| {
                    let name = "num_shared_experts × moe_intermediate_size";
                    check_size(name, shared * shape.intermediate)
                })
                .transpose()?,
            shape,
        })
    }
}

impl Architecture for Llada2Moe {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        // The official class has another default than the other families.
        if rope_field(config, "partial_rotary_factor")?.is_none() {
            return Err(config_error("partial_rotary_factor is missing".into()));
        }
        let backbone = Backbone::from_json(config)?;
        let (has_experts, first_experts) = match config["num_experts"] {
            Value::Null => (false, backbone.layers),
            _ => (true, fields.required("first_k_dense_replace")?),
        };
        let experts = has_experts.then(|| Experts::from_json(&fields, backbone.hidden_size));
        Ok(Self {
            block_length: fields.optional_size("block_size")?.unwrap_or(BLOCK_LENGTH),
            edits: config["model_type"] == EDITING,
            qkv_bias: fields.required("use_qkv_bias")?,
            out_bias: fields.required("use_bias")?,
            // Not in the released files; the official class norms queries and keys whatever it says.
            qk_norm: fields.optional("use_qk_norm")?.unwrap_or(true),
            first_experts,
            dense_width: if first_experts > 0 {
                fields.size("intermediate_size")?
            } else {
                0
            },
            experts: experts.transpose()?,
            backbone,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        let plan = if self.edits {
            preset::llada21()
        } else {
            preset::llada2()
        };
        self.backbone
            .spec(FAMILY.name, parameters)
            .block_causal(self.block_length, plan)
    }

    fn experts(&self) -> Option<ExpertShape> {
        self.experts.as_ref().map(|experts| experts.shape)
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: Weights) -> Result<Network> {
        let Backbone {
            vocab_size,
            hidden_size,
            layers,
            tied,
            ..
        } = self.backbone;
        let model = weights.pp("model");
        let norm = |weights| self.backbone.norm(weights);
        let (embedding, head) = embedding_and_head(
            [vocab_size, hidden_size],
            &model,
            "word_embeddings.weight",
            (!tied).then(|| weights.pp("lm_head")),
        )?;
        let blocks = (0..layers)
            .map(|layer| {
                let weights = model.pp("layers").pp(layer);
                Ok(Block {
                    attention_norm: norm(weights.pp("input_layernorm"))?,
                    attention: self.attention(&weights.pp("attention"))?,
                    mlp_norm: norm(weights.pp("post_attention_layernorm"))?,
                    mlp: self.mlp(layer, weights.pp("mlp"))?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Network {
            blocks,
            norm: norm(model.pp("norm"))?,
            head,
            embedding,
        })
    }
}

impl Llada2Moe {
    fn attention(&self, weights: &Weights) -> Result<SelfAttention> {
        let Backbone {
            hidden_size: hidden,
            heads,
            kv_heads,
            head_dim,
            norm_eps,
            ..
        } = self.backbone;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let [query, key, value] =
            weights
                .pp("query_key_value")
                .linear_parts(hidden, [q, kv, kv], self.qkv_bias)?;
        let norm = |name| RmsNorm::load(head_dim, norm_eps, weights.pp(name));
        Ok(SelfAttention {
            query,
            key,
            value,
            out: weights.pp("dense").linear(q, hidden, self.out_bias)?,
            norms: self
                .qk_norm
                .then(|| {
                    let norms = (norm("query_layernorm")?, norm("key_layernorm")?);
                    Ok::<_, candle_core::Error>(norms)
                })
                .transpose()?,
            heads,
            kv_heads,
            head_dim,
        })
    }

    fn mlp(&self, layer: usize, weights: Weights) -> Result<Mlp> {
        let hidden = self.backbone.hidden_size;
        let Some(experts) = self
            .experts
            .as_ref()
            .filter(|_| layer >= self.first_experts)
        else {
            let mlp = GatedMlp::load(hidden, self.dense_width, false, weights)?;
            return Ok(Mlp::Dense(mlp));
        };
        let bias = weights
            .pp("gate")
            .get_as(experts.shape.experts, "expert_bias", DType::F32)?;
        let router = Router::GroupedSigmoid {
            bias: bias.to_vec1()?,
            groups: experts.groups,
            kept_groups: experts.kept_groups,
            scale: experts.scale,
        };
        let shared = experts
            .shared_width
            .map(|width| GatedMlp::load(hidden, width, false, weights.pp("shared_experts")))
            .transpose()?;
        let mixture = MixtureOfExperts::load(experts.shape, router, shared, &weights)?;
        Ok(Mlp::Experts(mixture))
    }
}
