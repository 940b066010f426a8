//! Accuracy against tokens a forward, with the threshold sampler.
//!
//! Spans of windows are masked as in [`infill`](super::infill) and denoised by the model's default plan, greedy,
//! with [`Budget::Threshold`] for its budget and without steps, revision or a least number of slots: the lower the threshold, the more tokens a forward commits,
//! each with less of the others to go by.

use serde::Serialize;

use super::infill::{Filled, masked_share, masked_tokens};
use super::spans::{self, masked_windows};
use super::supported::check_spans;
use super::{Corpus, EvalError, Measure, decoding};
use crate::decode::{Budget, DecodePlan, Revision};
use crate::engine::Engine;

/// Why a model of the uniform process has no such speed.
pub const THRESHOLDS_ARE_FOR_MASKS: &str = "the threshold sampler commits masked slots for good, and a model of the \
     uniform process has none: each of its steps draws every slot anew";

/// What is masked, and how it is denoised.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Probability thresholds, each in [0, 1].
    pub thresholds: Vec<f32>,
    /// Share of a window that is masked, in (0, 1).
    pub mask_rate: f64,
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
        spans::check(self.span, "speed_mask_rate", &[self.mask_rate])?;
        let mut thresholds = self.thresholds.iter();
        if let Some(threshold) = thresholds.find(|t| !(0.0..=1.0).contains(*t)) {
            let allowed = "a probability in [0, 1]";
            return Err(EvalError::setting("thresholds", threshold, allowed));
        }
        decoding::check_windows(self.decode_windows)
    }
}

/// What one threshold gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The probability from which on a token is committed; at least one is at every forward.
    pub threshold: f32,
    /// The share of all tokens that could be masked that was: whole spans only are, and one at least.
    pub masked_share: f64,
    /// Masked tokens / forwards.
    pub tokens_per_forward: Measure,
    /// Share of masked tokens that are filled with the true ones.
    pub token_accuracy: Measure,
    /// Masked tokens.
    pub tokens: usize,
    /// Forwards taken.
    pub forwards: usize,
}

/// Denoises the same masked windows at every threshold. `progress` is told of windows that are done, of
/// windows · thresholds in all.
///
/// # Errors
/// If a setting is out of range, the model has a [reason against spans](super::reason_against_spans), or the engine
/// fails.
pub fn evaluate(
    engine: &Engine,
    corpus: &Corpus,
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Point>, EvalError> {
    settings.check()?;
    let spec = engine.spec();
    check_spans(spec)?;
    let (rate, seed) = (settings.mask_rate, settings.seed);
    let windows = masked_windows(
        corpus,
        settings.decode_windows,
        settings.span,
        rate,
        seed,
        0,
    );
    settings
        .thresholds
        .iter()
        .map(|&threshold| {
            // Nothing but the threshold decides how many slots a step commits.
            let plan = DecodePlan {
                steps: None,
                steps_per_block: None,
                budget: Budget::Threshold(threshold),
                at_least: 0,
                revision: Revision::None,
                ..decoding::greedy(&spec.default_plan)
            };
            let finished = decoding::denoise(engine, &windows, &plan, progress)?;
            let results = || windows.iter().zip(&finished);
            let tokens_per_forward = results().map(|(window, (_, steps))| {
                let masked = window.masked().len() as f64;
                (window.document, window.weight, masked, *steps as f64)
            });
            let right = results().map(|(window, (canvas, _))| {
                let filled = Filled::of(window, &canvas.tokens().collect::<Vec<_>>());
                let masked = window.masked().len() as f64;
                let right = filled.tokens as f64;
                (window.document, window.weight, right, masked)
            });
            Ok(Point {
                threshold,
                masked_share: masked_share(&windows),
                tokens_per_forward: Measure::ratio(&corpus.by_document(tokens_per_forward)),
                token_accuracy: Measure::share(&corpus.by_document(right)),
                tokens: masked_tokens(&windows),
                forwards: finished.iter().map(|(_, steps)| steps).sum(),
            })
        })
        .collect()
}
