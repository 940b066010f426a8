//! The posterior q(x_s | x_t, x_0) for any s ≤ t, and the reverse step p_θ(x_s | x_t).
//!
//! With Q_{t|s} the noise between s and t (s = t − 1 gives Q_t),
//!
//! ```text
//! q(x_s | x_t, x_0) = Cat( Q_{t|s}ᵀ x_t ⊙ Q_{1:s} x_0 / (x_tᵀ Q_{1:t} x_0) )
//! ```
//!
//! (D3PM, arXiv:2107.03006, eq. 3, there for row vectors). Entry by entry, with x_t = i and x_0 = k,
//!
//! ```text
//! q(x_s = j | i, k) = [α_{t|s} δ_ij + (1 − α_{t|s}) π_i] [α_s δ_jk + (1 − α_s) π_j] / [α_t δ_ik + (1 − α_t) π_i]
//! ```
//!
//! The **absorbing** process leaves two cases. An unmasked slot stays: x_s = x_t. A masked one is x_0 with
//! probability (α_s − α_t)/(1 − α_t) and still masked with probability (1 − α_s)/(1 − α_t) (MDLM,
//! arXiv:2406.07524). The **uniform** one has K noise terms and no shortcut (UDLM, arXiv:2412.10193, is this expression multiplied out).

use super::categorical::SMALLEST_EVIDENCE;
use super::{Categorical, Error, Interval, Noise, NoiseLevel, Process};

impl Process {
    /// q(x_s | x_t, x_0).
    ///
    /// ```
    /// use unmask::diffusion::{Interval, Process, Schedule};
    ///
    /// # fn main() -> Result<(), unmask::diffusion::Error> {
    /// // Three tokens and the mask, state 3, between s = 0.25 and t = 0.5, where α is 0.75 and 0.5.
    /// let process = Process::absorbing(4, 3)?;
    /// let level = |time| Schedule::LogLinear.level(time);
    /// let posterior = process.posterior(&Interval::between(level(0.25)?, level(0.5)?)?, 3, 1)?;
    /// // Unmasked with (α_s − α_t) / (1 − α_t), or still masked.
    /// assert!((posterior.probability(1) - 0.5).abs() < 1e-12);
    /// assert!((posterior.probability(3) - 0.5).abs() < 1e-12);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`]; [`Error::Impossible`] where q(x_t | x_0) = 0, as for an unmasked x_t
    /// other than x_0 under the absorbing process.
    pub fn posterior(
        &self,
        interval: &Interval,
        x_t: usize,
        x_0: usize,
    ) -> Result<Categorical, Error> {
        self.check("x_t", x_t)?;
        self.check("x_0", x_0)?;
        let evidence = self.entry(interval.at_t(), x_t, x_0);
        if evidence < SMALLEST_EVIDENCE {
            return Err(Error::Impossible {
                x_t,
                x_0,
                alpha: interval.at_t().alpha(),
            });
        }
        if self.is_certain(x_t) {
            return Categorical::one_hot(self.states(), x_t);
        }
        let at = |x_s| {
            let likelihood = self.entry(interval.step(), x_t, x_s);
            likelihood * (self.entry(interval.at_s(), x_s, x_0) / evidence)
        };
        Ok(Categorical::from_closed_form(
            (0..self.states()).map(at).collect(),
        ))
    }

    /// A draw of x_s from q(x_s | x_t, x_0), given `u` uniform in [0, 1), in O(1).
    ///
    /// With the evidence multiplied out, x_s = x_t has the weight (α_{t|s} − α_t) and x_s = x_0 the weight
    /// (α_s − α_t); where these are the same token, α_t/π more. What is left, (1 − α_{t|s})(1 − α_s), is
    /// noise: the uniform process's tokens share it. A masked slot of the absorbing process is left with
    /// two cases.
    ///
    /// # Errors
    /// As [`Self::posterior`].
    pub fn posterior_draw(
        &self,
        interval: &Interval,
        x_t: usize,
        x_0: usize,
        u: f64,
    ) -> Result<usize, Error> {
        let Noise::Uniform = self.noise() else {
            return Ok(self.posterior(interval, x_t, x_0)?.sample(u));
        };
        self.check("x_t", x_t)?;
        self.check("x_0", x_0)?;
        let states = self.states() as f64;
        let (at_s, step) = (interval.at_s(), interval.step());
        let kept = match x_t == x_0 {
            true => states * interval.at_t().alpha(),
            false => 0.0,
        };
        // α_{t|s} − α_t and α_s − α_t, without a difference.
        let stays = kept + step.alpha() * at_s.one_minus_alpha();
        let reveals = at_s.alpha() * step.one_minus_alpha();
        let noise = step.one_minus_alpha() * at_s.one_minus_alpha();
        let total = stays + reveals + noise;
        if total < SMALLEST_EVIDENCE {
            return Err(Error::Impossible {
                x_t,
                x_0,
                alpha: interval.at_t().alpha(),
            });
        }
        let place = u * total;
        if place < stays {
            return Ok(x_t);
        }
        if place < stays + reveals || noise == 0.0 {
            return Ok(x_0);
        }
        let share = (place - stays - reveals) / noise;
        Ok(((share * states) as usize).min(self.states() - 1))
    }

