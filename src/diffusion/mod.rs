//! The mathematics of discrete diffusion, in f64 and without a tensor library.
//!
//! Everything here is about **one slot** with K states. Slots are corrupted independently, so a
//! sequence is a product (a sum of logarithms) over its slots; only the denoiser sees them together.
//!
//! | module | what it holds |
//! |---|---|
//! | [`categorical`] | distributions over K states: entropy, cross-entropy, KL, inverse-CDF draw |
//! | [`level`] | how much signal is left: α and 1 − α, both without cancellation; an interval s ≤ t |
//! | [`schedule`] | noise schedules α(t), β_t, ᾱ_t, in continuous and in discrete time |
//! | [`process`] | the forward processes: absorbing and uniform; Q_t, Q_{1:t}, corruption |
//! | [`posterior`] | q(x_s \| x_t, x_0) and the reverse step p_θ(x_s \| x_t) |
//! | [`elbo`] | the evidence bound in discrete and in continuous time |
//! | [`flow`] | the same process read as discrete flow matching: path, velocity, corrector |
//! | [`remasking`] | ReMDM's posterior, which may mask a committed slot again |
//!
//! # Conventions
//!
//! **Columns are distributions.** \[Q_t\]_{ij} = q(x_t = i | x_{t−1} = j), so that Q_t acts on a column
//! vector from the left, every column sums to one, and Q_{1:t} = Q_t ⋯ Q_1. In this convention the
//! posterior is
//!
//! ```text
//! q(x_{t−1} | x_t, x_0) = Cat( Q_tᵀ x_t ⊙ Q_{1:t−1} x_0 / (x_tᵀ Q_{1:t} x_0) )
//! ```
//!
//! with Q_t **transposed**: row x_t of Q_t is the likelihood of each x_{t−1}. Lecture notes often print
//! Q_t x_t, which is right only for a symmetric Q_t; the uniform one is symmetric, the absorbing one is
//! not. (D3PM, arXiv:2107.03006, writes row vectors, where the transpose stands in the same place.)
//!
//! **Both processes are one formula.** With π the distribution that they end in (e_m for absorbing,
//! 1/K for uniform), Q = α I + (1 − α) π 1ᵀ, and such matrices are closed under products: the α multiply.
//!
//! **Time.** t = 0 is clean, t = T or t = 1 is noise. Natural logarithms throughout: bounds are in nats.

pub mod categorical;
pub mod elbo;
mod error;
pub mod flow;
pub mod level;
pub mod posterior;
pub mod process;
pub mod remasking;
pub mod schedule;

pub use categorical::Categorical;
pub use error::Error;
pub use level::{Interval, NoiseLevel};
pub use process::{Noise, Process};
pub use schedule::{DiscreteSchedule, Schedule};
