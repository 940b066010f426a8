//! Whether a device computes what it should: every kernel against its CPU twin, on whatever runs kernels; the engine
//! with the embedded model; and the golden checkpoints of the families.
//!
//! The same cases prove the kernels on a machine without a GPU, where a host compiler builds them
//! (`tests/kernels`), and on a CUDA device (`unmask selftest --device cuda`).

mod attention;
mod attention_launched;
mod categorical;
mod cut_attention;
mod distribution;
mod element;
pub mod engine;
mod experts;
mod experts_launched;
pub mod goldens;
mod launched;
mod layers;
mod long_attention;
pub mod memory;
pub mod model;
mod process;
mod quantized;
mod random;
mod training;
mod transfers;
mod wide_heads;

use candle_core::Device;

use crate::kernels::{LaunchError, Machine};
use crate::models::ModelError;
use crate::train::TrainError;

/// How much is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Enough for a shim that emulates a block's threads one after the other.
    Small,
    /// Vocabularies, contexts and numbers of rows as models have them.
    Full,
}

/// A promise, and the function that checks it.
pub struct Check {
    /// What is promised.
    pub name: &'static str,
    /// Checks it; what was seen, in words.
    pub run: fn(&mut dyn Machine, Extent) -> Result<String, Failure>,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A kernel could not be run.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The twin could not be run.
    #[error("the CPU twin: {0}")]
    Twin(#[from] candle_core::Error),
    /// A model could not be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A training step could not be done.
    #[error(transparent)]
    Training(#[from] TrainError),
    /// A kernel and its twin differ.
    #[error("{0}")]
    Differs(String),
}

/// A promise of a device, and the function that checks it.
pub struct DeviceCheck {
    /// What is promised.
    pub name: &'static str,
    /// Checks it; what was seen, in words.
    pub run: fn(&Device) -> Result<String, Failure>,
}

/// All checks of what a device computes, against the CPU.
pub const DEVICE_CHECKS: &[DeviceCheck] = &[
    DeviceCheck {
        name: "device: lists come back as they went, however many are under way",
        run: transfers::lists,
    },
    DeviceCheck {
        name: "device: draws equal those of the CPU, from logits of every type and layout",
        run: launched::reductions,
    },
    DeviceCheck {
        name: "device: draws from guided logits equal those of the CPU",
        run: launched::guided,
    },
    DeviceCheck {
        name: "device: norms, rotations, gates and biases equal those of the CPU",
        run: launched::layers,
    },
    DeviceCheck {
        name: "device: mixtures of experts equal those of the CPU",
        run: experts_launched::mixtures,
    },
    DeviceCheck {
        name: "device: attention of short and long segments equals that of the CPU",
        run: attention_launched::segments,
    },
    DeviceCheck {
        name: "device: logits of models with heads of 64 and 128 equal those of the CPU, with and without cached keys",
        run: wide_heads::logits,
    },
    DeviceCheck {
        name: "device: products with weights in q8_0 are the sums that they should be",
        run: quantized::products,
    },
    DeviceCheck {
        name: "device: training steps follow those of the host, and one that is not finite changes nothing",
        run: training::follows_the_host,
    },
];

/// All checks of kernels.
pub const CHECKS: &[Check] = &[
    Check {
        name: "categorical: equal to the twin over shapes, types, strides and parameters",
        run: categorical::random,
    },
    Check {
        name: "categorical: ties, −∞, NaN, extreme filters and temperatures",
        run: categorical::edges,
    },
    Check {
        name: "categorical: top-p of peaked, flat and tied rows that begin anywhere",
        run: categorical::shares,
    },
    Check {
        name: "categorical: guidance, adjustments, allowed tokens, log-probabilities",
        run: categorical::shaped,
    },
    Check {
        name: "categorical: large vocabularies",
        run: categorical::large,
    },
    Check {
        name: "categorical: a row's result is the same in any batch",
        run: categorical::invariance,
    },
    Check {
        name: "categorical draws: as the distribution says (χ²)",
        run: distribution::chi_squared,
    },
    Check {
        name: "categorical draws: a long tail keeps its share",
        run: distribution::tail,
    },
    Check {
        name: "corrupt: the same tokens as the twin",
        run: process::corrupted,
    },
    Check {
        name: "posterior: the same states as the twin",
        run: process::reversed,
    },
    Check {
        name: "ragged attention: equal to its definition",
        run: attention::random,
    },
    Check {
        name: "ragged attention: equal to its definition where tiles, passes and rounds end",
        run: attention::borders,
    },
    Check {
        name: "ragged attention: what is not finite stays so, in its row",
        run: attention::not_finite,
    },
    Check {
        name: "ragged attention: a row's result is the same in any batch",
        run: attention::invariance,
    },
    Check {
        name: "long attention: equal to its definition within rounding",
        run: long_attention::random,
    },
    Check {
        name: "long attention: equal to its definition where warps, blocks and tiles end",
        run: long_attention::borders,
    },
    Check {
        name: "long attention: what is not finite stays so, in its row",
        run: long_attention::not_finite,
    },
    Check {
        name: "long attention: a row's result is the same in any batch",
        run: long_attention::invariance,
    },
    Check {
        name: "cut attention: equal to its definition where keys are cut into splits",
        run: cut_attention::defined,
    },
    Check {
        name: "cut attention: what is not finite stays so, in its row",
        run: cut_attention::not_finite,
    },
    Check {
        name: "cut attention: a row's result is the same in any batch",
        run: cut_attention::invariance,
    },
    Check {
        name: "layers: norms equal to the twin",
        run: layers::norms,
    },
    Check {
        name: "layers: rotations equal to the twin",
        run: layers::rotations,
    },
    Check {
        name: "layers: gated activations equal to the twin",
        run: layers::gates,
    },
    Check {
        name: "layers: sums with a bias equal to the twin",
        run: layers::biases,
    },
    Check {
        name: "experts: the same choice and weights as the twin",
        run: experts::routes,
    },
    Check {
        name: "experts: rows by expert, and their tiles",
        run: experts::groups,
    },
    Check {
        name: "experts: gated MLPs and their sum equal to the definition",
        run: experts::mixtures,
    },
    Check {
        name: "experts: a row's result is the same in any batch, and NaN stays in its row",
        run: experts::invariance,
    },
];
