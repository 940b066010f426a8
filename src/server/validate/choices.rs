//! The forwards that the choices of an infilling take, counted before any canvas is laid out.

use std::collections::HashMap;

use super::super::error::ApiError;
use super::gaps::Length;
use super::infill::{InfillJob, InfillPiece};
use crate::canvas::TokenId;

/// The forwards that a request's choices take.
#[derive(Debug, Default)]
pub struct ChoiceForwards {
    /// What is computed, each once.
    pub forwards: Vec<Forward>,
    /// Where the log-probability of each token of a (gap, choice) is found.
    pub places: HashMap<(usize, usize), Vec<Place>>,
}

/// One forward: all gaps at their longest but one, which is as long as one of its choices and begins with
/// the first tokens of it.
#[derive(Debug)]
pub struct Forward {
    /// The gap that is not at its longest.
    pub gap: usize,
    /// The choice that it is as long as.
    pub choice: usize,
    /// How many of the choice's tokens are given.
    pub given: usize,
    /// The tokens whose log-probabilities are asked for, by slot.
    pub of: HashMap<usize, Vec<TokenId>>,
}

/// Where a log-probability is found.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The forward.
    pub forward: usize,
    /// The slot.
    pub slot: usize,
    /// Which of those asked for in the slot.
    pub token: usize,
}

/// What tells forwards apart: those that see the same canvas are one.
#[derive(PartialEq, Eq, Hash)]
struct Seen<'a> {
    /// The gap and how long it is; nothing where all gaps are at their longest and masked, which is the
    /// same canvas whichever of them is asked about.
    gap: Option<(usize, usize)>,
    /// The tokens that are given in it.
    given: &'a [TokenId],
}

impl ChoiceForwards {
    /// The forwards of the choices of `job`, whose gaps are `longest` at their longest.
    ///
    /// # Errors
    /// If they are more than `most`.
    pub fn of(job: &InfillJob, longest: &[usize], most: usize) -> Result<Self, ApiError> {
        let mut all = Self::default();
        let mut known: HashMap<Seen, usize> = HashMap::new();
        let starts = starts(job, longest);
        for (gap, (fields, start)) in job.gaps().zip(starts).enumerate() {
            let Length::Choices(choices) = &fields.length else {
                continue;
            };
            for (number, choice) in choices.iter().enumerate() {
                let length = choice.tokens.len();
                let mut places = Vec::with_capacity(length);
                for (at, token) in choice.tokens.iter().enumerate() {
                    let is_common = at == 0 && length == longest[gap];
                    let seen = Seen {
                        gap: (!is_common).then_some((gap, length)),
                        given: &choice.tokens[..at],
                    };
                    let forwards = &mut all.forwards;
                    let forward = *known.entry(seen).or_insert_with(|| {
                        forwards.push(Forward {
                            gap,
                            choice: number,
                            given: at,
                            of: HashMap::new(),
                        });
                        forwards.len() - 1
                    });
                    if forwards.len() > most {
                        return Err(ApiError::unusable(
                            "segments",
                            format_args!(
                                "the choices take more than {most} forwards, one for each token of those of \
                                 several tokens; allowed: at most {most}"
                            ),
                        ));
                    }
                    let slot = start + at;
                    let tokens = forwards[forward].of.entry(slot).or_default();
                    places.push(Place {
                        forward,
                        slot,
                        token: tokens.len(),
                    });
                    tokens.push(*token);
                }
                all.places.insert((gap, number), places);
            }
        }
        Ok(all)
    }
}

/// The first slot of each gap. What comes before it is at its longest in every forward that asks about it.
fn starts(job: &InfillJob, longest: &[usize]) -> Vec<usize> {
    let mut lengths = longest.iter();
    let mut starts = Vec::with_capacity(longest.len());
    let mut slot = 0;
    for piece in &job.pieces {
        match piece {
            InfillPiece::Text { tokens, .. } => slot += tokens.len(),
            InfillPiece::Gap(_) => {
                starts.push(slot);
                slot += lengths.next().copied().unwrap_or_default();
            }
        }
    }
    starts
}
