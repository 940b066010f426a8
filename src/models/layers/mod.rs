//! Layers that families share.

mod attention;
mod mlp;
mod rotary;

pub(super) use attention::attend;
pub(super) use mlp::GatedMlp;
pub(super) use rotary::{Rotary, RotaryRows};
