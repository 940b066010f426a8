//! The presets against the official samplers' recorded runs, canvas by canvas.
//!
//! Each plan is a preset with the recorded run's arguments; the networks are held to the official ones
//! in `golden_*.rs`. Rows of a batch are sequences of their own here, without padding.

mod a2d;
mod defaults;
mod diffusion_gemma;
mod dream;
mod llada;
mod llada2;
mod recorded;
mod run;
mod sdar;
#[path = "../support/mod.rs"]
mod support;
