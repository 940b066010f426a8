//! Means over documents, with their 95 % confidence intervals.

use serde::Serialize;

/// A number with the ends of its 95 % confidence interval over documents; `None` where there are
/// fewer than two documents, which say nothing about how documents vary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    /// The number.
    pub value: f64,
    /// The interval's lower end.
    pub low: Option<f64>,
    /// The interval's upper end.
    pub high: Option<f64>,
}

impl Measure {
    /// Σ numerators / Σ denominators over documents, each given as (numerator, denominator).
    ///
    /// Documents are taken as independent draws of differing size, whose parts are not independent. With
    /// R the ratio and N the sum of denominators, its standard error is that of the linearised ratio
    /// estimator, √(D/(D−1) Σ_d (y_d − R n_d)²) / N (Cochran, Sampling Techniques, 3rd ed., §6.4), and
    /// the interval is R ± t_{0.975, D−1} standard errors.
    pub(super) fn ratio(documents: &[(f64, f64)]) -> Self {
        let documents: Vec<_> = documents.iter().filter(|(_, n)| *n > 0.0).collect();
        let count = documents.len();
        let total: f64 = documents.iter().map(|(_, n)| n).sum();
        let value = documents.iter().map(|(y, _)| y).sum::<f64>() / total;
        if count < 2 {
            return Self {
                value,
                low: None,
                high: None,
            };
        }
        let squares: f64 = documents.iter().map(|(y, n)| (y - value * n).powi(2)).sum();
        let error = (count as f64 / (count - 1) as f64 * squares).sqrt() / total;
        let half_width = student_quantile(count - 1) * error;
        Self {
            value,
            low: Some(value - half_width),
            high: Some(value + half_width),
        }
    }

    /// The same measure on another scale; `f` must not decrease.
    pub(super) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            value: f(self.value),
            low: self.low.map(&f),
            high: self.high.map(&f),
        }
    }

    /// As [`Measure::ratio`], of a share: the interval ends at 0 and 1.
    pub(super) fn share(documents: &[(f64, f64)]) -> Self {
        Self::ratio(documents).map(|value| value.clamp(0.0, 1.0))
    }
}

/// The 97.5 % quantile of Student's t: in closed form for 1 and 2 degrees of freedom, beyond that by the
/// expansion 26.7.5 of Abramowitz and Stegun, which is right to 0.2 %.
fn student_quantile(degrees_of_freedom: usize) -> f64 {
    const P: f64 = 0.975;
    const Z: f64 = 1.959_963_984_540_054;
    let n = degrees_of_freedom as f64;
    match degrees_of_freedom {
        1 => (std::f64::consts::PI * (P - 0.5)).tan(),
        2 => (2.0 * P - 1.0) * (2.0 / (4.0 * P * (1.0 - P))).sqrt(),
        _ => {
            let z = |power| Z.powi(power);
            Z + (z(3) + Z) / (4.0 * n)
                + (5.0 * z(5) + 16.0 * z(3) + 3.0 * Z) / (96.0 * n.powi(2))
                + (3.0 * z(7) + 19.0 * z(5) + 17.0 * z(3) - 15.0 * Z) / (384.0 * n.powi(3))
                + (79.0 * z(9) + 776.0 * z(7) + 1482.0 * z(5) - 1920.0 * z(3) - 945.0 * Z)
                    / (92_160.0 * n.powi(4))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::words::Words;
    use crate::sampling::philox::Stream;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, expected) in [
            (1, 12.706),
            (2, 4.303),
            (3, 3.182),
            (4, 2.776),
            (10, 2.228),
            (30, 2.042),
            (1000, 1.962),
        ] {
            let got = student_quantile(degrees);
            assert!((got / expected - 1.0).abs() < 2e-3, "{degrees}: {got}");
        }
    }

    #[test]
    fn an_interval_covers_the_true_ratio_about_as_often_as_it_says() {
        // Documents of 1 to 20 tokens whose nats a token vary from document to document and token to
        // token, with mean 2.
        let (runs, documents) = (2000, 12);
        let covered = (0..runs)
            .filter(|run| {
                let mut words = Words::new(5, *run, 0, Stream::Spans);
                let sample: Vec<(f64, f64)> = (0..documents)
                    .map(|_| {
                        let tokens = 1 + words.below(20);
                        let level = 1.0 + words.uniform();
                        let nats: f64 = (0..tokens).map(|_| level + words.uniform()).sum();
                        (nats, tokens as f64)
                    })
                    .collect();
                let measure = Measure::ratio(&sample);
                measure.low.unwrap() <= 2.0 && 2.0 <= measure.high.unwrap()
            })
            .count();
        let share = covered as f64 / runs as f64;
        assert!((0.92..0.975).contains(&share), "{share}");
    }

    #[test]
    fn one_document_has_no_interval_and_empty_ones_do_not_count() {
        let measure = Measure::ratio(&[(6.0, 3.0), (0.0, 0.0)]);
        assert_eq!(
            (measure.value, measure.low, measure.high),
            (2.0, None, None)
        );
    }

    #[test]
    fn a_shares_interval_stays_a_share() {
        let measure = Measure::share(&[(0.0, 1.0), (3.0, 3.0)]);
        assert_eq!(measure.value, 0.75);
        assert_eq!((measure.low, measure.high), (Some(0.0), Some(1.0)));
    }
}
