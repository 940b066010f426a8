//! The same process read as discrete flow matching (Gat et al., arXiv:2407.15595; Campbell et al.,
//! arXiv:2402.04997).
//!
//! Flow matching runs the clock the other way: at flow time τ = 0 there is noise, at τ = 1 data, so
//! τ = 1 − t, and its scheduler is κ_τ = α(1 − τ). The probability path of a slot is the forward marginal,
//!
//! ```text
//! p_τ(x | x_1) = (1 − κ_τ) p_0(x) + κ_τ δ_{x_1}(x)        with p_0 = π
//! ```
//!
//! (x_1 is the data, which diffusion calls x_0). A **velocity** u(y, x) is the rate at which a slot in x
//! jumps to y ≠ x; its entries sum to zero. The one that generates the path is
//! κ̇/(1 − κ) (p_{1|τ}(y | x) − δ_x(y)), and κ̇/(1 − κ) is the weight −α′/(1 − α) of the NELBO.
//!
//! For the absorbing process this is exactly the reverse of the noising process: an Euler step equals the
//! ancestral step [`Process::reverse`] for linear κ, and up to O(h²) for any other. For the uniform process
//! it makes the same marginals with fewer jumps. The time-reversed noising adds to it a term that keeps
//! p_τ in detailed balance, at rate κ̇/(κ K) · min(1, q(y)/q(x)) for a known x_1.
//!
//! Running the noising process at some rate and undoing it at once leaves the marginals alone too:
//! [`FlowPath::corrector_velocity`]. For the absorbing process that is **re-masking**, and
//! [`stochastic_remasking`] and [`corrector_remasking`] say how often per step; their result is a σ for
//! [`super::remasking`].

use super::remasking::sigma_max;
use super::{Categorical, Error, Interval, NoiseLevel, Process, Schedule};

/// A mixture path from noise (τ = 0) to data (τ = 1).
#[derive(Debug, Clone, PartialEq)]
pub struct FlowPath {
    /// The noise that the path starts from.
    pub process: Process,
    /// α(t); κ_τ = α(1 − τ).
    pub schedule: Schedule,
}

impl FlowPath {
    /// κ_τ, in [0, 1]; not a number for τ outside [0, 1].
    pub fn kappa(&self, tau: f64) -> f64 {
        self.schedule.alpha(1.0 - tau)
    }

    /// dκ/dτ ≥ 0; not a number for τ outside [0, 1].
    pub fn kappa_dot(&self, tau: f64) -> f64 {
        -self.schedule.alpha_prime(1.0 - tau)
    }

    /// κ_τ and 1 − κ_τ.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`].
    pub fn level(&self, tau: f64) -> Result<NoiseLevel, Error> {
        self.schedule.level(1.0 - tau)
    }

    /// p_τ(· | x_1), with the data-independent source p_0 = π.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`], [`Error::StateOutOfRange`].
    pub fn probability_path(&self, tau: f64, x_1: usize) -> Result<Categorical, Error> {
        self.process.marginal(self.level(tau)?, x_1)
    }

    /// The generating velocity κ̇/(1 − κ) (p_{1|τ} − δ_x), `[K]`, from the probability denoiser p_{1|τ}.
    /// Infinite entries where κ = 1.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`], [`Error::StateOutOfRange`], [`Error::LengthMismatch`].
    pub fn velocity(&self, tau: f64, x: usize, denoiser: &Categorical) -> Result<Vec<f64>, Error> {
        let denoiser = self.process.conditioned(self.level(tau)?, x, denoiser)?;
        let rate = self.schedule.weight(1.0 - tau);
        let target = denoiser.probabilities().iter().enumerate();
        Ok(target.map(|(y, p)| scaled(rate, p - delta(x, y))).collect())
    }

    /// The velocity that leads back along the path, κ̇/κ (δ_x − p_{0|τ}), `[K]`, with p_{0|τ} the
    /// [noise prediction](Self::noise_prediction). In flow time it is negative off x: stepping from τ to τ − h
    /// subtracts it. Infinite entries where κ = 0.
    ///
    /// # Errors
    /// As [`Self::velocity`]; [`Error::Unreachable`] where x is impossible.
    pub fn backward_velocity(
        &self,
        tau: f64,
        x: usize,
        denoiser: &Categorical,
    ) -> Result<Vec<f64>, Error> {
        let noise = self.noise_prediction(tau, x, denoiser)?;
        let rate = self.schedule.rate(1.0 - tau);
        let source = noise.probabilities().iter().enumerate();
        Ok(source.map(|(y, p)| scaled(rate, delta(x, y) - p)).collect())
    }

    /// p_{0|τ}(· | x): which noise state the slot started from. With p_{1|τ} = δ_{x_1},
    /// (κ δ_{x_1}(x) π_y + (1 − κ) π_x δ_x(y)) / p_τ(x | x_1), averaged over the denoiser in O(K).
    ///
    /// It is e_m for the absorbing process, whatever the denoiser says.
    ///
    /// # Errors
    /// As [`Self::velocity`]; [`Error::Unreachable`] where x is impossible.
    pub fn noise_prediction(
        &self,
        tau: f64,
        x: usize,
        denoiser: &Categorical,
    ) -> Result<Categorical, Error> {
        let level = self.level(tau)?;
        let ratios = self.process.likelihood_ratios(level, x, denoiser)?;
        let kept = level.alpha() * ratios[x];
        let noised = level.one_minus_alpha() * self.process.pi(x) * ratios.iter().sum::<f64>();
        let states = 0..self.process.states();
        let at = |y| kept * self.process.pi(y) + noised * delta(x, y);
        Ok(Categorical::from_closed_form(states.map(at).collect()))
    }

