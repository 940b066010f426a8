//! What families share that descend from Llama's code in Hugging Face's transformers: the fields of
//! config.json, and for most of them the tensor names.

use candle_core::{DType, Device, Result};
use serde_json::Value;

use crate::canvas::TokenId;
use crate::decode::DecodePlan;
use crate::models::checkpoint::{CONFIG, config_error, token_ids};
use crate::models::fields::{Fields, check_size, check_token};
use crate::models::layers::{
    Block, ExpertShape, Llama3Scaling, Mlp, Network, RmsNorm, Rotary, SelfAttention,
    embedding_and_head, frequencies,
};
use crate::models::weights::Weights;
use crate::models::{AttentionPattern, Corruption, ModelError, ModelSpec, Parameterisation};

/// The fields that decide the shape of a Llama-like network.
#[derive(Debug, Clone)]
pub(super) struct Backbone {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Times `heads` it need not be `hidden_size`.
    pub head_dim: usize,
    pub max_positions: usize,
    pub norm_eps: f64,
    pub tied: bool,
    pub mask_token: TokenId,
    stop_tokens: Vec<TokenId>,
    rope_theta: f64,
    rope_scaling: Option<Llama3Scaling>,
    /// How many dimensions of a head are rotated.
    rotary_dim: usize,
}

/// What the families' attentions differ in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Projections {
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// The output has a bias.
    pub out_bias: bool,
    /// Queries and keys are normed over head_dim.
    pub qk_norm: bool,
}

