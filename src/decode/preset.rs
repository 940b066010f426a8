//! Plans under the names of published samplers.

use crate::decode::{Budget, DecodePlan, PlanError, Score};

/// A named plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// The name, as `--preset` and `diffusion.preset` take it.
    pub name: &'static str,
    /// What it is, in one line.
    pub description: &'static str,
    /// The plan.
    pub plan: DecodePlan,
}

/// All presets.
pub fn all() -> Vec<Preset> {
    let plan = DecodePlan::default();
    vec![
        Preset {
            name: "llada",
            description: "LLaDA's low-confidence re-masking: an even share of the most confident slots a step",
            plan: plan.clone(),
        },
        Preset {
            name: "llada-random",
            description: "LLaDA's random re-masking: an even share of random slots a step",
            plan: DecodePlan {
                score: Score::Random,
                ..plan.clone()
            },
        },
        Preset {
            name: "fast-dllm",
            description: "Fast-dLLM without its cache: blocks of 32, all slots of probability 0.9 or more a step",
            plan: DecodePlan {
                block_length: Some(32),
                budget: Budget::Threshold(0.9),
                ..plan.clone()
            },
        },
        Preset {
            name: "left-to-right",
            description: "one slot a step, from left to right",
            plan: DecodePlan {
                score: Score::LeftToRight,
                ..plan
            },
        },
    ]
}

/// The preset called `name`.
///
/// # Errors
/// If there is none; the error lists the known names.
pub fn by_name(name: &str) -> Result<Preset, PlanError> {
    let presets = all();
    let allowed = presets
        .iter()
        .map(|preset| preset.name)
        .collect::<Vec<_>>()
        .join(", ");
    presets
        .into_iter()
        .find(|preset| preset.name == name)
        .ok_or(PlanError::UnknownName {
            field: "preset",
            given: name.to_owned(),
            allowed,
        })
}
