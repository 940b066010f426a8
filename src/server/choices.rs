//! Gaps that are filled with one of several given texts.
//!
//! They are decided before anything is denoised, each by itself while all other gaps are masked. A choice of
//! one token has the model's probability for it in the gap's slot; all choices of one token, in all gaps,
//! take one forward. A choice of several tokens has the product of its tokens' probabilities, each given
//! those before it: that takes a forward a token, which run side by side.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::error::ApiError;
use super::probe::{self, Probe, given};
use super::state::AppState;
use super::validate::{Choice, Forward, InfillJob, Length};
use super::wire::ChoiceProbability;
use crate::canvas::{Canvas, Commit, TokenId};
use crate::models::ModelSpec;
use crate::sampling::exact::gumbel;
use crate::sampling::philox::{Draws, Stream};

/// The choices of a gap with their probabilities.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    choices: Arc<[Choice]>,
    /// Log-probabilities of each choice's tokens.
    logprobs: Vec<Vec<f32>>,
}

impl Decision {
    fn total(&self, choice: usize) -> f64 {
        self.logprobs[choice].iter().map(|l| f64::from(*l)).sum()
    }

    /// What is reported of them.
    pub fn probabilities(&self) -> Vec<ChoiceProbability> {
        let totals: Vec<f64> = (0..self.choices.len()).map(|i| self.total(i)).collect();
        let best = totals.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = totals.iter().map(|total| (total - best).exp()).sum();
        let choices = self.choices.iter().zip(totals);
        choices
            .map(|(choice, total)| ChoiceProbability {
                text: choice.text.clone(),
                probability: (total - best).exp() / sum,
                logprob: total,
            })
            .collect()
    }

    /// Which choice fills the `gap`th gap: the most probable one at temperature 0, the first of several;
    /// otherwise one drawn from their probabilities to the power of 1 / temperature.
    pub fn pick(&self, gap: usize, temperature: f32, seed: u64) -> usize {
        let draws = Draws::new(seed, 0, gap, Stream::Choice);
        let rank = |choice: usize| match temperature == 0.0 {
            true => self.total(choice),
            false => {
                let word = draws.quad((choice / 4) as u32)[choice % 4];
                self.total(choice) / f64::from(temperature) + f64::from(gumbel(word))
            }
        };
        // `max_by` takes the last of equals.
        (0..self.choices.len())
            .rev()
            .max_by(|a, b| rank(*a).total_cmp(&rank(*b)))
            .unwrap_or(0)
    }

    /// How many slots a choice takes.
    pub fn length(&self, choice: usize) -> usize {
        self.choices[choice].tokens.len()
    }

    /// Writes a choice to the `gap`th gap of a canvas.
    pub fn commit(&self, canvas: &mut Canvas, gap: usize, choice: usize) {
        let slots = canvas.gaps()[gap].clone();
        let tokens = &self.choices[choice].tokens;
        for ((slot, token), logprob) in slots.zip(tokens).zip(&self.logprobs[choice]) {
            if let Some(slot) = canvas.gap_slot_mut(slot) {
                let probability = logprob.exp();
                slot.commit(Commit {
                    token: *token,
                    probability,
                    score: probability,
                    step: 0,
                });
            }
        }
    }
}

/// The probabilities of all choices, one entry a gap that has any; and how many forwards they took.
pub(super) async fn decide(
    job: &InfillJob,
    state: &AppState,
) -> Result<(Vec<Option<Decision>>, usize), ApiError> {
    let forwards = &job.choices.forwards;
    let spec = state.engine.spec();
    let probes = forwards
        .iter()
        .map(|forward| probe(job, forward, spec).map(|probe| (probe, ())));
    let probes = stream::iter(probes).boxed();
    let in_flight = probe::in_flight(job.canvas(&job.longest(), spec)?.len());
    let guidance_scale = job.plan.sampling.guidance_scale;
    let answers = probe::run(state.engine.clone(), probes, in_flight, guidance_scale);
    let answers: Vec<probe::Answer> = answers.map_ok(|(answer, ())| answer).try_collect().await?;
    let decisions = job.gaps().enumerate().map(|(gap, fields)| {
        let Length::Choices(choices) = &fields.length else {
            return None;
        };
        let of_choice = |choice: usize| {
            let places = job.choices.places[&(gap, choice)].iter();
            places
                .map(|place| answers[place.forward][&place.slot][place.token])
                .collect()
        };
        Some(Decision {
            choices: choices.clone(),
            logprobs: (0..choices.len()).map(of_choice).collect(),
        })
    });
    Ok((decisions.collect(), forwards.len()))
}

/// The canvas of a forward, and what is asked of it.
fn probe(job: &InfillJob, forward: &Forward, spec: &ModelSpec) -> Result<Probe, ApiError> {
    let mut lengths = job.longest();
    let mut given_tokens: &[TokenId] = &[];
    if let Some(Length::Choices(choices)) = job.gaps().nth(forward.gap).map(|gap| &gap.length) {
        let tokens = &choices[forward.choice].tokens;
        lengths[forward.gap] = tokens.len();
        given_tokens = &tokens[..forward.given];
    }
    let mut canvas = job.canvas(&lengths, spec)?;
    let slots = canvas.gaps()[forward.gap].clone();
    for (slot, token) in slots.zip(given_tokens) {
        if let Some(slot) = canvas.gap_slot_mut(slot) {
            slot.commit(given(*token));
        }
    }
    let of = forward.of.iter();
    let of = of.map(|(slot, tokens)| (*slot, tokens.as_slice().into()));
    Ok(Probe {
        canvas,
        of: of.collect(),
    })
}
