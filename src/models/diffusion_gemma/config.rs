//! Reading a config.json: sizes, and which layers are of which kind.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::canvas::TokenId;
use crate::decode::DecodePlan;
use crate::models::checkpoint::{CONFIG, config_error, token_ids};
use crate::models::fields::{Fields, check_size};
use crate::models::layers::{ExpertShape, frequencies};
use crate::models::{
    AttentionPattern, Corruption, KvShape, ModelError, ModelSpec, Parameterisation,
};

/// `global_head_dim` where config.json does not say (`DiffusionGemmaTextConfig`).
const GLOBAL_HEAD_DIM: u64 = 512;

/// Of so many layers the last sees everything, where config.json does not say (`DiffusionGemmaTextConfig`).
const LAYERS_A_PERIOD: usize = 6;

/// How far a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerKind {
    /// The last slots of a window.
    Sliding,
    /// All slots before; its keys are its values.
    Full,
}

/// A layer's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerShape {
    pub kind: LayerKind,
    pub kv: KvShape,
}

/// What a config.json says of the text network.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// Width of the MLPs that every row goes through.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    pub layers: Vec<LayerShape>,
    pub experts: ExpertShape,
    /// Slots that a row of a sliding layer sees, its own among them.
    pub window: usize,
    pub norm_eps: f64,
    pub softcap: f64,
    pub max_positions: usize,
    pub canvas_length: usize,
    stop_tokens: Vec<TokenId>,
    sliding_theta: f64,
    full_theta: f64,
    /// Share of a head of a full layer that is rotated.
    full_rotated: f64,
}

impl Config {
    /// Reads and checks a config.json. In the form of older files `global_head_dim` and `num_global_key_value_heads`
    /// shape the full layers, in that of newer ones `per_layer_config` shapes any.
    ///
    /// # Errors
    /// Names the field that is missing, out of range, or asks for a network that is not built here.
    pub fn from_json(config: &Value) -> Result<Self, ModelError> {
        Fields(config).only(&[
            ("tie_word_embeddings", true.into()),
            ("quantization_config", Value::Null),
        ])?;
        let text = &config["text_config"];
        if !text.is_object() {
            return Err(config_error("text_config is missing, or no object".into()));
        }
        let fields = Fields(text);
        fields.only(&[
            ("model_type", "diffusion_gemma_text".into()),
            ("attention_bias", false.into()),
            ("attention_k_eq_v", true.into()),
            ("hidden_activation", "gelu_pytorch_tanh".into()),
            ("tie_word_embeddings", true.into()),
            // What images see; "all" would let the encoder see ahead.
            ("use_bidirectional_attention", "vision".into()),
        ])?;
        let hidden_size = fields.size("hidden_size")?;
        let layers = layers(text)?;
        let heads = fields.size("num_attention_heads")?;
        for LayerShape { kv, .. } in &layers {
            if !heads.is_multiple_of(kv.heads) {
                return Err(config_error(format!(
                    "num_attention_heads {heads} is not a multiple of {} key/value heads",
                    kv.heads
                )));
            }
            check_size("num_attention_heads × head_dim", heads * kv.head_dim)?;
        }
        let (sliding_theta, _) = rope(text, "sliding_attention", "default")?;
        let (full_theta, full_rotated) = rope(text, "full_attention", "proportional")?;
        Ok(Self {
            vocab_size: fields.size("vocab_size")?,
            intermediate_size: fields.size("intermediate_size")?,
            experts: experts(&fields, hidden_size)?,
            window: fields.size("sliding_window")?,
            norm_eps: fields.positive("rms_norm_eps")?,
            softcap: fields.positive("final_logit_softcapping")?,
            max_positions: fields.size("max_position_embeddings")?,
            canvas_length: Fields(config).size("canvas_length")?,
            stop_tokens: token_ids(CONFIG, &text["eos_token_id"])?,
            sliding_theta,
            full_theta,
            full_rotated,
            hidden_size,
            heads,
            layers,
        })
    }