    /// The reverse step p_θ(x_s | x_t) = Σ_{x̂_0} q(x_s | x_t, x̂_0) p_θ(x̂_0 | x_t), in O(K).
    ///
    /// `denoiser` is p_θ(x̂_0 | x_t), `[K]`: what a network's softmax gives at this slot, having seen all of
    /// x_t. It is conditioned on the x̂_0 that x_t allows. An unmasked slot of the absorbing process allows
    /// one only, itself, so there `denoiser` is not read (MDLM's "carry-over unmasking").
    ///
    /// With c_k = p_θ(k | x_t) / q(x_t | k) and C = Σ c_k, the sum over x̂_0 is
    /// q(x_t | x_s = j) (α_s c_j + (1 − α_s) π_j C).
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`], [`Error::LengthMismatch`]; [`Error::Unreachable`] where q(x_t | x̂_0) = 0
    /// for every x̂_0 that the denoiser allows.
    pub fn reverse(
        &self,
        interval: &Interval,
        x_t: usize,
        denoiser: &Categorical,
    ) -> Result<Categorical, Error> {
        let ratios = self.likelihood_ratios(interval.at_t(), x_t, denoiser)?;
        if self.is_certain(x_t) {
            return Categorical::one_hot(self.states(), x_t);
        }
        let total: f64 = ratios.iter().sum();
        let (alpha, noise) = (interval.at_s().alpha(), interval.at_s().one_minus_alpha());
        let at = |(x_s, c): (usize, &f64)| {
            let prior = alpha * c + noise * self.pi(x_s) * total;
            self.entry(interval.step(), x_t, x_s) * prior
        };
        Ok(Categorical::from_closed_form(
            ratios.iter().enumerate().map(at).collect(),
        ))
    }

    /// A draw of x_s from the reverse step, given `u` uniform in [0, 1).
    ///
    /// # Errors
    /// As [`Self::reverse`].
    pub fn reverse_draw(
        &self,
        interval: &Interval,
        x_t: usize,
        denoiser: &Categorical,
        u: f64,
    ) -> Result<usize, Error> {
        Ok(self.reverse(interval, x_t, denoiser)?.sample(u))
    }

    /// Ancestral sampling from t to s of every slot on its own: one `denoiser` and one number from
    /// `uniform`, in [0, 1), a slot.
    ///
    /// # Errors
    /// As [`Self::reverse`]; [`Error::LengthMismatch`] unless there are as many denoisers as slots.
    pub fn reverse_slots(
        &self,
        interval: &Interval,
        x_t: &[usize],
        denoisers: &[Categorical],
        mut uniform: impl FnMut() -> f64,
    ) -> Result<Vec<usize>, Error> {
        let (given, expected) = (denoisers.len(), x_t.len());
        if given != expected {
            let name = "the list of denoiser outputs";
            return Err(Error::LengthMismatch {
                name,
                given,
                expected,
            });
        }
        let slots = x_t.iter().zip(denoisers);
        slots
            .map(|(x_t, p)| self.reverse_draw(interval, *x_t, p, uniform()))
            .collect()
    }

    /// The concrete score s(y) = q_t(y) / q_t(x_t), `[K]`, where y replaces this slot of x_t alone
    /// (SEDD, arXiv:2310.16834): Σ_k p_θ(k | x_t) q(y | k) / q(x_t | k), in O(K). s(x_t) = 1.
    ///
    /// The reverse process jumps from x_t to y at rate \[R_t\]_{x_t,y} s(y) (arXiv:2205.14987, prop. 1).
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`], [`Error::LengthMismatch`], [`Error::Unreachable`]; [`Error::NoScore`] where
    /// some x_0 cannot become x_t, at the unmasked slots of the absorbing process and at α = 1: such an x_0
    /// may become y, but p_θ(x_0 | x_t) = 0 does not say how likely it is.
    pub fn score(
        &self,
        level: NoiseLevel,
        x_t: usize,
        denoiser: &Categorical,
    ) -> Result<Vec<f64>, Error> {
        let ratios = self.likelihood_ratios(level, x_t, denoiser)?;
        if (0..self.states()).any(|x_0| self.entry(level, x_t, x_0) < SMALLEST_EVIDENCE) {
            return Err(Error::NoScore {
                x_t,
                alpha: level.alpha(),
            });
        }
        let total: f64 = ratios.iter().sum();
        let (alpha, noise) = (level.alpha(), level.one_minus_alpha());
        let at = |(y, c): (usize, &f64)| alpha * c + noise * self.pi(y) * total;
        Ok(ratios.iter().enumerate().map(at).collect())
    }

    /// The denoiser p(x_0 | x_t) of a slot from its leave-one-out posterior `others` = p(x_0 | the other
    /// slots of x_t), by Bayes' rule: ∝ q(x_t | x_0) p(x_0 | others).
    ///
    /// D3PM (eq. 4) and UDLM put the network's output x_θ into the posterior in the place of x_0. That
    /// "plug-in" step, Q_{t|s}ᵀ x_t ⊙ Q_{1:s} x_θ / (x_tᵀ Q_{1:t} x_θ), is [`Self::reverse`] of this
    /// function's result: it reads x_θ as leave-one-out. For a masked slot of the absorbing process the two
    /// readings agree, for the uniform process they do not.
    ///
    /// # Errors
    /// As [`Self::reverse`].
    pub fn denoiser_from_leave_one_out(
        &self,
        level: NoiseLevel,
        x_t: usize,
        others: &Categorical,
    ) -> Result<Categorical, Error> {
        self.check("x_t", x_t)?;
        others.check_states(self.states())?;
        let prior = others.probabilities().iter().enumerate();
        let joint = prior
            .map(|(x_0, p)| self.entry(level, x_t, x_0) * p)
            .collect();
        let unreachable = |_| Error::Unreachable {
            x_t,
            alpha: level.alpha(),
        };
        Categorical::from_weights(joint).map_err(unreachable)
    }

    /// The inverse of [`Self::denoiser_from_leave_one_out`]: ∝ p(x_0 | x_t) / q(x_t | x_0).
    ///
    /// Where x_t rules an x_0 out, this slot's denoiser no longer says what the others think of it: such
    /// x_0 get zero.
    ///
    /// # Errors
    /// As [`Self::reverse`].
    pub fn leave_one_out_from_denoiser(
        &self,
        level: NoiseLevel,
        x_t: usize,
        denoiser: &Categorical,
    ) -> Result<Categorical, Error> {
        let ratios = self.likelihood_ratios(level, x_t, denoiser)?;
        Categorical::from_weights(ratios)
    }

    /// The denoiser conditioned on the x̂_0 that x_t allows, those with q(x_t | x̂_0) > 0: δ_{x_t} at an
    /// unmasked slot of the absorbing process, `denoiser` as it is almost everywhere else.
    ///
    /// # Errors
    /// As [`Self::reverse`].
    pub fn conditioned(
        &self,
        level: NoiseLevel,
        x_t: usize,
        denoiser: &Categorical,
    ) -> Result<Categorical, Error> {
        let ratios = self.likelihood_ratios(level, x_t, denoiser)?;
        let back = |(x_0, c): (usize, &f64)| c * self.entry(level, x_t, x_0);
        Ok(Categorical::from_closed_form(
            ratios.iter().enumerate().map(back).collect(),
        ))
    }

    /// Whether x_t tells x_0: the unmasked slots of the absorbing process.
    fn is_certain(&self, x_t: usize) -> bool {
        matches!(self.noise(), Noise::Absorbing { mask } if mask != x_t)
    }

    /// c_k = p(k | x_t) / q(x_t | k), `[K]`, with p conditioned on q(x_t | k) > 0; zero elsewhere.
    ///
    /// # Errors
    /// [`Error::StateOutOfRange`], [`Error::LengthMismatch`], [`Error::Unreachable`].
    pub(super) fn likelihood_ratios(
        &self,
        level: NoiseLevel,
        x_t: usize,
        denoiser: &Categorical,
    ) -> Result<Vec<f64>, Error> {
        self.check("x_t", x_t)?;
        denoiser.check_states(self.states())?;
        let certain = self.is_certain(x_t);
        let p = |x_0: usize| match certain {
            true => f64::from(u8::from(x_0 == x_t)),
            false => denoiser.probability(x_0),
        };
        let evidence = |x_0: &usize| self.entry(level, x_t, *x_0);
        let possible = |x_0: &usize| evidence(x_0) >= SMALLEST_EVIDENCE;
        let total: f64 = (0..self.states()).filter(possible).map(p).sum();
        if total <= 0.0 {
            return Err(Error::Unreachable {
                x_t,
                alpha: level.alpha(),
            });
        }
        let ratio = |x_0| {
            if possible(&x_0) {
                p(x_0) / total / evidence(&x_0)
            } else {
                0.0
            }
        };
        Ok((0..self.states()).map(ratio).collect())
    }
}
