//! The noise levels that a network is told, and the reverse steps between them.

use super::ModelSpec;
use crate::canvas::Canvas;
use crate::decode::{Budget, Decoder};
use crate::sampling::score::ScoreStep;

impl ModelSpec {
    /// The noise level σ(t) = −ln α(t) of time t, for a network that takes it; `None` without a noise
    /// schedule.
    pub fn sigma(&self, t: f32) -> Option<f32> {
        let schedule = self.noise_schedule.as_ref()?;
        Some(-(-schedule.one_minus_alpha(f64::from(t))).ln_1p() as f32)
    }

    /// The noise level σ = −ln α at which the process masks `share` of the slots that it masks at time 1, for a
    /// network that takes it: 1 − α = share · (1 − α(1)), but never less than the schedule's first level. `share` is in
    /// [0, 1]; `None` without a noise schedule.
    ///
    /// The samplers of such networks (`sampling.py` of louaaron/Score-Entropy-Discrete-Diffusion, `diffusion.py` of
    /// kuleshov-group/mdlm) walk t from 1 to 0 over the slots to be filled, whatever fixed text is around them. With
    /// all of them masked t is 1 and the level the schedule's last; on the log-linear schedule,
    /// 1 − α(t) = t (1 − α(1)), the share is the time t itself.
    pub fn sigma_of_masked(&self, share: f64) -> Option<f32> {
        let schedule = self.noise_schedule.as_ref()?;
        let masked = share * schedule.one_minus_alpha(1.0);
        let masked = masked.max(schedule.one_minus_alpha(0.0));
        Some(-(-masked).ln_1p() as f32)
    }

    /// The noise level σ that the network is told at the next step of `decoder` on `canvas`. `None` without a noise
    /// schedule.
    ///
    /// Budgets by scores take their steps between the levels of the network's own schedule. The times of `ancestral` are
    /// shares of masked slots ([`Decoder::expected_masked_share`]). Otherwise it is the share of the slots to be filled
    /// that is masked on the canvas.
    pub fn step_sigma(&self, decoder: &Decoder, canvas: &Canvas) -> Option<f32> {
        if decoder.budget().is_by_scores() {
            return self.sigma(decoder.times()?.0);
        }
        let expected = decoder.expected_masked_share();
        self.sigma_of_masked(expected.unwrap_or_else(|| canvas.masked_share()))
    }

    /// The reverse step that `budget` takes from time t to s of a network that gives log-scores; at s = 0 it
    /// is the one to clean text. `None` without a noise schedule, or of another budget.
    pub fn score_step(&self, budget: Budget, t: f32, s: f32) -> Option<ScoreStep> {
        let schedule = self.noise_schedule.as_ref()?;
        match budget {
            Budget::Analytic { .. } | Budget::Euler { .. } if s == 0.0 => {
                let delta_sigma = self.sigma(t)?;
                Some(ScoreStep::Analytic { delta_sigma })
            }
            Budget::Analytic { .. } => Some(ScoreStep::Analytic {
                delta_sigma: self.sigma(t)? - self.sigma(s)?,
            }),
            Budget::Euler { .. } => Some(ScoreStep::Euler {
                amount: (t - s) * schedule.rate(f64::from(t)) as f32,
            }),
            _ => None,
        }
    }
}
