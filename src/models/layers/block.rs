//! The pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

use candle_core::{Module, Result, Tensor};

use crate::models::attention::Attention;
use crate::models::layers::{Linear, Mlp, RmsNorm, RotaryRows};

/// A block.
pub(in crate::models) struct Block {
    /// Before the attention.
    pub attention_norm: RmsNorm,
    /// The attention.
    pub attention: SelfAttention,
    /// Before the MLP.
    pub mlp_norm: RmsNorm,
    /// The MLP.
    pub mlp: Mlp,
}

/// Attention of rows to rows, with rotary positions and groups of query heads to a key/value head.
pub(in crate::models) struct SelfAttention {
    /// hidden → heads · head_dim.
    pub query: Linear,
    /// hidden → kv_heads · head_dim.
    pub key: Linear,
    /// hidden → kv_heads · head_dim.
    pub value: Linear,
    /// heads · head_dim → hidden.
    pub out: Linear,
    /// Norms over head_dim of queries and keys, before they are rotated.
    pub norms: Option<(RmsNorm, RmsNorm)>,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl Block {
    /// `[rows, hidden]` → `[rows, hidden]`, as layer number `layer`.
    pub fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let attended = self.attention.forward(&normed, layer, rotary, attention)?;
        let [x, normed] = self.mlp_norm.forward_sum(x, &attended)?;
        x + self.mlp.forward(&normed)?
    }
}

impl SelfAttention {
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        attention: &Attention,
    ) -> Result<Tensor> {
        let by_head = |x: Tensor, heads| x.reshape((x.dim(0)?, heads, self.head_dim));
        let [q, k, v] = Linear::forward_each([&self.query, &self.key, &self.value], x)?;
        let (q, k) = (by_head(q, self.heads)?, by_head(k, self.kv_heads)?);
        let v = by_head(v, self.kv_heads)?;
        let (q, k) = match &self.norms {
            Some((query_norm, key_norm)) => (
                rotary.apply_normed(&q, query_norm)?,
                rotary.apply_normed(&k, key_norm)?,
            ),
            None => (rotary.apply(&q)?, rotary.apply(&k)?),
        };
        let attended = attention.attend(layer, &q, &k, &v)?;
        self.out.forward(&attended)
    }
}
