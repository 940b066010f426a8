//! Plans under the names of published samplers.

use crate::decode::{
    BlockOrigin, Budget, DecodePlan, EarlyStop, PlanError, Remasking, Revision, Rounding, Sampling,
    Score,
};
use crate::sampling::{Basis, FilterOrder};

/// A named plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// The name, as `--preset` and `diffusion.preset` take it.
    pub name: &'static str,
    /// What it is, in one line.
    pub description: &'static str,
    plan: DecodePlan,
}

impl Preset {
    /// The plan for a model with this `default` plan, whose block length it keeps if it names none.
    pub fn plan(&self, default: &DecodePlan) -> DecodePlan {
        let mut plan = self.plan.clone();
        if plan.block_length.is_none() {
            plan.block_length = default.block_length;
            plan.block_origin = default.block_origin;
        }
        plan
    }
}

/// All presets.
pub fn all() -> Vec<Preset> {
    let preset = |name, description, plan| Preset {
        name,
        description,
        plan,
    };
    let dream = |score, budget| DecodePlan {
        score,
        budget,
        sampling: Sampling {
            basis: Basis::Sampling,
            filter_order: FilterOrder::TopPFirst,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    };
    let dream_schedule = Budget::Schedule {
        rounding: Rounding::Floor,
        eps: 1e-3,
    };
    let ancestral = |revision| DecodePlan {
        budget: Budget::Ancestral { eps: 1e-5 },
        revision,
        sampling: Sampling {
            temperature: 1.0,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    };
    let block_diffusion = |score, budget, early_stop| DecodePlan {
        block_origin: BlockOrigin::Canvas,
        score,
        budget,
        early_stop,
        sampling: Sampling {
            basis: Basis::Sampling,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    };
    let sdar = |score, budget| DecodePlan {
        block_length: Some(4),
        steps_per_block: Some(4),
        ..block_diffusion(score, budget, EarlyStop::AfterBlock)
    };
    vec![
        preset(
            "llada",
            "LLaDA's low-confidence re-masking: an even share of the most confident slots a step",
            DecodePlan::default(),
        ),
        preset(
            "llada-random",
            "LLaDA's random re-masking: an even share of random slots a step",
            DecodePlan {
                score: Score::Random,
                ..DecodePlan::default()
            },
        ),
        preset(
            "fast-dllm",
            "Fast-dLLM without its cache: blocks of 32, all slots of probability 0.9 or more a step",
            DecodePlan {
                block_length: Some(32),
                budget: Budget::Threshold(0.9),
                ..DecodePlan::default()
            },
        ),
        preset(
            "left-to-right",
            "one slot a step, from left to right",
            DecodePlan {
                score: Score::LeftToRight,
                ..DecodePlan::default()
            },
        ),
        preset(
            "dream-origin",
            "Dream's `origin`: each slot by itself as the reverse process unmasks it",
            dream(Score::Random, Budget::Ancestral { eps: 1e-3 }),
        ),
        preset(
            "dream-maskgit-plus",
            "Dream's `maskgit_plus`: the most probable tokens, as many as the schedule asks for",
            dream(Score::Confidence, dream_schedule),
        ),
        preset(
            "dream-topk-margin",
            "Dream's `topk_margin`: the largest lead over the second token first",
            dream(Score::Margin, dream_schedule),
        ),
        preset(
            "dream-entropy",
            "Dream's `entropy`: the least entropy first",
            dream(Score::Entropy, dream_schedule),
        ),
        preset(
            "dllm",
            "dllm's MDLMSampler: the most confident slots, as many as the linear schedule asks for",
            DecodePlan {
                budget: Budget::Schedule {
                    rounding: Rounding::Nearest,
                    eps: 0.0,
                },
                ..DecodePlan::default()
            },
        ),
        preset(
            "mdlm-ancestral",
            "MDLM's ancestral sampling on the log-linear schedule",
            ancestral(Revision::None),
        ),
        preset(
            "remdm-cap",
            "ReMDM: ancestral sampling that masks slots again with probability at most 0.02 a step",
            ancestral(Revision::Remask(Remasking::Cap(0.02))),
        ),
        preset(
            "remdm-rescale",
            "ReMDM: masks slots again with 0.015 of the largest probability that the process allows",
            ancestral(Revision::Remask(Remasking::Rescale(0.015))),
        ),
        preset(
            "remdm-confidence",
            "ReMDM: the slots committed with least confidence are masked again first",
            ancestral(Revision::Remask(Remasking::Confidence(1.0))),
        ),
        preset(
            "remdm-loop",
            "ReMDM: denoise to nine tenths, mask again and denoise for a while, then finish",
            ancestral(Revision::Remask(Remasking::Loop {
                eta: 0.02,
                t_on: 0.55,
                t_off: 0.05,
                alpha_on: 0.9,
            })),
        ),
        preset(
            "llada2",
            "LLaDA2.0: blocks of 32 in 32 steps, all slots of probability 0.95 or more a step",
            DecodePlan {
                block_length: Some(32),
                steps_per_block: Some(32),
                ..block_diffusion(
                    Score::Confidence,
                    Budget::Threshold(0.95),
                    EarlyStop::AfterBlock,
                )
            },
        ),
        preset(
            "llada2.1",
            "LLaDA2.1: as LLaDA2.0, and tokens are replaced where another has more than 0.9",
            DecodePlan {
                block_length: Some(32),
                revision: Revision::Edit {
                    threshold: 0.9,
                    max_post_steps: 16,
                },
                ..block_diffusion(Score::Confidence, Budget::Threshold(0.95), EarlyStop::Never)
            },
        ),
        preset(
            "sdar-static",
            "SDAR's low_confidence_static: blocks of 4 in 4 steps, the most confident slots",
            sdar(Score::Confidence, Budget::Even),
        ),
        preset(
            "sdar-dynamic",
            "SDAR's low_confidence_dynamic: all slots of probability 0.85 or more a step",
            sdar(Score::Confidence, Budget::Threshold(0.85)),
        ),
        preset(
            "sdar-sequential",
            "SDAR's sequential: blocks of 4 in 4 steps, from left to right",
            sdar(Score::LeftToRight, Budget::Even),
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_plan_that_can_be_followed_and_has_a_name_of_its_own() {
        let presets = all();
        for preset in &presets {
            preset.plan(&DecodePlan::default()).validate().unwrap();
            assert_eq!(by_name(preset.name).unwrap(), *preset);
        }
        assert!(by_name("magic").unwrap_err().to_string().contains("llada"));
    }

    #[test]
    fn a_preset_without_a_block_length_keeps_the_models() {
        let default = DecodePlan {
            block_length: Some(16),
            block_origin: BlockOrigin::Canvas,
            ..DecodePlan::default()
        };
        let of = |name| by_name(name).unwrap().plan(&default).block_length;
        assert_eq!(of("llada"), Some(16));
        assert_eq!(of("fast-dllm"), Some(32));
    }
}
