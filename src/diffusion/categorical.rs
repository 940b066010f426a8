//! Distributions over K states.

use super::Error;

/// How far from one the sum of given probabilities may be.
const SUM_TOLERANCE: f64 = 1e-9;

/// A q(x_t | x_0) below this counts as zero: dividing by a subnormal number would overflow.
pub(super) const SMALLEST_EVIDENCE: f64 = f64::MIN_POSITIVE;

/// A categorical distribution over K ≥ 1 states: `[K]` probabilities that sum to one.
#[derive(Debug, Clone, PartialEq)]
pub struct Categorical(Vec<f64>);

impl Categorical {
    /// Takes `[K]` probabilities as they are.
    ///
    /// # Errors
    /// [`Error::NotADistribution`] if there are none, one is negative or not finite, or their sum is
    /// further than 1e-9 from one. For the rounded output of a softmax use [`Self::from_weights`].
    pub fn new(probabilities: Vec<f64>) -> Result<Self, Error> {
        let sum = checked_sum(&probabilities)?;
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            let reason = format!("probabilities sum to {sum}, not to 1");
            return Err(Error::NotADistribution { reason });
        }
        Ok(Self(probabilities))
    }

    /// Divides `[K]` weights by their sum.
    ///
    /// # Errors
    /// [`Error::NotADistribution`] if there are none, one is negative or not finite, or all are zero.
    pub fn from_weights(mut weights: Vec<f64>) -> Result<Self, Error> {
        let sum = checked_sum(&weights)?;
        if sum <= 0.0 || !sum.is_finite() {
            let reason = format!("weights sum to {sum}");
            return Err(Error::NotADistribution { reason });
        }
        weights.iter_mut().for_each(|w| *w /= sum);
        Ok(Self(weights))
    }

    /// Probabilities that a closed form of this module has already normalised.
    pub(super) fn from_closed_form(probabilities: Vec<f64>) -> Self {
        Self(probabilities)
    }

    /// δ_state: all of the probability on one of `states` states.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`] if there is no such state.
    pub fn one_hot(states: usize, state: usize) -> Result<Self, Error> {
        check_state("the state", state, states)?;
        let mut probabilities = vec![0.0; states];
        probabilities[state] = 1.0;
        Ok(Self(probabilities))
    }

    /// 1/K on each of K = `states` states.
    ///
    /// # Errors
    /// [`Error::NotADistribution`] if `states` is zero.
    pub fn uniform(states: usize) -> Result<Self, Error> {
        Self::from_weights(vec![1.0; states])
    }

    /// K.
    pub fn states(&self) -> usize {
        self.0.len()
    }

    /// The `[K]` probabilities.
    pub fn probabilities(&self) -> &[f64] {
        &self.0
    }

    /// The probability of `state`; zero for a state outside 0..K.
    pub fn probability(&self, state: usize) -> f64 {
        self.0.get(state).copied().unwrap_or(0.0)
    }

    /// H(p) = −Σ p ln p, in nats.
    pub fn entropy(&self) -> f64 {
        let terms = self.0.iter().filter(|p| **p > 0.0);
        // Adding zero turns the −0 of a point mass into 0.
        terms.map(|p| -p * p.ln()).sum::<f64>() + 0.0
    }

    /// H(p, q) = −Σ p ln q, in nats; infinite where q excludes a state that p allows.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] if the distributions differ in K.
    pub fn cross_entropy(&self, q: &Categorical) -> Result<f64, Error> {
        q.check_states(self.states())?;
        let terms = self.0.iter().zip(&q.0).filter(|(p, _)| **p > 0.0);
        Ok(terms.map(|(p, q)| -p * q.ln()).sum::<f64>() + 0.0)
    }

    /// KL(p ‖ q) = H(p, q) − H(p) = Σ p ln(p / q), in nats; never negative, and infinite where q
    /// excludes a state that p allows.
    ///
    /// Summed as p (d − ln(1 + d)) with d = q/p − 1, whose terms are all ≥ 0: the difference of the two
    /// entropies would drown a small divergence in rounding.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] if the distributions differ in K.
    pub fn kl(&self, q: &Categorical) -> Result<f64, Error> {
        q.check_states(self.states())?;
        Ok(self
            .0
            .iter()
            .zip(&q.0)
            .map(|(p, q)| divergence(*p, *q))
            .sum())
    }

    /// The state at which the cumulative distribution passes `u`, a uniform number in [0, 1).
    ///
    /// Never a state of probability zero. A `u` below 0 counts as 0; one of 1 or more (some generators
    /// return 1.0, and rounding may leave the cumulative sum just below one) gives the last possible state.
    pub fn sample(&self, u: f64) -> usize {
        let (mut cumulative, mut last) = (0.0, 0);
        for (state, p) in self.0.iter().enumerate().filter(|(_, p)| **p > 0.0) {
            cumulative += p;
            last = state;
            if u < cumulative {
                break;
            }
        }
        last
    }

    /// # Errors
    /// [`Error::LengthMismatch`] unless K is `expected`.
    pub(super) fn check_states(&self, expected: usize) -> Result<(), Error> {
        let given = self.states();
        if given == expected {
            return Ok(());
        }
        let name = "the distribution";
        Err(Error::LengthMismatch {
            name,
            given,
            expected,
        })
    }
}

/// r (s/r − 1 − ln(s/r)) = s − r − r ln(s/r) ≥ 0: the term that a pair contributes to a divergence of
/// unnormalised measures. For two distributions the first two parts sum to zero and leave KL(r ‖ s); in
/// continuous time, with rates for r and s, it is the integrand of the bound.
pub(super) fn divergence(r: f64, s: f64) -> f64 {
    if r == 0.0 {
        return s;
    }
    let d = (s - r) / r;
    if d.abs() < 0.5 {
        r * (d - d.ln_1p())
    } else {
        (s - r) - r * (s / r).ln()
    }
}

/// # Errors
/// [`Error::StateOutOfRange`] unless `state` is one of 0..`states`.
pub(super) fn check_state(name: &'static str, state: usize, states: usize) -> Result<(), Error> {
    if state < states {
        return Ok(());
    }
    Err(Error::StateOutOfRange {
        name,
        state,
        states,
    })
}

fn checked_sum(weights: &[f64]) -> Result<f64, Error> {
    if weights.is_empty() {
        let reason = "it has no states".to_owned();
        return Err(Error::NotADistribution { reason });
    }
    if let Some((state, w)) = weights
        .iter()
        .enumerate()
        .find(|(_, w)| !(w.is_finite() && **w >= 0.0))
    {
        let reason = format!("state {state} has weight {w}");
        return Err(Error::NotADistribution { reason });
    }
    Ok(weights.iter().sum())
}
