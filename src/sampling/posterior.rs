//! Draws from the reverse step p_θ(x_s | x_t), straight from the logits of x̂_0. The twin on CUDA is
//! `kernels/posterior.cu`.
//!
//! [`Process::reverse`] gives state j the weight q(x_t | x_s = j) (α_s c_j + (1 − α_s) π_j C), with
//! c_k = p_θ(k | x_t) / q(x_t | k) and C = Σ c_k. Both processes treat one state i unlike all others, x_t
//! or the mask, so with e = e^(logit − max) and S = Σ e the weight is linear in e:
//!
//! ```text
//! C S = (S − e_i) / q(x_t | k ≠ i) + e_i / q(x_t | i)
//! weight_j = slope · e_j + offset · C S
//! ```
//!
//! with one slope and offset for i and one for the others. The draw is the arg-max of ln weight + Gumbel noise.

use bytemuck::{Pod, Zeroable};

use super::exact::{exp, gumbel, ln};
use super::layout::NONE;
use super::philox::{Draws, Stream};
use super::{SamplingError, mass};
use crate::canvas::TokenId;
use crate::diffusion::{Error, Interval, Noise, Process};

/// A reverse step of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ReverseRow {
    seed: u64,
    step: u32,
    slot: u32,
    special: TokenId,
    impossible: TokenId,
    others: f32,
    own: f32,
    slope: f32,
    offset: f32,
    special_slope: f32,
    special_offset: f32,
}

/// What the kernel finds: 0 and a state, or why the row is no distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ReverseFound {
    /// 0, or the kernel's reason.
    pub status: u32,
    /// x_s.
    pub state: TokenId,
}

