//! The evidence lower bound, as its negative (NELBO, in nats): −ln p_θ(x_0) ≤ NELBO.
//!
//! **Discrete time** (D3PM, arXiv:2107.03006, eq. 1):
//!
//! ```text
//! NELBO = KL(q(x_T | x_0) ‖ p(x_T))                                          prior
//!       + Σ_{t=2}^T E_{q(x_t|x_0)} KL(q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t))   diffusion
//!       + E_{q(x_1|x_0)} [−ln p_θ(x_0 | x_1)]                                reconstruction
//! ```
//!
//! **Continuous time**: the sum becomes ∫₀¹ E_{q(x_t|x_0)} [[`nelbo_integrand`]] dt; the other two terms are
//! taken at α(1) and α(0) and vanish where these are 0 and 1.
//!
//! Every function is about one slot; the terms of a sequence are sums over its slots, the expectation
//! being over all of them together, because the denoiser has seen the whole noisy sequence. As
//! everywhere in this module, `denoiser` is p_θ(x̂_0 | x_t); a network that is to be read as the plug-in
//! x_θ of UDLM goes through [`Process::denoiser_from_leave_one_out`] first.

use super::categorical::{SMALLEST_EVIDENCE, divergence};
use super::{Categorical, DiscreteSchedule, Error, Interval, Noise, NoiseLevel, Process, Schedule};

/// The three terms of the discrete-time bound for one slot, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiscreteNelbo {
    /// KL(q(x_T | x_0) ‖ p(x_T)).
    pub prior: f64,
    /// Σ_{t=2}^T E KL(q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t)).
    pub diffusion: f64,
    /// E [−ln p_θ(x_0 | x_1)].
    pub reconstruction: f64,
}

impl DiscreteNelbo {
    /// The bound: the sum of its terms.
    pub fn total(&self) -> f64 {
        self.prior + self.diffusion + self.reconstruction
    }
}

/// KL(q(x_T | x_0) ‖ `prior`), where `last` is the noise up to T (or t = 1).
///
/// Zero for `prior` = π ([`Process::stationary`]) if no signal is left. Infinite if some is and the
/// process absorbs: then π gives x_0 no probability (the geometric and the linear schedule do this).
///
/// # Errors
/// [`Error::StateOutOfRange`], [`Error::LengthMismatch`].
pub fn prior_term(
    process: &Process,
    last: NoiseLevel,
    x_0: usize,
    prior: &Categorical,
) -> Result<f64, Error> {
    process.marginal(last, x_0)?.kl(prior)
}

/// KL(q(x_s | x_t, x_0) ‖ p_θ(x_s | x_t)), before the expectation over x_t.
///
/// For a masked slot of the absorbing process, whose denoiser gives the mask no probability, it is
/// (α_s − α_t)/(1 − α_t) · (−ln p_θ(x_0 | x_t)); for an unmasked one it is zero.
///
/// # Errors
/// As [`Process::posterior`] and [`Process::reverse`].
pub fn diffusion_term(
    process: &Process,
    interval: &Interval,
    x_t: usize,
    x_0: usize,
    denoiser: &Categorical,
) -> Result<f64, Error> {
    process
        .posterior(interval, x_t, x_0)?
        .kl(&process.reverse(interval, x_t, denoiser)?)
}

/// −ln p_θ(x_0 | x_1), before the expectation over x_1, where `first` is the noise up to step 1 (or
/// t = 0). Zero for an unmasked slot of the absorbing process; infinite if the denoiser excludes x_0.
///
/// # Errors
/// As [`Process::reverse`].
pub fn reconstruction_term(
    process: &Process,
    first: NoiseLevel,
    x_1: usize,
    x_0: usize,
    denoiser: &Categorical,
) -> Result<f64, Error> {
    let whole = Interval::new(NoiseLevel::CLEAN, first);
    process.check("x_0", x_0)?;
    let probability = process.reverse(&whole, x_1, denoiser)?.probability(x_0);
    Ok(-probability.ln() + 0.0)
}

