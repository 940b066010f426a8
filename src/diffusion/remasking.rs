//! ReMDM: a reverse process that may mask a committed slot again (Wang et al., arXiv:2503.00307).
//!
//! For the absorbing process and any σ with 0 ≤ σ ≤ min(1, (1 − α_s)/α_t), the posterior
//!
//! ```text
//! x_t ≠ m:   q_σ(x_s | x_t, x_0) = (1 − σ) δ_{x_t} + σ e_m
//! x_t = m:   q_σ(x_s | x_t, x_0) = (α_s − (1 − σ) α_t)/(1 − α_t) δ_{x_0} + (1 − α_s − σ α_t)/(1 − α_t) e_m
//! ```
//!
//! has the marginals q(x_s | x_0) of the forward process. So a denoiser trained for the forward process can
//! be sampled with any σ; σ = 0 is the posterior of [`super::posterior`]. The bound on σ is what keeps the
//! last coefficient from being negative.
//!
//! How to choose σ: [`cap`], [`rescale`], [`conf`] (which spreads it over slots by confidence) and
//! [`RemaskingLoop`] (which does it at a level of its own). [`super::flow`] adds two that come from a rate.
//!
//! That holds where σ is the same in both lines. [`conf`] gives σ⁽ˡ⁾ to the committed slots and none to the masked
//! ones, which leaves α_s − σ⁽ˡ⁾ α_t of the slots clean. With the mean σ̄ of the committed slots as that of the masked
//! ones, the expected number of clean slots is the process's again, where it was so before.

use super::categorical::check_state;
use super::schedule::check_time;
use super::{Categorical, Error, Interval, NoiseLevel, Process, Schedule};

/// min(1, (1 − α_s)/α_t), the largest σ; 1 where α_t = 0.
pub fn sigma_max(interval: &Interval) -> f64 {
    let (noise_s, alpha_t) = (interval.at_s().one_minus_alpha(), interval.at_t().alpha());
    if noise_s >= alpha_t {
        1.0
    } else {
        noise_s / alpha_t
    }
}

/// ReMDM-cap: min(η, σ_max).
///
/// # Errors
/// [`Error::Parameter`] unless η lies in [0, 1].
pub fn cap(interval: &Interval, eta: f64) -> Result<f64, Error> {
    check_eta(eta)?;
    Ok(eta.min(sigma_max(interval)))
}

/// ReMDM-rescale: η σ_max.
///
/// # Errors
/// [`Error::Parameter`] unless η lies in [0, 1].
pub fn rescale(interval: &Interval, eta: f64) -> Result<f64, Error> {
    check_eta(eta)?;
    Ok(eta * sigma_max(interval))
}

/// ReMDM-conf: slot ℓ gets σ · η_ℓ with η = softmax(−ψ) over the unmasked slots, so that the slots
/// that were committed with the least confidence are masked again first.
///
/// `confidences` has one entry a slot: ψ_ℓ, the model's probability of the token when it was committed, or
/// `None` where the slot is masked (or fixed), which gets zero and takes no part in the softmax. The
/// result, one entry a slot, sums to σ, and each is at most σ.
///
/// A masked slot that is then revealed with σ = 0 does not make up for what is masked again: the marginals are
/// not those of the forward process.
///
/// # Errors
/// [`Error::Parameter`] if σ is outside [0, 1] or a confidence is not finite.
pub fn conf(sigma: f64, confidences: &[Option<f64>]) -> Result<Vec<f64>, Error> {
    check_unit("σ", sigma)?;
    if let Some(value) = confidences.iter().flatten().find(|psi| !psi.is_finite()) {
        let (name, allowed) = ("a confidence", "finite");
        return Err(Error::Parameter {
            name,
            value: *value,
            allowed,
        });
    }
    let least = confidences
        .iter()
        .flatten()
        .copied()
        .fold(f64::INFINITY, f64::min);
    let weight = |psi: &Option<f64>| psi.map_or(0.0, |psi| (least - psi).exp());
    let total: f64 = confidences.iter().map(weight).sum();
    let share = |psi| {
        if total > 0.0 {
            sigma * weight(psi) / total
        } else {
            0.0
        }
    };
    Ok(confidences.iter().map(share).collect())
}

/// ReMDM-loop: denoise to α_on by time t_on, stay there and re-mask until t_off, then finish.
///
/// The underlying schedule α is squeezed into the two outer phases: for t ≥ t_on,
/// α_on α((t − t_on)/(1 − t_on)); between, α_on; for t ≤ t_off, 1 − (1 − α_on)(1 − α(t/t_off)).
#[derive(Debug, Clone, PartialEq)]
pub struct RemaskingLoop {
    schedule: Schedule,
    t_on: f64,
    t_off: f64,
    on: NoiseLevel,
}

impl RemaskingLoop {
    /// The loop from `t_on` down to `t_off` at survival probability `alpha_on`. The paper's setting for text
    /// is t_on = 0.55, t_off = 0.05, α_on = 0.9, with η = 0.02.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`], [`Error::TimesReversed`] if t_off > t_on; [`Error::AlphaOutOfRange`].
    pub fn new(schedule: Schedule, t_on: f64, t_off: f64, alpha_on: f64) -> Result<Self, Error> {
        check_time("t_on", t_on)?;
        check_time("t_off", t_off)?;
        if t_off > t_on {
            return Err(Error::TimesReversed { s: t_off, t: t_on });
        }
        Ok(Self {
            schedule,
            t_on,
            t_off,
            on: NoiseLevel::from_alpha(alpha_on)?,
        })
    }

