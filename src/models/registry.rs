//! The families that can be served, and which of them a checkpoint is of.

use serde_json::Value;

use crate::decode::DecodePlan;
use crate::models::generation_config::GenerationConfig;
use crate::models::weights::{Shapes, Weights};
use crate::models::{
    Denoiser, ModelError, ModelSpec, a2d, bd3lm, diffusion_gemma, dream, illada, llada, llada_moe,
    llada2_moe, mdlm, sdar, sedd,
};

/// Builds a network from its config.json, what the checkpoint's files say of it, and its weights.
type Load = fn(&Value, ModelSpec, Weights) -> Result<Box<dyn Denoiser>, ModelError>;

/// A model family.
pub struct Family {
    /// Its name, as `inspect` and `GET /v1/models` give it.
    pub name: &'static str,
    /// Values of `architectures[0]` in config.json that mean this family.
    pub architectures: &'static [&'static str],
    /// Values of `model_type` that mean this family when no architecture is given.
    pub model_types: &'static [&'static str],
    /// Tensors that its official forward takes besides `input_ids`, by the names that `unmask forward`
    /// reads them by.
    pub inputs: &'static [&'static str],
    /// What a config.json says of the model.
    pub spec: fn(&Value) -> Result<ModelSpec, ModelError>,
    /// Name and shape of every tensor that a checkpoint with this config.json must hold.
    pub tensors: fn(&Value) -> Result<Shapes, ModelError>,
    /// How the names of tensors begin that a checkpoint may hold besides, of parts that are not built. They are
    /// passed over.
    pub unused: &'static [&'static str],
    /// Takes what a generation_config.json says of sampling into the default plan.
    pub(super) generation_config: fn(&GenerationConfig, &mut DecodePlan) -> Result<(), ModelError>,
    /// Whether a text ends at the tokenizer's `eos_token` where no file names a stop token. Networks that were
    /// trained on documents end to end run on over it.
    pub ends_texts: bool,
    /// What vocabularies call the token by which gaps grow, where neither config.json nor generation_config.json has
    /// its `expand_token_id`; none of families whose networks were never trained to resize gaps.
    pub expand_token: Option<&'static str>,
    /// The repository whose tokenizer the published models use that come without one.
    pub tokenizer: Option<&'static str>,
    /// Builds the network.
    pub(super) load: Load,
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    llada::FAMILY,
    illada::FAMILY,
    llada_moe::FAMILY,
    llada2_moe::FAMILY,
    dream::FAMILY,
    sdar::FAMILY,
    a2d::FAMILY,
    diffusion_gemma::FAMILY,
    mdlm::FAMILY,
    bd3lm::FAMILY,
    sedd::FAMILY,
];

/// The name of a checkpoint's class: `architectures[0]`, or `model_type` where that is absent.
pub(super) fn class_of(config: &Value) -> &str {
    let class = config["architectures"][0].as_str();
    class.or(config["model_type"].as_str()).unwrap_or_default()
}

/// The family that a config.json is of: by `architectures[0]`, or by `model_type` where that is absent,
/// since released checkpoints of different architectures share a `model_type`. A SEDD checkpoint has
/// neither and is known by the shape of its config.json.
///
/// # Errors
/// If no family is known by that name; the error lists those that are.
pub fn family_of(config: &Value) -> Result<&'static Family, ModelError> {
    let architecture = config["architectures"][0].as_str();
    let model_type = match config["model_type"].as_str() {
        Some(model_type) => model_type,
        None if sedd::is_training_configuration(config) => sedd::FAMILY.name,
        None => "",
    };
    FAMILIES
        .iter()
        .find(|family| match architecture {
            Some(architecture) => family.architectures.contains(&architecture),
            None => family.model_types.contains(&model_type),
        })
        .ok_or_else(|| ModelError::UnknownArchitecture {
            architecture: architecture.unwrap_or_default().to_owned(),
            model_type: model_type.to_owned(),
            known: FAMILIES
                .iter()
                .flat_map(|family| family.architectures)
                .copied()
                .collect::<Vec<_>>()
                .join(", "),
        })
}
