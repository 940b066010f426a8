//! `POST /v1/score`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::Usage;
use super::number::{Real, Whole};
use super::object::Object;
use super::prompt::Texts;

/// A request to bound the likelihood of texts.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The text, or a list of texts.
    #[schema(required = true)]
    pub input: Option<Texts>,
    /// What every text follows; it is not scored.
    pub prompt: Option<String>,
    /// Monte-Carlo samples a text; 64 if absent.
    pub samples: Option<Whole>,
    /// Samples that are stratified together, a divisor of `samples`; the largest of at most 16 if absent.
    pub strata: Option<Whole>,
    /// How the bound is estimated; `exact_count` if absent.
    pub estimator: Option<EstimatorName>,
    /// Seed of the samples; random if absent.
    pub seed: Option<Whole>,
    /// Decode options: guidance.
    #[schema(value_type = Option<ScoreOptions>)]
    pub diffusion: Option<Object<ScoreOptions>>,
}

/// `diffusion` of a request to score.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreOptions {
    /// Classifier-free guidance; 0 is off.
    pub guidance_scale: Option<Real>,
}

/// How the bound is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EstimatorName {
    /// By the number of masked slots.
    ExactCount,
    /// By the diffusion time.
    ContinuousTime,
}

/// The `object` of an answer.
pub const SCORE_OBJECT: &str = "score";

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScoreAnswer<'a> {
    /// Identifier of the answer.
    pub id: &'a str,
    /// `score`.
    pub object: &'static str,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served model's name.
    pub model: &'a str,
    /// One a text, in order.
    pub data: Vec<TextScore>,
    /// Token counts; a score completes nothing.
    pub usage: Usage,
    /// What it took.
    pub diffusion: ScoreReport,
}

/// The bound of one text's negative log-likelihood.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextScore {
    /// Which text.
    pub index: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Its bytes of UTF-8.
    pub bytes: usize,
    /// The NELBO in nats: −ln p(text | prompt) is not larger, in expectation over the samples.
    pub nelbo: f64,
    /// Its Monte-Carlo standard error in nats; null for a single sample.
    pub standard_error: Option<f64>,
    /// NELBO a token, in nats.
    pub nats_per_token: f64,
    /// NELBO a byte, in bits; null for a text without bytes.
    pub bits_per_byte: Option<f64>,
    /// exp(`nats_per_token`): an upper bound of the perplexity; null where no number is as large.
    pub perplexity_bound: Option<f64>,
}

/// What scoring took.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScoreReport {
    /// Samples a text.
    pub samples: usize,
    /// Samples that were stratified together.
    pub strata: usize,
    /// Network evaluations.
    pub nfe: usize,
    /// From the first to the last of them, waiting included, in milliseconds.
    pub time_ms: f64,
    /// The seed: given with the same request again, it gives the same answer.
    pub seed: u64,
}