/// The discrete-time bound of one slot, with the expectations taken exactly over the K states of x_t.
///
/// `denoiser(x_t, t)` gives p_θ(x̂_0 | x_t); it is asked only for x_t that x_0 can become.
///
/// # Errors
/// Those of the three terms, and whatever `denoiser` returns.
pub fn discrete_nelbo(
    process: &Process,
    schedule: &DiscreteSchedule,
    x_0: usize,
    prior: &Categorical,
    mut denoiser: impl FnMut(usize, usize) -> Result<Categorical, Error>,
) -> Result<DiscreteNelbo, Error> {
    let last = schedule.level(schedule.steps())?;
    let prior = prior_term(process, last, x_0, prior)?;
    let (mut diffusion, mut reconstruction) = (0.0, 0.0);
    for t in 1..=schedule.steps() {
        let interval = schedule.interval(t - 1, t)?;
        let marginal = process.marginal(interval.at_t(), x_0)?;
        let states = marginal.probabilities().iter().enumerate();
        for (x_t, q) in states.filter(|(_, q)| **q >= SMALLEST_EVIDENCE) {
            let p = denoiser(x_t, t)?;
            if t == 1 {
                reconstruction += q * reconstruction_term(process, interval.at_t(), x_t, x_0, &p)?;
            } else {
                diffusion += q * diffusion_term(process, &interval, x_t, x_0, &p)?;
            }
        }
    }
    Ok(DiscreteNelbo {
        prior,
        diffusion,
        reconstruction,
    })
}

/// What one slot adds to the integrand of the continuous-time NELBO at time t, before the expectation
/// over x_t ~ q(x_t | x_0).
///
/// Both cases come from the rate form (Campbell et al., arXiv:2205.14987; SEDD, arXiv:2310.16834),
/// with the score s_θ and the score r(y) = q(y | x_0) / q(x_t | x_0) of the true posterior:
///
/// ```text
/// Σ_{y ≠ x_t} [R_t]_{x_t,y} (s_θ(y) − r(y) − r(y) ln(s_θ(y) / r(y)))
/// ```
///
/// *Absorbing*: −α′/(1 − α) · (−ln p_θ(x_0 | x_t)) on a masked slot, zero on an unmasked one (MDLM,
/// arXiv:2406.07524, eq. 11; MD4, arXiv:2406.04329). This is for a denoiser that gives the mask no
/// probability; the rate form takes p_θ(m | x_t) off the cross-entropy otherwise, and so does this
/// function. Integrated over t it depends on the schedule through α(0) and α(1) alone.
///
/// *Uniform*: −α′/(α K) · Σ_{y ≠ x_t} (s_θ − r − r ln(s_θ/r)). With a plug-in denoiser this is UDLM's
/// bound (Schiff et al., arXiv:2412.10193). It tends to zero as α → 0.
///
/// # Errors
/// [`Error::TimeOutOfRange`], [`Error::StateOutOfRange`], [`Error::LengthMismatch`],
/// [`Error::Impossible`] where q(x_t | x_0) = 0, [`Error::Unreachable`]; [`Error::NoScore`] for the uniform
/// process at α = 1.
pub fn nelbo_integrand(
    process: &Process,
    schedule: &Schedule,
    t: f64,
    x_t: usize,
    x_0: usize,
    denoiser: &Categorical,
) -> Result<f64, Error> {
    let level = schedule.level(t)?;
    // Also checks the arguments: an impossible pair is found here.
    let posterior_score = posterior_score(process, level, x_t, x_0)?;
    denoiser.check_states(process.states())?;
    match process.noise() {
        Noise::Absorbing { mask } if x_t != mask => Ok(0.0),
        Noise::Absorbing { mask } => {
            let weight = schedule.weight(t);
            let masked = denoiser.probability(mask);
            let excess = match x_0 == mask {
                true => 1.0 - masked,
                false => -denoiser.probability(x_0).ln() - masked,
            };
            Ok(if weight == 0.0 {
                0.0
            } else {
                weight * excess.max(0.0)
            })
        }
        Noise::Uniform if level.alpha() == 0.0 => Ok(0.0),
        Noise::Uniform => {
            let score = process.score(level, x_t, denoiser)?;
            let pairs = posterior_score.iter().zip(&score).enumerate();
            let terms = pairs
                .filter(|(y, _)| *y != x_t)
                .map(|(_, (r, s))| divergence(*r, *s));
            Ok(schedule.rate(t) * process.pi(x_t) * terms.sum::<f64>())
        }
    }
}

