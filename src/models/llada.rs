//! LLaDA: a Llama-like transformer without a causal mask (Nie et al., arXiv:2502.09992).
//!
//! The released code descends from OLMo, whose configuration and tensor names it keeps
//! (`modeling_llada.py` of GSAI-ML/LLaDA-8B-Base). Logits at a slot predict that slot's token.

use candle_core::{DType, Device};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::canvas::TokenId;
use crate::decode::{DecodePlan, preset};
use crate::models::architecture::{Architecture, family};
use crate::models::checkpoint::{CONFIG, config_error, token_ids};
use crate::models::fields::{self, Fields, check_size, check_token};
use crate::models::layers::{
    Block, GatedMlp, Mlp, Network, RmsNorm, Rotary, SelfAttention, embedding_and_head,
};
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{
    AttentionPattern, Corruption, ForwardProcess, ModelError, ModelSpec, Parameterisation,
};

/// The registry's line.
pub(super) const FAMILY: Family = family::<LladaConfig>("llada", &["LLaDAModelLM"], &["llada"]);

/// Fields of `config.json` that would change the network, each with the one value that is built here.
fn built() -> [(&'static str, Value); 12] {
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
        ("quantization_config", Value::Null),
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
    /// Whether heads are rotated in f32 whatever the weights' type; OLMo's default.
    #[serde(default = "default_rope_full_precision")]
    pub rope_full_precision: bool,
    /// The head is the transposed embedding.
    #[serde(default)]
    pub weight_tying: bool,
    /// The mask token.
    pub mask_token_id: TokenId,
    /// Ends of sequence: none, one or a list in the file.
    #[serde(default, deserialize_with = "none_one_or_several")]
    pub eos_token_id: Vec<TokenId>,
    /// Padding.
    #[serde(default)]
    pub pad_token_id: Option<TokenId>,
    /// The forward process of training; LLaDA's, the absorbing one, when absent. Not a field of LLaDA's:
    /// `unmask train` writes it.
    #[serde(default)]
    pub unmask_process: ForwardProcess,
}

fn none_one_or_several<'de, D: Deserializer<'de>>(given: D) -> Result<Vec<TokenId>, D::Error> {
    token_ids(CONFIG, &Value::deserialize(given)?).map_err(D::Error::custom)
}

fn default_rope_full_precision() -> bool {
    true
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
        let fields = Fields(config);
        fields.only(&built())?;
        for size in ["d_model", "n_heads", "vocab_size", "max_sequence_length"] {
            fields.size(size)?;
        }
        fields.count("n_layers")?;
        for size in [
            "n_kv_heads",
            "mlp_hidden_size",
            "mlp_ratio",
            "embedding_size",
        ] {
            fields.optional_size(size)?;
        }
        fields.positive("rms_norm_eps")?;
        fields.positive("rope_theta")?;
        token_ids(CONFIG, &config["eos_token_id"])?;
        let config: Self = fields::read(config)?;
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
        if config.mlp_hidden_size.is_none() {
            check_size("mlp_ratio × d_model", config.mlp_hidden())?;
        }
        check_token("mask_token_id", config.mask_token_id, config.rows())?;
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
}

impl Architecture for LladaConfig {
    fn from_json(config: &Value) -> Result<Self, ModelError> {
        Self::from_json(config)
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        ModelSpec {
            family: FAMILY.name,
            parameters,
            active_parameters: parameters,
            hidden_size: self.d_model,
            layers: self.n_layers,
            kv_heads: self.kv_heads(),
            head_dim: self.head_dim(),
            other_layers: Default::default(),
            vocab_size: self.rows(),
            max_canvas: self.max_sequence_length,
            sliding_window: None,
            corruption: match self.unmask_process {
                ForwardProcess::Absorbing => Corruption::Absorbing {
                    mask_token: self.mask_token_id,
                },
                ForwardProcess::Uniform => Corruption::Uniform,
            },
            parameterisation: Parameterisation::Logits,
            noise_conditioned: false,
            self_conditioned: false,
            noise_schedule: None,
            stop_tokens: self.eos_token_id.clone(),
            resize_tokens: None,
            attention: AttentionPattern::Bidirectional,
            logit_shift: 0,
            default_plan: match self.unmask_process {
                ForwardProcess::Absorbing => DecodePlan::default(),
                ForwardProcess::Uniform => preset::uniform_ancestral(),
            },
        }
    }

    fn rotary(&self, dtype: DType, device: &Device) -> candle_core::Result<Rotary> {
        let (head_dim, positions) = (self.head_dim(), self.max_sequence_length);
        let dtype = match self.rope_full_precision {
            true => DType::F32,
            false => dtype,
        };
        Rotary::new(head_dim, self.rope_theta, positions, dtype, device)
    }

    fn network(&self, weights: Weights) -> candle_core::Result<Network> {
        let transformer = weights.pp("model").pp("transformer");
        let own_head = (!self.weight_tying).then(|| transformer.pp("ff_out"));
        let shape = [self.rows(), self.d_model];
        let (embedding, head) = embedding_and_head(shape, &transformer, "wte.weight", own_head)?;
        let blocks = (0..self.n_layers)
            .map(|block| self.block(transformer.pp("blocks").pp(block)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Network {
            blocks,
            norm: RmsNorm::load(self.d_model, self.rms_norm_eps, transformer.pp("ln_f"))?,
            head,
            embedding,
        })
    }
}

impl LladaConfig {
    fn block(&self, weights: Weights) -> candle_core::Result<Block> {
        let (hidden, mlp) = (self.d_model, self.mlp_hidden());
        let kv = self.kv_heads() * self.head_dim();
        let norm = |name| RmsNorm::load(hidden, self.rms_norm_eps, weights.pp(name));
        let projection = |from, to, name| weights.pp(name).linear(from, to, false);
        Ok(Block {
            attention_norm: norm("attn_norm")?,
            attention: SelfAttention {
                query: projection(hidden, hidden, "q_proj")?,
                key: projection(hidden, kv, "k_proj")?,
                value: projection(hidden, kv, "v_proj")?,
                out: projection(hidden, hidden, "attn_out")?,
                norms: None,
                heads: self.n_heads,
                kv_heads: self.kv_heads(),
                head_dim: self.head_dim(),
            },
            mlp_norm: norm("ff_norm")?,
            mlp: Mlp::Dense(GatedMlp::new(
                projection(hidden, mlp, "ff_proj")?,
                projection(hidden, mlp, "up_proj")?,
                projection(mlp, hidden, "ff_out")?,
            )),
        })
    }
}
