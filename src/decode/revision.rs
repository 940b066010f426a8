//! Revision: what may happen to a slot after it was committed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::TokenId;
use crate::decode::PlanError;
use crate::decode::plan::MAX_STEPS;
use crate::diffusion::{Error, Interval, Schedule, flow, remasking};

/// The most expansions of a plan: each may take two steps.
const MAX_EXPANSIONS: usize = 4000;

/// What a revision may be written as.
const NAMES: &str = "none, renoise, renoise_rest:STABLE_STEPS,MAX_ENTROPY, remask_cap:ETA, \
                     remask_rescale:ETA, remask_confidence:ETA, remask_confidence_balanced:ETA, \
                     remask_stochastic:ETA, remask_corrector:BETA, remask_loop:ETA,T_ON,T_OFF,ALPHA_ON, \
                     edit:THRESHOLD,MAX_POST_STEPS, resize:MAX_GAP,EXPANSIONS[,right]";

/// What may happen to a slot after it was committed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Revision {
    /// Nothing: what is committed is final.
    #[default]
    None,
    /// It may be masked again, as the reverse process of ReMDM (arXiv:2503.00307) does it. Goes with
    /// [`Budget::Ancestral`](crate::decode::Budget::Ancestral) only.
    Remask(Remasking),
    /// Every slot of the block is drawn anew at every step, from q(x_s | x_t, x̂_0) of the uniform process
    /// with x̂_0 drawn from the network: it becomes x̂_0, stays, or becomes noise. That is the reverse step
    /// Σ q p_θ. In the last step it becomes x̂_0. For models of the uniform process, which take no other; goes
    /// with [`Budget::Ancestral`](crate::decode::Budget::Ancestral), and for models of log-scores, which give
    /// x_s itself, with [`Budget::Analytic`](crate::decode::Budget::Analytic) and
    /// [`Budget::Euler`](crate::decode::Budget::Euler).
    Renoise,
    /// Every slot of the block is looked at in every step: those that score and budget choose take the tokens drawn
    /// for them, and all others new noise, whatever they held. In the block's last step every slot takes its most
    /// probable token (`EntropyBoundSampler` of transformers' generation_diffusion_gemma.py). For models of the
    /// uniform process that denoise encoded blocks; goes with the budgets that go by the candidates.
    RenoiseRest {
        /// A step is a block's last if the most probable tokens are those of so many steps before it, and
        /// `max_entropy` is met; from 0 to 10000.
        stable_steps: usize,
        /// Mean entropy of the block's slots below which a stable step is the last, in nats, at least 0: at 0 a
        /// block takes all of its steps.
        max_entropy: f32,
    },
    /// A token of the current block is replaced where the network prefers another one with more than this
    /// probability (LLaDA2.1). Once no slot of the block is masked, the block is looked at again at
    /// most `max_post_steps` times.
    Edit {
        /// Probability above which another token replaces a committed one, in [0, 1].
        threshold: f32,
        /// Most steps over a block without masked slots.
        max_post_steps: usize,
    },
    /// The network changes the length of gaps (DreamOn, arXiv:2602.01326): a slot whose token is the expand
    /// token becomes two masked slots, and one whose token is the delete token is removed. For models with
    /// these tokens; what is committed otherwise is final.
    Resize(Resizing),
}

/// How far gaps may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resizing {
    /// The most slots to which a gap without limits of its own grows, at least 1; never beyond the model's
    /// context.
    pub max_gap: usize,
    /// The most slots that are expanded on a canvas, from 0 to 4000.
    pub expansions: usize,
    /// With a slot, all masked slots of its gap to the right of it are removed (`pad_delete_to_right`); false if
    /// absent.
    #[serde(default)]
    pub delete_right: bool,
}

impl Default for Resizing {
    /// Up to 64 slots a gap, as DreamOn's authors evaluate it, and twice as many expansions.
    fn default() -> Self {
        Self {
            max_gap: 64,
            expansions: 128,
            delete_right: false,
        }
    }
}

/// The tokens by which a network changes the length of a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ResizeTokens {
    /// Its slot becomes two masked slots.
    pub expand: TokenId,
    /// Its slot is removed.
    pub delete: TokenId,
}

