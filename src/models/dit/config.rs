//! `config.json` as the Hugging Face exports of MDLM and BD3-LM share it.

use serde::Deserialize;
use serde_json::Value;

use super::{DitShape, FieldNames, NoiseInput};
use crate::canvas::TokenId;
use crate::models::checkpoint::{CONFIG, token_ids};
use crate::models::fields::check_token;
use crate::models::{Corruption, ModelError, ModelSpec, Parameterisation};

/// The names in the Hugging Face exports of MDLM and BD3-LM.
const HUGGING_FACE: FieldNames = FieldNames {
    vocab: "vocab_size",
    hidden: "hidden_dim",
    blocks: "n_blocks",
    heads: "n_heads",
    length: "model_length",
    cond_dim: "cond_dim",
};

/// The fields that decide the network and how it is used.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::models) struct DitConfig {
    vocab_size: usize,
    hidden_dim: usize,
    cond_dim: usize,
    n_blocks: usize,
    n_heads: usize,
    model_length: usize,
    /// Whether the noise level that is embedded is the segment's, or zero; the official classes have
    /// false where it is absent.
    #[serde(default)]
    time_conditioning: bool,
    /// The last token of the vocabulary where absent, as in the released checkpoints.
    #[serde(default)]
    mask_token_id: Option<TokenId>,
    /// None in the released checkpoints: their texts run on over ends of sequence.
    #[serde(default)]
    eos_token_id: Value,
}

impl DitConfig {
    /// The network's sizes; `adaln` says whether its norms are modulated.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn shape(&self, adaln: bool) -> Result<DitShape, ModelError> {
        let cond_dim = self.cond_dim;
        let noise = match (adaln, self.time_conditioning) {
            (false, _) => NoiseInput::Absent,
            (true, false) => NoiseInput::Zero { cond_dim },
            (true, true) => NoiseInput::Given { cond_dim },
        };
        let shape = DitShape {
            vocab: self.vocab_size,
            hidden: self.hidden_dim,
            blocks: self.n_blocks,
            heads: self.n_heads,
            length: self.model_length,
            noise,
        };
        shape.check(&HUGGING_FACE)?;
        Ok(shape)
    }

    /// The spec of a bidirectional network of this shape.
    ///
    /// # Errors
    /// If the mask token is outside the vocabulary.
    pub fn spec(&self, family: &'static str, shape: &DitShape) -> Result<ModelSpec, ModelError> {
        let mask_token = self.mask_token_id.unwrap_or(shape.last_token());
        check_token("mask_token_id", mask_token, shape.vocab)?;
        let corruption = Corruption::Absorbing { mask_token };
        Ok(ModelSpec {
            stop_tokens: token_ids(CONFIG, &self.eos_token_id)?,
            ..shape.spec(family, corruption, Parameterisation::Subs)
        })
    }
}