    /// Frequencies of the rotary embedding of layers of a kind, one for each pair of dimensions; 0 for pairs that are
    /// not rotated, and none where there is no such layer.
    ///
    /// Those of full layers are "proportional" (`_compute_proportional_rope_parameters` of transformers'
    /// modeling_rope_utils.py): base^(−2i / head_dim) for the first pairs, whatever their share.
    pub fn frequencies(&self, kind: LayerKind) -> Vec<f64> {
        let layer = self.layers.iter().find(|layer| layer.kind == kind);
        let dim = layer.map_or(0, |layer| layer.kv.head_dim);
        match kind {
            LayerKind::Sliding => frequencies(dim, self.sliding_theta),
            LayerKind::Full => {
                let mut all = frequencies(dim, self.full_theta);
                let rotated = (self.full_rotated * dim as f64 / 2.0).floor() as usize;
                all[rotated.min(dim / 2)..].fill(0.0);
                all
            }
        }
    }

    /// What the engine has to know of the model.
    pub fn spec(
        &self,
        family: &'static str,
        (parameters, active_parameters): (usize, usize),
        default_plan: DecodePlan,
    ) -> ModelSpec {
        let usual = self.layers[0].kv;
        let layers = self.layers.iter().map(|layer| layer.kv).enumerate();
        ModelSpec {
            family,
            parameters,
            active_parameters,
            hidden_size: self.hidden_size,
            layers: self.layers.len(),
            kv_heads: usual.heads,
            head_dim: usual.head_dim,
            other_layers: layers.filter(|(_, kv)| *kv != usual).collect(),
            vocab_size: self.vocab_size,
            max_canvas: self.max_positions,
            sliding_window: None,
            corruption: Corruption::Uniform,
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            self_conditioned: true,
            noise_schedule: None,
            stop_tokens: self.stop_tokens.clone(),
            resize_tokens: None,
            attention: AttentionPattern::EncodedBlocks {
                block_length: self.canvas_length,
            },
            logit_shift: 0,
            default_plan: DecodePlan {
                block_length: Some(self.canvas_length),
                ..default_plan
            },
        }
    }
}

fn experts(fields: &Fields, hidden: usize) -> Result<ExpertShape, ModelError> {
    let (experts, per_row) = (fields.count("num_experts")?, fields.size("top_k_experts")?);
    if per_row > experts {
        return Err(config_error(format!(
            "top_k_experts {per_row} is more than num_experts {experts}"
        )));
    }
    Ok(ExpertShape {
        hidden,
        intermediate: fields.size("moe_intermediate_size")?,
        experts,
        per_row,
    })
}

/// The base of a kind's rotary embedding, and the share of a head that it rotates.
fn rope(text: &Value, kind: &str, rope_type: &str) -> Result<(f64, f64), ModelError> {
    let field = format!("rope_parameters.{kind}");
    let given = &text["rope_parameters"][kind];
    if !given.is_object() {
        return Err(config_error(format!("{field} is missing, or no object")));
    }
    let in_field = |error| match error {
        ModelError::Invalid { reason, .. } => config_error(format!("{field}.{reason}")),
        other => other,
    };
    let fields = Fields(given);
    let only = [("rope_type", rope_type.into()), ("factor", json!(1.0))];
    fields.only(&only).map_err(in_field)?;
    let share = match rope_type {
        "default" => {
            let all = [("partial_rotary_factor", json!(1.0))];
            fields.only(&all).map_err(in_field)?;
            1.0
        }
        _ => {
            let share = fields.optional("partial_rotary_factor").map_err(in_field)?;
            share.unwrap_or(1.0)
        }
    };
    if !(share > 0.0 && share <= 1.0) {
        return Err(config_error(format!(
            "{field}.partial_rotary_factor is {share}; it must be more than 0 and at most 1"
        )));
    }
    Ok((fields.positive("rope_theta").map_err(in_field)?, share))
}

