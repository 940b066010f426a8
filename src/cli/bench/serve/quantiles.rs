//! Quantiles in fixed memory.

use serde::Serialize;

/// The least value that is told from 0.
const LEAST: f64 = 1e-4;
/// A bucket's upper bound over its lower one: quantiles are right within half a percent.
const GROWTH: f64 = 1.01;
/// Buckets up to 10¹⁰ times the least value.
const BUCKETS: usize = 2316;

/// Counts of values of at least 0 by logarithmic buckets.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: f64,
    most: f64,
}

/// What is reported of the values.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantiles {
    /// How many there are.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            count: 0,
            sum: 0.0,
            most: 0.0,
        }
    }
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value: f64) {
        let bucket = ((value / LEAST).max(1.0).ln() / GROWTH.ln()) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.sum += value;
        self.most = self.most.max(value);
    }

    /// The quantiles; `None` if there is no value.
    pub fn quantiles(&self) -> Option<Quantiles> {
        (self.count > 0).then(|| Quantiles {
            count: self.count,
            mean: self.sum / self.count as f64,
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p99: self.quantile(0.99),
            max: self.most,
        })
    }

    /// The middle of the bucket that the quantile is in.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return (LEAST * GROWTH.powf(bucket as f64 + 0.5)).min(self.most);
            }
        }
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_a_percent() {
        let mut histogram = Histogram::default();
        assert!(histogram.quantiles().is_none());
        for value in 1..=10_000 {
            histogram.record(f64::from(value) / 10.0);
        }
        let quantiles = histogram.quantiles().unwrap();
        assert_eq!(quantiles.count, 10_000);
        assert_eq!(quantiles.max, 1000.0);
        for (given, expected) in [
            (quantiles.mean, 500.05),
            (quantiles.p50, 500.0),
            (quantiles.p90, 900.0),
            (quantiles.p99, 990.0),
        ] {
            assert!((given / expected - 1.0).abs() < 0.01, "{given} {expected}");
        }
    }
}
