//! What the goldens of each family hold: the forwards that are computed again, and the runs that are followed.

use std::collections::BTreeSet;

use candle_core::{DType, Device};

use super::folder::{Golden, Tensors};
use super::inputs::{Forward, Input, SHIFTED, Sees, VALID_KEYS, by_bits, noised, of, plain};
use super::{FORWARD, GoldenError, follow};
use crate::models::WeightFormat;

/// The goldens of a family.
pub(super) struct FamilyCases {
    family: &'static str,
    /// Forwards of the network.
    pub forwards: &'static [Forward],
    /// Cases of forward.safetensors that are something else: what the official code makes of logits, which the
    /// tests hold to it, and networks under another config.json.
    others: &'static [&'static str],
    /// What rounding may make of the logits.
    pub rounded: Rounded,
    /// Follows recorded runs; what they are called.
    follow: fn(&Golden, &Device) -> Result<Vec<String>, GoldenError>,
}

/// The most that the logits of a case may differ in a format, in the root mean square and relative to the logits: two
/// to five times what rounding after every operation makes of them. A card rounds no more often, but sums in another
/// order. Of two experts that are about as probable rounding may choose the other, whose row is another
/// then: families with experts have room for such rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounded {
    bf16: f32,
    f16: f32,
    q8_0: f32,
}

const fn rounded(bf16: f32, f16: f32, q8_0: f32) -> Rounded {
    Rounded { bf16, f16, q8_0 }
}

impl Rounded {
    /// The formats that round, and their bounds.
    pub fn formats(self) -> [(WeightFormat, f32); 3] {
        [
            (DType::BF16.into(), self.bf16),
            (DType::F16.into(), self.f16),
            (WeightFormat::Q8_0, self.q8_0),
        ]
    }
}

