//! Gaps that are filled with one of several given texts.
//!
//! They are decided before anything is denoised, each by itself while all other gaps are masked. A choice of
//! one token has the model's probability for it in the gap's slot; all choices of one token, in all gaps,
//! take one forward. A choice of several tokens has the product of its tokens' probabilities, each given
//! those before it: that takes a forward a token, which run side by side.
//!
//! One is drawn from the distribution of the choices as a token is from that of the vocabulary: with the bias of its
//! tokens, at the temperature, among those that top-k, top-p and min-p keep.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::error::ApiError;
use super::probe::{self, Probe, given};
use super::state::AppState;
use super::validate::{Choice, Forward, InfillJob, Length};
use super::wire::ChoiceProbability;
use crate::canvas::{Canvas, Commit, TokenId};
use crate::decode::Sampling;
use crate::models::ModelSpec;
use crate::sampling::exact::gumbel;
use crate::sampling::philox::{Draws, Stream};
use crate::sampling::{LogitBias, RowParams, smallest_kept};

/// The choices of a gap with their probabilities.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    choices: Arc<[Choice]>,
    /// Log-probabilities of each choice's tokens.
    logprobs: Vec<Vec<f32>>,
    /// ln of each choice's weight among them: its log-probability and the bias of each of its tokens.
    weights: Vec<f64>,
}

impl Decision {
    fn new(choices: Arc<[Choice]>, logprobs: Vec<Vec<f32>>, bias: &LogitBias) -> Self {
        let bias: HashMap<TokenId, f32> = bias.entries().iter().copied().collect();
        let bias_of = |token: &TokenId| f64::from(bias.get(token).copied().unwrap_or(0.0));
        let weights = choices.iter().zip(&logprobs).map(|(choice, logprobs)| {
            let biases: f64 = choice.tokens.iter().map(bias_of).sum();
            total(logprobs) + biases
        });
        Self {
            weights: weights.collect(),
            choices,
            logprobs,
        }
    }

    /// What is reported of them.
    pub fn probabilities(&self) -> Vec<ChoiceProbability> {
        let weights = &self.weights;
        let best = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = weights.iter().map(|weight| (weight - best).exp()).sum();
        let choices = self.choices.iter().zip(&self.logprobs).zip(weights);
        choices
            .map(|((choice, logprobs), weight)| ChoiceProbability {
                text: choice.text.clone(),
                probability: (weight - best).exp() / sum,
                logprob: total(logprobs),
            })
            .collect()
    }

    /// Which choice fills the `gap`th gap: the one of the largest weight at temperature 0, the first of several;
    /// otherwise one drawn from the weights to the power of 1 / temperature, among those that the filters keep.
    pub fn pick(&self, gap: usize, sampling: &Sampling) -> usize {
        let draws = Draws::new(sampling.seed, 0, gap, Stream::Choice);
        let temperature = sampling.temperature;
        let rank = |choice: usize| match temperature == 0.0 {
            true => self.weights[choice],
            false => {
                let word = draws.quad((choice / 4) as u32)[choice % 4];
                self.weights[choice] / f64::from(temperature) + f64::from(gumbel(word))
            }
        };
        let logits: Vec<f32> = self.weights.iter().map(|weight| *weight as f32).collect();
        let least = smallest_kept(
            &logits,
            &RowParams {
                temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                filter_order: sampling.filter_order,
                ..RowParams::default()
            },
        );
        // `max_by` takes the last of equals.
        (0..self.choices.len())
            .rev()
            .filter(|choice| logits[*choice] >= least)
            .max_by(|a, b| rank(*a).total_cmp(&rank(*b)))
            .unwrap_or(0)
    }

    /// How many slots a choice takes.
    pub fn length(&self, choice: usize) -> usize {
        self.choices[choice].tokens.len()
    }

    /// Writes a choice to the `gap`th gap of a canvas, where it stays whatever the plan revises.
    pub fn settle(&self, canvas: &mut Canvas, gap: usize, choice: usize) {
        let slots = canvas.gaps()[gap].clone();
        let tokens = &self.choices[choice].tokens;
        for ((slot, token), logprob) in slots.zip(tokens).zip(&self.logprobs[choice]) {
            let probability = logprob.exp();
            let commit = Commit {
                token: *token,
                probability,
                score: probability,
                step: 0,
            };
            canvas.settle(slot, commit);
        }
    }
}

/// The log-probability of a choice, from those of its tokens.
fn total(logprobs: &[f32]) -> f64 {
    logprobs.iter().copied().map(f64::from).sum()
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
        let logprobs = (0..choices.len()).map(of_choice).collect();
        let bias = &job.plan.sampling.logit_bias;
        Some(Decision::new(choices.clone(), logprobs, bias))
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
