//! The results of an evaluation.

use serde::Serialize;

use super::bound::Bound;
use super::infill::{Decoded, OneForward};
use super::speed::Point;
use super::{Corpus, Window};
use crate::decode::DecodePlan;
use crate::kernels::device_name;
use crate::models::{Denoiser, ForwardProcess, WeightFormat};

/// What the measures of a [`Report`] are estimates of.
pub const ESTIMATED: &str =
    "means over all tokens of the data, a window standing for its part of it";

/// Everything that was measured. Its `Display` is a table; the JSON of `unmask eval` is its serialisation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The forward process that it was trained on.
    pub process: ForwardProcess,
    /// What evaluated it.
    pub run: RunReport,
    /// What it was evaluated on.
    pub data: DataReport,
    /// What the measures are estimates of.
    pub estimated: &'static str,
    /// Seed of every random draw.
    pub seed: u64,
    /// The NELBO, by each estimator; empty if it was not asked for.
    pub likelihood: Vec<Bound>,
    /// Accuracy against the mask rate.
    pub infill: Option<InfillReport>,
    /// Accuracy against tokens a forward.
    pub speed: Option<SpeedReport>,
    /// What was asked for and makes no sense for the model, and why.
    pub left_out: Vec<LeftOut>,
}

/// What a figure depends on besides model, data and seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// The version of `unmask`.
    pub unmask_version: &'static str,
    /// Where the model ran: `cpu`, `cuda` or `metal`.
    pub device: &'static str,
    /// The format of its weights: `f32`, `bf16`, `f16`, or `q8_0`.
    pub weights: &'static str,
    /// The number format of its hidden states.
    pub dtype: &'static str,
    /// The plan by which windows are denoised, before it is made greedy: the model's default.
    pub plan: DecodePlan,
}

impl RunReport {
    /// Of evaluations of `model`, whose weights are held as `weights`, by this build.
    pub fn of(model: &dyn Denoiser, weights: WeightFormat) -> Self {
        Self {
            unmask_version: env!("CARGO_PKG_VERSION"),
            device: device_name(model.device()),
            weights: weights.name(),
            dtype: model.dtype().as_str(),
            plan: model.spec().default_plan.clone(),
        }
    }
}

/// A measure that was asked for and not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The measure.
    pub measure: String,
    /// Why it makes no sense.
    pub reason: &'static str,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataForm {
    /// Texts.
    Documents,
    /// Prompts with answers, which are scored.
    Pairs,
}

/// What was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataReport {
    /// The file.
    pub file: String,
    /// What a document is.
    pub form: DataForm,
    /// Documents in it.
    pub documents_available: usize,
    /// Documents evaluated.
    pub documents: usize,
    /// Chosen documents that were left out, having fewer than 2 tokens.
    pub documents_skipped: usize,
    /// Windows evaluated.
    pub windows: usize,
    /// Windows of the evaluated documents, evaluated or not.
    pub windows_available: usize,
    /// Longest allowed window in tokens.
    pub context: usize,
    /// Tokens scored in the windows: of pairs those of the answers.
    pub tokens: usize,
    /// Unicode characters in them.
    pub characters: usize,
    /// Bytes in them.
    pub bytes: usize,
}

impl DataReport {
    /// Counts what is in `corpus`, which was read from `file`.
    pub fn of(file: String, form: DataForm, corpus: &Corpus) -> Self {
        let sum = |count: fn(&Window) -> usize| corpus.windows().map(|(_, w)| count(w)).sum();
        Self {
            file,
            form,
            documents_available: corpus.available,
            documents: corpus.documents.len(),
            documents_skipped: corpus.skipped,
            windows: sum(|_| 1),
            windows_available: corpus.documents.iter().map(|d| d.available).sum(),
            context: corpus.context,
            tokens: sum(|window| window.target.slots.len()),
            characters: sum(|window| window.characters),
            bytes: sum(|window| window.bytes),
        }
    }
}

/// Accuracy at masked spans; each list has one entry a mask rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InfillReport {
    /// Tokens a span.
    pub span: usize,
    /// By a single forward.
    pub one_forward: Vec<OneForward>,
    /// By denoising with the default plan.
    pub decoded: Vec<Decoded>,
}

/// Accuracy against tokens a forward.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpeedReport {
    /// Tokens a span.
    pub span: usize,
    /// The share of a window that was to be masked.
    pub mask_rate: f64,
    /// Windows denoised at each threshold.
    pub windows: usize,
    /// One entry a threshold.
    pub points: Vec<Point>,
}
