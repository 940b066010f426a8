//! The NELBO over a corpus.

use serde::Serialize;

use super::likelihood::{self, Estimator, Settings};
use super::{Corpus, EvalError, Measure, Target, Window, depends_on_level};
use crate::models::Denoiser;

/// The NELBO over a corpus, by one estimator.
///
/// The NELBO of a document is the sum of its windows'. What is estimated are the means over all tokens,
/// characters or bytes of the collection, so that a long document counts for more than a short one: each
/// measure is a ratio of weighted sums over the evaluated windows ([`Window::weight`]). Intervals are over
/// documents; they include the Monte-Carlo noise of the estimator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bound {
    /// The estimator.
    pub estimator: Estimator,
    /// Draws a window.
    pub draws: usize,
    /// Whether an interval can be relied on: not where the weight 1/t gives the estimator infinite variance.
    pub finite_variance: bool,
    /// NELBO in nats a token.
    pub nats_per_token: Measure,
    /// exp(nats a token): an upper bound of the perplexity.
    pub perplexity_bound: Measure,
    /// NELBO in bits a Unicode character.
    pub bits_per_character: Measure,
    /// NELBO in bits a byte of UTF-8.
    pub bits_per_byte: Measure,
    /// What each document adds to the sums, in order: two models evaluated on the same documents with the
    /// same seed are compared by the differences of these.
    pub by_document: Vec<DocumentBound>,
    /// The part of the uncertainty that more draws would remove: the Monte-Carlo standard error of
    /// `nats_per_token`; `None` for a single draw a window.
    pub monte_carlo_error: Option<f64>,
}

/// Weighted sums over the evaluated windows of a document.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DocumentBound {
    /// Its place in the file, from 0.
    pub index: usize,
    /// NELBO in nats.
    pub nats: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Bytes of their text.
    pub bytes: usize,
}

/// Estimates the NELBO of every window of `corpus`. `progress` is told of forwards that are done, of
/// windows · groups · strata in all.
///
/// # Errors
/// If a setting is out of range or the model fails.
pub fn evaluate(
    model: &dyn Denoiser,
    corpus: &Corpus,
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Bound, EvalError> {
    let targets: Vec<&Target> = corpus.windows().map(|(_, window)| &window.target).collect();
    let estimates = likelihood::estimate(model, &targets, settings, progress)?;
    let per = |unit: fn(&Window) -> usize| {
        let windows = corpus.windows().zip(&estimates);
        let parts = windows.map(|((document, window), estimate)| {
            (document, window.weight, estimate.nelbo, unit(window) as f64)
        });
        Measure::ratio(&corpus.by_document(parts))
    };
    let nats_per_token = per(|window| window.target.slots.len());
    let bits = |measure: Measure| measure.map(|nats| nats / std::f64::consts::LN_2);
    let windows = || corpus.windows().map(|(_, window)| window);
    let tokens: usize = windows()
        .map(|window| window.weight * window.target.slots.len())
        .sum();
    let variance: Option<f64> = windows()
        .zip(&estimates)
        .map(|(window, estimate)| Some((window.weight as f64 * estimate.standard_error?).powi(2)))
        .sum();
    let mut by_document: Vec<DocumentBound> = corpus
        .documents
        .iter()
        .map(|document| DocumentBound {
            index: document.index,
            nats: 0.0,
            tokens: 0,
            bytes: 0,
        })
        .collect();
    for ((document, window), estimate) in corpus.windows().zip(&estimates) {
        let sums = &mut by_document[document];
        sums.nats += window.weight as f64 * estimate.nelbo;
        sums.tokens += window.weight * window.target.slots.len();
        sums.bytes += window.weight * window.bytes;
    }
    Ok(Bound {
        estimator: settings.estimator,
        draws: settings.groups * settings.strata,
        finite_variance: settings.estimator == Estimator::ExactCount
            || depends_on_level(model.spec()),
        nats_per_token,
        perplexity_bound: nats_per_token.map(f64::exp),
        bits_per_character: bits(per(|window| window.characters)),
        bits_per_byte: bits(per(|window| window.bytes)),
        by_document,
        monte_carlo_error: variance.map(|variance| variance.sqrt() / tokens as f64),
    })
}