impl ReverseRow {
    /// The step of `slot` from `x_t` over `interval`, with noise of (`seed`, `step`, `slot`). `impossible` is
    /// an x̂_0 of no probability: under SUBS the mask.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`]; [`Error::Unreachable`] for a mask at α_t = 1 and for anything else than
    /// the mask at α_t = 0.
    pub fn new(
        process: &Process,
        interval: &Interval,
        x_t: usize,
        impossible: Option<TokenId>,
        (seed, step, slot): (u64, u32, u32),
    ) -> Result<Self, Error> {
        let entry = |level, to, from| process.transition(level, to, from);
        // Some other state; a process has two at least.
        let other = usize::from(x_t == 0);
        let is_mask = process.mask() == Some(x_t);
        let of_others = entry(interval.at_t(), x_t, other)?;
        let of_own = entry(interval.at_t(), x_t, x_t)?;
        if of_own <= 0.0 || (of_others <= 0.0 && is_mask) {
            return Err(Error::Unreachable {
                x_t,
                alpha: interval.at_t().alpha(),
            });
        }
        let is_certain =
            of_others <= 0.0 || (matches!(process.noise(), Noise::Absorbing { .. }) && !is_mask);
        let [others, own, slope, offset, special_slope, special_offset] = if is_certain {
            [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        } else {
            let (alpha, noise) = (interval.at_s().alpha(), interval.at_s().one_minus_alpha());
            let pi = |state| match process.noise() {
                Noise::Absorbing { mask } => f64::from(u8::from(state == mask)),
                Noise::Uniform => 1.0 / process.states() as f64,
            };
            let from_other = entry(interval.step(), x_t, other)?;
            let from_own = entry(interval.step(), x_t, x_t)?;
            // All times q(x_t | k ≠ i), so that nothing overflows.
            [
                1.0,
                of_others / of_own,
                from_other * alpha,
                from_other * noise * pi(other),
                from_own * alpha * (of_others / of_own),
                from_own * noise * pi(x_t),
            ]
        };
        // Weights may be of any scale; the largest coefficient becomes 1.
        let scale = [slope, offset, special_slope, special_offset]
            .into_iter()
            .fold(f64::MIN_POSITIVE, f64::max);
        Ok(Self {
            seed,
            step,
            slot,
            special: x_t as TokenId,
            impossible: impossible.unwrap_or(NONE),
            others: others as f32,
            own: own as f32,
            slope: (slope / scale) as f32,
            offset: (offset / scale) as f32,
            special_slope: (special_slope / scale) as f32,
            special_offset: (special_offset / scale) as f32,
        })
    }

    /// A draw of x_s, given the logits of x̂_0 `[K]`.
    ///
    /// # Errors
    /// If the logits hold NaN, +∞ or nothing but −∞.
    pub fn draw(&self, logits: &[f32]) -> Result<TokenId, SamplingError> {
        let refusal = |what| SamplingError::NotADistribution {
            slot: self.slot as usize,
            step: self.step as usize,
            what,
        };
        let logit = |state: usize| match state as TokenId == self.impossible {
            true => f32::NEG_INFINITY,
            false => logits[state],
        };
        let all = || (0..logits.len()).map(logit);
        if all().any(f32::is_nan) {
            return Err(refusal("NaN"));
        }
        let max = all().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::INFINITY {
            return Err(refusal("+∞"));
        }
        if max == f32::NEG_INFINITY {
            return Err(refusal("no token that could be drawn"));
        }
        let masses: u64 = all().map(|logit| mass(logit, max, 1.0)).sum();
        let sum = masses as f32 * (1.0 / (1u64 << 40) as f32);
        let e = |logit: f32| exp((logit - max).min(0.0));
        let special = e(logit(self.special as usize));
        let total = (sum - special).max(0.0) * self.others + special * self.own;
        let draws = Draws::new(
            self.seed,
            self.step as usize,
            self.slot as usize,
            Stream::Gumbel,
        );
        let mut best = (f32::NEG_INFINITY, None);
        let (mut quad, mut words) = (u32::MAX, [0; 4]);
        for (state, logit) in all().enumerate() {
            let (slope, offset) = match state as TokenId == self.special {
                true => (self.special_slope, self.special_offset),
                false => (self.slope, self.offset),
            };
            let weight = slope * e(logit) + offset * total;
            if weight < f32::MIN_POSITIVE {
                continue;
            }
            if quad != state as u32 / 4 {
                quad = state as u32 / 4;
                words = draws.quad(quad);
            }
            let value = ln(weight) + gumbel(words[state % 4]);
            if value > best.0 {
                best = (value, Some(state as TokenId));
            }
        }
        best.1
            .ok_or_else(|| refusal("no token that could be drawn"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Categorical, NoiseLevel};

    #[test]
    fn states_are_drawn_from_the_reverse_step() {
        let weights = [0.4f64, 0.3, 0.2, 0.06, 0.04];
        let logits: Vec<f32> = weights.iter().map(|p| p.ln() as f32 + 2.0).collect();
        let denoiser = Categorical::from_weights(weights.to_vec()).unwrap();
        for process in [
            Process::absorbing(5, 4).unwrap(),
            Process::uniform(5).unwrap(),
        ] {
            for (alpha_s, alpha_t) in [(0.7, 0.2), (1.0, 0.5), (0.3, 0.0), (0.6, 0.6)] {
                let level = |alpha| NoiseLevel::from_alpha(alpha).unwrap();
                let interval = Interval::between(level(alpha_s), level(alpha_t)).unwrap();
                for x_t in 0..5 {
                    let Ok(truth) = process.reverse(&interval, x_t, &denoiser) else {
                        let row = ReverseRow::new(&process, &interval, x_t, None, (5, 1, 0));
                        assert!(matches!(row, Err(Error::Unreachable { .. })));
                        continue;
                    };
                    let draws = 20_000;
                    let mut counts = [0; 5];
                    for slot in 0..draws {
                        let row =
                            ReverseRow::new(&process, &interval, x_t, None, (5, 1, slot)).unwrap();
                        counts[row.draw(&logits).unwrap() as usize] += 1;
                    }
                    let mut statistic = 0.0;
                    for (state, &count) in counts.iter().enumerate() {
                        let expected = truth.probability(state) * f64::from(draws);
                        match expected > 1e-9 {
                            true => {
                                statistic += (f64::from(count) - expected).powi(2) / expected;
                            }
                            false => assert_eq!(count, 0, "{process:?} {x_t}: {counts:?}"),
                        }
                    }
                    // The 99.99 % quantile of χ² with 4 degrees of freedom, for 40 cases.
                    assert!(statistic < 23.5, "{process:?} {x_t}: {counts:?} {truth:?}");
                }
            }
        }
    }

    #[test]
    fn a_mask_without_noise_is_refused_and_a_clean_token_stays() {
        let interval = Interval::between(NoiseLevel::CLEAN, NoiseLevel::CLEAN).unwrap();
        let new =
            |process: Process, x_t| ReverseRow::new(&process, &interval, x_t, None, (0, 0, 0));
        let absorbing = Process::absorbing(5, 4).unwrap();
        assert!(matches!(new(absorbing, 4), Err(Error::Unreachable { .. })));
        for process in [absorbing, Process::uniform(5).unwrap()] {
            let row = new(process, 2).unwrap();
            assert_eq!(row.draw(&[9.0, 0.0, -5.0, 0.0, 0.0]).unwrap(), 2);
        }
    }
}
