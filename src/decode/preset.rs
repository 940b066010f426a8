//! Plans under the names of published samplers.

use crate::decode::{
    BlockEntry, BlockOrigin, Budget, Cache, CachePolicy, DecodePlan, EarlyStop, Finish, PlanError,
    Remasking, Resizing, Revision, Rounding, Sampling, Score, TemperatureSchedule,
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
    /// The plan. What a model does with it, [`ModelSpec::plan`](crate::models::ModelSpec::plan) says.
    pub fn plan(&self) -> &DecodePlan {
        &self.plan
    }
}

/// Fast-dLLM's `generate` for LLaDA (`llada/generate.py`) with a cache: blocks of 32.
fn fast_dllm(policy: CachePolicy) -> DecodePlan {
    DecodePlan {
        block_length: Some(32),
        budget: Budget::Threshold(0.9),
        cache: Cache {
            policy,
            refresh: None,
        },
        ..DecodePlan::default()
    }
}

/// Fast-dLLM's block-wise `_sample` for Dream (`dream/model/generation_utils_block.py`) with a cache: each
/// block's first slot is committed by the step that recomputes everything.
fn fast_dllm_dream(policy: CachePolicy) -> DecodePlan {
    let DecodePlan { sampling, .. } = dream(Score::Confidence, DREAM_EPS);
    DecodePlan {
        block_entry: BlockEntry::FirstSlot,
        sampling,
        ..fast_dllm(policy)
    }
}

/// dllm's `MDLMSampler`: the most confident slots, as many as the linear schedule asks for
/// (`dllm/core/samplers/mdlm.py`).
pub(crate) fn dllm() -> DecodePlan {
    DecodePlan {
        budget: Budget::Schedule {
            rounding: Rounding::Nearest,
            eps: 0.0,
        },
        ..DecodePlan::default()
    }
}

/// dllm's `BD3LMSampler`: as its `MDLMSampler` block by block, the first of which begins after the
/// prompt, until one holds a stop token (`dllm/core/samplers/bd3lm.py`).
pub(crate) fn dllm_blocks() -> DecodePlan {
    DecodePlan {
        early_stop: EarlyStop::AfterBlock,
        ..dllm()
    }
}

/// The last time of Dream's noise schedule, unless a checkpoint says otherwise.
pub(crate) const DREAM_EPS: f32 = 1e-3;