impl Backbone {
    /// Reads and checks the fields that all these families have. `num_key_value_heads`, `head_dim`,
    /// `tie_word_embeddings`, `partial_rotary_factor` and `rope_scaling` may be absent, as in
    /// transformers: as many as query heads, `hidden_size / num_attention_heads`, false, 1, none.
    /// Files of transformers 5 hold what concerns the rotary embedding in `rope_parameters`.
    ///
    /// # Errors
    /// Names the field that is missing, out of range, or asks for a network that is not built here.
    pub fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        fields.only(&[
            ("hidden_act", "silu".into()),
            ("quantization_config", Value::Null),
            ("use_sliding_window", false.into()),
        ])?;
        let hidden_size = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = fields
            .optional_size("num_key_value_heads")?
            .unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(config_error(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let head_dim = match fields.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(config_error(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}, and \
                     head_dim is missing"
                )));
            }
        };
        // No tensor has more than this and another size as its sides.
        check_size("num_attention_heads × head_dim", heads * head_dim)?;
        let rope_theta = rope_field(config, "rope_theta")?
            .ok_or_else(|| config_error("rope_theta is missing".into()))?;
        let factor = rope_field(config, "partial_rotary_factor")?.unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(config_error(format!(
                "head_dim {head_dim} with partial_rotary_factor {factor} rotates {rotary_dim} \
                 dimensions; it must be an even number from 2 to head_dim"
            )));
        }
        let vocab_size = fields.size("vocab_size")?;
        let mask_token: TokenId = fields.optional("mask_token_id")?.ok_or_else(|| {
            config_error(
                "mask_token_id is missing, and the tokenizer's files name no mask token".into(),
            )
        })?;
        Ok(Self {
            vocab_size,
            hidden_size,
            layers: fields.count("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            max_positions: fields.size("max_position_embeddings")?,
            norm_eps: fields.positive("rms_norm_eps")?,
            tied: fields.optional("tie_word_embeddings")?.unwrap_or(false),
            mask_token: check_token("mask_token_id", mask_token, vocab_size)?,
            stop_tokens: token_ids(CONFIG, &config["eos_token_id"])?,
            rope_theta,
            rope_scaling: rope_scaling(config)?,
            rotary_dim,
        })
    }

    /// What the engine has to know, if every slot sees the whole canvas and predicts its own token.
    pub fn spec(&self, family: &'static str, parameters: usize) -> ModelSpec {
        ModelSpec {
            family,
            parameters,
            active_parameters: parameters,
            hidden_size: self.hidden_size,
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            other_layers: Default::default(),
            vocab_size: self.vocab_size,
            max_canvas: self.max_positions,
            sliding_window: None,
            corruption: Corruption::Absorbing {
                mask_token: self.mask_token,
            },
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            self_conditioned: false,
            noise_schedule: None,
            stop_tokens: self.stop_tokens.clone(),
            resize_tokens: None,
            attention: AttentionPattern::Bidirectional,
            logit_shift: 0,
            default_plan: DecodePlan::default(),
        }
    }

    /// The rotary embedding.
    pub fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        let mut frequencies = frequencies(self.rotary_dim, self.rope_theta);
        if let Some(scaling) = &self.rope_scaling {
            frequencies
                .iter_mut()
                .for_each(|frequency| *frequency = scaling.scale(*frequency));
        }
        Rotary::from_frequencies(frequencies, self.max_positions, dtype, device)
    }

    /// The network under Llama's tensor names. `mlp` builds the MLP of a layer from the weights of
    /// that layer.
    pub fn network(
        &self,
        weights: Weights,
        projections: Projections,
        mlp: impl Fn(usize, &Weights) -> Result<Mlp>,
    ) -> Result<Network> {
        let model = weights.pp("model");
        let (embedding, head) = embedding_and_head(
            [self.vocab_size, self.hidden_size],
            &model,
            "embed_tokens.weight",
            (!self.tied).then(|| weights.pp("lm_head")),
        )?;
        let blocks = (0..self.layers)
            .map(|layer| {
                let weights = model.pp("layers").pp(layer);
                Ok(Block {
                    attention_norm: self.norm(weights.pp("input_layernorm"))?,
                    attention: self.attention(projections, &weights.pp("self_attn"))?,
                    mlp_norm: self.norm(weights.pp("post_attention_layernorm"))?,
                    mlp: mlp(layer, &weights)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Network {
            blocks,
            norm: self.norm(model.pp("norm"))?,
            head,
            embedding,
        })
    }

    /// A norm over the residual stream.
    pub fn norm(&self, weights: Weights) -> Result<RmsNorm> {
        RmsNorm::load(self.hidden_size, self.norm_eps, weights)
    }

    fn attention(&self, projections: Projections, weights: &Weights) -> Result<SelfAttention> {
        let Projections {
            qkv_bias,
            out_bias,
            qk_norm,
        } = projections;
        let (hidden, head_dim) = (self.hidden_size, self.head_dim);
        let (q, kv) = (self.heads * head_dim, self.kv_heads * head_dim);
        let norm = |name| RmsNorm::load(head_dim, self.norm_eps, weights.pp(name));
        Ok(SelfAttention {
            query: weights.pp("q_proj").linear(hidden, q, qkv_bias)?,
            key: weights.pp("k_proj").linear(hidden, kv, qkv_bias)?,
            value: weights.pp("v_proj").linear(hidden, kv, qkv_bias)?,
            out: weights.pp("o_proj").linear(q, hidden, out_bias)?,
            norms: qk_norm
                .then(|| Ok::<_, candle_core::Error>((norm("q_norm")?, norm("k_norm")?)))
                .transpose()?,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim,
        })
    }
}

/// Where newer files hold what belongs to the rotary embedding.
const ROPE_PARAMETERS: &str = "rope_parameters";

/// The fields of a mixture of experts; `width` names that of an expert's width.
///
/// # Errors
/// Names the field that is missing or out of range.
pub(super) fn experts(
    fields: &Fields,
    hidden: usize,
    width: &str,
) -> std::result::Result<ExpertShape, ModelError> {
    let shape = ExpertShape {
        hidden,
        intermediate: fields.size(width)?,
        experts: fields.count("num_experts")?,
        per_row: fields.size("num_experts_per_tok")?,
    };
    if shape.per_row > shape.experts {
        return Err(config_error(format!(
            "num_experts_per_tok {} is more than num_experts {}",
            shape.per_row, shape.experts
        )));
    }
    Ok(shape)
}

/// A positive field of the rotary embedding, which newer files hold in `rope_parameters` and older ones beside
/// the others; absent if it is in neither.
///
/// # Errors
/// If it is in both and differs, of the wrong type, or not above 0.
pub(super) fn rope_field(
    config: &Value,
    name: &str,
) -> std::result::Result<Option<f64>, ModelError> {
    let inner = &config[ROPE_PARAMETERS];
    match (&inner[name], &config[name]) {
        (Value::Null, Value::Null) => Ok(None),
        (Value::Null, _) => Fields(config).positive(name).map(Some),
        (within, outside) if !outside.is_null() && within != outside => Err(config_error(format!(
            "{name} is {outside}, and in {ROPE_PARAMETERS} {within}; one of them is wrong"
        ))),
        _ => Fields(inner).positive(name).map(Some),
    }
}

/// The scaling that `rope_parameters`, or in older files `rope_scaling`, holds: null, or an object whose
/// `rope_type` (`type` in old files) is "default" or "llama3".
///
/// # Errors
/// Names the object that asks for another one, or both if both are there.
fn rope_scaling(config: &Value) -> std::result::Result<Option<Llama3Scaling>, ModelError> {
    let (name, given) = match (&config[ROPE_PARAMETERS], &config["rope_scaling"]) {
        (Value::Null, scaling) => ("rope_scaling", scaling),
        (parameters, Value::Null) => (ROPE_PARAMETERS, parameters),
        (parameters, scaling) if parameters == scaling => (ROPE_PARAMETERS, parameters),
        _ => {
            return Err(config_error(format!(
                "{ROPE_PARAMETERS} and rope_scaling are both given and differ; one of them is wrong"
            )));
        }
    };
    if given.is_null() {
        return Ok(None);
    }
    let kind = given.get("rope_type").or(given.get("type"));
    match kind.and_then(Value::as_str) {
        Some("default") => Ok(None),
        Some("llama3") => {
            let fields = Fields(given);
            let scaling = Llama3Scaling {
                factor: fields.positive("factor")?,
                low_freq_factor: fields.positive("low_freq_factor")?,
                high_freq_factor: fields.positive("high_freq_factor")?,
                original_context: fields.positive("original_max_position_embeddings")?,
            };
            if scaling.low_freq_factor >= scaling.high_freq_factor {
                return Err(config_error(format!(
                    "{name}.low_freq_factor {} must be less than high_freq_factor {}",
                    scaling.low_freq_factor, scaling.high_freq_factor
                )));
            }
            Ok(Some(scaling))
        }
        _ => Err(config_error(format!(
            "{name} is {given}; supported are null and the rope_type \"default\" and \"llama3\""
        ))),
    }
}
