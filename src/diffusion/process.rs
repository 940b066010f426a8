//! The forward processes: absorbing and uniform corruption of one slot.

use super::categorical::check_state;
use super::{Categorical, Error, NoiseLevel};

/// What a corrupted slot becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// The mask state m, which is never left again: Q_t = (1 − β_t) I + β_t e_m 1ᵀ.
    Absorbing {
        /// m.
        mask: usize,
    },
    /// Any of the K states with equal probability: Q_t = (1 − β_t) I + β_t U with U = 11ᵀ/K.
    Uniform,
}

/// A forward process over K states (for the absorbing one, the mask is one of the K).
///
/// The two are Q = α I + (1 − α) π 1ᵀ with π = e_m and π = 1/K. The same expression with α = 1 − β_t is
/// the single step Q_t, with α = ᾱ_t the cumulative Q_{1:t} = Q_t ⋯ Q_1 (D3PM, arXiv:2107.03006; as interpolation MDLM, arXiv:2406.07524): a [`NoiseLevel`] says which is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    states: usize,
    noise: Noise,
}

impl Process {
    /// The absorbing process over K = `states` states, of which `mask` is one.
    ///
    /// # Errors
    /// [`Error::TooFewStates`] if K < 2, [`Error::StateOutOfRange`] if `mask` is none of them.
    pub fn absorbing(states: usize, mask: usize) -> Result<Self, Error> {
        check_state("the mask", mask, states)?;
        Self::new(states, Noise::Absorbing { mask })
    }

    /// The uniform process over K = `states` states.
    ///
    /// # Errors
    /// [`Error::TooFewStates`] if K < 2.
    pub fn uniform(states: usize) -> Result<Self, Error> {
        Self::new(states, Noise::Uniform)
    }

    fn new(states: usize, noise: Noise) -> Result<Self, Error> {
        if states < 2 {
            return Err(Error::TooFewStates { states });
        }
        Ok(Self { states, noise })
    }

    /// K.
    pub fn states(&self) -> usize {
        self.states
    }

    /// Which noise.
    pub fn noise(&self) -> Noise {
        self.noise
    }

    /// The mask state, if there is one.
    pub fn mask(&self) -> Option<usize> {
        match self.noise {
            Noise::Absorbing { mask } => Some(mask),
            Noise::Uniform => None,
        }
    }

    /// π, the distribution of pure noise and the usual prior p(x_T): e_m or 1/K.
    pub fn stationary(&self) -> Categorical {
        Categorical::from_closed_form((0..self.states).map(|state| self.pi(state)).collect())
    }

    /// π_state.
    pub(super) fn pi(&self, state: usize) -> f64 {
        match self.noise {
            Noise::Absorbing { mask } => f64::from(u8::from(state == mask)),
            Noise::Uniform => 1.0 / self.states as f64,
        }
    }

    /// \[Q\]_{to,from} = α 1\[to = from\] + (1 − α) π_to, for states known to be in range.
    pub(super) fn entry(&self, level: NoiseLevel, to: usize, from: usize) -> f64 {
        let noise = level.one_minus_alpha() * self.pi(to);
        if to == from {
            level.alpha() + noise
        } else {
            noise
        }
    }

    /// \[Q\]_{to,from} = q(to | from) at this noise: an entry of Q_t or of Q_{1:t}.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`].
    pub fn transition(&self, level: NoiseLevel, to: usize, from: usize) -> Result<f64, Error> {
        self.check("the later state", to)?;
        self.check("the earlier state", from)?;
        Ok(self.entry(level, to, from))
    }

    /// q(x_t | x_0) = Cat(Q_{1:t} x_0), column x_0 of Q_{1:t}.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`].
    pub fn marginal(&self, level: NoiseLevel, x_0: usize) -> Result<Categorical, Error> {
        self.check("x_0", x_0)?;
        let column = (0..self.states)
            .map(|to| self.entry(level, to, x_0))
            .collect();
        Ok(Categorical::from_closed_form(column))
    }

    /// Q_{1:t} p: the distribution of x_t when x_0 is distributed as `p`, in O(K).
    ///
    /// # Errors
    /// [`Error::LengthMismatch`].
    pub fn noised(&self, level: NoiseLevel, p: &Categorical) -> Result<Categorical, Error> {
        p.check_states(self.states)?;
        let (alpha, noise) = (level.alpha(), level.one_minus_alpha());
        let probabilities = p.probabilities().iter().enumerate();
        let noised = probabilities
            .map(|(to, p)| alpha * p + noise * self.pi(to))
            .collect();
        Ok(Categorical::from_closed_form(noised))
    }

    /// \[R_t\]_{to,from}: the rate at which a slot in `from` jumps to `to`, where `rate` is
    /// −α′(t)/α(t) ([`Schedule::rate`](super::Schedule::rate)). R_t = rate · (π 1ᵀ − I), columns sum to
    /// zero, and Q over a short time h is I + h R_t (Campbell et al., arXiv:2205.14987).
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`].
    pub fn jump_rate(&self, rate: f64, to: usize, from: usize) -> Result<f64, Error> {
        self.check("the later state", to)?;
        self.check("the earlier state", from)?;
        // One minus π rather than a difference of rates: absorbing leaves the mask at rate exactly 0.
        Ok(if to == from {
            -rate * (1.0 - self.pi(to))
        } else {
            rate * self.pi(to)
        })
    }

    /// A draw of x_t from q(x_t | x_0), given `u` uniform in [0, 1), in O(1).
    ///
    /// The slot is noised if u < 1 − α; then u / (1 − α) is again uniform and chooses the noise.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`].
    pub fn corrupt(&self, level: NoiseLevel, x_0: usize, u: f64) -> Result<usize, Error> {
        self.check("x_0", x_0)?;
        if u >= level.one_minus_alpha() {
            return Ok(x_0);
        }
        Ok(match self.noise {
            Noise::Absorbing { mask } => mask,
            Noise::Uniform => {
                let place = u / level.one_minus_alpha() * self.states as f64;
                (place as usize).min(self.states - 1)
            }
        })
    }

    /// Corrupts each slot of `x_0` on its own: one number from `uniform`, in [0, 1), a slot.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`].
    pub fn corrupt_slots(
        &self,
        level: NoiseLevel,
        x_0: &[usize],
        mut uniform: impl FnMut() -> f64,
    ) -> Result<Vec<usize>, Error> {
        x_0.iter()
            .map(|state| self.corrupt(level, *state, uniform()))
            .collect()
    }

    /// K α/(1 − α): by how much a token of the uniform process is likelier to be seen where it is the
    /// clean one than where another one is, less 1. Bayes' rule multiplies the odds of the token that is
    /// seen with one more than that. Infinite where nothing is noised.
    pub fn signal(&self, level: NoiseLevel) -> f64 {
        self.states as f64 * level.alpha() / level.one_minus_alpha()
    }

    pub(super) fn check(&self, name: &'static str, state: usize) -> Result<(), Error> {
        check_state(name, state, self.states)
    }
}
