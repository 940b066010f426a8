//! One block a schedule: α, 1 − α and α′ in forms that are accurate at both ends of [0, 1].

use std::f64::consts::{FRAC_PI_2, PI};

use crate::diffusion::Error;

/// The functions of continuous time that a schedule gives, for t in [0, 1].
pub(super) trait Curve {
    fn alpha(&self, t: f64) -> f64;
    fn one_minus_alpha(&self, t: f64) -> f64;
    fn alpha_prime(&self, t: f64) -> f64;

    /// −α′ / (1 − α).
    fn weight(&self, t: f64) -> f64 {
        speed(-self.alpha_prime(t), self.one_minus_alpha(t))
    }

    /// −α′ / α.
    fn rate(&self, t: f64) -> f64 {
        speed(-self.alpha_prime(t), self.alpha(t))
    }
}

/// `slope` / `what`, where a flat stretch has speed zero even if nothing is left to move.
fn speed(slope: f64, what: f64) -> f64 {
    if slope == 0.0 { 0.0 } else { slope / what }
}

/// # Errors
/// [`Error::Parameter`] unless `value` is finite and `holds`.
fn parameter(
    name: &'static str,
    value: f64,
    holds: bool,
    allowed: &'static str,
) -> Result<(), Error> {
    if value.is_finite() && holds {
        return Ok(());
    }
    Err(Error::Parameter {
        name,
        value,
        allowed,
    })
}

/// α = 1 − t.
pub(super) struct LogLinear;

impl Curve for LogLinear {
    fn alpha(&self, t: f64) -> f64 {
        1.0 - t
    }
    fn one_minus_alpha(&self, t: f64) -> f64 {
        t
    }
    fn alpha_prime(&self, _: f64) -> f64 {
        -1.0
    }
}

/// α(t) = cos²φ(t) / cos²φ(0) with φ(t) = π/2 · (t + s)/(1 + s) (Nichol & Dhariwal, arXiv:2102.09672,
/// eq. 17; for discrete states Hoogeboom et al., arXiv:2102.05379). Their clipping of β_t to 0.999 is
/// left out: it only kept α(1) away from zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosine {
    s: f64,
}

impl Cosine {
    /// The schedule with offset `s`.
    ///
    /// # Errors
    /// [`Error::Parameter`] if `s` is negative or not finite.
    pub fn new(s: f64) -> Result<Self, Error> {
        parameter(
            "the cosine schedule's offset",
            s,
            s >= 0.0,
            "finite and at least 0",
        )?;
        Ok(Self { s })
    }

    /// The offset s.
    pub fn offset(&self) -> f64 {
        self.s
    }

    /// π/2 − φ(t), which is exactly 0 at t = 1.
    fn angle_left(&self, t: f64) -> f64 {
        FRAC_PI_2 * (1.0 - t) / (1.0 + self.s)
    }

    /// φ(t).
    fn angle(&self, t: f64) -> f64 {
        FRAC_PI_2 * (t + self.s) / (1.0 + self.s)
    }

    /// dφ/dt.
    fn angular_speed(&self) -> f64 {
        FRAC_PI_2 / (1.0 + self.s)
    }
}

impl Curve for Cosine {
    fn alpha(&self, t: f64) -> f64 {
        (self.angle_left(t).sin() / self.angle_left(0.0).sin()).powi(2)
    }
    /// cos²φ_0 − cos²φ = sin(φ − φ_0) sin(φ + φ_0).
    fn one_minus_alpha(&self, t: f64) -> f64 {
        let turned = t * self.angular_speed();
        let sum = self.angle(t) + self.angle(0.0);
        turned.sin() * sum.sin() / self.angle_left(0.0).sin().powi(2)
    }
    fn alpha_prime(&self, t: f64) -> f64 {
        let (phi, left) = (self.angle(t), self.angle_left(t));
        let sin_two_phi = if phi < left {
            (2.0 * phi).sin()
        } else {
            (2.0 * left).sin()
        };
        -self.angular_speed() * sin_two_phi / self.angle_left(0.0).sin().powi(2)
    }
    fn weight(&self, t: f64) -> f64 {
        if t == 0.0 {
            f64::INFINITY
        } else {
            -self.alpha_prime(t) / self.one_minus_alpha(t)
        }
    }
    /// 2 φ′ tan φ.
    fn rate(&self, t: f64) -> f64 {
        let (phi, left) = (self.angle(t), self.angle_left(t));
        let tan_phi = if phi < left {
            phi.tan()
        } else {
            1.0 / left.tan()
        };
        2.0 * self.angular_speed() * tan_phi
    }
}

/// α = 1 − sin(π t / 2).
pub(super) struct MaskGit;

impl Curve for MaskGit {
    fn alpha(&self, t: f64) -> f64 {
        match t < 0.5 {
            true => 1.0 - self.one_minus_alpha(t),
            false => 2.0 * (FRAC_PI_2 * (1.0 - t) / 2.0).sin().powi(2),
        }
    }
    fn one_minus_alpha(&self, t: f64) -> f64 {
        (FRAC_PI_2 * t).sin()
    }
    fn alpha_prime(&self, t: f64) -> f64 {
        -FRAC_PI_2 * (FRAC_PI_2 * (1.0 - t)).sin()
    }
    /// π/2 · cot(π (1 − t) / 4).
    fn rate(&self, t: f64) -> f64 {
        FRAC_PI_2 / (PI * (1.0 - t) / 4.0).tan()
    }
}

