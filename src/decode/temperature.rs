//! The temperature: how it changes over the steps.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::decode::PlanError;

/// How the temperature of the tokens changes over the steps of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TemperatureSchedule {
    /// It does not.
    #[default]
    Constant,
    /// At step k of T, from 0, it is τ + (end − τ) k / (T − 1), from the plan's τ at the first step to this end
    /// at the last, at least 0: as MaskGIT anneals the noise on its confidences (arXiv:2202.04200, section 3.2).
    Linear(f32),
    /// At step k of a block's T, from 0, it is end + (τ − end) (T − k) / T: at the plan's τ where the block begins, and
    /// a step short of this end at its last, at least 0 (`LinearTemperatureScheduleLogitsProcessor` of transformers'
    /// generation_diffusion_gemma.py).
    LinearInBlock(f32),
}

impl TemperatureSchedule {
    /// Whether steps are counted in each block by itself, and not over all of them.
    pub(super) fn is_by_block(self) -> bool {
        matches!(self, Self::LinearInBlock(_))
    }

    /// The temperature at `step` of `steps`, which begins at `first`.
    pub(super) fn at(self, first: f32, step: usize, steps: usize) -> f32 {
        match self {
            Self::Constant => first,
            Self::LinearInBlock(end) => {
                let left = steps.saturating_sub(step);
                end + (first - end) * (left as f32 / steps.max(1) as f32)
            }
            Self::Linear(end) => {
                let last = steps.saturating_sub(1);
                // Both ends exactly.
                if last > 0 && step >= last {
                    return end;
                }
                first + (end - first) * (step as f32 / last.max(1) as f32)
            }
        }
    }

    pub(super) fn validate(self) -> Result<(), PlanError> {
        match self {
            Self::Linear(end) | Self::LinearInBlock(end) if !(end.is_finite() && end >= 0.0) => {
                Err(PlanError::OutOfRange {
                    field: "temperature_schedule",
                    given: end.to_string(),
                    allowed: "an end of at least 0",
                })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TemperatureSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => write!(f, "constant"),
            Self::Linear(end) => write!(f, "linear:{end}"),
            Self::LinearInBlock(end) => write!(f, "linear_in_block:{end}"),
        }
    }
}

impl FromStr for TemperatureSchedule {
    type Err = PlanError;

    /// Reads what [`Display`](fmt::Display) writes: `constant`, `linear:0.2`, `linear_in_block:0.4`.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let schedule = match text.split_once(':') {
            None if text == "constant" => Some(Self::Constant),
            Some(("linear", end)) => end.parse().ok().map(Self::Linear),
            Some(("linear_in_block", end)) => end.parse().ok().map(Self::LinearInBlock),
            _ => None,
        };
        let schedule = schedule.ok_or_else(|| PlanError::UnknownName {
            field: "temperature_schedule",
            given: text.to_owned(),
            allowed: "constant, linear:END, linear_in_block:END".to_owned(),
        })?;
        schedule.validate()?;
        Ok(schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_leads_from_the_first_step_to_the_last() {
        let at = |step, steps| TemperatureSchedule::Linear(0.2).at(1.0, step, steps);
        assert_eq!((at(0, 5), at(2, 5), at(4, 5)), (1.0, 0.6, 0.2));
        assert_eq!((at(0, 1), at(7, 5)), (1.0, 0.2));
        assert_eq!(TemperatureSchedule::Constant.at(0.7, 3, 5), 0.7);
        let at = |step| TemperatureSchedule::LinearInBlock(0.5).at(1.0, step, 4);
        assert_eq!([0, 1, 2, 3].map(at), [1.0, 0.875, 0.75, 0.625]);
    }

    #[test]
    fn names_read_back_and_bad_ones_are_refused() {
        for text in ["constant", "linear:0", "linear:0.25", "linear_in_block:0.4"] {
            let read: TemperatureSchedule = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        for text in [
            "",
            "linear",
            "linear:x",
            "linear:-1",
            "linear:inf",
            "cosine:1",
            "linear_in_block",
            "linear_in_block:-1",
        ] {
            assert!(text.parse::<TemperatureSchedule>().is_err(), "{text}");
        }
    }
}
