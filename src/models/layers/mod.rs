//! Layers that families share.

mod mlp;
mod rotary;

pub(super) use mlp::GatedMlp;
pub(super) use rotary::{Rotary, RotaryRows};
