//! What top-k, top-p and min-p keep of a row.

use super::exact;
use super::{FilterOrder, RowParams};
use crate::canvas::TokenId;
use crate::simd::{LANES, wide};

/// One in the units of masses, 2⁻⁴⁰.
const ONE: f32 = (1u64 << 40) as f32;

/// Up to here e^x rounds to no mass: e⁻²⁸ is 0.76 · 2⁻⁴⁰.
const NO_MASS: f32 = -28.0;

/// Intervals of the exponent for each 1.
const INTERVALS_OF_ONE: usize = 64;

/// Intervals of the exponents that have a mass.
const INTERVALS: usize = 28 * INTERVALS_OF_ONE;

/// A row's temperature, and the logit whose mass is 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    reference: f32,
    temperature: f32,
}

impl Scale {
    /// ln of the mass of a token.
    #[inline(always)]
    fn exponent(self, logit: f32) -> f32 {
        ((logit - self.reference) / self.temperature).min(0.0)
    }

    fn mass(self, logit: f32) -> u64 {
        mass_of(self.exponent(logit))
    }
}

/// Of an exponent of at most 0.
#[inline(always)]
fn mass_of(exponent: f32) -> u64 {
    // By way of i64, for which processors have an instruction.
    (exact::exp(exponent) * ONE) as i64 as u64
}

/// In which interval an exponent in (−28, 0] lies, the first of which begins at 0.
#[inline(always)]
fn interval(exponent: f32) -> usize {
    (-exponent * INTERVALS_OF_ONE as f32) as usize
}

/// e^((logit − reference) / temperature) in units of 2⁻⁴⁰. Sums of integers are the same in any order, so
/// every device agrees on the last token that top-p keeps.
pub(super) fn mass(logit: f32, reference: f32, temperature: f32) -> u64 {
    Scale {
        reference,
        temperature,
    }
    .mass(logit)
}

/// The smallest logit that the filters keep; −∞ without one. `reference` is the largest that may be drawn.
pub(super) fn cutoff(logits: &[f32], reference: f32, params: &RowParams) -> f32 {
    let temperature = params.effective_temperature();
    let by_min_p = params.min_p.map_or(f32::NEG_INFINITY, |p| {
        (reference + temperature * p.ln()).min(reference)
    });
    let top_p = params.top_p.filter(|p| *p < 1.0);
    let top_k = params.top_k.filter(|k| *k < logits.len());
    let best = top_k.map(|k| largest(logits, params.excluded, k));
    let by_k = match best.as_deref() {
        Some([.., last]) => *last,
        _ => f32::NEG_INFINITY,
    };
    let by_p = top_p.and_then(|p| {
        let of = match &best {
            Some(best) if params.filter_order == FilterOrder::TopKFirst => [&**best, &[]],
            _ => around(logits, params.excluded),
        };
        let scale = Scale {
            reference,
            temperature,
        };
        least_of_share(of, p, scale)
    });
    by_p.unwrap_or(f32::NEG_INFINITY).max(by_k).max(by_min_p)
}

/// The `k` largest logits, the smallest of them last; the `excluded` token's counts as −∞. There are more.
fn largest(logits: &[f32], excluded: TokenId, k: usize) -> Vec<f32> {
    let mut logits = logits.to_vec();
    if let Some(logit) = logits.get_mut(excluded as usize) {
        *logit = f32::NEG_INFINITY;
    }
    logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    logits.truncate(k);
    logits
}

/// The logits before and after that of `excluded`.
fn around(logits: &[f32], excluded: TokenId) -> [&[f32]; 2] {
    match logits.split_at_checked(excluded as usize) {
        Some((before, [_, after @ ..])) => [before, after],
        _ => [logits, &[]],
    }
}