/// How likely a committed slot is masked again in a step of the reverse process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Remasking {
    /// min(η, σ_max), with σ_max the most that the process allows.
    Cap(f64),
    /// η σ_max.
    Rescale(f64),
    /// η σ_max in all, spread over the slots so that those committed with least confidence are masked
    /// again first. As in the official code masked slots are unmasked as if none were masked again, so that
    /// fewer are clean than the process has it; of few slots, many fewer.
    Confidence(f64),
    /// As `Confidence`, where masked slots are unmasked with the mean σ of the committed ones, so that as many
    /// are clean on average as the process has it.
    ConfidenceBalanced(f64),
    /// 1 − e^{−η h} over a step of length h, at most σ_max: the stochasticity η ≥ 0 of discrete flow
    /// matching (arXiv:2402.04997), which noises clean slots at rate η and undoes it.
    Stochastic(f64),
    /// β (α_s − α_t)/α_t, at most σ_max: a corrector of strength β ≥ 0; 1 is the forward-backward
    /// corrector (arXiv:2205.14987).
    Corrector(f64),
    /// Denoise to the level α_on by time t_on, re-mask at this level with probability η until t_off, then
    /// finish.
    Loop {
        /// η, in [0, 1].
        eta: f64,
        /// When re-masking begins, in [0, 1].
        t_on: f64,
        /// When it ends, in [0, t_on].
        t_off: f64,
        /// The share of clean slots meanwhile, in [0, 1].
        alpha_on: f64,
    },
}

impl Remasking {
    /// The re-masking process between s and t.
    ///
    /// # Errors
    /// If a parameter is out of range.
    pub(super) fn step(self, s: f64, t: f64) -> Result<RemaskingStep, Error> {
        let schedule = Schedule::LogLinear;
        let (interval, sigma) = match self {
            Remasking::Cap(eta) => {
                let interval = schedule.interval(s, t)?;
                let sigma = remasking::cap(&interval, eta)?;
                (interval, sigma)
            }
            Remasking::Rescale(eta)
            | Remasking::Confidence(eta)
            | Remasking::ConfidenceBalanced(eta) => {
                let interval = schedule.interval(s, t)?;
                let sigma = remasking::rescale(&interval, eta)?;
                (interval, sigma)
            }
            Remasking::Stochastic(eta) => {
                let interval = schedule.interval(s, t)?;
                let sigma = flow::stochastic_remasking(&interval, t - s, eta)?;
                (interval, sigma)
            }
            Remasking::Corrector(beta) => {
                let interval = schedule.interval(s, t)?;
                let sigma = flow::corrector_remasking(&interval, beta)?;
                (interval, sigma)
            }
            Remasking::Loop {
                eta,
                t_on,
                t_off,
                alpha_on,
            } => {
                let looped = remasking::RemaskingLoop::new(schedule, t_on, t_off, alpha_on)?;
                (looped.interval(s, t)?, looped.sigma(s, t, eta)?)
            }
        };
        Ok(RemaskingStep {
            remasking: self,
            interval,
            sigma,
        })
    }
}

/// One step of a re-masking process.
pub(super) struct RemaskingStep {
    remasking: Remasking,
    interval: Interval,
    /// That of each slot, or by confidence that of all together.
    sigma: f64,
}

impl RemaskingStep {
    /// The probability that a masked slot is unmasked, beside so many committed ones.
    pub fn unmasking(&self, committed: usize) -> Result<f64, Error> {
        let sigma = match self.remasking {
            // A masked slot's own share of the total is none.
            Remasking::Confidence(_) => 0.0,
            Remasking::ConfidenceBalanced(_) if committed == 0 => 0.0,
            // The shares sum to the total, whatever the confidences.
            Remasking::ConfidenceBalanced(_) => self.sigma / committed as f64,
            _ => self.sigma,
        };
        Ok(remasking::unmasking_probability(&self.interval, sigma)?.unwrap_or(0.0))
    }

    /// The probability of each committed slot to be masked again; `probabilities` holds the model's
    /// probability for each when it was committed.
    pub fn remasking(&self, probabilities: &[f64]) -> Result<Vec<f64>, Error> {
        match self.remasking {
            Remasking::Confidence(_) | Remasking::ConfidenceBalanced(_) => {
                let confidences: Vec<_> = probabilities.iter().copied().map(Some).collect();
                remasking::conf(self.sigma, &confidences)
            }
            _ => Ok(vec![self.sigma; probabilities.len()]),
        }
    }
}