    /// α and 1 − α at time t.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`].
    pub fn level(&self, t: f64) -> Result<NoiseLevel, Error> {
        check_time("t", t)?;
        if t > self.t_on {
            let phase = (t - self.t_on) / (1.0 - self.t_on);
            return Ok(self.on.then(self.schedule.level(phase)?));
        }
        if t < self.t_off {
            let inner = self.schedule.level(t / self.t_off)?;
            let (alpha, noise) = (self.on.alpha(), self.on.one_minus_alpha());
            return Ok(NoiseLevel::from_parts(
                inner.alpha() + alpha * inner.one_minus_alpha(),
                noise * inner.one_minus_alpha(),
            ));
        }
        Ok(self.on)
    }

    /// The noise at s, at t, and between them.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`], [`Error::TimesReversed`] if s > t.
    pub fn interval(&self, s: f64, t: f64) -> Result<Interval, Error> {
        let (at_s, at_t) = (self.level(s)?, self.level(t)?);
        if s > t {
            return Err(Error::TimesReversed { s, t });
        }
        Ok(Interval::between_monotone(at_s, at_t))
    }

    /// σ of the step from t to s: [`cap`] for t_off < t ≤ t_on, zero in the outer phases.
    ///
    /// # Errors
    /// As [`Self::interval`]; [`Error::Parameter`] unless η lies in [0, 1].
    pub fn sigma(&self, s: f64, t: f64, eta: f64) -> Result<f64, Error> {
        let sigma = cap(&self.interval(s, t)?, eta)?;
        Ok(if self.t_off < t && t <= self.t_on {
            sigma
        } else {
            0.0
        })
    }
}

/// The probability that a masked slot is revealed during the step, (α_s − (1 − σ) α_t)/(1 − α_t), in
/// [0, 1]. `None` where α_t = 1, when no slot is masked.
///
/// # Errors
/// [`Error::SigmaOutOfRange`].
pub fn unmasking_probability(interval: &Interval, sigma: f64) -> Result<Option<f64>, Error> {
    check_sigma(interval, sigma)?;
    let masked = interval.at_t().one_minus_alpha();
    let revealed = interval.alpha_difference() + sigma * interval.at_t().alpha();
    Ok((masked > 0.0).then(|| (revealed / masked).min(1.0)))
}

/// q_σ(x_s | x_t, x_0).
///
/// # Errors
/// [`Error::NotAbsorbing`], [`Error::StateOutOfRange`], [`Error::SigmaOutOfRange`];
/// [`Error::Impossible`] where q(x_t | x_0) = 0.
pub fn posterior(
    process: &Process,
    interval: &Interval,
    sigma: f64,
    x_t: usize,
    x_0: usize,
) -> Result<Categorical, Error> {
    let impossible = Error::Impossible {
        x_t,
        x_0,
        alpha: interval.at_t().alpha(),
    };
    process.check("x_t", x_t)?;
    if process.transition(interval.at_t(), x_t, x_0)? <= 0.0 {
        return Err(impossible);
    }
    let clean = Categorical::one_hot(process.states(), x_0)?;
    reverse(process, interval, sigma, x_t, &clean)
}

/// The reverse step p_θ(x_s | x_t) = Σ_{x̂_0} q_σ(x_s | x_t, x̂_0) p_θ(x̂_0 | x_t). As in
/// [`Process::reverse`], an unmasked slot is certain of itself and `denoiser` is not read.
///
/// # Errors
/// [`Error::NotAbsorbing`], [`Error::StateOutOfRange`], [`Error::LengthMismatch`],
/// [`Error::SigmaOutOfRange`]; [`Error::Unreachable`] where x_t is impossible: masked at α_t = 1 or unmasked
/// at α_t = 0.
pub fn reverse(
    process: &Process,
    interval: &Interval,
    sigma: f64,
    x_t: usize,
    denoiser: &Categorical,
) -> Result<Categorical, Error> {
    let mask = process.mask().ok_or(Error::NotAbsorbing)?;
    check_state("x_t", x_t, process.states())?;
    denoiser.check_states(process.states())?;
    let revealed = unmasking_probability(interval, sigma)?;
    let unreachable = Error::Unreachable {
        x_t,
        alpha: interval.at_t().alpha(),
    };
    let mut x_s = vec![0.0; process.states()];
    if x_t == mask {
        let revealed = revealed.ok_or(unreachable)?;
        let target = x_s.iter_mut().zip(denoiser.probabilities());
        target.for_each(|(x_s, p)| *x_s = revealed * p);
        // Not 1 − revealed, which cancels towards the end of denoising.
        let (at_s, at_t) = (interval.at_s(), interval.at_t());
        let masked = at_s.one_minus_alpha() - sigma * at_t.alpha();
        x_s[mask] += (masked / at_t.one_minus_alpha()).max(0.0);
    } else if interval.at_t().alpha() > 0.0 {
        x_s[x_t] = 1.0 - sigma;
        x_s[mask] = sigma;
    } else {
        return Err(unreachable);
    }
    Ok(Categorical::from_closed_form(x_s))
}

fn check_eta(eta: f64) -> Result<(), Error> {
    check_unit("ReMDM's η", eta)
}

fn check_unit(name: &'static str, value: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    let allowed = "a number in [0, 1]";
    Err(Error::Parameter {
        name,
        value,
        allowed,
    })
}

fn check_sigma(interval: &Interval, sigma: f64) -> Result<(), Error> {
    let largest = sigma_max(interval);
    if (0.0..=largest).contains(&sigma) {
        return Ok(());
    }
    Err(Error::SigmaOutOfRange { sigma, largest })
}
