//! Schedules in discrete time, t ∈ {0, …, T}.

use std::sync::Arc;

use crate::diffusion::{Error, Interval, NoiseLevel};

/// β_1, …, β_T and ᾱ_0, …, ᾱ_T, where ᾱ_0 = 1 and ᾱ_t = Π_{s≤t} (1 − β_s). Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscreteSchedule {
    /// The noise of step t, at index t − 1: 1 − β_t and β_t.
    steps: Arc<[NoiseLevel]>,
    /// The noise up to step t, at index t: ᾱ_t and 1 − ᾱ_t.
    levels: Arc<[NoiseLevel]>,
}

impl DiscreteSchedule {
    /// From β_1, …, β_T.
    ///
    /// # Errors
    /// [`Error::NoSteps`] if there is none, [`Error::BetaOutOfRange`] unless each lies in [0, 1].
    pub fn from_betas(betas: &[f64]) -> Result<Self, Error> {
        let step = |(index, &value): (usize, &f64)| {
            NoiseLevel::from_beta(value).map_err(|_| Error::BetaOutOfRange {
                t: index + 1,
                value,
            })
        };
        let steps: Vec<_> = betas
            .iter()
            .enumerate()
            .map(step)
            .collect::<Result<_, _>>()?;
        let mut level = NoiseLevel::CLEAN;
        let levels = steps.iter().map(|step| {
            level = level.then(*step);
            level
        });
        let levels = levels.collect();
        Self::from_steps_and_levels(steps, levels)
    }

    /// From ᾱ_1, …, ᾱ_T; β_t = (ᾱ_{t−1} − ᾱ_t) / ᾱ_{t−1}, and 1 once ᾱ_{t−1} = 0.
    ///
    /// # Errors
    /// [`Error::NoSteps`] if there is none, [`Error::AlphaOutOfRange`], [`Error::AlphaIncreases`].
    pub fn from_alpha_bars(alpha_bars: &[f64]) -> Result<Self, Error> {
        let levels = alpha_bars.iter().map(|a| NoiseLevel::from_alpha(*a));
        let levels: Vec<_> = levels.collect::<Result<_, _>>()?;
        if let Some(pair) = alpha_bars.windows(2).find(|pair| pair[1] > pair[0]) {
            return Err(Error::AlphaIncreases {
                earlier: pair[0],
                later: pair[1],
            });
        }
        Self::from_levels(levels)
    }

    /// From the levels of steps 1, …, T, which decrease but for rounding.
    pub(super) fn from_levels(levels: Vec<NoiseLevel>) -> Result<Self, Error> {
        let mut before = NoiseLevel::CLEAN;
        let steps = levels.iter().map(|level| {
            let step = Interval::between_monotone(before, *level).step();
            before = *level;
            step
        });
        let steps = steps.collect();
        Self::from_steps_and_levels(steps, levels)
    }

    /// D3PM's absorbing schedule β_t = 1/(T − t + 1) (Austin et al., arXiv:2107.03006), for
    /// which ᾱ_t = 1 − t/T: the mutual information of x_t and x_0 falls linearly.
    ///
    /// # Errors
    /// [`Error::NoSteps`] if T = 0.
    pub fn mutual_information(steps: usize) -> Result<Self, Error> {
        let total = steps as f64;
        let left = |t: usize| (steps - t) as f64;
        let level = |t| NoiseLevel::from_parts(left(t) / total, t as f64 / total);
        let step = |t| NoiseLevel::from_parts(left(t) / (left(t) + 1.0), 1.0 / (left(t) + 1.0));
        let times = || 1..=steps;
        Self::from_steps_and_levels(times().map(step).collect(), times().map(level).collect())
    }

    /// `[T]` steps and the `[T]` levels after them.
    fn from_steps_and_levels(
        steps: Vec<NoiseLevel>,
        levels: Vec<NoiseLevel>,
    ) -> Result<Self, Error> {
        if steps.is_empty() {
            return Err(Error::NoSteps);
        }
        let levels = std::iter::once(NoiseLevel::CLEAN).chain(levels).collect();
        Ok(Self {
            steps: steps.into(),
            levels,
        })
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// β_t, for t in 1..=T.
    ///
    /// # Errors
    /// [`Error::StepOutOfRange`] for any other t.
    pub fn beta(&self, t: usize) -> Result<f64, Error> {
        Ok(self.step(t)?.one_minus_alpha())
    }

    /// The noise of step t in 1..=T alone, that of Q_t: its α is 1 − β_t.
    ///
    /// # Errors
    /// [`Error::StepOutOfRange`] for any other t.
    pub fn step(&self, t: usize) -> Result<NoiseLevel, Error> {
        self.check(t, 1)?;
        Ok(self.steps[t - 1])
    }

    /// ᾱ_t, for t in 0..=T.
    ///
    /// # Errors
    /// [`Error::StepOutOfRange`] for any other t.
    pub fn alpha_bar(&self, t: usize) -> Result<f64, Error> {
        Ok(self.level(t)?.alpha())
    }

    /// The noise of steps 1 to t, that of Q_{1:t}, for t in 0..=T.
    ///
    /// # Errors
    /// [`Error::StepOutOfRange`] for any other t.
    pub fn level(&self, t: usize) -> Result<NoiseLevel, Error> {
        self.check(t, 0)?;
        Ok(self.levels[t])
    }

    /// The noise at s, at t, and between them, for 0 ≤ s ≤ t ≤ T.
    ///
    /// # Errors
    /// [`Error::StepOutOfRange`], [`Error::TimesReversed`].
    pub fn interval(&self, s: usize, t: usize) -> Result<Interval, Error> {
        let (at_s, at_t) = (self.level(s)?, self.level(t)?);
        if s > t {
            return Err(Error::TimesReversed {
                s: s as f64,
                t: t as f64,
            });
        }
        if t - s == 1 || at_s.alpha() == 0.0 {
            // The ratio ᾱ_t / ᾱ_s says nothing once no signal is left; the steps still do.
            let between = self.steps[s..t].iter();
            let step = between.fold(NoiseLevel::CLEAN, |noise, step| noise.then(*step));
            return Ok(Interval::new(at_s, step));
        }
        Ok(Interval::between_monotone(at_s, at_t))
    }

    fn check(&self, t: usize, first: usize) -> Result<(), Error> {
        let last = self.steps();
        if (first..=last).contains(&t) {
            return Ok(());
        }
        Err(Error::StepOutOfRange { t, first, last })
    }
}
