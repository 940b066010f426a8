//! The sizes of a diffusion transformer: its tensors and its spec.

use crate::canvas::TokenId;
use crate::decode::DecodePlan;
use crate::models::checkpoint::config_error;
use crate::models::fields::{check_count, check_size};
use crate::models::layers::{MLP_RATIO, SINUSOIDS};
use crate::models::weights::Shapes;
use crate::models::{AttentionPattern, Corruption, ModelError, ModelSpec, Parameterisation};

/// The sizes that decide a network's tensors.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) struct DitShape {
    /// Rows of the embedding and the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub blocks: usize,
    /// Heads.
    pub heads: usize,
    /// Longest canvas, in slots.
    pub length: usize,
    /// What its norms are modulated by.
    pub noise: NoiseInput,
}

/// How a network takes the noise level σ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum NoiseInput {
    /// Not at all: its norms are not modulated.
    Absent,
    /// It embeds σ = 0 at every noise level, which modulates its norms nevertheless
    /// (`time_conditioning: false`).
    Zero {
        /// Width of the embedded σ.
        cond_dim: usize,
    },
    /// It embeds the σ of every segment.
    Given {
        /// Width of the embedded σ.
        cond_dim: usize,
    },
}

impl NoiseInput {
    pub(super) fn cond_dim(self) -> Option<usize> {
        match self {
            Self::Absent => None,
            Self::Zero { cond_dim } | Self::Given { cond_dim } => Some(cond_dim),
        }
    }
}

/// What config.json calls the sizes, for messages.
pub(in crate::models) struct FieldNames {
    pub vocab: &'static str,
    pub hidden: &'static str,
    pub blocks: &'static str,
    pub heads: &'static str,
    pub length: &'static str,
    pub cond_dim: &'static str,
}

impl DitShape {
    /// Checks the sizes.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn check(&self, names: &FieldNames) -> Result<(), ModelError> {
        for (name, size) in [
            (names.vocab, self.vocab),
            (names.hidden, self.hidden),
            (names.heads, self.heads),
            (names.length, self.length),
            (names.cond_dim, self.noise.cond_dim().unwrap_or(1)),
        ] {
            check_size(name, size)?;
        }
        check_count(names.blocks, self.blocks)?;
        if !self.hidden.is_multiple_of(self.heads.saturating_mul(2)) {
            return Err(config_error(format!(
                "{} {} does not give each of {} heads an even width",
                names.hidden, self.hidden, self.heads
            )));
        }
        Ok(())
    }

    /// The last token of the vocabulary: the mask that the official code appends to a tokenizer's.
    pub fn last_token(&self) -> TokenId {
        (self.vocab - 1) as TokenId
    }

    pub(super) fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Name and shape of every weight and of the stored rotary frequencies, which is the only tensor
    /// that is not trained.
    pub fn tensors(&self, prefix: &str) -> Shapes {
        let mut shapes = self.weights(prefix);
        let frequencies = format!("{prefix}rotary_emb.inv_freq");
        shapes.insert(frequencies, vec![self.head_dim() / 2]);
        shapes
    }

    fn weights(&self, prefix: &str) -> Shapes {
        let (hidden, vocab) = (self.hidden, self.vocab);
        let mut shapes = Shapes::new();
        let mut add = |name: &str, shape: &[usize]| {
            shapes.insert(format!("{prefix}{name}"), shape.to_vec());
        };
        add("vocab_embed.embedding", &[vocab, hidden]);
        add("output_layer.norm_final.weight", &[hidden]);
        add("output_layer.linear.weight", &[vocab, hidden]);
        add("output_layer.linear.bias", &[vocab]);
        if let Some(cond) = self.noise.cond_dim() {
            add("sigma_map.mlp.0.weight", &[cond, SINUSOIDS]);
            add("sigma_map.mlp.0.bias", &[cond]);
            add("sigma_map.mlp.2.weight", &[cond, cond]);
            add("sigma_map.mlp.2.bias", &[cond]);
            let modulation = "output_layer.adaLN_modulation";
            add(&format!("{modulation}.weight"), &[2 * hidden, cond]);
            add(&format!("{modulation}.bias"), &[2 * hidden]);
        }
        let mlp = MLP_RATIO * hidden;
        for block in 0..self.blocks {
            let mut add =
                |name: &str, shape: &[usize]| add(&format!("blocks.{block}.{name}"), shape);
            add("norm1.weight", &[hidden]);
            add("attn_qkv.weight", &[3 * hidden, hidden]);
            add("attn_out.weight", &[hidden, hidden]);
            add("norm2.weight", &[hidden]);
            add("mlp.0.weight", &[mlp, hidden]);
            add("mlp.0.bias", &[mlp]);
            add("mlp.2.weight", &[hidden, mlp]);
            add("mlp.2.bias", &[hidden]);
            if let Some(cond) = self.noise.cond_dim() {
                add("adaLN_modulation.weight", &[6 * hidden, cond]);
                add("adaLN_modulation.bias", &[6 * hidden]);
            }
        }
        shapes
    }

    /// The spec of a bidirectional network of this shape.
    pub fn spec(
        &self,
        family: &'static str,
        corruption: Corruption,
        parameterisation: Parameterisation,
    ) -> ModelSpec {
        let weights = self.weights("");
        let parameters = weights.values().map(|s| s.iter().product::<usize>()).sum();
        ModelSpec {
            family,
            parameters,
            active_parameters: parameters,
            hidden_size: self.hidden,
            layers: self.blocks,
            kv_heads: self.heads,
            head_dim: self.head_dim(),
            other_layers: Default::default(),
            vocab_size: self.vocab,
            max_canvas: self.length,
            sliding_window: None,
            corruption,
            parameterisation,
            noise_conditioned: matches!(self.noise, NoiseInput::Given { .. }),
            self_conditioned: false,
            noise_schedule: None,
            stop_tokens: Vec::new(),
            resize_tokens: None,
            attention: AttentionPattern::Bidirectional,
            logit_shift: 0,
            default_plan: DecodePlan::default(),
        }
    }
}