/// The largest number such that the logits of at least it have the share `p` of all masses; `None` of no logits.
///
/// The masses are summed by intervals of the exponent, and only the interval in which the share is reached is
/// looked at more closely.
fn least_of_share(parts: [&[f32]; 2], p: f32, scale: Scale) -> Option<f32> {
    let mut masses = vec![0; INTERVALS];
    for logits in parts {
        add_masses(logits, scale, &mut masses);
    }
    let total: u64 = masses.iter().sum();
    let target = (f64::from(p) * total as f64) as u64;
    let mut above = 0;
    let reached = masses.iter().position(|mass| {
        let is_reached = above + mass >= target;
        if !is_reached {
            above += mass;
        }
        is_reached
    })?;
    let mut among: Vec<f32> = parts
        .into_iter()
        .flatten()
        .copied()
        .filter(|logit| {
            let exponent = scale.exponent(*logit);
            exponent > NO_MASS && interval(exponent) == reached
        })
        .collect();
    let mut among = among.as_mut_slice();
    while among.len() > 1 {
        let middle = (among.len() - 1) / 2;
        among.select_nth_unstable_by(middle, |a, b| b.total_cmp(a));
        let (larger, smaller) = among.split_at_mut(middle + 1);
        let mass: u64 = larger.iter().map(|logit| scale.mass(*logit)).sum();
        if above + mass >= target {
            among = larger;
        } else {
            above += mass;
            among = smaller;
        }
    }
    among.first().copied()
}

wide! {
    /// Adds the mass of each logit to that of its interval.
    pub fn add_masses(logits: &[f32], scale: Scale, masses: &mut [u64]) {
        for logits in logits.chunks(LANES) {
            let mut exponents = [f32::NEG_INFINITY; LANES];
            for (exponent, logit) in exponents.iter_mut().zip(logits) {
                *exponent = scale.exponent(*logit);
            }
            if exponents.iter().fold(true, |none, x| none & (*x <= NO_MASS)) {
                continue;
            }
            for (exponent, mass) in exponents.into_iter().zip(exponents.map(mass_of)) {
                if exponent > NO_MASS {
                    masses[interval(exponent)] += mass;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As top-p is defined: the smallest logit of the shortest list of best tokens with the share.
    fn by_sorting(logits: &[f32], p: f32, scale: Scale) -> f32 {
        let mut sorted = logits.to_vec();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let masses = || sorted.iter().map(|logit| scale.mass(*logit));
        let target = (f64::from(p) * masses().sum::<u64>() as f64) as u64;
        let sums = masses().scan(0, |sum, mass| {
            *sum += mass;
            Some(*sum)
        });
        let last = sums.take_while(|sum| *sum < target).count();
        sorted[last]
    }

    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -30.0f32..30.0,
            2 => (-3i8..3).prop_map(f32::from),
            1 => -0.02f32..0.02,
            1 => Just(f32::NEG_INFINITY),
            1 => Just(-0.0),
        ]
    }

    proptest! {
        #[test]
        fn top_p_by_intervals_and_partitions_keeps_what_sorting_keeps(
            mut logits in proptest::collection::vec(logit(), 0..200),
            p in prop_oneof![0.0f32..1.0, Just(1e-30), Just(0.999_999_94)],
            temperature in prop_oneof![0.1f32..3.0, Just(1e-30), Just(1e30)],
            split in any::<prop::sample::Index>(),
        ) {
            logits.push(1.0);
            let reference = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = Scale { reference, temperature };
            let (before, after) = logits.split_at(split.index(logits.len()));
            let least = least_of_share([before, after], p, scale);
            prop_assert_eq!(least, Some(by_sorting(&logits, p, scale)));
        }
    }

    #[test]
    fn the_intervals_hold_every_exponent_that_has_a_mass() {
        assert_eq!(mass_of(NO_MASS), 0);
        assert_eq!((interval(0.0), interval(-0.0)), (0, 0));
        assert_eq!(interval(NO_MASS.next_up()), INTERVALS - 1);
    }

    #[test]
    fn the_excluded_token_is_left_out_wherever_it_stands() {
        let logits = [1.0, 2.0, 3.0];
        assert_eq!(around(&logits, 0), [&[][..], &[2.0, 3.0]]);
        assert_eq!(around(&logits, 2), [&[1.0, 2.0][..], &[]]);
        for outside in [3, TokenId::MAX] {
            assert_eq!(around(&logits, outside), [&logits[..], &[]]);
        }
    }
}
