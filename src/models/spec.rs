//! What the engine and the server have to know of a model.

use serde::Serialize;

use crate::canvas::TokenId;
use crate::decode::DecodePlan;

/// Which slots a slot may attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionPattern {
    /// Every slot sees the whole canvas.
    Bidirectional,
}

/// A model's conventions and limits, read from its checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSpec {
    /// The family's name in the registry.
    pub family: &'static str,
    /// Number of weights.
    pub parameters: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of a row of logits; every token id is below it.
    pub vocab_size: usize,
    /// Longest canvas, in slots.
    pub max_canvas: usize,
    /// The mask token.
    pub mask_token: TokenId,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<TokenId>,
    /// Which slots a slot may attend to.
    pub attention: AttentionPattern,
    /// The logits of slot i are read at row i − shift (at row 0 for the first slots): 0, or 1 for
    /// families that kept the offset of the autoregressive model they were made from.
    pub logit_shift: usize,
    /// How canvases are denoised when a request does not say.
    pub default_plan: DecodePlan,
}