/// Dream's `diffusion_generate` (`generation_utils.py`) by the algorithms that rank candidates; `eps` is
/// the last time of the noise schedule.
pub(crate) fn dream(score: Score, eps: f32) -> DecodePlan {
    DecodePlan {
        score,
        budget: Budget::Schedule {
            rounding: Rounding::Floor,
            eps,
        },
        sampling: Sampling {
            basis: Basis::Sampling,
            filter_order: FilterOrder::TopPFirst,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    }
}

/// DreamOn's `diffusion_generate` (`generation_utils.py` of Dream-org/DreamOn-v0-7B): one slot a step, which may
/// be expanded or removed.
pub(crate) fn dreamon(score: Score) -> DecodePlan {
    DecodePlan {
        budget: Budget::Even,
        revision: Revision::Resize(Resizing::default()),
        ..dream(score, DREAM_EPS)
    }
}

/// Dream's algorithm `origin`.
pub(crate) fn dream_origin(eps: f32) -> DecodePlan {
    DecodePlan {
        budget: Budget::Ancestral { eps },
        ..dream(Score::Random, eps)
    }
}

/// SEDD's `get_pc_sampler` with the analytic predictor (`sampling.py` of
/// louaaron/Score-Entropy-Discrete-Diffusion).
pub(crate) fn sedd_analytic() -> DecodePlan {
    DecodePlan {
        budget: Budget::Analytic { eps: 1e-5 },
        finish: Finish::Drawn,
        sampling: Sampling {
            temperature: 1.0,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    }
}

/// The same with the Euler predictor.
fn sedd_euler() -> DecodePlan {
    DecodePlan {
        budget: Budget::Euler { eps: 1e-5 },
        ..sedd_analytic()
    }
}

/// `generate` of LLaDA2.0 (`modeling_llada2_moe.py`): blocks of 32 in at most 32 steps.
pub(crate) fn llada2() -> DecodePlan {
    DecodePlan {
        block_length: Some(32),
        ..block_diffusion(Score::Confidence, Budget::Threshold(0.95))
    }
}

/// `generate` of LLaDA2.1 (`modeling_llada21_moe.py`), whose tokens may be replaced within their block.
/// It stops at a stop token only when asked to, and cuts off what it wrote after it; no block changes
/// those before it, so that stopping gives the same answer.
pub(crate) fn llada21() -> DecodePlan {
    DecodePlan {
        revision: Revision::Edit {
            threshold: 0.9,
            max_post_steps: 16,
        },
        ..llada2()
    }
}

/// `block_diffusion_generate` of SDAR (`generate.py`): blocks of 4 in at most 4 steps.
fn sdar(score: Score, budget: Budget) -> DecodePlan {
    DecodePlan {
        block_length: Some(4),
        ..block_diffusion(score, budget)
    }
}

/// SDAR's `low_confidence_dynamic` with its published threshold.
pub(crate) fn sdar_dynamic() -> DecodePlan {
    sdar(Score::Confidence, Budget::Threshold(0.85))
}

/// Without `steps_per_block`: the official defaults are as many steps as a block has slots, which is at
/// least one slot a step and the same as naming none.
fn block_diffusion(score: Score, budget: Budget) -> DecodePlan {
    DecodePlan {
        block_origin: BlockOrigin::Canvas,
        score,
        budget,
        early_stop: EarlyStop::AfterBlock,
        sampling: Sampling {
            basis: Basis::Sampling,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    }
}

/// `generate` of DiffusionGemma with its default options (`generation_diffusion_gemma.py` of transformers): blocks of
/// 256 in at most 48 steps each.
pub(crate) fn diffusion_gemma() -> DecodePlan {
    DecodePlan {
        block_length: Some(256),
        steps_per_block: Some(48),
        score: Score::Entropy,
        budget: Budget::EntropyBound(0.1),
        revision: Revision::RenoiseRest {
            stable_steps: 1,
            max_entropy: 0.005,
        },
        early_stop: EarlyStop::AfterBlock,
        sampling: Sampling {
            temperature: 0.8,
            temperature_schedule: TemperatureSchedule::LinearInBlock(0.4),
            basis: Basis::Sampling,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    }
}

/// Ancestral sampling of the uniform process, by a denoiser given the other slots (UDLM, arXiv:2412.10193).
pub(crate) fn uniform_ancestral() -> DecodePlan {
    DecodePlan {
        // Nothing is left over at the last time: its step is one to clean text.
        finish: Finish::WithLastInterval,
        ..ancestral(Revision::Renoise)
    }
}

/// Ancestral sampling on MDLM's grid of times.
fn ancestral(revision: Revision) -> DecodePlan {
    DecodePlan {
        budget: Budget::Ancestral { eps: 1e-5 },
        finish: Finish::MostProbable,
        revision,
        sampling: Sampling {
            temperature: 1.0,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    }
}

/// MDLM's ancestral sampling (`diffusion.py` of kuleshov-group/mdlm).
pub(crate) fn mdlm_ancestral() -> DecodePlan {
    ancestral(Revision::None)
}

/// ReMDM-conf, whose confidences are those of the distribution that tokens are drawn from: the official code takes
/// them after the nucleus.
fn remdm_confidence() -> DecodePlan {
    let mut plan = ancestral(Revision::Remask(Remasking::Confidence(1.0)));
    plan.sampling.basis = Basis::Sampling;
    plan
}

/// BD3-LM's sampler as its configuration has it, with `first_hitting`.
pub(crate) fn bd3lm_first_hitting() -> DecodePlan {
    DecodePlan {
        score: Score::Random,
        ..bd3lm()
    }
}

/// BD3-LM's `_semi_ar_sampler` (`diffusion.py` of kuleshov-group/bd3lms), which goes on beyond the context.
fn bd3lm() -> DecodePlan {
    DecodePlan {
        block_origin: BlockOrigin::Canvas,
        sliding_window: true,
        sampling: Sampling {
            temperature: 1.0,
            ..Sampling::default()
        },
        ..DecodePlan::default()
    }
}

/// All presets.
pub fn all() -> Vec<Preset> {
    let preset = |name, description, plan| Preset {
        name,
        description,
        plan,
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
            fast_dllm(CachePolicy::Auto),
        ),
        preset(
            "fast-dllm-prefix",
            "Fast-dLLM with its prefix cache: what precedes a block is computed once a block",
            fast_dllm(CachePolicy::Prefix),
        ),
        preset(
            "fast-dllm-dual",
            "Fast-dLLM with its dual cache: all but the block is computed once a block",
            fast_dllm(CachePolicy::Dual),
        ),
        preset(
            "fast-dllm-dream-prefix",
            "Fast-dLLM for Dream with its prefix cache; a block's first step commits its first slot",
            fast_dllm_dream(CachePolicy::Prefix),
        ),
        preset(
            "fast-dllm-dream-dual",
            "Fast-dLLM for Dream with its dual cache; a block's first step commits its first slot",
            fast_dllm_dream(CachePolicy::Dual),
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
            dream_origin(DREAM_EPS),
        ),
        preset(
            "dream-maskgit-plus",
            "Dream's `maskgit_plus`: the most probable tokens, as many as the schedule asks for",
            dream(Score::Confidence, DREAM_EPS),
        ),
        preset(
            "dream-topk-margin",
            "Dream's `topk_margin`: the largest lead over the second token first",
            dream(Score::Margin, DREAM_EPS),
        ),
        preset(
            "dream-entropy",
            "Dream's `entropy`: the least entropy first",
            dream(Score::Entropy, DREAM_EPS),
        ),
        preset(
            "dreamon",
            "DreamOn: one slot a step, the least entropy first; the network expands and removes slots",
            dreamon(Score::Entropy),
        ),
        preset(
            "dllm",
            "dllm's MDLMSampler: the most confident slots, as many as the linear schedule asks for",
            dllm(),
        ),
        preset(
            "mdlm-ancestral",
            "MDLM's ancestral sampling on the log-linear schedule",
            mdlm_ancestral(),
        ),
        preset(
            "bd3lm-first-hitting",
            "BD3-LM's first-hitting sampler: one random slot a step; longer texts through a sliding window",
            bd3lm_first_hitting(),
        ),
        preset(
            "bd3lm-ddpm",
            "BD3-LM's ancestral sampling block after block; longer texts through a sliding window",
            DecodePlan {
                budget: Budget::Ancestral { eps: 0.0 },
                finish: Finish::DrawnAfterShortSteps,
                ..bd3lm()
            },
        ),
        preset(
            "sedd-analytic",
            "SEDD's analytic predictor: each slot by itself as the network's scores unmask it",
            sedd_analytic(),
        ),
        preset(
            "sedd-euler",
            "SEDD's Euler predictor: as its analytic one, by Euler's method",
            sedd_euler(),
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
            "ReMDM: the slots committed with least confidence are masked again first; for few steps and many slots",
            remdm_confidence(),
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
            "uniform-ancestral",
            "for models of the uniform process: every slot is drawn anew by the reverse step",
            uniform_ancestral(),
        ),
        preset(
            "diffusion-gemma",
            "DiffusionGemma: the least entropies are accepted, while all but the largest sum to 0.1 nats at most; \
             the rest is noised anew",
            diffusion_gemma(),
        ),
        preset(
            "llada2",
            "LLaDA2.0: blocks of 32 or the model's, all slots of probability 0.95 or more a step",
            llada2(),
        ),
        preset(
            "llada2.1",
            "LLaDA2.1: as LLaDA2.0, and tokens are replaced where another has more than 0.9",
            llada21(),
        ),
        preset(
            "sdar-static",
            "SDAR's low_confidence_static: blocks of 4 or the model's, the most confident slot a step",
            sdar(Score::Confidence, Budget::Even),
        ),
        preset(
            "sdar-dynamic",
            "SDAR's low_confidence_dynamic: all slots of probability 0.85 or more a step",
            sdar_dynamic(),
        ),
        preset(
            "sdar-sequential",
            "SDAR's sequential: blocks of 4 or the model's, from left to right",
            sdar(Score::LeftToRight, Budget::Even),
        ),
        preset(
            "sdar-entropy-bounded",
            "SDAR's entropy_bounded: the least entropies first, while all but the largest sum to 0.35 nats at most",
            sdar(Score::Entropy, Budget::EntropyBound(0.35)),
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
    fn remdm_confidence_goes_by_the_distribution_that_tokens_are_drawn_from() {
        let plan = remdm_confidence();
        let other = by_name("remdm-rescale").unwrap();
        assert_eq!(plan.sampling.basis, Basis::Sampling);
        assert_eq!(other.plan().sampling.basis, Basis::Model);
    }

    #[test]
    fn every_preset_is_a_plan_that_can_be_followed_and_has_a_name_of_its_own() {
        let presets = all();
        for preset in &presets {
            preset.plan().validate().unwrap();
            assert_eq!(by_name(preset.name).unwrap(), *preset);
        }
        assert!(by_name("magic").unwrap_err().to_string().contains("llada"));
    }
}
