//! What the engine and the server have to know of a model.

use serde::Serialize;

use crate::canvas::TokenId;
use crate::decode::{BlockOrigin, DecodePlan};

/// Which slots a slot may attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionPattern {
    /// Every slot sees the whole canvas.
    Bidirectional,
    /// A slot sees its own block and those before it; the first block begins at the first slot of
    /// the canvas.
    BlockCausal {
        /// Slots a block, at least 1.
        block_length: usize,
    },
}

impl AttentionPattern {
    /// Row-major `[length, length]`, true where slot i of a canvas of `length` slots may attend to
    /// slot j, as [`Segment::allowed`](crate::models::Segment::allowed) takes it; `None` if every
    /// slot may attend to every other.
    ///
    /// # Panics
    /// If the block length is 0.
    pub fn allowed(self, length: usize) -> Option<Vec<bool>> {
        match self {
            Self::Bidirectional => None,
            Self::BlockCausal { block_length } => {
                let block = |slot: usize| slot / block_length;
                let row = |i| (0..length).map(move |j| block(j) <= block(i));
                Some((0..length).flat_map(row).collect())
            }
        }
    }
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

impl ModelSpec {
    /// The same model denoising block after block of `block_length` slots, each of which sees itself
    /// and those before it.
    pub(super) fn block_causal(mut self, block_length: usize) -> Self {
        self.attention = AttentionPattern::BlockCausal { block_length };
        self.default_plan.block_length = Some(block_length);
        self.default_plan.block_origin = BlockOrigin::Canvas;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_causal_slot_sees_its_block_and_those_before_it() {
        let pattern = AttentionPattern::BlockCausal { block_length: 2 };
        let rows = ["110", "110", "111"].concat();
        let expected = rows.chars().map(|bit| bit == '1').collect();
        assert_eq!(pattern.allowed(3), Some(expected));
        assert_eq!(AttentionPattern::Bidirectional.allowed(3), None);
    }
}