impl Revision {
    /// The same, or none where it would change the length of gaps.
    pub fn at_fixed_length(self) -> Self {
        match self {
            Revision::Resize(_) => Revision::None,
            other => other,
        }
    }

    pub(super) fn validate(self) -> Result<(), PlanError> {
        match self {
            Revision::None | Revision::Renoise => Ok(()),
            Revision::RenoiseRest { stable_steps, .. } if stable_steps > MAX_STEPS => {
                Err(PlanError::OutOfRange {
                    field: "revision",
                    given: stable_steps.to_string(),
                    allowed: "at most 10000 stable steps",
                })
            }
            Revision::RenoiseRest { max_entropy, .. }
                if !(max_entropy.is_finite() && max_entropy >= 0.0) =>
            {
                Err(PlanError::OutOfRange {
                    field: "revision",
                    given: max_entropy.to_string(),
                    allowed: "a largest mean entropy of at least 0 nats",
                })
            }
            Revision::RenoiseRest { .. } => Ok(()),
            Revision::Resize(Resizing { max_gap: 0, .. }) => Err(PlanError::OutOfRange {
                field: "revision",
                given: "0".into(),
                allowed: "a max_gap of at least 1",
            }),
            Revision::Resize(Resizing { expansions, .. }) if expansions > MAX_EXPANSIONS => {
                Err(PlanError::OutOfRange {
                    field: "revision",
                    given: expansions.to_string(),
                    allowed: "at most 4000 expansions",
                })
            }
            Revision::Resize(_) => Ok(()),
            Revision::Remask(Remasking::Loop { t_on, t_off, .. }) if t_off > t_on => {
                Err(PlanError::OutOfRange {
                    field: "revision",
                    given: format!("a loop with t_on {t_on} and t_off {t_off}"),
                    allowed: "a t_off of at most t_on",
                })
            }
            Revision::Remask(remasking) => match remasking.step(0.4, 0.5) {
                Ok(_) => Ok(()),
                Err(error) => Err(PlanError::Invalid {
                    field: "revision",
                    reason: error.to_string(),
                }),
            },
            Revision::Edit { max_post_steps, .. } if max_post_steps > MAX_STEPS => {
                Err(PlanError::OutOfRange {
                    field: "revision",
                    given: max_post_steps.to_string(),
                    allowed: "at most 10000 post steps",
                })
            }
            Revision::Edit { threshold, .. } if (0.0..=1.0).contains(&threshold) => Ok(()),
            Revision::Edit { threshold, .. } => Err(PlanError::OutOfRange {
                field: "revision",
                given: threshold.to_string(),
                allowed: "an editing threshold in [0, 1]",
            }),
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Revision::None => write!(f, "none"),
            Revision::Renoise => write!(f, "renoise"),
            Revision::RenoiseRest {
                stable_steps,
                max_entropy,
            } => write!(f, "renoise_rest:{stable_steps},{max_entropy}"),
            Revision::Remask(Remasking::Cap(eta)) => write!(f, "remask_cap:{eta}"),
            Revision::Remask(Remasking::Rescale(eta)) => write!(f, "remask_rescale:{eta}"),
            Revision::Remask(Remasking::Confidence(eta)) => write!(f, "remask_confidence:{eta}"),
            Revision::Remask(Remasking::ConfidenceBalanced(eta)) => {
                write!(f, "remask_confidence_balanced:{eta}")
            }
            Revision::Remask(Remasking::Stochastic(eta)) => write!(f, "remask_stochastic:{eta}"),
            Revision::Remask(Remasking::Corrector(beta)) => write!(f, "remask_corrector:{beta}"),
            Revision::Remask(Remasking::Loop {
                eta,
                t_on,
                t_off,
                alpha_on,
            }) => write!(f, "remask_loop:{eta},{t_on},{t_off},{alpha_on}"),
            Revision::Edit {
                threshold,
                max_post_steps,
            } => write!(f, "edit:{threshold},{max_post_steps}"),
            Revision::Resize(Resizing {
                max_gap,
                expansions,
                delete_right,
            }) => {
                let right = if *delete_right { ",right" } else { "" };
                write!(f, "resize:{max_gap},{expansions}{right}")
            }
        }
    }
}

