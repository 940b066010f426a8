//! LLaDA: a Llama-like transformer without a causal mask (Nie et al., arXiv:2502.09992).
//!
//! The released code descends from OLMo, whose configuration and tensor names it keeps
//! (`modeling_llada.py` of GSAI-ML/LLaDA-8B-Base). Logits at a slot predict that slot's token.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::with_tracing::{Embedding, Linear, RmsNorm, linear_no_bias};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::canvas::TokenId;
use crate::decode::DecodePlan;
use crate::models::attention::Attention;
use crate::models::checkpoint::{Shapes, config_error};
use crate::models::layers::{GatedMlp, Rotary, RotaryRows};
use crate::models::registry::Family;
use crate::models::{
    AttentionPattern, Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation,
    RaggedBatch,
};

/// The registry's line.
pub(super) const FAMILY: Family = Family {
    name: "llada",
    architectures: &["LLaDAModelLM"],
    model_types: &["llada"],
    spec: |config| LladaConfig::from_json(config)?.spec(),
    tensors: |config| Ok(LladaConfig::from_json(config)?.tensors()),
    load: |config, weights| {
        Ok(Box::new(Llada::new(
            LladaConfig::from_json(config)?,
            weights,
        )?))
    },
};

/// Fields of `config.json` that would change the network, each with the one value that is built here.
fn built() -> [(&'static str, Value); 11] {
    [
        ("activation_type", "silu".into()),
        ("alibi", false.into()),
        ("attention_layer_norm", false.into()),
        ("bias_for_layer_norm", false.into()),
        ("block_type", "llama".into()),
        ("include_bias", false.into()),
        ("include_qkv_bias", false.into()),
        ("input_emb_norm", false.into()),
        ("layer_norm_type", "rms".into()),
        ("rope", true.into()),
        ("scale_logits", false.into()),
    ]
}

/// The fields of a LLaDA `config.json` (OLMo names) that decide the network's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LladaConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; equal to `n_heads` when absent.
    #[serde(default)]
    pub n_kv_heads: Option<usize>,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Width of the gated MLP; `mlp_ratio * d_model` when absent.
    #[serde(default)]
    pub mlp_hidden_size: Option<usize>,
    /// Used when `mlp_hidden_size` is absent.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Rows of the embedding and the head, at least `vocab_size`.
    #[serde(default)]
    pub embedding_size: Option<usize>,
    /// Longest canvas, in slots.
    pub max_sequence_length: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// The head is the transposed embedding.
    #[serde(default)]
    pub weight_tying: bool,
    /// The mask token.
    pub mask_token_id: TokenId,
    /// End of sequence.
    pub eos_token_id: TokenId,
    /// Padding.
    #[serde(default)]
    pub pad_token_id: Option<TokenId>,
}

fn default_mlp_ratio() -> usize {
    4
}

impl LladaConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, out of range, or asks for a network that is not built here.
    pub fn from_json(config: &Value) -> Result<Self, ModelError> {
        for (field, built) in built() {
            if let Some(given) = config.get(field)
                && !given.is_null()
                && *given != built
            {
                return Err(config_error(format!(
                    "{field} is {given}; only {built} is supported"
                )));
            }
        }
        let config: Self = serde_json::from_value(config.clone())
            .map_err(|error| config_error(error.to_string()))?;
        let positive = [
            ("d_model", config.d_model),
            ("n_heads", config.n_heads),
            ("n_kv_heads", config.kv_heads()),
            ("n_layers", config.n_layers),
            ("vocab_size", config.vocab_size),
            ("max_sequence_length", config.max_sequence_length),
            ("mlp_hidden_size", config.mlp_hidden()),
        ];
        if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(config_error(format!("{field} is 0; it must be at least 1")));
        }
        if !config.d_model.is_multiple_of(2 * config.n_heads) {
            return Err(config_error(format!(
                "d_model {} does not give each of {} heads an even width",
                config.d_model, config.n_heads
            )));
        }
        if !config.n_heads.is_multiple_of(config.kv_heads()) {
            return Err(config_error(format!(
                "n_heads {} is not a multiple of n_kv_heads {}",
                config.n_heads,
                config.kv_heads()
            )));
        }
        if config.rows() < config.vocab_size {
            return Err(config_error(format!(
                "embedding_size {} is less than vocab_size {}",
                config.rows(),
                config.vocab_size
            )));
        }
        if config.mask_token_id as usize >= config.rows() {
            return Err(config_error(format!(
                "mask_token_id {} is outside the vocabulary of {}",
                config.mask_token_id,
                config.rows()
            )));
        }
        Ok(config)
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.d_model / self.n_heads
    }

    /// Width of the gated MLP.
    pub fn mlp_hidden(&self) -> usize {
        self.mlp_hidden_size
            .unwrap_or(self.mlp_ratio * self.d_model)
    }

    /// Rows of the embedding and the head, which is the width of the logits.
    pub fn rows(&self) -> usize {
        self.embedding_size.unwrap_or(self.vocab_size)
    }

    /// Name and shape of every tensor of the checkpoint.
    pub fn tensors(&self) -> Shapes {
        let (hidden, mlp) = (self.d_model, self.mlp_hidden());
        let kv = self.kv_heads() * self.head_dim();
        let mut shapes = Shapes::new();
        let mut add = |name: String, shape: &[usize]| shapes.insert(name, shape.to_vec());
        add(
            "model.transformer.wte.weight".into(),
            &[self.rows(), hidden],
        );
        add("model.transformer.ln_f.weight".into(), &[hidden]);
        if !self.weight_tying {
            let head = "model.transformer.ff_out.weight";
            add(head.into(), &[self.rows(), hidden]);
        }
        for block in 0..self.n_layers {
            for (name, shape) in [
                ("attn_norm", &[hidden][..]),
                ("ff_norm", &[hidden]),
                ("q_proj", &[hidden, hidden]),
                ("k_proj", &[kv, hidden]),
                ("v_proj", &[kv, hidden]),
                ("attn_out", &[hidden, hidden]),
                ("ff_proj", &[mlp, hidden]),
                ("up_proj", &[mlp, hidden]),
                ("ff_out", &[hidden, mlp]),
            ] {
                add(
                    format!("model.transformer.blocks.{block}.{name}.weight"),
                    shape,
                );
            }
        }
        shapes
    }

    fn spec(&self) -> Result<ModelSpec, ModelError> {
        Ok(ModelSpec {
            family: FAMILY.name,
            parameters: self
                .tensors()
                .values()
                .map(|s| s.iter().product::<usize>())
                .sum(),
            hidden_size: self.d_model,
            layers: self.n_layers,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            vocab_size: self.rows(),
            max_canvas: self.max_sequence_length,
            corruption: Corruption::Absorbing {
                mask_token: self.mask_token_id,
            },
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            stop_tokens: vec![self.eos_token_id],
            attention: AttentionPattern::Bidirectional,
            logit_shift: 0,
            default_plan: DecodePlan::default(),
        })
    }
}

