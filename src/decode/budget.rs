//! The budget: how many candidates are committed at a step.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::decode::{Candidate, PlanError};

/// How many candidates a step commits.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
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
    /// The number that the reverse process unmasks on average from time t to s, on the even grid of
    /// times from 1 to `eps`: n (1 − s/t) of n masked slots, and all of them at the last step. May be none.
    Schedule {
        /// How the number is made whole.
        rounding: Rounding,
        /// The last time of the grid, in [0, 1).
        #[serde(default)]
        eps: f32,
    },
    /// Each masked slot by itself with probability 1 − s/t, as the reverse process does it (ancestral
    /// sampling; MDLM, arXiv:2406.07524), and all of them at the last step. The score plays no part. With
    /// [`Revision::Renoise`](crate::decode::Revision::Renoise) the reverse process is that of the uniform one.
    Ancestral {
        /// The last time of the grid, in [0, 1).
        #[serde(default)]
        eps: f32,
    },
    /// Each masked slot by itself with the probability that the network's scores give it in the step
    /// ([`Candidate::unmasking`]), and all of them at the last step (the analytic predictor, or Tweedie's
    /// τ-leaping; SEDD, arXiv:2310.16834, section 4.2). For models of log-scores only; the score plays no part.
    Analytic {
        /// The last time of the grid, in [0, 1); 1e-5 if absent, as the official sampler has it.
        #[serde(default = "analytic_eps")]
        eps: f32,
    },
    /// As `Analytic`, by Euler's method on the reverse process's rates in the place of Tweedie's formula (SEDD's
    /// `euler` predictor).
    Euler {
        /// The last time of the grid, in [0, 1); 1e-5 if absent, as the official sampler has it.
        #[serde(default = "analytic_eps")]
        eps: f32,
    },
}

fn analytic_eps() -> f32 {
    1e-5
}

/// How an expected number is made whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Down (Dream's generation_utils.py).
    Floor,
    /// To the nearest, halves to the even one (dllm's samplers).
    Nearest,
}

/// Moves the candidates that qualify to the front, both parts in their order; how many they are.
fn to_front(ranked: &mut [Candidate], qualifies: impl Fn(&Candidate) -> bool) -> usize {
    ranked.sort_by_key(|candidate| !qualifies(candidate));
    ranked.partition_point(qualifies)
}

impl Budget {
    /// How many of `ranked` the budget itself asks for, which it moves to the front; `ranked` is in falling
    /// order of score, and what is moved and what is left stay so. None for the budgets that go by the step
    /// and not by the candidates.
    pub(super) fn by_candidates(self, ranked: &mut [Candidate]) -> usize {
        match self {
            Budget::Even
            | Budget::Schedule { .. }
            | Budget::Ancestral { .. }
            | Budget::Analytic { .. }
            | Budget::Euler { .. } => 0,
            Budget::Threshold(threshold) => to_front(ranked, |c| c.probability >= threshold),
            Budget::Factor(factor) => {
                let mut probabilities: Vec<f32> = ranked.iter().map(|c| c.probability).collect();
                probabilities.sort_by(|a, b| b.total_cmp(a));
                let confident = probabilities.iter().enumerate();
                let count = confident
                    .take_while(|(i, p)| (i + 2) as f32 * (1.0 - **p) <= factor)
                    .count();
                let Some(least) = count.checked_sub(1).map(|last| probabilities[last]) else {
                    return 0;
                };
                to_front(ranked, |c| c.probability >= least);
                count
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
        }
    }

    /// The last time of the grid, for the budgets that follow a noise schedule.
    pub(crate) fn last_time(self) -> Option<f32> {
        match self {
            Budget::Schedule { eps, .. }
            | Budget::Ancestral { eps }
            | Budget::Analytic { eps }
            | Budget::Euler { eps } => Some(eps),
            _ => None,
        }
    }

    /// Whether the last time of the grid is 0 in f32, as the decoder computes it.
    pub(crate) fn ends_at_zero(self) -> bool {
        self.last_time()
            .is_some_and(|last| 1.0 - (1.0 - last) <= 0.0)
    }

    /// Whether each slot is unmasked by itself, by chance, and not the best of them.
    pub(crate) fn is_by_chance(self) -> bool {
        matches!(self, Budget::Ancestral { .. }) || self.is_by_scores()
    }

    /// Whether the network's scores say what a step does.
    pub(crate) fn is_by_scores(self) -> bool {
        matches!(self, Budget::Analytic { .. } | Budget::Euler { .. })
    }

    pub(super) fn validate(self) -> Result<(), PlanError> {
        let last_time = |field, eps: f32| {
            let ok = (0.0..1.0).contains(&eps);
            (field, eps, "at least 0 and less than 1", ok)
        };
        let (field, value, allowed, ok) = match self {
            Budget::Even => return Ok(()),
            Budget::Threshold(p) => (
                "budget.threshold",
                p,
                "a probability in [0, 1]",
                (0.0..=1.0).contains(&p),
            ),
            Budget::Factor(f) => (
                "budget.factor",
                f,
                "a finite number of at least 0",
                f >= 0.0,
            ),
            Budget::EntropyBound(h) => (
                "budget.entropy_bound",
                h,
                "a finite number of nats of at least 0",
                h >= 0.0,
            ),
            Budget::Schedule { eps, .. } => last_time("budget.schedule.eps", eps),
            Budget::Ancestral { eps } => last_time("budget.ancestral.eps", eps),
            Budget::Analytic { eps } => last_time("budget.analytic.eps", eps),
            Budget::Euler { eps } => last_time("budget.euler.eps", eps),
        };
        if ok && value.is_finite() {
            Ok(())
        } else {
            Err(PlanError::OutOfRange {
                field,
                given: value.to_string(),
                allowed,
            })
        }
    }
}

/// The expected number of `masked` slots that a step from time `t` to `s` unmasks, made whole.
///
/// In the official samplers' arithmetic, which decides between two whole numbers where the exact value is one or lies
/// halfway: f32, of dllm's the ratio of noise alone and what follows f64.
pub(super) fn scheduled(masked: usize, t: f32, s: f32, rounding: Rounding) -> usize {
    match rounding {
        Rounding::Floor => (masked as f32 * (1.0 - s / t)) as usize,
        Rounding::Nearest => {
            let noise = |time: f32| 1.0 - (1.0 - time);
            let share = 1.0 - f64::from(noise(s) / noise(t));
            (masked as f64 * share).round_ties_even() as usize
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
            Budget::Schedule {
                rounding: Rounding::Floor,
                eps,
            } => write!(f, "schedule_floor:{eps}"),
            Budget::Schedule {
                rounding: Rounding::Nearest,
                eps,
            } => write!(f, "schedule_nearest:{eps}"),
            Budget::Ancestral { eps } => write!(f, "ancestral:{eps}"),
            Budget::Analytic { eps } => write!(f, "analytic:{eps}"),
            Budget::Euler { eps } => write!(f, "euler:{eps}"),
        }
    }
}

impl FromStr for Budget {
    type Err = PlanError;

