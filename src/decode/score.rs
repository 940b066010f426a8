//! The score of a candidate: which masked slots a policy prefers to commit.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::TokenId;
use crate::decode::PlanError;

/// What the sampler found for one masked slot at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The slot on the canvas.
    pub slot: usize,
    /// The token drawn for it (the most probable one at temperature 0).
    pub token: TokenId,
    /// The probability of `token`, by the plan's basis.
    pub probability: f32,
    /// The most probable token.
    pub most_probable: TokenId,
    /// The probability of the most probable token, by the plan's basis.
    pub best: f32,
    /// The probability of the second most probable token.
    pub second: f32,
    /// Entropy of the distribution, in nats.
    pub entropy: f32,
    /// A uniform draw in [0, 1) of this request, step and slot.
    pub uniform: f32,
    /// The probability that the reverse process unmasks the slot in this step, by the log-scores of the network; may
    /// be more than 1. `None` where the budget does not go by scores.
    pub unmasking: Option<f32>,
}

/// How candidates are ranked; the highest score is committed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The probability of the drawn token (LLaDA's low-confidence re-masking, arXiv:2502.09992).
    #[default]
    Confidence,
    /// The most probable token's lead over the second (top-k margin, arXiv:2502.06768).
    Margin,
    /// Minus the entropy of the distribution (Dream's `entropy`, arXiv:2508.15487).
    Entropy,
    /// A uniform draw: slots in random order, as the ancestral sampler commits them.
    Random,
    /// The leftmost slot first.
    LeftToRight,
}

impl Score {
    /// Every score, in the order in which help texts list them.
    pub const ALL: [Score; 5] = [
        Score::Confidence,
        Score::Margin,
        Score::Entropy,
        Score::Random,
        Score::LeftToRight,
    ];

    /// The name used on the command line, over HTTP and in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Score::Confidence => "confidence",
            Score::Margin => "margin",
            Score::Entropy => "entropy",
            Score::Random => "random",
            Score::LeftToRight => "left_to_right",
        }
    }

    /// The score of `candidate`.
    pub fn of(self, candidate: &Candidate) -> f32 {
        match self {
            Score::Confidence => candidate.probability,
            Score::Margin => candidate.best - candidate.second,
            Score::Entropy => -candidate.entropy,
            Score::Random => candidate.uniform,
            Score::LeftToRight => -(candidate.slot as f32),
        }
    }
}

impl FromStr for Score {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        Self::ALL
            .into_iter()
            .find(|score| score.name() == text)
            .ok_or_else(|| PlanError::UnknownName {
                field: "score",
                given: text.to_owned(),
                allowed: Self::ALL.map(Score::name).join(", "),
            })
    }
}
