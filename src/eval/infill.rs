//! Accuracy at masked spans against the mask rate.
//!
//! At each rate, random spans of every window are masked. The same spans are predicted in two ways: by a
//! single forward, whose most probable token of each slot is taken, and, for fewer windows since it takes
//! many forwards, by denoising with the model's default plan. Both take the most probable tokens. The single
//! forwards of those fewer windows are given apart, to be compared with. For a model of the uniform process,
//! masked slots begin as random tokens, others in every window. A model that is told the noise level is told that of a
//! plan that fills the masked slots: in the single forward that of its first step.
//!
//! What is estimated are shares of all tokens, or spans, of the collection that could be masked: a window
//! counts for those that it stands for ([`Window::weight`](super::Window::weight)). Intervals are over
//! documents.

use serde::Serialize;

use super::scorer::{MaskedTarget, Scorer};
use super::spans::{self, MaskedWindow, denoised, masked_windows};
use super::supported::check_spans;
use super::{Corpus, EvalError, Measure, decoding};
use crate::canvas::TokenId;
use crate::engine::Engine;
use crate::models::Denoiser;

/// What is masked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Shares of a window that are masked, each in (0, 1).
    pub mask_rates: Vec<f64>,
    /// Tokens a span, at least 1.
    pub span: usize,
    /// Windows that are denoised at most, one at random from each of as many equal parts of the corpus; at
    /// least 1.
    pub decode_windows: usize,
    /// Seed of the choice of windows, of the spans' places, and for each window of the draws of its denoising.
    pub seed: u64,
}

impl Settings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`EvalError::Setting`] names the first field out of range.
    pub fn check(&self) -> Result<(), EvalError> {
        spans::check(self.span, "mask_rates", &self.mask_rates)?;
        decoding::check_windows(self.decode_windows)
    }
}

/// Accuracy of single forwards at one mask rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OneForward {
    /// The share of a window that was to be masked.
    pub mask_rate: f64,
    /// The share of all tokens that could be masked that was: whole spans only are, and one at least.
    pub masked_share: f64,
    /// Share of masked tokens of which the model's most probable token is the true one.
    pub token_accuracy: Measure,
    /// The same by the windows that are denoised alone: what [`Decoded::token_accuracy`] is to be compared
    /// with.
    pub token_accuracy_of_decoded: Measure,
    /// Masked tokens.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

/// Accuracy of the default plan at one mask rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decoded {
    /// The share of a window that was to be masked.
    pub mask_rate: f64,
    /// As [`OneForward::masked_share`].
    pub masked_share: f64,
    /// Share of spans all of whose tokens are the true ones.
    pub span_exact_match: Measure,
    /// Share of masked tokens that are the true ones.
    pub token_accuracy: Measure,
    /// Spans.
    pub spans: usize,
    /// Masked tokens.
    pub tokens: usize,
    /// Forwards taken.
    pub forwards: usize,
    /// Windows.
    pub windows: usize,
}

