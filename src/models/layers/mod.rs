//! Layers that families share.

mod block;
mod blocks;
#[cfg(feature = "cuda")]
mod cuda;
mod dit;
mod elementwise;
mod embedding;
mod half;
mod linear;
mod mlp;
mod moe;
mod norm;
mod q8;
mod rotary;
mod transformer;

pub(crate) use blocks::BlockWeight;
pub(crate) use elementwise::{Activation, add_bias, gated};
pub(crate) use moe::{MixtureOfExperts, Router, grouped};
pub(crate) use norm::RmsNorm;
pub(crate) use rotary::{Rotary, RotaryRows};

pub(super) use block::{Block, SelfAttention};
pub(super) use blocks::{BlockRows, WrongProduct, wrong_product};
pub(super) use dit::{Conditioning, DitBlock, FinalNorm, MLP_RATIO, NoiseEmbedding, SINUSOIDS};
pub(super) use embedding::Embedding;
pub(super) use linear::{Linear, product};
pub(super) use mlp::{GatedMlp, Mlp};
pub(super) use moe::{EXPERTS, ExpertShape};
pub(super) use rotary::{Llama3Scaling, frequencies};
pub(super) use transformer::{Network, Transformer, embedding_and_head};