    /// Reads what [`Display`](fmt::Display) writes: `even`, `threshold:0.9`, `ancestral:0.001`.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let unknown = || PlanError::UnknownName {
            field: "budget",
            given: text.to_owned(),
            allowed: "even, threshold:P, factor:F, entropy_bound:NATS, schedule_floor:EPS, \
                      schedule_nearest:EPS, ancestral:EPS, analytic:EPS, euler:EPS"
                .to_owned(),
        };
        if text == "even" {
            return Ok(Budget::Even);
        }
        let (name, value) = text.split_once(':').ok_or_else(unknown)?;
        let value: f32 = value.parse().map_err(|_| unknown())?;
        let schedule = |rounding| Budget::Schedule {
            rounding,
            eps: value,
        };
        let budget = match name {
            "threshold" => Budget::Threshold(value),
            "factor" => Budget::Factor(value),
            "entropy_bound" => Budget::EntropyBound(value),
            "schedule_floor" => schedule(Rounding::Floor),
            "schedule_nearest" => schedule(Rounding::Nearest),
            "ancestral" => Budget::Ancestral { eps: value },
            "analytic" => Budget::Analytic { eps: value },
            "euler" => Budget::Euler { eps: value },
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
                most_probable: 0,
                best: probability,
                second: 0.0,
                entropy: 1.0 - probability,
                uniform: 0.0,
                unmasking: None,
            })
            .collect()
    }

    #[test]
    fn threshold_takes_all_that_reach_it() {
        let mut candidates = ranked(&[0.95, 0.9, 0.5]);
        assert_eq!(Budget::Threshold(0.9).by_candidates(&mut candidates), 2);
        assert_eq!(Budget::Threshold(0.99).by_candidates(&mut candidates), 0);
    }

    #[test]
    fn those_that_qualify_come_first_however_they_are_ranked() {
        for (budget, count, slots) in [
            (Budget::Threshold(0.9), 2, [1, 3, 0, 2]),
            // 2 (1 − 0.95) ≤ 0.4, 3 (1 − 0.9) ≤ 0.4, 4 (1 − 0.4) > 0.4.
            (Budget::Factor(0.4), 2, [1, 3, 0, 2]),
            (Budget::Threshold(0.99), 0, [0, 1, 2, 3]),
        ] {
            let mut candidates = ranked(&[0.1, 0.9, 0.4, 0.95]);
            assert_eq!(budget.by_candidates(&mut candidates), count, "{budget:?}");
            let order: Vec<usize> = candidates.iter().map(|c| c.slot).collect();
            assert_eq!(order, slots, "{budget:?}");
        }
    }

    #[test]
    fn a_grid_whose_last_time_vanishes_in_f32_ends_at_zero() {
        for (eps, vanishes) in [(0.0, true), (1e-9, true), (1e-7, false), (1e-3, false)] {
            assert_eq!(Budget::Analytic { eps }.ends_at_zero(), vanishes, "{eps}");
        }
        assert!(!Budget::Even.ends_at_zero());
    }

    #[test]
    fn factor_takes_the_largest_n_whose_nth_probability_is_high_enough() {
        // n = 1 needs 1 − p ≤ 1/2, n = 2 needs ≤ 1/3, n = 3 needs ≤ 1/4.
        let mut candidates = ranked(&[0.9, 0.7, 0.7]);
        assert_eq!(Budget::Factor(1.0).by_candidates(&mut candidates), 2);
    }

    #[test]
    fn entropy_bound_ignores_the_largest_entropy() {
        let mut candidates = ranked(&[0.9, 0.8, 0.5]);
        let mut taken = |bound| Budget::EntropyBound(bound).by_candidates(&mut candidates);
        assert_eq!((taken(0.15), taken(0.35)), (2, 3));
    }

    #[test]
    fn names_read_back_and_bad_ones_are_refused() {
        for text in [
            "even",
            "threshold:0.9",
            "factor:1.5",
            "entropy_bound:0.3",
            "schedule_floor:0.001",
            "schedule_nearest:0",
            "ancestral:0.00001",
            "analytic:0.00001",
            "euler:0.00001",
        ] {
            assert_eq!(text.parse::<Budget>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "most",
            "threshold",
            "threshold:x",
            "threshold:1.5",
            "factor:NaN",
            "ancestral:1",
        ] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
    }
}