    /// (1 + β) u − β ǔ, `[K]`: forward along the path faster than the clock, and back by the surplus (Gat
    /// et al.'s corrector, with a constant β ≥ 0). It generates the same path for every β; β = 0 is
    /// [`Self::velocity`].
    ///
    /// # Errors
    /// As [`Self::backward_velocity`]; [`Error::Parameter`] unless β is finite and at least 0.
    pub fn corrector_velocity(
        &self,
        tau: f64,
        x: usize,
        denoiser: &Categorical,
        beta: f64,
    ) -> Result<Vec<f64>, Error> {
        check_strength("the corrector strength β", beta)?;
        let forward = self.velocity(tau, x, denoiser)?;
        if beta == 0.0 {
            return Ok(forward);
        }
        let backward = self.backward_velocity(tau, x, denoiser)?;
        let pairs = forward.iter().zip(&backward);
        Ok(pairs
            .map(|(u, back)| (1.0 + beta) * u - beta * back)
            .collect())
    }
}

/// One Euler step of length h ≥ 0 with a velocity at x: Cat(δ_x + h u(·, x)).
///
/// # Errors
/// [`Error::StateOutOfRange`] if x is no entry of `velocity`; [`Error::StepTooLong`] if h times the rate of
/// leaving x exceeds one; [`Error::NotADistribution`] if the velocity to another state is negative or not
/// finite; [`Error::Parameter`] unless h is finite and at least 0.
pub fn euler_step(velocity: &[f64], x: usize, h: f64) -> Result<Categorical, Error> {
    super::categorical::check_state("x_τ", x, velocity.len())?;
    check_strength("the Euler step", h)?;
    if let Some((y, u)) = velocity
        .iter()
        .enumerate()
        .find(|(y, u)| *y != x && **u < 0.0)
    {
        let reason = format!("the velocity to state {y} is {u}");
        return Err(Error::NotADistribution { reason });
    }
    let leaving = -velocity[x];
    // A last step that ends at the data leaves with probability one, up to rounding.
    if h * leaving > 1.0 + 1e-12 {
        return Err(Error::StepTooLong {
            step: h,
            largest: 1.0 / leaving,
        });
    }
    let at = |(y, u): (usize, &f64)| (delta(x, y) + h * u).max(0.0);
    Categorical::from_weights(velocity.iter().enumerate().map(at).collect())
}

/// How likely an unmasked slot is masked again during a step of length `h` = t − s, for stochasticity
/// `eta` ≥ 0 per unit of time (Campbell et al., arXiv:2402.04997: unmasked slots are noised at rate
/// η, and masked ones revealed at the rate that undoes it).
///
/// Over the step that is 1 − e^{−η h}, cut to [`sigma_max`]. Used as σ in
/// [`remasking::reverse`](super::remasking::reverse), which reveals the surplus, it keeps the marginals
/// exactly; to first order in h the step is Campbell's.
///
/// # Errors
/// [`Error::Parameter`] unless `eta` and `h` are finite and at least 0.
pub fn stochastic_remasking(interval: &Interval, h: f64, eta: f64) -> Result<f64, Error> {
    check_strength("the stochasticity η", eta)?;
    check_strength("the step length", h)?;
    Ok((-(-eta * h).exp_m1()).min(sigma_max(interval)))
}

/// How likely an unmasked slot is masked again during a step with corrector strength `beta` ≥ 0:
/// β (α_s − α_t)/α_t, cut to [`sigma_max`], and `sigma_max` itself where α_t = 0 and β > 0.
///
/// The Euler step of [`FlowPath::corrector_velocity`] to first order; β = 1 is the forward-backward
/// corrector of Campbell et al. (arXiv:2205.14987) in ReMDM's form (arXiv:2503.00307).
///
/// # Errors
/// [`Error::Parameter`] unless β is finite and at least 0.
pub fn corrector_remasking(interval: &Interval, beta: f64) -> Result<f64, Error> {
    check_strength("the corrector strength β", beta)?;
    if beta == 0.0 {
        return Ok(0.0);
    }
    // 0/0 where nothing is left at either time: `min` then takes the bound.
    let sigma = beta * interval.alpha_difference() / interval.at_t().alpha();
    Ok(sigma.min(sigma_max(interval)))
}

/// # Errors
/// [`Error::Parameter`] unless `value` is finite and at least 0.
fn check_strength(name: &'static str, value: f64) -> Result<(), Error> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    let allowed = "finite and at least 0";
    Err(Error::Parameter {
        name,
        value,
        allowed,
    })
}

fn delta(x: usize, y: usize) -> f64 {
    f64::from(u8::from(x == y))
}

/// `rate` · `difference`, where an infinite rate does not move what is already there.
fn scaled(rate: f64, difference: f64) -> f64 {
    if difference == 0.0 {
        0.0
    } else {
        rate * difference
    }
}
