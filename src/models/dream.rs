//! Dream (Ye et al., arXiv:2508.15487): Qwen2.5 made bidirectional.
//!
//! `DreamModel` is the class of Dream-7B, DiffuCoder, Dream-Coder and DreamOn, whose fields and tensor
//! names are Qwen2's; held here to the official code (`modeling_dream.py`) on a small checkpoint. It
//! kept the autoregressive offset: the logits of slot i are read at row i − 1. Dream-reasoner, whose
//! class is `DreamForCausalLM`, is block-causal and not shifted, and is not built here.
//!
//! The default plan is that of the official `diffusion_generate` with the options that the checkpoint's
//! generation_config.json gives.

use candle_core::{DType, Device, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::decode::{DecodePlan, Score, preset};
use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections};
use crate::models::checkpoint::GENERATION_CONFIG;
use crate::models::fields::Fields;
use crate::models::layers::{GatedMlp, Mlp, Network, Rotary};
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

/// The registry's line.
pub(super) const FAMILY: Family = family::<Dream>("dream", &["DreamModel"], &["Dream"]);

/// Values of `alg`.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Algorithm {
    Origin,
    MaskgitPlus,
    TopkMargin,
    Entropy,
}

fn invalid(reason: String) -> ModelError {
    ModelError::Invalid {
        file: GENERATION_CONFIG.into(),
        reason,
    }
}

/// A field of generation_config.json, if it is there.
fn option<T: DeserializeOwned>(
    options: &Value,
    name: &str,
) -> std::result::Result<Option<T>, ModelError> {
    let given = &options[name];
    serde_json::from_value(given.clone())
        .map_err(|error| invalid(format!("{name} is {given}: {error}")))
}

struct Dream {
    backbone: Backbone,
    intermediate_size: usize,
}

impl Architecture for Dream {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        fields.only(&[("use_mrope", false.into())])?;
        Ok(Self {
            backbone: Backbone::from_json(config)?,
            intermediate_size: fields.size("intermediate_size")?,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        ModelSpec {
            logit_shift: 1,
            default_plan: preset::dream(Score::Entropy, preset::DREAM_EPS),
            ..self.backbone.spec(FAMILY.name, parameters)
        }
    }

    /// The official `DreamGenerationConfig`. Its default algorithm is `origin`; here it is `entropy`, the
    /// one that the model's authors recommend, unless the file says otherwise.
    fn generation_config(
        options: &Value,
        plan: &mut DecodePlan,
    ) -> std::result::Result<(), ModelError> {
        let eps = option(options, "eps")?.unwrap_or(preset::DREAM_EPS);
        *plan = match option(options, "alg")?.unwrap_or(Algorithm::Entropy) {
            Algorithm::Origin => preset::dream_origin(eps),
            Algorithm::MaskgitPlus => preset::dream(Score::Confidence, eps),
            Algorithm::TopkMargin => preset::dream(Score::Margin, eps),
            Algorithm::Entropy => preset::dream(Score::Entropy, eps),
        };
        plan.steps = option(options, "steps")?;
        plan.score_temperature = option(options, "alg_temp")?.unwrap_or(0.0);
        plan.sampling.temperature = option(options, "temperature")?.unwrap_or(0.0);
        plan.sampling.top_p = option(options, "top_p")?;
        plan.sampling.top_k = option(options, "top_k")?;
        plan.validate().map_err(|error| invalid(error.to_string()))
    }

    fn rotary(&self, dtype: DType, device: &Device) -> Result<Rotary> {
        self.backbone.rotary(dtype, device)
    }

    fn network(&self, weights: Weights) -> Result<Network> {
        let projections = Projections {
            qkv_bias: true,
            out_bias: false,
            qk_norm: false,
        };
        let hidden = self.backbone.hidden_size;
        self.backbone.network(weights, projections, |_, layer| {
            let mlp = GatedMlp::load(hidden, self.intermediate_size, false, layer.pp("mlp"))?;
            Ok(Mlp::Dense(mlp))
        })
    }
}
