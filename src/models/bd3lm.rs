//! BD3-LM: MDLM's network with block-causal attention (Arriola et al., arXiv:2503.09573).
//!
//! `models/hf/modeling_bd3lm.py` of kuleshov-group/bd3lms. Two attention patterns are trained into one
//! network. **Sampling** is block-causal: a block sees itself and the clean blocks before it, whose keys
//! and values can be kept. **Scoring** takes x_t and x_0 at once, as one segment of 2n rows with
//! [`AttentionPattern::allowed_in_scoring`](crate::models::AttentionPattern::allowed_in_scoring), so that every
//! block of x_t sees the clean blocks before it in one evaluation.
//!
//! Texts longer than the context are sampled with a **sliding window**: the official cache of queries, keys and
//! values before rotation moves up by a block, and positions are counted from the window's start. Angles between
//! slots depend on their distance alone, so that this is what positions counted from the canvas's start give,
//! with keys that are kept rotated.

use serde::Deserialize;
use serde_json::Value;

use crate::decode::preset;
use crate::models::checkpoint::config_error;
use crate::models::dit::{Dit, DitConfig, DitShape, GPT2};
use crate::models::fields::{self, check_size};
use crate::models::registry::Family;
use crate::models::weights::Shapes;
use crate::models::{ModelError, ModelSpec, SlidingWindow, generation_config};

/// The registry's line.
pub(super) const FAMILY: Family = Family {
    name: "bd3lm",
    architectures: &["BD3LM"],
    model_types: &["bd3lm"],
    inputs: &["sigma", "position_ids", "allowed_mask"],
    spec: |config| Bd3lmConfig::from_json(config)?.spec(),
    tensors: |config| Bd3lmConfig::from_json(config)?.tensors(),
    unused: &[],
    generation_config: generation_config::take_over,
    ends_texts: false,
    expand_token: None,
    tokenizer: Some(GPT2),
    load: |config, spec, weights| {
        let shape = Bd3lmConfig::from_json(config)?.shape()?;
        Ok(Box::new(Dit::new(spec, &shape, weights.pp("backbone"))?))
    },
};

/// The longest canvas of plans with a sliding window, in contexts. The official sampler has no limit; the tables
/// of rotary angles need one.
const SLIDING_CONTEXTS: usize = 64;

/// The fields of `config.json`, with the official class's value for those that are absent.
#[derive(Debug, Clone, Deserialize)]
struct Bd3lmConfig {
    #[serde(flatten)]
    dit: DitConfig,
    block_size: usize,
    /// False makes the network bidirectional.
    #[serde(default = "yes")]
    cross_attn: bool,
    #[serde(default = "yes")]
    adaln: bool,
    #[serde(default)]
    causal: bool,
    /// The checkpoint holds the range of noise levels that it was trained on.
    #[serde(default = "yes")]
    var_min: bool,
}

fn yes() -> bool {
    true
}

impl Bd3lmConfig {
    fn from_json(config: &Value) -> Result<Self, ModelError> {
        let config: Self = fields::read(config)?;
        if config.causal {
            return Err(config_error(
                "causal is true; only false is supported".into(),
            ));
        }
        check_size("block_size", config.block_size)?;
        Ok(config)
    }

    fn shape(&self) -> Result<DitShape, ModelError> {
        self.dit.shape(self.adaln)
    }

    fn tensors(&self) -> Result<Shapes, ModelError> {
        let mut shapes = self.shape()?.tensors("backbone.");
        if self.var_min {
            for bound in ["sampling_eps_min", "sampling_eps_max"] {
                shapes.insert(bound.into(), Vec::new());
            }
        }
        Ok(shapes)
    }

    fn spec(&self) -> Result<ModelSpec, ModelError> {
        let spec = self.dit.spec(FAMILY.name, &self.shape()?)?;
        if !self.cross_attn {
            return Ok(spec);
        }
        let slots = spec.max_canvas;
        Ok(ModelSpec {
            sliding_window: Some(SlidingWindow {
                slots,
                max_canvas: slots.saturating_mul(SLIDING_CONTEXTS),
            }),
            ..spec.block_causal(self.block_size, preset::bd3lm_first_hitting())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::AttentionPattern;
    use crate::models::registry::family_of;

    /// kuleshov-group/bd3lm-owt-block_size4
    fn released() -> Value {
        json!({
            "adaln": true, "architectures": ["BD3LM"], "attn_backend": "flex", "block_size": 4,
            "causal": false, "cond_dim": 128, "cross_attn": true, "dropout": 0.1, "hidden_dim": 768,
            "model_length": 1024, "model_type": "bd3lm", "n_blocks": 12, "n_heads": 12,
            "sampling_eps_max": 0.999, "sampling_eps_min": 0.001, "time_conditioning": false,
            "var_min": true, "vocab_size": 50258
        })
    }

    fn spec(config: &Value) -> ModelSpec {
        (family_of(config).unwrap().spec)(config).unwrap()
    }

    #[test]
    fn the_released_model_has_its_published_size_mask_and_blocks() {
        let spec = spec(&released());
        assert_eq!(spec.parameters, 169_627_218);
        assert_eq!(spec.mask_token(), Some(50257));
        let block_length = 4;
        assert_eq!(
            spec.attention,
            AttentionPattern::BlockCausal { block_length }
        );
        assert_eq!(spec.default_plan.block_length, Some(block_length));
        assert!(!spec.noise_conditioned);
    }

    #[test]
    fn without_cross_attention_the_network_is_bidirectional() {
        let mut config = released();
        config["cross_attn"] = false.into();
        assert_eq!(spec(&config).attention, AttentionPattern::Bidirectional);
    }

    #[test]
    fn a_network_that_is_not_built_is_refused_by_name() {
        for (field, value) in [("causal", json!(true)), ("block_size", json!(0))] {
            let mut config = released();
            config[field] = value;
            let error = Bd3lmConfig::from_json(&config).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
