//! Noise schedules: how much of the clean text is left at time `t`.
//!
//! In **continuous time** t ∈ [0, 1] a schedule is its survival probability α(t), which never
//! increases. Everything else follows from it: α′(t), the noising rate −α′/α, and the weight −α′/(1 − α).
//! In **discrete time** t ∈ {0, …, T} it is the sequence β_t of [`DiscreteSchedule`], with
//! ᾱ_t = Π_{s≤t} (1 − β_s) and ᾱ_0 = 1.
//!
//! | written as | α(t) | source |
//! |---|---|---|
//! | `log-linear` | 1 − t | MDLM, arXiv:2406.07524; LLaDA |
//! | `d3pm` (the same) | β_t = 1/(T − t + 1), so ᾱ_t = 1 − t/T | D3PM, arXiv:2107.03006 |
//! | `cosine:s` | cos²(π/2 · (t + s)/(1 + s)) / cos²(π/2 · s/(1 + s)); s = 0.008 if left out | arXiv:2102.09672, arXiv:2102.05379 |
//! | `maskgit` | 1 − sin(π t / 2) | MaskGIT, arXiv:2202.04200; MD4's "cosine", arXiv:2406.04329 |
//! | `polynomial:p` | 1 − t^p | MD4, arXiv:2406.04329 |
//! | `geometric:a,b` | exp(−a^{1−t} b^t) | SEDD, arXiv:2310.16834 |
//! | `linear-beta:a,b` | exp(−(a t + (b − a) t²/2)) | arXiv:2006.11239 with β_t·T from a to b |
//! | `table:α,α,…` | straight lines between equally spaced entries | |
//!
//! What is exact: the first four have α(0) = 1, and all but `geometric`, `linear-beta` and a table that
//! stops short have α(1) = 0, to the last bit. α and 1 − α are computed separately (see
//! [`NoiseLevel`]), so each is right to a few units in the last place of *itself* at both ends. The
//! geometric schedule starts at α(0) = exp(−a) < 1 and ends at exp(−b) > 0, the linear one ends at
//! exp(−(a + b)/2) > 0: for those the bound has a reconstruction or a prior term that does not vanish.

mod curves;
mod discrete;
mod parse;
mod table;

pub use curves::{Cosine, Geometric, LinearBeta, Polynomial};
pub use discrete::DiscreteSchedule;
pub use table::Table;

use super::{Error, Interval, NoiseLevel};
use curves::{Curve, LogLinear, MaskGit};

/// A noise schedule. Cheap to clone; parsed from and printed as text (see the [module](self)).
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// α(t) = 1 − t, the log-linear schedule of MDLM (Sahoo et al., arXiv:2406.07524) and LLaDA. In
    /// discrete time it is the absorbing schedule of D3PM, β_t = 1/(T − t + 1).
    LogLinear,
    /// The squared cosine of Nichol & Dhariwal (arXiv:2102.09672).
    Cosine(Cosine),
    /// α(t) = 1 − sin(π t / 2): MaskGIT's cosine of the *masked* share (Chang et al., arXiv:2202.04200).
    MaskGit,
    /// α(t) = 1 − t^p.
    Polynomial(Polynomial),
    /// α(t) = exp(−σ̄(t)) with σ̄ growing geometrically.
    Geometric(Geometric),
    /// β_t growing linearly.
    LinearBeta(LinearBeta),
    /// α from a table.
    Table(Table),
}

impl Schedule {
    /// The squared cosine with offset `s` ≥ 0.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `s` is negative or not finite.
    pub fn cosine(s: f64) -> Result<Self, Error> {
        Cosine::new(s).map(Self::Cosine)
    }

    /// α(t) = 1 − t^`power`.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless `power` is positive and finite.
    pub fn polynomial(power: f64) -> Result<Self, Error> {
        Polynomial::new(power).map(Self::Polynomial)
    }

    /// σ̄(t) from `min` to `max`, geometrically.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless 0 < `min` ≤ `max`, both finite.
    pub fn geometric(min: f64, max: f64) -> Result<Self, Error> {
        Geometric::new(min, max).map(Self::Geometric)
    }

    /// β per unit of time from `min` to `max`, linearly.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless 0 ≤ `min` ≤ `max`, `max` > 0, both finite.
    pub fn linear_beta(min: f64, max: f64) -> Result<Self, Error> {
        LinearBeta::new(min, max).map(Self::LinearBeta)
    }

