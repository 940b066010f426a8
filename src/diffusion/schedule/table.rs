//! A schedule given by numbers.

use std::sync::Arc;

use super::curves::Curve;
use crate::diffusion::Error;

/// α at n + 1 equally spaced times, with straight lines between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    alphas: Arc<[f64]>,
}

impl Table {
    /// The schedule through `alphas`; the first entry is α(0), the last α(1).
    ///
    /// # Errors
    /// [`Error::ShortTable`] for fewer than two entries, [`Error::AlphaOutOfRange`],
    /// [`Error::AlphaIncreases`].
    pub fn new(alphas: &[f64]) -> Result<Self, Error> {
        if alphas.len() < 2 {
            return Err(Error::ShortTable {
                entries: alphas.len(),
            });
        }
        if let Some(&value) = alphas.iter().find(|a| !(0.0..=1.0).contains(*a)) {
            return Err(Error::AlphaOutOfRange { value });
        }
        if let Some(pair) = alphas.windows(2).find(|pair| pair[1] > pair[0]) {
            return Err(Error::AlphaIncreases {
                earlier: pair[0],
                later: pair[1],
            });
        }
        Ok(Self {
            alphas: alphas.into(),
        })
    }

    /// The entries, at t = 0, 1/n, …, 1.
    pub fn alphas(&self) -> &[f64] {
        &self.alphas
    }

    /// The entries left and right of t, and how far t is between them, in [0, 1].
    fn segment(&self, t: f64) -> (f64, f64, f64) {
        let segments = self.alphas.len() - 1;
        let place = t * segments as f64;
        let left = (place as usize).min(segments - 1);
        (
            self.alphas[left],
            self.alphas[left + 1],
            place - left as f64,
        )
    }
}

impl Curve for Table {
    fn alpha(&self, t: f64) -> f64 {
        let (left, right, share) = self.segment(t);
        left * (1.0 - share) + right * share
    }
    fn one_minus_alpha(&self, t: f64) -> f64 {
        let (left, right, share) = self.segment(t);
        (1.0 - left) * (1.0 - share) + (1.0 - right) * share
    }
    fn alpha_prime(&self, t: f64) -> f64 {
        let (left, right, _) = self.segment(t);
        (right - left) * (self.alphas.len() - 1) as f64
    }
}
