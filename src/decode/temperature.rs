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
}

impl TemperatureSchedule {
    /// The temperature at `step` of `steps`, which begins at `first`.
    pub(super) fn at(self, first: f32, step: usize, steps: usize) -> f32 {
        match self {
            Self::Constant => first,
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
            Self::Linear(end) if !(end.is_finite() && end >= 0.0) => Err(PlanError::OutOfRange {
                field: "temperature_schedule",
                given: end.to_string(),
                allowed: "an end of at least 0",
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TemperatureSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => write!(f, "constant"),
            Self::Linear(end) => write!(f, "linear:{end}"),
        }
    }
}

impl FromStr for TemperatureSchedule {
    type Err = PlanError;

    /// Reads what [`Display`](fmt::Display) writes: `constant`, `linear:0.2`.
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let end = |text: &str| {
            text.strip_prefix("linear:")
                .and_then(|end| end.parse().ok())
        };
        let schedule = match text {
            "constant" => Self::Constant,
            text => Self::Linear(end(text).ok_or_else(|| PlanError::UnknownName {
                field: "temperature_schedule",
                given: text.to_owned(),
                allowed: "constant, linear:END".to_owned(),
            })?),
        };
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
    }

    #[test]
    fn names_read_back_and_bad_ones_are_refused() {
        for text in ["constant", "linear:0", "linear:0.25"] {
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
        ] {
            assert!(text.parse::<TemperatureSchedule>().is_err(), "{text}");
        }
    }
}
