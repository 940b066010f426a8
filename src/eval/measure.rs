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

/// What a document adds to a ratio.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// Σ weight · numerator.
    numerator: f64,
    /// Σ weight · denominator.
    denominator: f64,
    /// Σ weight² · denominator.
    squares: f64,
}

impl Sums {
    /// Adds a part of the document.
    pub fn add(&mut self, weight: f64, numerator: f64, denominator: f64) {
        self.numerator += weight * numerator;
        self.denominator += weight * denominator;
        self.squares += weight * weight * denominator;
    }
}

/// The 97.5 % quantile of the normal distribution.
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

impl Measure {
    /// Σ numerators / Σ denominators over documents.
    ///
    /// Documents are taken as independent draws of differing size, whose parts are not independent. With
    /// R the ratio and N the sum of denominators, its standard error is that of the linearised ratio
    /// estimator, √(D/(D−1) Σ_d (y_d − R n_d)²) / N (Cochran, Sampling Techniques, 3rd ed., §6.4), and
    /// the interval is R ± t_{0.975, D−1} standard errors.
    pub(super) fn ratio(documents: &[Sums]) -> Self {
        let (value, spread) = linearised(documents);
        let half_width = spread.map(|spread| spread.quantile * spread.error);
        Self {
            value,
            low: half_width.map(|half_width| value - half_width),
            high: half_width.map(|half_width| value + half_width),
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

    /// As [`Measure::ratio`], of a share p of trials, the denominators. The interval is Wilson's for as many
    /// independent trials as have the same standard error, p (1 − p) / error², and not more than were made;
    /// where all or none succeeded, which says nothing of how documents vary, for one trial a document.
    pub(super) fn share(documents: &[Sums]) -> Self {
        let (p, spread) = linearised(documents);
        let interval = spread.map(|spread| {
            let (trials, z) = match p > 0.0 && p < 1.0 {
                true => {
                    let total: f64 = documents.iter().map(|sums| sums.denominator).sum();
                    let squares: f64 = documents.iter().map(|sums| sums.squares).sum();
                    let made = total.powi(2) / squares;
                    let alike = p * (1.0 - p) / spread.error.powi(2);
                    (alike.min(made), spread.quantile)
                }
                false => (spread.documents as f64, NORMAL_QUANTILE),
            };
            let middle = p + z * z / (2.0 * trials);
            let half_width = z * (p * (1.0 - p) / trials + (z / (2.0 * trials)).powi(2)).sqrt();
            let end = |value: f64| (value / (1.0 + z * z / trials)).clamp(0.0, 1.0);
            (end(middle - half_width), end(middle + half_width))
        });
        Self {
            value: p,
            low: interval.map(|(low, _)| low),
            high: interval.map(|(_, high)| high),
        }
    }
}

/// How a ratio varies from document to document.
#[derive(Clone, Copy)]
struct Spread {
    /// Documents with a denominator.
    documents: usize,
    /// The standard error of the linearised ratio.
    error: f64,
    /// The quantile of Student's t by which it is multiplied.
    quantile: f64,
}

/// A ratio, and its spread if there are two documents.
fn linearised(documents: &[Sums]) -> (f64, Option<Spread>) {
    let documents = || documents.iter().filter(|sums| sums.denominator > 0.0);
    let count = documents().count();
    let total: f64 = documents().map(|sums| sums.denominator).sum();
    let value = documents().map(|sums| sums.numerator).sum::<f64>() / total;
    let squares: f64 = documents()
        .map(|sums| (sums.numerator - value * sums.denominator).powi(2))
        .sum();
    let spread = (count >= 2).then(|| Spread {
        documents: count,
        error: (count as f64 / (count - 1) as f64 * squares).sqrt() / total,
        quantile: student_quantile(count - 1),
    });
    (value, spread)
}

/// The 97.5 % quantile of Student's t: in closed form for 1 and 2 degrees of freedom, beyond that by the
/// expansion 26.7.5 of Abramowitz and Stegun, which is right to 0.2 %.
fn student_quantile(degrees_of_freedom: usize) -> f64 {
    const P: f64 = 0.975;
    const Z: f64 = NORMAL_QUANTILE;
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

    fn sums(numerator: f64, denominator: f64) -> Sums {
        let mut sums = Sums::default();
        sums.add(1.0, numerator, denominator);
        sums
    }

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
                let sample: Vec<Sums> = (0..documents)
                    .map(|_| {
                        let tokens = 1 + words.below(20);
                        let level = 1.0 + words.uniform();
                        let nats: f64 = (0..tokens).map(|_| level + words.uniform()).sum();
                        sums(nats, tokens as f64)
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
        let measure = Measure::ratio(&[sums(6.0, 3.0), sums(0.0, 0.0)]);
        assert_eq!(
            (measure.value, measure.low, measure.high),
            (2.0, None, None)
        );
    }

    #[test]
    fn a_shares_interval_stays_a_share() {
        let measure = Measure::share(&[sums(0.0, 1.0), sums(3.0, 3.0)]);
        assert_eq!(measure.value, 0.75);
        let (low, high) = (measure.low.unwrap(), measure.high.unwrap());
        assert!((0.0..0.1).contains(&low) && (0.9..=1.0).contains(&high));
    }

    #[test]
    fn an_interval_of_a_share_covers_it_about_as_often_as_it_says() {
        // Shares of tokens that vary from document to document, from none to twice the mean or, above a half,
        // from all down. The interval of rare tokens in short documents is the widest for what it covers.
        for (share, documents, longest, least) in [
            (0.02, 12, 20, 0.94),
            (0.02, 32, 40, 0.93),
            (0.3, 12, 20, 0.92),
            (0.5, 32, 40, 0.92),
            (0.98, 12, 20, 0.94),
        ] {
            let runs = 2000;
            let covered = (0..runs)
                .filter(|run| {
                    let mut words = Words::new(6, *run, 0, Stream::Spans);
                    let sample: Vec<Sums> = (0..documents)
                        .map(|_| {
                            let tokens = 1 + words.below(longest);
                            let apart =
                                f64::min(share, 1.0 - share) * (2.0 * words.uniform() - 1.0);
                            let level = share + apart;
                            let right = (0..tokens).filter(|_| words.uniform() < level).count();
                            sums(right as f64, tokens as f64)
                        })
                        .collect();
                    let measure = Measure::share(&sample);
                    measure.low.unwrap() <= share && share <= measure.high.unwrap()
                })
                .count();
            let covered = covered as f64 / runs as f64;
            assert!(covered > least && covered < 0.995, "{share}: {covered}");
        }
    }

    #[test]
    fn all_or_none_of_a_share_is_as_uncertain_as_one_trial_a_document_leaves_it() {
        // Wilson's interval of 0 of n is [0, z²/(n + z²)].
        let high = NORMAL_QUANTILE.powi(2) / (8.0 + NORMAL_QUANTILE.powi(2));
        let none = Measure::share(&[sums(0.0, 50.0); 8]);
        assert_eq!((none.value, none.low), (0.0, Some(0.0)));
        assert!((none.high.unwrap() - high).abs() < 1e-12);
        let all = Measure::share(&[sums(50.0, 50.0); 8]);
        assert_eq!((all.value, all.high), (1.0, Some(1.0)));
        assert!((all.low.unwrap() - (1.0 - high)).abs() < 1e-12);
    }

    #[test]
    fn documents_that_happen_to_agree_do_not_make_a_share_certain() {
        // Two of 100 in each: as certain as 800 tokens are, of which those with more weight are fewer.
        let width = |heavy: f64| {
            let mut documents = [sums(2.0, 100.0); 8];
            documents[0] = Sums::default();
            documents[0].add(heavy, 2.0, 100.0);
            let measure = Measure::share(&documents);
            assert!((measure.value - 0.02).abs() < 1e-12);
            measure.high.unwrap() - measure.low.unwrap()
        };
        assert!(width(1.0) > 0.015, "{}", width(1.0));
        assert!(width(20.0) > 1.5 * width(1.0), "{}", width(20.0));
    }
}
