//! How much of the signal is left.

use super::Error;

/// The noise at one time (or over one stretch of time): the probability α that a state survives, and
/// 1 − α, the probability that it is drawn anew from π.
///
/// Both are kept, because either may be too small to be recovered from the other: near t = 0 all of
/// the information is in 1 − α, near t = 1 in α.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    alpha: f64,
    one_minus_alpha: f64,
}

impl NoiseLevel {
    /// α = 1: nothing was corrupted.
    pub const CLEAN: Self = Self {
        alpha: 1.0,
        one_minus_alpha: 0.0,
    };
    /// α = 0: nothing is left.
    pub const PURE_NOISE: Self = Self {
        alpha: 0.0,
        one_minus_alpha: 1.0,
    };

    /// The level with survival probability `alpha`.
    ///
    /// # Errors
    /// [`Error::AlphaOutOfRange`] unless 0 ≤ α ≤ 1.
    pub fn from_alpha(alpha: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::AlphaOutOfRange { value: alpha });
        }
        Ok(Self {
            alpha,
            one_minus_alpha: 1.0 - alpha,
        })
    }

    /// The level with corruption probability `beta` = 1 − α, exact for a small β.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless 0 ≤ β ≤ 1.
    pub fn from_beta(beta: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&beta) {
            let (name, allowed) = ("β", "a probability in [0, 1]");
            return Err(Error::Parameter {
                name,
                value: beta,
                allowed,
            });
        }
        Ok(Self {
            alpha: 1.0 - beta,
            one_minus_alpha: beta,
        })
    }

    /// Two numbers that a schedule computed separately; rounding past the ends is cut off.
    pub(super) fn from_parts(alpha: f64, one_minus_alpha: f64) -> Self {
        Self {
            alpha: alpha.clamp(0.0, 1.0),
            one_minus_alpha: one_minus_alpha.clamp(0.0, 1.0),
        }
    }

    /// α, in [0, 1].
    pub fn alpha(self) -> f64 {
        self.alpha
    }

    /// 1 − α, in [0, 1].
    pub fn one_minus_alpha(self) -> f64 {
        self.one_minus_alpha
    }

    /// This noise and then `step`: Q_step Q_self. The α multiply; 1 − α is a sum of two terms that are
    /// not negative, so nothing cancels.
    pub fn then(self, step: Self) -> Self {
        Self::from_parts(
            self.alpha * step.alpha,
            self.one_minus_alpha + self.alpha * step.one_minus_alpha,
        )
    }
}

/// The noise at two times s ≤ t, and between them: α_s, α_{t|s} and α_t = α_s α_{t|s}.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    at_s: NoiseLevel,
    step: NoiseLevel,
    at_t: NoiseLevel,
}

impl Interval {
    /// From the noise up to s and the noise `step` between s and t.
    pub fn new(at_s: NoiseLevel, step: NoiseLevel) -> Self {
        Self {
            at_s,
            step,
            at_t: at_s.then(step),
        }
    }

    /// From the noise up to s and up to t: α_{t|s} = α_t / α_s.
    ///
    /// Where α_s = 0 the ratio is not determined; then x_t is taken as drawn anew (α_{t|s} = 0). It
    /// matters for the uniform process only: in the absorbing one both slots are masked either way.
    ///
    /// # Errors
    /// [`Error::AlphaIncreases`] if α_t > α_s.
    pub fn between(at_s: NoiseLevel, at_t: NoiseLevel) -> Result<Self, Error> {
        if at_t.alpha > at_s.alpha {
            return Err(Error::AlphaIncreases {
                earlier: at_s.alpha,
                later: at_t.alpha,
            });
        }
        Ok(Self::between_monotone(at_s, at_t))
    }

    /// As [`Self::between`], for levels of a schedule that decreases but for rounding.
    pub(super) fn between_monotone(at_s: NoiseLevel, at_t: NoiseLevel) -> Self {
        if at_s.alpha == 0.0 {
            return Self::new(at_s, NoiseLevel::PURE_NOISE);
        }
        // The difference of the two small numbers is the accurate one.
        let lost = if at_t.alpha > 0.5 {
            at_t.one_minus_alpha - at_s.one_minus_alpha
        } else {
            at_s.alpha - at_t.alpha
        };
        Self::new(
            at_s,
            NoiseLevel::from_parts(at_t.alpha / at_s.alpha, lost / at_s.alpha),
        )
    }

    /// The noise up to s: α_s.
    pub fn at_s(&self) -> NoiseLevel {
        self.at_s
    }

    /// The noise between s and t: α_{t|s}; its 1 − α is β_t where s = t − 1.
    pub fn step(&self) -> NoiseLevel {
        self.step
    }

    /// The noise up to t: α_t.
    pub fn at_t(&self) -> NoiseLevel {
        self.at_t
    }

    /// α_s − α_t ≥ 0.
    pub fn alpha_difference(&self) -> f64 {
        self.at_s.alpha * self.step.one_minus_alpha
    }

    /// (α_s − α_t) / (1 − α_t), in [0, 1]: the probability that a slot masked at t is not masked at s
    /// (MDLM, arXiv:2406.07524). `None` where α_t = 1, when no slot is masked.
    pub fn unmasking_probability(&self) -> Option<f64> {
        let masked = self.at_t.one_minus_alpha;
        (masked > 0.0).then(|| (self.alpha_difference() / masked).min(1.0))
    }
}
