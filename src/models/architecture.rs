//! From a family's configuration to its line in the registry.

use candle_core::{DType, Device};
use serde_json::Value;

use crate::decode::DecodePlan;
use crate::models::generation_config::{self, GenerationConfig};
use crate::models::layers::{EXPERTS, ExpertShape, Network, Rotary, Transformer};
use crate::models::registry::Family;
use crate::models::weights::{Recorder, Shapes, WeightFormat, Weights};
use crate::models::{Denoiser, ModelError, ModelSpec};

/// A family whose network is a [`Transformer`]: what its config.json says.
pub(super) trait Architecture: Sized {
    /// Reads and checks a config.json.
    ///
    /// # Errors
    /// Names the field that is missing, out of range, or asks for a network that is not built here.
    fn from_json(config: &Value) -> Result<Self, ModelError>;

    /// What the engine has to know of a model with that many `parameters`.
    fn spec(&self, parameters: usize) -> ModelSpec;

    /// The mixture of experts in the layers that have one; none of families without.
    fn experts(&self) -> Option<ExpertShape> {
        None
    }

    /// Takes what a generation_config.json says of sampling into the default `plan`: the fields of transformers' own
    /// class, unless the family has another.
    ///
    /// # Errors
    /// Names the field that is out of range.
    fn generation_config(
        options: &GenerationConfig,
        plan: &mut DecodePlan,
    ) -> Result<(), ModelError> {
        generation_config::take_over(options, plan)
    }

    /// The rotary embedding, of type `dtype` on `device`.
    ///
    /// # Errors
    /// If the device fails.
    fn rotary(&self, dtype: DType, device: &Device) -> candle_core::Result<Rotary>;

    /// Reads the network's weights under the checkpoint's names. Which tensors it reads depends on
    /// the configuration alone.
    ///
    /// # Errors
    /// If a tensor is missing or of the wrong shape.
    fn network(&self, weights: Weights) -> candle_core::Result<Network>;
}

/// The registry's line of a family.
pub(super) const fn family<A: Architecture>(
    name: &'static str,
    architectures: &'static [&'static str],
    model_types: &'static [&'static str],
) -> Family {
    Family {
        name,
        architectures,
        model_types,
        inputs: &["attention_mask", "position_ids", "allowed_mask"],
        spec: |config| spec(&A::from_json(config)?),
        tensors: |config| tensors(&A::from_json(config)?),
        unused: &[],
        generation_config: A::generation_config,
        ends_texts: true,
        expand_token: None,
        tokenizer: None,
        load: load::<A>,
    }
}

fn spec(architecture: &impl Architecture) -> Result<ModelSpec, ModelError> {
    let (parameters, active_parameters) =
        parameters(&tensors(architecture)?, architecture.experts());
    Ok(ModelSpec {
        active_parameters,
        ..architecture.spec(parameters)
    })
}

/// How many weights the tensors `sizes` hold, and how many of them a row meets, where the layers that have a mixture
/// of experts have that of `experts`.
pub(super) fn parameters(sizes: &Shapes, experts: Option<ExpertShape>) -> (usize, usize) {
    let count = |of: &dyn Fn(&str) -> bool| {
        let counted = sizes.iter().filter(|(name, _)| of(name));
        let counts = counted.map(|(_, shape)| shape.iter().product());
        counts.fold(0, usize::saturating_add)
    };
    let parameters = count(&|_| true);
    let of_experts = count(&|name| name.contains(EXPERTS));
    let active_experts = experts.map_or(of_experts, |shape| {
        of_experts / shape.experts.max(1) * shape.per_row
    });
    (parameters, parameters - of_experts + active_experts)
}

fn load<A: Architecture>(
    config: &Value,
    spec: ModelSpec,
    weights: Weights,
) -> Result<Box<dyn Denoiser>, ModelError> {
    let architecture = A::from_json(config)?;
    let rotary = architecture.rotary(weights.dtype(), weights.device())?;
    let network = architecture.network(weights.clone())?;
    Ok(Box::new(Transformer::new(spec, &weights, rotary, network)))
}

/// Name and shape of every tensor that the network reads.
fn tensors(architecture: &impl Architecture) -> Result<Shapes, ModelError> {
    let recorder = Recorder::default();
    let format = WeightFormat::Float(DType::F32);
    architecture.network(Weights::new(&recorder, format, &Device::Cpu))?;
    Ok(recorder.shapes())
}