/// The kind and shape of every layer.
fn layers(text: &Value) -> Result<Vec<LayerShape>, ModelError> {
    let fields = Fields(text);
    let count = fields.count("num_hidden_layers")?;
    let kinds: Vec<LayerKind> = match fields.optional::<Vec<String>>("layer_types")? {
        None => (1..=count)
            .map(|layer| match layer.is_multiple_of(LAYERS_A_PERIOD) {
                true => LayerKind::Full,
                false => LayerKind::Sliding,
            })
            .collect(),
        Some(names) => names
            .iter()
            .map(|name| kind(name))
            .collect::<Result<_, _>>()?,
    };
    if kinds.len() != count {
        return Err(config_error(format!(
            "layer_types names {} layers, and num_hidden_layers is {count}",
            kinds.len()
        )));
    }
    if kinds.last() != Some(&LayerKind::Full) {
        return Err(config_error(
            "the last of layer_types must be \"full_attention\"".into(),
        ));
    }
    let usual = KvShape {
        heads: fields.size("num_key_value_heads")?,
        head_dim: fields.size("head_dim")?,
    };
    let others = other_layers(text, &kinds, usual)?;
    let shape = |(layer, kind): (usize, &LayerKind)| LayerShape {
        kind: *kind,
        kv: others.get(&layer).copied().unwrap_or(usual),
    };
    let layers: Vec<LayerShape> = kinds.iter().enumerate().map(shape).collect();
    for layer in &layers {
        let alike = layers.iter().filter(|other| other.kind == layer.kind);
        let mut widths = alike.map(|other| other.kv.head_dim);
        if widths.any(|width| width != layer.kv.head_dim) {
            return Err(config_error(
                "per_layer_config gives layers of one type heads of different head_dim".into(),
            ));
        }
        if !layer.kv.head_dim.is_multiple_of(2) {
            return Err(config_error(format!(
                "head_dim is {}; it must be even",
                layer.kv.head_dim
            )));
        }
    }
    Ok(layers)
}

fn kind(name: &str) -> Result<LayerKind, ModelError> {
    match name {
        "sliding_attention" => Ok(LayerKind::Sliding),
        "full_attention" => Ok(LayerKind::Full),
        other => Err(config_error(format!(
            "layer_types names {other:?}; supported are \"sliding_attention\" and \"full_attention\""
        ))),
    }
}

/// The layers whose keys and values are not shaped as `usual`.
fn other_layers(
    text: &Value,
    kinds: &[LayerKind],
    usual: KvShape,
) -> Result<BTreeMap<usize, KvShape>, ModelError> {
    let shape = |layer: &Value| {
        let fields = Fields(layer);
        Ok::<_, ModelError>(KvShape {
            heads: fields
                .optional_size("num_key_value_heads")?
                .unwrap_or(usual.heads),
            head_dim: fields.optional_size("head_dim")?.unwrap_or(usual.head_dim),
        })
    };
    let Some(layers) = Fields(text).optional::<Map<String, Value>>("per_layer_config")? else {
        let global = shape(&json!({
            "head_dim": match &text["global_head_dim"] {
                Value::Null => GLOBAL_HEAD_DIM.into(),
                given => given.clone(),
            },
            "num_key_value_heads": text["num_global_key_value_heads"],
        }))?;
        let full = (0..kinds.len()).filter(|layer| kinds[*layer] == LayerKind::Full);
        return Ok(full.map(|layer| (layer, global)).collect());
    };
    layers
        .iter()
        .map(|(layer, given)| {
            let known = ["head_dim", "num_key_value_heads"];
            let Value::Object(fields) = given else {
                return Err(config_error(format!(
                    "per_layer_config.{layer} is {given}; it must be an object"
                )));
            };
            let mut names = fields.keys();
            if let Some(name) = names.find(|name| !known.contains(&name.as_str())) {
                return Err(config_error(format!(
                    "per_layer_config.{layer}.{name} is not supported; supported: {}",
                    known.join(", ")
                )));
            }
            let number = layer.parse().ok().filter(|layer| *layer < kinds.len());
            let number = number.ok_or_else(|| {
                config_error(format!("per_layer_config names the layer {layer:?}"))
            })?;
            Ok((number, shape(given)?))
        })
        .collect()
}
