//! The mathematics of discrete diffusion, without a tensor library.

pub mod schedule;
