//! Layers that families share.

mod dit;
mod mlp;
mod rotary;

pub(super) use dit::{Conditioning, DitBlock, FinalNorm, MLP_RATIO, NoiseEmbedding, SINUSOIDS};
pub(super) use mlp::GatedMlp;
pub(super) use rotary::{Rotary, RotaryRows};