/// A LLaDA network.
pub struct Llada {
    spec: ModelSpec,
    device: Device,
    embedding: Embedding,
    rotary: Rotary,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

struct Block {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_out: Linear,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
    heads: usize,
    kv_heads: usize,
}

impl Llada {
    /// Builds the network from its weights, in the type and on the device of `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of the wrong shape, or the device fails.
    pub fn new(config: LladaConfig, weights: VarBuilder) -> Result<Self, ModelError> {
        let transformer = weights.pp("model").pp("transformer");
        let (hidden, rows, eps) = (config.d_model, config.rows(), config.rms_norm_eps);
        let embedding = Embedding::new(rows, hidden, transformer.pp("wte"))?;
        let head = if config.weight_tying {
            Linear::from_weights(embedding.embeddings().clone(), None)
        } else {
            linear_no_bias(hidden, rows, transformer.pp("ff_out"))?
        };
        let blocks = (0..config.n_layers)
            .map(|i| Block::new(&config, transformer.pp("blocks").pp(i)))
            .collect::<candle_core::Result<_>>()?;
        let rotary = Rotary::new(
            config.head_dim(),
            config.rope_theta,
            config.max_sequence_length,
            weights.dtype(),
            weights.device(),
        )?;
        Ok(Self {
            spec: config.spec()?,
            device: weights.device().clone(),
            embedding,
            rotary,
            blocks,
            norm: RmsNorm::new(hidden, eps, transformer.pp("ln_f"))?,
            head,
        })
    }
}

impl Block {
    fn new(config: &LladaConfig, weights: VarBuilder) -> candle_core::Result<Self> {
        let (hidden, mlp, eps) = (config.d_model, config.mlp_hidden(), config.rms_norm_eps);
        let kv = config.kv_heads() * config.head_dim();
        Ok(Self {
            attention_norm: RmsNorm::new(hidden, eps, weights.pp("attn_norm"))?,
            query: linear_no_bias(hidden, hidden, weights.pp("q_proj"))?,
            key: linear_no_bias(hidden, kv, weights.pp("k_proj"))?,
            value: linear_no_bias(hidden, kv, weights.pp("v_proj"))?,
            attention_out: linear_no_bias(hidden, hidden, weights.pp("attn_out"))?,
            mlp_norm: RmsNorm::new(hidden, eps, weights.pp("ff_norm"))?,
            mlp: GatedMlp::new(
                linear_no_bias(hidden, mlp, weights.pp("ff_proj"))?,
                linear_no_bias(hidden, mlp, weights.pp("up_proj"))?,
                linear_no_bias(mlp, hidden, weights.pp("ff_out"))?,
            ),
            heads: config.n_heads,
            kv_heads: config.kv_heads(),
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
    ) -> candle_core::Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let head_dim = hidden / self.heads;
        let normed = self.attention_norm.forward(x)?;
        let q = self
            .query
            .forward(&normed)?
            .reshape((rows, self.heads, head_dim))?;
        let kv_shape = (rows, self.kv_heads, head_dim);
        let k = self.key.forward(&normed)?.reshape(kv_shape)?;
        let v = self.value.forward(&normed)?.reshape(kv_shape)?;
        let attended = attention.attend(layer, &rotary.apply(&q)?, &rotary.apply(&k)?, &v)?;
        let x = (x + self.attention_out.forward(&attended)?)?;
        let mlp = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        x + mlp
    }
}

impl Denoiser for Llada {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        batch.check(&self.spec)?;
        let attention = Attention::new(batch, pool)?;
        let tokens = Tensor::from_slice(batch.tokens(), batch.rows(), &self.device)?;
        let mut x = self.embedding.forward(&tokens)?;
        let rotary = self.rotary.rows(batch.positions())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, layer, &rotary, &attention)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.forward(hidden)?.to_dtype(DType::F32)?)
    }
}
