//! Dream (Ye et al., arXiv:2508.15487): Qwen2.5 made bidirectional.
//!
//! `DreamModel` is the class of Dream-7B, DiffuCoder, Dream-Coder and DreamOn, whose fields and tensor
//! names are Qwen2's; held here to the official code (`modeling_dream.py`) on a small checkpoint. It
//! kept the autoregressive offset: the logits of slot i are read at row i − 1. Dream-reasoner, whose
//! class is `DreamForCausalLM`, is block-causal and not shifted, and is not built here.
//!
//! DreamOn is a Dream network with a token that becomes two masked slots: the one of `expand_token_id`, or else the one
//! that its vocabulary calls `<|expand|>`. The end of the text is the token that removes its slot
//! (`DreamOnGenerationConfig`).
//!
//! The default plan is that of the official `diffusion_generate` with the options that the checkpoint's
//! generation_config.json gives, unless they are the class's own.

use candle_core::{DType, Device, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::decode::{DecodePlan, ResizeTokens, Revision, Score, preset};
use crate::models::architecture::{Architecture, family};
use crate::models::backbone::{Backbone, Projections};
use crate::models::checkpoint::{CONFIG, config_error, token_ids};
use crate::models::fields::{Fields, check_token};
use crate::models::generation_config::{GenerationConfig, invalid};
use crate::models::layers::{GatedMlp, Mlp, Network, Rotary};
use crate::models::registry::Family;
use crate::models::weights::Weights;
use crate::models::{ModelError, ModelSpec};

/// The registry's line.
pub(super) const FAMILY: Family = Family {
    expand_token: Some("<|expand|>"),
    ..family::<Dream>("dream", &["DreamModel"], &["Dream"])
};

/// Values of `alg`.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Algorithm {
    Origin,
    MaskgitPlus,
    TopkMargin,
    Entropy,
}

/// Whether the options are those of a `DreamGenerationConfig` that nobody gave any: transformers writes them into the
/// generation_config.json of a model that is saved, and so they are in Dream's and DiffuCoder's releases, whose cards
/// recommend others.
fn are_defaults(options: &GenerationConfig) -> bool {
    let defaults = [
        ("alg", json!("origin")),
        ("alg_temp", Value::Null),
        ("eps", json!(1e-3)),
        ("steps", json!(512)),
        ("temperature", json!(0.0)),
        ("top_k", Value::Null),
        ("top_p", Value::Null),
    ];
    defaults
        .iter()
        .all(|(name, default)| options.get(name) == default)
}

/// The options that say how tokens are drawn and ranked.
fn sampling(
    options: &GenerationConfig,
    plan: &mut DecodePlan,
) -> std::result::Result<(), ModelError> {
    let score_temperature = options.optional("alg_temp")?.unwrap_or(0.0);
    // The official `origin` takes it, and ranks nothing by it.
    if !plan.budget.is_by_chance() {
        plan.score_temperature = score_temperature;
    }
    plan.sampling.temperature = options.optional("temperature")?.unwrap_or(0.0);
    plan.sampling.top_p = options.optional("top_p")?;
    let top_k = options.optional("top_k")?.unwrap_or(0);
    plan.sampling
        .set_top_k(top_k)
        .and_then(|()| plan.validate())
        .map_err(|error| invalid(error.to_string()))
}

/// DreamOn's tokens, if config.json names them, or a file that its opener has completed it by. Without a
/// `delete_token_id` the first end of the text is the delete token, as in the official code.
fn resize_tokens(
    config: &Value,
    vocab_size: usize,
) -> std::result::Result<Option<ResizeTokens>, ModelError> {
    let fields = Fields(config);
    let Some(expand) = fields.optional("expand_token_id")? else {
        return Ok(None);
    };
    let delete = match fields.optional("delete_token_id")? {
        Some(delete) => Some(delete),
        None => token_ids(CONFIG, &config["eos_token_id"])?.first().copied(),
    };
    let delete = delete.ok_or_else(|| {
        config_error(format!(
            "gaps grow by the token {expand} (expand_token_id, or <|expand|> in the vocabulary), but neither \
             delete_token_id nor eos_token_id says which token removes its slot"
        ))
    })?;
    Ok(Some(ResizeTokens {
        expand: check_token("expand_token_id", expand, vocab_size)?,
        delete: check_token("delete_token_id", delete, vocab_size)?,
    }))
}

struct Dream {
    backbone: Backbone,
    resize_tokens: Option<ResizeTokens>,
    intermediate_size: usize,
}

impl Architecture for Dream {
    fn from_json(config: &Value) -> std::result::Result<Self, ModelError> {
        let fields = Fields(config);
        fields.only(&[("use_mrope", false.into())])?;
        let backbone = Backbone::from_json(config)?;
        Ok(Self {
            resize_tokens: resize_tokens(config, backbone.vocab_size)?,
            backbone,
            intermediate_size: fields.size("intermediate_size")?,
        })
    }

    fn spec(&self, parameters: usize) -> ModelSpec {
        ModelSpec {
            logit_shift: 1,
            resize_tokens: self.resize_tokens,
            default_plan: match self.resize_tokens {
                Some(_) => preset::dreamon(Score::Entropy),
                None => preset::dream(Score::Entropy, preset::DREAM_EPS),
            },
            ..self.backbone.spec(FAMILY.name, parameters)
        }
    }

    /// The official `DreamGenerationConfig`. Its default algorithm is `origin`; here it is `entropy`, the
    /// one that the model's authors recommend, unless the file says otherwise. Of DreamOn it is
    /// `DreamOnGenerationConfig`.
    fn generation_config(
        options: &GenerationConfig,
        plan: &mut DecodePlan,
    ) -> std::result::Result<(), ModelError> {
        if are_defaults(options) {
            return Ok(());
        }
        let eps = options.optional("eps")?.unwrap_or(preset::DREAM_EPS);
        let algorithm = options.optional("alg")?.unwrap_or(Algorithm::Entropy);
        if let Revision::Resize(mut resizing) = plan.revision {
            *plan = preset::dreamon(match algorithm {
                Algorithm::Origin => {
                    return Err(invalid(
                        "alg is \"origin\"; a model that changes the length of gaps has maskgit_plus, \
                         topk_margin and entropy"
                            .into(),
                    ));
                }
                Algorithm::MaskgitPlus => Score::Confidence,
                Algorithm::TopkMargin => Score::Margin,
                Algorithm::Entropy => Score::Entropy,
            });
            resizing.max_gap = options
                .optional("max_new_tokens")?
                .unwrap_or(resizing.max_gap);
            resizing.expansions = options
                .optional("expand_budget")?
                .unwrap_or(2 * resizing.max_gap);
            resizing.delete_right = options.optional("pad_delete_to_right")?.unwrap_or(false);
            plan.revision = Revision::Resize(resizing);
            plan.at_least = options.optional("number_transfer_tokens")?.unwrap_or(0);
            return sampling(options, plan);
        }
        *plan = match algorithm {
            Algorithm::Origin => preset::dream_origin(eps),
            Algorithm::MaskgitPlus => preset::dream(Score::Confidence, eps),
            Algorithm::TopkMargin => preset::dream(Score::Margin, eps),
            Algorithm::Entropy => preset::dream(Score::Entropy, eps),
        };
        plan.steps = options.optional("steps")?;
        sampling(options, plan)
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
