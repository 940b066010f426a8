//! LLaDA, dense and bidirectional.

use serde::{Deserialize, Serialize};

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
    pub mask_token_id: u32,
    /// End of sequence.
    pub eos_token_id: u32,
    /// Padding.
    #[serde(default)]
    pub pad_token_id: Option<u32>,
}

fn default_mlp_ratio() -> usize {
    4
}