impl FamilyCases {
    /// Those of a family.
    ///
    /// # Errors
    /// If nothing is known of them.
    pub fn of(family: &'static str) -> Result<&'static Self, GoldenError> {
        let found = ALL.iter().find(|cases| cases.family == family);
        found.ok_or(GoldenError::UnknownFamily { family })
    }

    /// Checks that every case of `tensors` is known, and every known forward there.
    ///
    /// # Errors
    /// Names the cases that are not.
    pub fn check_complete(&self, golden: &Golden, tensors: &Tensors) -> Result<(), GoldenError> {
        let case_of = |name: &String| name.split('.').next().unwrap_or_default().to_owned();
        let there: BTreeSet<String> = tensors.keys().map(case_of).collect();
        let forwards = self.forwards.iter().map(|forward| forward.case.to_owned());
        let forwards: BTreeSet<String> = forwards.collect();
        let is_unknown =
            |case: &&String| !forwards.contains(*case) && !self.others.contains(&case.as_str());
        let unknown: Vec<_> = there.iter().filter(is_unknown).cloned().collect();
        let missing: Vec<_> = forwards.difference(&there).cloned().collect();
        if unknown.is_empty() && missing.is_empty() {
            return Ok(());
        }
        Err(GoldenError::Invalid {
            path: golden.path(FORWARD),
            reason: format!(
                "of the family {} it lacks the cases [{}], and of the cases [{}] nothing is known",
                self.family,
                missing.join(", "),
                unknown.join(", ")
            ),
        })
    }

    /// Follows recorded runs on `device`, in f32; what they are called.
    ///
    /// # Errors
    /// If a canvas is another than the recorded one, or the golden cannot be used.
    pub fn follow(&self, golden: &Golden, device: &Device) -> Result<Vec<String>, GoldenError> {
        (self.follow)(golden, device)
    }
}

/// Every family of which there are goldens.
const ALL: &[FamilyCases] = &[
    FamilyCases {
        family: "diffusion_gemma",
        forwards: &[
            of("short_prompt", Input::Encoded),
            of("long_prompt", Input::Encoded),
            of("self_cond", Input::Encoded),
            of("second_block", Input::Encoded),
            of("batch_left_padded", Input::Encoded),
            of("batch_self_cond_mask", Input::Encoded),
        ],
        others: &[],
        rounded: rounded(0.5, 0.1, 0.6),
        follow: follow::none,
    },
    FamilyCases {
        family: "llada",
        forwards: &[
            plain("case0"),
            of("case1", VALID_KEYS),
            plain("case2"),
            by_bits("case3", "attention_bias"),
            of("cache0", Input::PrefixCache),
            of("cache1", Input::DualCache),
        ],
        others: &[],
        rounded: rounded(0.09, 0.012, 0.16),
        follow: follow::llada,
    },
    FamilyCases {
        family: "llada_moe",
        forwards: &[
            plain("case0"),
            of("case1", VALID_KEYS),
            plain("case2"),
            of("case3", SHIFTED),
        ],
        others: &[],
        rounded: rounded(0.3, 0.1, 0.3),
        follow: follow::llada_moe,
    },
    FamilyCases {
        family: "llada2_moe",
        forwards: &[
            plain("case0"),
            by_bits("case1", "allowed_mask_4d"),
            plain("case2"),
            of("cache0", Input::BlockCache("block_length")),
        ],
        others: &[],
        rounded: rounded(0.5, 0.1, 0.5),
        follow: follow::llada2,
    },
    FamilyCases {
        family: "dream",
        forwards: &[
            plain("case0"),
            of(
                "case1",
                Input::Canvas {
                    sees: Sees::ValidPairs,
                    is_shifted: true,
                },
            ),
            plain("case2"),
            of("case3", SHIFTED),
            by_bits("case4", "attention_mask_4d"),
            of("cache0", Input::PrefixCache),
            of("cache1", Input::DualCache),
        ],
        others: &[],
        rounded: rounded(0.07, 0.013, 0.11),
        follow: follow::dream,
    },
    FamilyCases {
        family: "sdar",
        forwards: &[
            by_bits("case0", "allowed_mask"),
            by_bits("case1", "allowed_mask"),
            of("cache0", Input::BlockCache("block_length")),
        ],
        others: &[],
        rounded: rounded(0.05, 0.006, 0.08),
        follow: follow::sdar,
    },
    FamilyCases {
        family: "a2d",
        forwards: &[
            plain("case0"),
            of("case1", VALID_KEYS),
            by_bits("case2", "allowed_mask_4d"),
            of("case3", Input::Padded),
            of("cache0", Input::BlockCache("block_size")),
        ],
        others: &[],
        rounded: rounded(0.06, 0.007, 0.09),
        follow: follow::a2d,
    },
    FamilyCases {
        family: "mdlm",
        forwards: &[noised("backbone0", "logits")],
        others: &[
            "analytic0",
            "backbone1",
            "backbone2",
            "ddpm0",
            "ddpm1",
            "ddpm_cache0",
            "ddpm_cache1",
            "denoiser0",
            "nelbo0",
            "nelbo_T1000",
            "noise_loglinear",
            "subs0",
        ],
        rounded: rounded(0.03, 0.005, 0.06),
        follow: follow::mdlm,
    },
    FamilyCases {
        family: "bd3lm",
        forwards: &[
            of("train0", Input::Scoring),
            of("sample_nocache0", Input::Blocks),
            of("cache0", Input::NoisedBlockCache),
        ],
        others: &["ddpm0", "ddpm1", "ddpm_nucleus", "nelbo0", "subs0"],
        rounded: rounded(0.03, 0.005, 0.06),
        follow: follow::bd3lm,
    },
    FamilyCases {
        family: "sedd",
        forwards: &[
            noised("model0", "log_score"),
            noised("model1", "log_score"),
            of(
                "predictor0",
                Input::Noised {
                    sequences: "x",
                    sigma: "sigma",
                    output: "score",
                    is_exponential: true,
                },
            ),
        ],
        others: &["analytic0", "denoiser0", "euler0", "loss0", "noise"],
        rounded: rounded(0.03, 0.004, 0.05),
        follow: follow::sedd,
    },
];