impl FromStr for Revision {
    type Err = PlanError;

    /// Reads what [`Display`](fmt::Display) writes: `none`, `renoise`, `renoise_rest:1,0.005` (stable steps, mean
    /// entropy), `remask_cap:0.02`, `remask_loop:0.02,0.55,0.05,0.9` (η, t_on, t_off, α_on), `edit:0.9,16`
    /// (threshold, post steps), `resize:64,128` or `resize:64,128,right` (slots a gap, expansions, what is right of a deletion too).
    fn from_str(text: &str) -> Result<Self, PlanError> {
        let unknown = || PlanError::UnknownName {
            field: "revision",
            given: text.to_owned(),
            allowed: NAMES.to_owned(),
        };
        match text {
            "none" => return Ok(Revision::None),
            "renoise" => return Ok(Revision::Renoise),
            _ => {}
        }
        let (name, values) = text.split_once(':').ok_or_else(unknown)?;
        if name == "resize" {
            let values: Vec<&str> = values.split(',').collect();
            let (sizes, delete_right) = match values.as_slice() {
                [sizes @ .., "right"] => (sizes, true),
                sizes => (sizes, false),
            };
            let [max_gap, expansions] = sizes else {
                return Err(unknown());
            };
            let revision = Revision::Resize(Resizing {
                max_gap: max_gap.parse().map_err(|_| unknown())?,
                expansions: expansions.parse().map_err(|_| unknown())?,
                delete_right,
            });
            revision.validate()?;
            return Ok(revision);
        }
        let numbers: Vec<f64> = values
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| unknown())?;
        let revision = match (name, numbers.as_slice()) {
            ("remask_cap", [eta]) => Revision::Remask(Remasking::Cap(*eta)),
            ("remask_rescale", [eta]) => Revision::Remask(Remasking::Rescale(*eta)),
            ("remask_confidence", [eta]) => Revision::Remask(Remasking::Confidence(*eta)),
            ("remask_confidence_balanced", [eta]) => {
                Revision::Remask(Remasking::ConfidenceBalanced(*eta))
            }
            ("remask_stochastic", [eta]) => Revision::Remask(Remasking::Stochastic(*eta)),
            ("remask_corrector", [beta]) => Revision::Remask(Remasking::Corrector(*beta)),
            ("remask_loop", [eta, t_on, t_off, alpha_on]) => Revision::Remask(Remasking::Loop {
                eta: *eta,
                t_on: *t_on,
                t_off: *t_off,
                alpha_on: *alpha_on,
            }),
            ("renoise_rest", [steps, entropy]) if steps.fract() == 0.0 && *steps >= 0.0 => {
                Revision::RenoiseRest {
                    stable_steps: *steps as usize,
                    max_entropy: *entropy as f32,
                }
            }
            ("edit", [threshold, steps]) if steps.fract() == 0.0 && *steps >= 0.0 => {
                Revision::Edit {
                    threshold: *threshold as f32,
                    max_post_steps: *steps as usize,
                }
            }
            _ => return Err(unknown()),
        };
        revision.validate()?;
        Ok(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_bad_ones_are_refused() {
        for text in [
            "none",
            "renoise",
            "remask_cap:0.02",
            "remask_rescale:0.5",
            "remask_confidence:1",
            "remask_confidence_balanced:0.5",
            "remask_stochastic:8",
            "remask_corrector:1",
            "remask_loop:0.02,0.55,0.05,0.9",
            "renoise_rest:1,0.005",
            "renoise_rest:0,0",
            "edit:0.9,16",
            "resize:64,128",
            "resize:1,0,right",
        ] {
            assert_eq!(text.parse::<Revision>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "remask",
            "remask_cap:2",
            "remask_loop:0.1",
            "renoise_rest:1",
            "renoise_rest:0.5,1",
            "renoise_rest:1,-1",
            "renoise_rest:20000,1",
            "edit:1.5,3",
            "edit:0.9,-1",
            "resize:0,1",
            "resize:64",
            "resize:64,1,left",
            "resize:64,1e9",
            "resize:64,5000",
        ] {
            assert!(text.parse::<Revision>().is_err(), "{text}");
        }
    }
}