/// α(t) = 1 − t^p (Shi et al., MD4, arXiv:2406.04329). p < 1 noises early, p > 1 late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Polynomial {
    power: f64,
}

impl Polynomial {
    /// The schedule with exponent p = `power`.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless `power` is positive and finite.
    pub fn new(power: f64) -> Result<Self, Error> {
        parameter(
            "the polynomial schedule's power",
            power,
            power > 0.0,
            "finite and above 0",
        )?;
        Ok(Self { power })
    }

    /// The exponent p.
    pub fn power(&self) -> f64 {
        self.power
    }
}

impl Curve for Polynomial {
    fn alpha(&self, t: f64) -> f64 {
        0.0 - (self.power * t.ln()).exp_m1()
    }
    fn one_minus_alpha(&self, t: f64) -> f64 {
        t.powf(self.power)
    }
    fn alpha_prime(&self, t: f64) -> f64 {
        -self.power * t.powf(self.power - 1.0)
    }
    fn weight(&self, t: f64) -> f64 {
        self.power / t
    }
}

/// α(t) = exp(−σ̄(t)) with σ̄(t) = min^{1−t} max^t (Lou et al., SEDD, arXiv:2310.16834).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometric {
    min: f64,
    max: f64,
}

impl Geometric {
    /// The schedule with total noise σ̄ from `min` at t = 0 to `max` at t = 1.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless 0 < `min` ≤ `max`, both finite.
    pub fn new(min: f64, max: f64) -> Result<Self, Error> {
        parameter(
            "the geometric schedule's minimum",
            min,
            min > 0.0,
            "finite and above 0",
        )?;
        let allowed = "finite and at least the minimum";
        parameter("the geometric schedule's maximum", max, max >= min, allowed)?;
        Ok(Self { min, max })
    }

    /// σ̄(0).
    pub fn min(&self) -> f64 {
        self.min
    }

    /// σ̄(1).
    pub fn max(&self) -> f64 {
        self.max
    }

    fn total_noise(&self, t: f64) -> f64 {
        self.min.powf(1.0 - t) * self.max.powf(t)
    }
}

impl Curve for Geometric {
    fn alpha(&self, t: f64) -> f64 {
        (-self.total_noise(t)).exp()
    }
    fn one_minus_alpha(&self, t: f64) -> f64 {
        -(-self.total_noise(t)).exp_m1()
    }
    fn alpha_prime(&self, t: f64) -> f64 {
        -self.rate(t) * self.alpha(t)
    }
    fn weight(&self, t: f64) -> f64 {
        self.rate(t) / self.total_noise(t).exp_m1()
    }
    fn rate(&self, t: f64) -> f64 {
        self.total_noise(t) * (self.max / self.min).ln()
    }
}

/// β per unit of time grows from `min` to `max`: in continuous time α(t) = exp(−∫β), in discrete time
/// β_t = β/T at T equally spaced points, both ends among them (Ho et al., arXiv:2006.11239, whose 10⁻⁴ to
/// 0.02 over T = 1000 is `linear-beta:0.1,20`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearBeta {
    min: f64,
    max: f64,
}

impl LinearBeta {
    /// The schedule with β from `min` at t = 0 to `max` at t = 1.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless 0 ≤ `min` ≤ `max`, `max` > 0, both finite.
    pub fn new(min: f64, max: f64) -> Result<Self, Error> {
        parameter(
            "the linear schedule's minimum",
            min,
            min >= 0.0,
            "finite and at least 0",
        )?;
        let allowed = "finite, above 0 and at least the minimum";
        parameter(
            "the linear schedule's maximum",
            max,
            max > 0.0 && max >= min,
            allowed,
        )?;
        Ok(Self { min, max })
    }

    /// β(0).
    pub fn min(&self) -> f64 {
        self.min
    }

    /// β(1).
    pub fn max(&self) -> f64 {
        self.max
    }

    /// β_1, …, β_T for T = `steps`; the middle of the range if T = 1. They may exceed one.
    pub(super) fn betas(&self, steps: usize) -> Vec<f64> {
        let at = |share: f64| (self.min + (self.max - self.min) * share) / steps as f64;
        match steps {
            1 => vec![at(0.5)],
            _ => (0..steps)
                .map(|t| at(t as f64 / (steps - 1) as f64))
                .collect(),
        }
    }

    /// ∫_0^t β.
    fn total_noise(&self, t: f64) -> f64 {
        t * (self.min + (self.max - self.min) * t / 2.0)
    }
}

impl Curve for LinearBeta {
    fn alpha(&self, t: f64) -> f64 {
        (-self.total_noise(t)).exp()
    }
    fn one_minus_alpha(&self, t: f64) -> f64 {
        -(-self.total_noise(t)).exp_m1()
    }
    fn alpha_prime(&self, t: f64) -> f64 {
        -self.rate(t) * self.alpha(t)
    }
    fn weight(&self, t: f64) -> f64 {
        if t == 0.0 {
            f64::INFINITY
        } else {
            self.rate(t) / self.total_noise(t).exp_m1()
        }
    }
    fn rate(&self, t: f64) -> f64 {
        self.min + (self.max - self.min) * t
    }
}