/// Predicts the spans of every window by a single forward. `progress` is told of forwards that are done,
/// of windows · rates in all.
///
/// # Errors
/// If a setting is out of range, the model has a [reason against spans](super::reason_against_spans), or it fails.
pub fn one_forward(
    model: &dyn Denoiser,
    corpus: &Corpus,
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<OneForward>, EvalError> {
    settings.check()?;
    let scorer = Scorer::of_spans(model)?;
    at_each_rate(corpus, usize::MAX, settings, |mask_rate, windows| {
        let sequences: Vec<MaskedTarget> = windows.iter().map(MaskedWindow::sequence).collect();
        let scores = scorer.score(&sequences, progress)?;
        let correct = windows.iter().zip(scores).map(|(window, scores)| {
            let slots = window.masked().iter().zip(scores);
            let right = slots.filter(|(slot, score)| score.best == window.truth()[**slot]);
            let masked = window.masked().len() as f64;
            (window.document, window.weight, right.count() as f64, masked)
        });
        let correct: Vec<_> = correct.collect();
        let of_decoded =
            denoised(corpus, settings.decode_windows, settings.seed).map(|(place, stands_for)| {
                let (document, weight, right, masked) = correct[place];
                (document, stands_for * weight, right, masked)
            });
        let of_decoded = Measure::share(&corpus.by_document(of_decoded));
        Ok(OneForward {
            mask_rate,
            masked_share: masked_share(windows),
            token_accuracy: Measure::share(&corpus.by_document(correct)),
            token_accuracy_of_decoded: of_decoded,
            tokens: masked_tokens(windows),
            windows: windows.len(),
        })
    })
}

/// Denoises the spans of `settings.decode_windows` windows by the model's default plan made greedy.
/// `progress` is told of windows that are done, of windows · rates in all.
///
/// # Errors
/// If a setting is out of range, the model has a [reason against spans](super::reason_against_spans), or the engine
/// fails.
pub fn decoded(
    engine: &Engine,
    corpus: &Corpus,
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Decoded>, EvalError> {
    settings.check()?;
    let spec = engine.spec();
    check_spans(spec)?;
    let plan = decoding::greedy(&spec.default_plan);
    at_each_rate(
        corpus,
        settings.decode_windows,
        settings,
        |mask_rate, windows| {
            let finished = decoding::denoise(engine, windows, &plan, progress)?;
            let filled: Vec<Filled> = windows
                .iter()
                .zip(&finished)
                .map(|(window, (canvas, _))| {
                    Filled::of(window, &canvas.tokens().collect::<Vec<_>>())
                })
                .collect();
            let counted = |count: fn(&Filled, &MaskedWindow) -> (usize, usize)| {
                let pairs = windows.iter().zip(&filled).map(|(window, filled)| {
                    let (right, all) = count(filled, window);
                    (window.document, window.weight, right as f64, all as f64)
                });
                Measure::share(&corpus.by_document(pairs))
            };
            Ok(Decoded {
                mask_rate,
                masked_share: masked_share(windows),
                span_exact_match: counted(|filled, window| (filled.spans, window.spans.len())),
                token_accuracy: counted(|filled, window| (filled.tokens, window.masked().len())),
                spans: windows.iter().map(|window| window.spans.len()).sum(),
                tokens: masked_tokens(windows),
                forwards: finished.iter().map(|(_, steps)| steps).sum(),
                windows: windows.len(),
            })
        },
    )
}

/// Calls `measure` with each mask rate and the windows masked at it.
fn at_each_rate<T>(
    corpus: &Corpus,
    windows: usize,
    settings: &Settings,
    mut measure: impl FnMut(f64, &[MaskedWindow]) -> Result<T, EvalError>,
) -> Result<Vec<T>, EvalError> {
    let rates = settings.mask_rates.iter().enumerate();
    rates
        .map(|(index, &rate)| {
            let windows =
                masked_windows(corpus, windows, settings.span, rate, settings.seed, index);
            measure(rate, &windows)
        })
        .collect()
}

pub(super) fn masked_tokens(windows: &[MaskedWindow]) -> usize {
    windows.iter().map(|window| window.masked().len()).sum()
}

/// The share of all tokens that could be masked that is.
pub(super) fn masked_share(windows: &[MaskedWindow]) -> f64 {
    let all: usize = windows.iter().map(MaskedWindow::scored).sum();
    masked_tokens(windows) as f64 / all as f64
}

/// What of a window's masked spans was filled with the truth.
pub(super) struct Filled {
    /// Whole spans.
    pub spans: usize,
    /// Tokens.
    pub tokens: usize,
}

impl Filled {
    pub fn of(window: &MaskedWindow, tokens: &[TokenId]) -> Self {
        let right = |slot: &usize| tokens[*slot] == window.truth()[*slot];
        let spans = window.spans.iter();
        Self {
            spans: spans
                .filter(|span| (*span).clone().all(|s| right(&s)))
                .count(),
            tokens: window.masked().iter().filter(|slot| right(slot)).count(),
        }
    }
}