    /// α at equally spaced times; the first entry is α(0), the last α(1).
    ///
    /// # Errors
    /// [`Error::ShortTable`] for fewer than two entries, [`Error::AlphaOutOfRange`],
    /// [`Error::AlphaIncreases`].
    pub fn table(alphas: &[f64]) -> Result<Self, Error> {
        Table::new(alphas).map(Self::Table)
    }

    /// α(t), in [0, 1], for t in [0, 1]; not a number for any other t.
    pub fn alpha(&self, t: f64) -> f64 {
        in_time(t, || self.curve().alpha(t).clamp(0.0, 1.0))
    }

    /// 1 − α(t), in [0, 1], without the cancellation of that subtraction; not a number for t outside [0, 1].
    pub fn one_minus_alpha(&self, t: f64) -> f64 {
        in_time(t, || self.curve().one_minus_alpha(t).clamp(0.0, 1.0))
    }

    /// dα/dt ≤ 0; not a number for t outside [0, 1]. At an entry of a table: the slope to its right.
    pub fn alpha_prime(&self, t: f64) -> f64 {
        in_time(t, || self.curve().alpha_prime(t))
    }

    /// The weight −α′(t) / (1 − α(t)) of the cross-entropy on masked slots in the continuous-time
    /// NELBO (MDLM, eq. 11); not a number for t outside [0, 1].
    ///
    /// Infinite at t = 0 where α(0) = 1. Zero where a table is flat, also at α = 1, where no slot is masked.
    pub fn weight(&self, t: f64) -> f64 {
        in_time(t, || self.curve().weight(t))
    }

    /// The rate −α′(t) / α(t) at which a slot is noised; not a number for t outside [0, 1]. Infinite at
    /// t = 1 where α(1) = 0; zero where a table is flat.
    pub fn rate(&self, t: f64) -> f64 {
        in_time(t, || self.curve().rate(t))
    }

    /// α(t) and 1 − α(t).
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`] unless 0 ≤ t ≤ 1.
    pub fn level(&self, t: f64) -> Result<NoiseLevel, Error> {
        check_time("t", t)?;
        Ok(NoiseLevel::from_parts(
            self.alpha(t),
            self.one_minus_alpha(t),
        ))
    }

    /// The noise at s, at t, and between them.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`] unless both lie in [0, 1], [`Error::TimesReversed`] if s > t.
    pub fn interval(&self, s: f64, t: f64) -> Result<Interval, Error> {
        check_time("s", s)?;
        check_time("t", t)?;
        if s > t {
            return Err(Error::TimesReversed { s, t });
        }
        let at_s = self.level(s)?;
        if s == t {
            return Ok(Interval::new(at_s, NoiseLevel::CLEAN));
        }
        Ok(Interval::between_monotone(at_s, self.level(t)?))
    }

    /// The schedule with T = `steps` steps.
    ///
    /// ᾱ_t = α(t/T), except ᾱ_0 = 1 (step 0 is the data) and except for [`Schedule::LinearBeta`], which
    /// is linear in the β_t themselves; its ᾱ_t tends to α(t/T) as T grows.
    ///
    /// # Errors
    /// [`Error::NoSteps`] if T = 0; [`Error::BetaOutOfRange`] if a linear β_t = β(t)/T exceeds one.
    pub fn discretise(&self, steps: usize) -> Result<DiscreteSchedule, Error> {
        match self {
            _ if steps == 0 => Err(Error::NoSteps),
            Self::LogLinear => DiscreteSchedule::mutual_information(steps),
            Self::LinearBeta(linear) => DiscreteSchedule::from_betas(&linear.betas(steps)),
            _ => {
                let at = |t: usize| self.level(t as f64 / steps as f64);
                DiscreteSchedule::from_levels((1..=steps).map(at).collect::<Result<_, _>>()?)
            }
        }
    }

    fn curve(&self) -> &dyn Curve {
        match self {
            Self::LogLinear => &LogLinear,
            Self::Cosine(curve) => curve,
            Self::MaskGit => &MaskGit,
            Self::Polynomial(curve) => curve,
            Self::Geometric(curve) => curve,
            Self::LinearBeta(curve) => curve,
            Self::Table(curve) => curve,
        }
    }
}

fn in_time(t: f64, value: impl FnOnce() -> f64) -> f64 {
    if (0.0..=1.0).contains(&t) {
        value()
    } else {
        f64::NAN
    }
}

/// # Errors
/// [`Error::TimeOutOfRange`] unless `value` lies in [0, 1].
pub(super) fn check_time(name: &'static str, value: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::TimeOutOfRange { name, value })
}
