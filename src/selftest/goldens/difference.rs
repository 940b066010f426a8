//! How far logits are from the official ones.

use candle_core::{D, Tensor};

use super::GoldenError;
use super::folder::numbers;

/// Logits that were computed here, and the official ones.
pub(super) struct Compared {
    pub name: String,
    /// In any shape, in f32 on the CPU.
    pub got: Tensor,
    pub official: Tensor,
    /// The rows that are compared, if not all.
    pub rows: Option<Vec<bool>>,
}

impl Compared {
    pub fn new(name: String, got: Tensor, official: Tensor) -> Self {
        Self {
            name,
            got,
            official,
            rows: None,
        }
    }

    /// How far they are apart.
    ///
    /// # Errors
    /// If a number is not finite, or there are not as many.
    pub fn difference(&self) -> Result<Difference, GoldenError> {
        let differs = |reason| GoldenError::Differs(format!("{}: {reason}", self.name));
        let vocab = self.got.dim(D::Minus1)?.max(1);
        let (got, official) = (numbers(&self.got)?, numbers(&self.official)?);
        if got.len() != official.len() {
            let (got, official) = (got.len(), official.len());
            return Err(differs(format!("{got} logits instead of {official}")));
        }
        let mut difference = Difference::default();
        let (mut sum, mut of_official) = (0f64, 0f64);
        for (index, (got, official)) in got.iter().zip(&official).enumerate() {
            let (row, token) = (index / vocab, index % vocab);
            if !got.is_finite() {
                return Err(differs(format!("token {token} of row {row} has {got}")));
            }
            if self.rows.as_ref().is_none_or(|rows| rows[row]) {
                difference.largest = difference.largest.max((got - official).abs());
                sum += f64::from(got - official).powi(2);
                of_official += f64::from(*official).powi(2);
            }
        }
        difference.relative = (sum / of_official.max(f64::MIN_POSITIVE)).sqrt() as f32;
        Ok(difference)
    }
}

/// How far logits are from the official ones.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Difference {
    /// The largest difference of a logit.
    pub largest: f32,
    /// The root mean square of the differences, as a share of that of the logits.
    pub relative: f32,
}

impl Difference {
    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            largest: self.largest.max(other.largest),
            relative: self.relative.max(other.relative),
        }
    }
}
