//! The reverse step of networks that give log-scores (SEDD, arXiv:2310.16834; `sampling.py` and `graph_lib.py` of
//! louaaron/Score-Entropy-Discrete-Diffusion).

use candle_core::{D, DType, Result, Tensor};

use crate::canvas::TokenId;
use crate::kernels::transfer;

/// By which predictor a reverse step is taken, and how far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScoreStep {
    /// From σ to σ − Δσ by the analytic predictor (Tweedie τ-leaping, theorem 4.2); with Δσ = σ to clean text
    /// (`Denoiser`).
    Analytic {
        /// Δσ, at least 0; at 0, to which the times of short steps may round, every slot keeps its token.
        delta_sigma: f32,
    },
    /// Through a time h by Euler's method.
    Euler {
        /// h σ′(t), at least 0.
        amount: f32,
    },
}

impl ScoreStep {
    /// What of the total score of a masked slot is its probability to be unmasked, by the absorbing process: the
    /// product of the staggered score and the transition, or the reverse rate times h. May come to more
    /// than 1.
    pub fn unmasking(self, total: f32) -> f32 {
        match self {
            Self::Analytic { delta_sigma } => delta_sigma.exp_m1() * total,
            Self::Euler { amount } => amount * total,
        }
    }

    /// c, a and b for the step over a vocabulary of `vocab` tokens: the weight of another token y is
    /// a (s(y) − c Σ s), that of the row's own 1 − b Σ s, up to a common factor.
    fn weights(self, vocab: usize) -> [f32; 3] {
        let vocab = vocab as f64;
        let [c, a, b] = match self {
            Self::Analytic { delta_sigma } => {
                let delta = f64::from(delta_sigma);
                let c = -(-delta).exp_m1() / vocab;
                // How much less likely than the own token the forward step makes another.
                let another = delta.exp_m1() / (delta.exp_m1() + vocab);
                [c, another, c]
            }
            Self::Euler { amount } => {
                let another = f64::from(amount) / (f64::from(amount) + vocab);
                [0.0, another, another]
            }
        };
        [c as f32, a as f32, b as f32]
    }
}

/// Logarithms `[rows, vocab]`, up to a constant a row, of the probabilities with which each row's slot becomes
/// each token in a reverse step of the uniform process. `log_scores` are `[rows, vocab]` with 0 at the token that
/// the row holds. What a formula makes negative, as it may of scores that are no ratios of probabilities, has
/// probability zero.
///
/// # Errors
/// A device's.
pub fn uniform_reverse(
    log_scores: &Tensor,
    held: &[TokenId],
    steps: &[ScoreStep],
) -> Result<Tensor> {
    let (rows, vocab) = log_scores.dims2()?;
    let device = log_scores.device();
    let log_scores = log_scores.to_dtype(DType::F32)?;
    let weights: Vec<[f32; 3]> = steps.iter().map(|step| step.weights(vocab)).collect();
    let column = |which: usize| {
        let column: Vec<f32> = weights.iter().map(|weights| weights[which]).collect();
        transfer::to_device(&column, (rows, 1), device)
    };
    // In units of the largest score, which keeps sums finite.
    let largest = log_scores.max_keepdim(D::Minus1)?;
    let scores = log_scores.broadcast_sub(&largest)?.exp()?;
    let total = scores.sum_keepdim(D::Minus1)?;
    let others = scores.broadcast_sub(&(&total * column(0)?)?)?.relu()?;
    let others = others.broadcast_mul(&column(1)?)?;
    // However small it is beside the largest score, a step of no length keeps the own token.
    let own = (largest.neg()?.exp()? + f64::from(f32::MIN_POSITIVE))?;
    let own = (own - (total * column(2)?)?)?.relu()?;
    let held = transfer::to_device(held, (rows, 1), device)?;
    others.contiguous()?.scatter(&held, &own, 1)?.log()
}
