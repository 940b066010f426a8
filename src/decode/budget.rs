//! The budget: how many candidates are committed at a step.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::decode::{Candidate, PlanError};

/// How many of the ranked candidates a step commits. At least one always is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// The block's masked slots split evenly over its steps, the remainder first
    /// (`get_num_transfer_tokens` in LLaDA's generate.py).
    #[default]
    Even,
    /// All candidates whose token has at least this probability, in [0, 1]
    /// (Fast-dLLM, arXiv:2505.22618).
    Threshold(f32),
    /// The n most probable for the largest n with (n + 1) (1 − p₍ₙ₎) ≤ factor, with p₍ₙ₎ the n-th
    /// largest probability (Fast-dLLM's factor-based decoding); factor ≥ 0.
    Factor(f32),
    /// Candidates in order of score while the sum of their entropies less the largest stays within
    /// this bound, in nats (entropy-bounded sampling, arXiv:2505.24857).
    EntropyBound(f32),
}

impl Budget {
    /// How many of `ranked` to commit, where `even` is the even split's share of this step (0 if the
    /// plan names no number of steps). `ranked` is in falling order of score and not empty.
    pub fn count(self, ranked: &[Candidate], even: usize) -> usize {
        let wanted = match self {
            Budget::Even => even,
            Budget::Threshold(threshold) => ranked
                .iter()
                .filter(|candidate| candidate.probability >= threshold)
                .count(),
            Budget::Factor(factor) => {
                let mut probabilities: Vec<f32> = ranked.iter().map(|c| c.probability).collect();
                probabilities.sort_by(|a, b| b.total_cmp(a));
                probabilities
                    .iter()
                    .enumerate()
                    .take_while(|(i, p)| (i + 2) as f32 * (1.0 - **p) <= factor)
                    .count()
            }
            Budget::EntropyBound(bound) => {
                let (mut sum, mut largest) = (0.0f32, 0.0f32);
                ranked
                    .iter()
                    .take_while(|candidate| {
                        sum += candidate.entropy;
                        largest = largest.max(candidate.entropy);
                        sum - largest <= bound
                    })
                    .count()
            }
        };
        wanted.max(even).max(1).min(ranked.len())
    }

    pub(super) fn validate(self) -> Result<(), PlanError> {
        let (value, allowed, ok) = match self {
            Budget::Even => return Ok(()),
            Budget::Threshold(p) => (p, "a probability in [0, 1]", (0.0..=1.0).contains(&p)),
            Budget::Factor(f) => (f, "a finite number of at least 0", f >= 0.0),
            Budget::EntropyBound(h) => (h, "a finite number of nats of at least 0", h >= 0.0),
        };
        if ok && value.is_finite() {
            Ok(())
        } else {
            Err(PlanError::OutOfRange {
                field: "budget",
                given: value.to_string(),
                allowed,
            })
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Even => write!(f, "even"),
            Budget::Threshold(value) => write!(f, "threshold:{value}"),
            Budget::Factor(value) => write!(f, "factor:{value}"),
            Budget::EntropyBound(value) => write!(f, "entropy_bound:{value}"),
        }
    }
}

impl FromStr for Budget {
    type Err = PlanError;

    /// Reads what [`Display`](fmt::Display) writes: `even`, `threshold:0.9`, `factor:1`,
    /// `entropy_bound:0.3`.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let unknown = || PlanError::UnknownName {
            field: "budget",
            given: text.to_owned(),
            allowed: "even, threshold:P, factor:F, entropy_bound:NATS".to_owned(),
        };
        if text == "even" {
            return Ok(Budget::Even);
        }
        let (name, value) = text.split_once(':').ok_or_else(unknown)?;
        let value: f32 = value.parse().map_err(|_| unknown())?;
        let budget = match name {
            "threshold" => Budget::Threshold(value),
            "factor" => Budget::Factor(value),
            "entropy_bound" => Budget::EntropyBound(value),
            _ => return Err(unknown()),
        };
        budget.validate()?;
        Ok(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(probabilities: &[f32]) -> Vec<Candidate> {
        probabilities
            .iter()
            .enumerate()
            .map(|(slot, &probability)| Candidate {
                slot,
                token: 0,
                probability,
                best: probability,
                second: 0.0,
                entropy: 1.0 - probability,
                uniform: 0.0,
            })
            .collect()
    }

    #[test]
    fn threshold_takes_all_that_reach_it_and_at_least_one() {
        let candidates = ranked(&[0.95, 0.9, 0.5]);
        assert_eq!(Budget::Threshold(0.9).count(&candidates, 0), 2);
        assert_eq!(Budget::Threshold(0.99).count(&candidates, 0), 1);
    }

    #[test]
    fn steps_are_a_lower_bound_for_every_budget() {
        let candidates = ranked(&[0.5, 0.4, 0.3]);
        for budget in [
            Budget::Even,
            Budget::Threshold(0.9),
            Budget::Factor(0.0),
            Budget::EntropyBound(0.0),
        ] {
            assert_eq!(budget.count(&candidates, 2), 2, "{budget}");
        }
    }

    #[test]
    fn factor_takes_the_largest_n_whose_nth_probability_is_high_enough() {
        // n = 1 needs 1 − p ≤ 1/2, n = 2 needs ≤ 1/3, n = 3 needs ≤ 1/4.
        let candidates = ranked(&[0.9, 0.7, 0.7]);
        assert_eq!(Budget::Factor(1.0).count(&candidates, 0), 2);
    }

    #[test]
    fn entropy_bound_ignores_the_largest_entropy() {
        let candidates = ranked(&[0.9, 0.8, 0.5]);
        assert_eq!(Budget::EntropyBound(0.15).count(&candidates, 0), 2);
        assert_eq!(Budget::EntropyBound(0.35).count(&candidates, 0), 3);
    }

    #[test]
    fn names_read_back_and_bad_ones_are_refused() {
        for text in ["even", "threshold:0.9", "factor:1.5", "entropy_bound:0.3"] {
            assert_eq!(text.parse::<Budget>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "most",
            "threshold",
            "threshold:x",
            "threshold:1.5",
            "factor:NaN",
        ] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
    }
}