/// Σ_{y ≠ x_t} (s_θ − r − r ln(s_θ/r)) of the uniform process for a plug-in network: K α/−α′ times the
/// [integrand](nelbo_integrand) of the continuous-time NELBO (UDLM, arXiv:2412.10193), in nats and in O(K).
///
/// `others` is the network's x_θ, `[K]`, read as p(x_0 | the other slots of x_t); `signal` is w = K α/(1 − α)
/// ([`Process::signal`]). With φ(y) = y − ln(1 + y), p = x_θ and i = x_t it is
///
/// ```text
/// x_0 ≠ i:  (K + w) (ln(1 + w p_i) − w p_i/(1 + w p_i)) + Σ_y φ(w p_y) + (1 + w) ln(1 + w) − w − w ln(1 + w p_{x_0})
/// x_0 = i:  ((K − 1) φ(x) + w (1 − p_i) x + Σ_{y ≠ i} φ(w p_y)) / (1 + w),      x = w (1 − p_i)/(1 + w p_i)
/// ```
///
/// every part of which is as small as w² where w is small: written with s_θ and r it is a difference of
/// numbers as large as K.
///
/// # Panics
/// If `x_t` or `x_0` is not below K.
pub fn plug_in_divergence(signal: f64, x_t: usize, x_0: usize, others: &[f64]) -> f64 {
    let (w, states) = (signal, others.len() as f64);
    let phi = |y: f64| y - y.ln_1p();
    let sum: f64 = others.iter().map(|p| phi(w * p)).sum();
    let at = others[x_t];
    if x_t != x_0 {
        let y = w * at;
        let own = (states + w) * (y.ln_1p() - y / (1.0 + y));
        let certain = (1.0 + w) * w.ln_1p() - w;
        return own + sum + certain - w * (w * others[x_0]).ln_1p();
    }
    let rest: f64 = w * (1.0 - at);
    let x = rest / (1.0 + w * at);
    ((states - 1.0) * phi(x) + rest * x + sum - phi(w * at)) / (1.0 + w)
}

/// The score entropy π(x_t) Σ_{y ≠ x_t} (s_y − r_y ln s_y + r_y (ln r_y − 1)) of one slot, where r_y =
/// q(y | x_0) / q(x_t | x_0) and `log_scores`, `[K]`, are ln s_y (SEDD, arXiv:2310.16834, eq. 13): −α′/α times it is the
/// integrand of the continuous-time NELBO. In nats, at least 0, and 0 at the unmasked slots of the absorbing
/// process. The entry of x_t itself is not read.
///
/// # Errors
/// [`Error::StateOutOfRange`], [`Error::LengthMismatch`], [`Error::Impossible`] where q(x_t | x_0) = 0.
pub fn score_entropy(
    process: &Process,
    level: NoiseLevel,
    x_t: usize,
    x_0: usize,
    log_scores: &[f64],
) -> Result<f64, Error> {
    let ratios = posterior_score(process, level, x_t, x_0)?;
    if log_scores.len() != ratios.len() {
        return Err(Error::LengthMismatch {
            name: "the log-scores",
            given: log_scores.len(),
            expected: ratios.len(),
        });
    }
    let rate = process.pi(x_t);
    if rate == 0.0 {
        return Ok(0.0);
    }
    let pairs = ratios.iter().zip(log_scores).enumerate();
    let terms = pairs
        .filter(|(y, _)| *y != x_t)
        .map(|(_, (&r, &log_score))| {
            let of_ratio = match r > 0.0 {
                true => r * (r.ln() - 1.0 - log_score),
                false => 0.0,
            };
            log_score.exp() + of_ratio
        });
    Ok(rate * terms.sum::<f64>())
}

/// r(y) = q(y | x_0) / q(x_t | x_0), `[K]`.
fn posterior_score(
    process: &Process,
    level: NoiseLevel,
    x_t: usize,
    x_0: usize,
) -> Result<Vec<f64>, Error> {
    process.check("x_t", x_t)?;
    let marginal = process.marginal(level, x_0)?;
    let evidence = marginal.probability(x_t);
    if evidence < SMALLEST_EVIDENCE {
        return Err(Error::Impossible {
            x_t,
            x_0,
            alpha: level.alpha(),
        });
    }
    Ok(marginal
        .probabilities()
        .iter()
        .map(|q| q / evidence)
        .collect())
}
