//! Errors of an evaluation.

use crate::canvas::{CanvasError, TokenId};
use crate::engine::{GenerationError, SubmitError};
use crate::models::ModelError;
use crate::text::TextError;
use crate::text::documents::DocumentsError;
use crate::text::pairs::PairsError;

/// Why something could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A setting is outside its range.
    #[error("{field} is {given}; allowed: {allowed}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What was given.
        given: String,
        /// The allowed range.
        allowed: String,
    },
    /// No document is long enough.
    #[error(
        "none of the {skipped} chosen documents has 2 tokens or more: nothing to evaluate; give longer texts"
    )]
    NoDocuments {
        /// Documents that were too short.
        skipped: usize,
    },
    /// A sequence without a slot to be scored.
    #[error("there is no token to score: the scored slots are empty")]
    NothingToScore,
    /// The scored slots are not slots of the sequence, or not in order.
    #[error(
        "scored slot {slot} is out of place: slots must be below {length} and strictly ascending"
    )]
    ScoredSlot {
        /// The slot.
        slot: usize,
        /// Tokens of the sequence.
        length: usize,
    },
    /// A draw masks a prompt slot, or a slot twice.
    #[error("a draw masks slot {slot}: masked slots must be scored ones, strictly ascending")]
    MaskedSlot {
        /// The slot.
        slot: usize,
    },
    /// A sequence longer than the model's context, or than what is evaluated of it.
    #[error(
        "the sequence has {length} tokens, prompt included; the limit for this model is {limit}"
    )]
    TooLong {
        /// Tokens of the sequence.
        length: usize,
        /// [`max_context`](super::max_context).
        limit: usize,
    },
    /// The sequence itself holds the mask token.
    #[error("token {slot} of the sequence is the mask token {mask}, which stands for no text")]
    MaskToken {
        /// Where it is.
        slot: usize,
        /// The mask token.
        mask: TokenId,
    },
    /// A token outside the vocabulary.
    #[error(
        "token {slot} of the sequence is {token}, which is not in the model's vocabulary of {vocab_size} tokens"
    )]
    UnknownToken {
        /// Where it is.
        slot: usize,
        /// The token.
        token: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A document that cannot be evaluated.
    #[error("document {number} cannot be evaluated")]
    Document {
        /// Its number in the collection, from 1.
        number: usize,
        /// What is wrong with it.
        source: Box<EvalError>,
    },
    /// A document is too long, and is not to be cut.
    #[error(transparent)]
    Documents(#[from] DocumentsError),
    /// A file of pairs, or a line of it, cannot be evaluated.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// The model gives a token no probability, or its output is no distribution.
    #[error("the model's log-probability of token {token} in slot {slot} is {value}")]
    NotFinite {
        /// The slot.
        slot: usize,
        /// The true token.
        token: TokenId,
        /// The log-probability.
        value: f32,
    },
    /// A model whose likelihood is not estimated by masking.
    #[error("a {family} model cannot be evaluated yet: {reason}")]
    Unsupported {
        /// The model's family.
        family: &'static str,
        /// What it needs.
        reason: &'static str,
    },
    /// A number that the mathematics does not allow.
    #[error(transparent)]
    Diffusion(#[from] crate::diffusion::Error),
    /// A text cannot be encoded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model or the device failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A sequence cannot be laid out on a canvas.
    #[error(transparent)]
    Canvas(#[from] CanvasError),
    /// The engine refused a canvas.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine did not finish a canvas.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A plot could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}

impl EvalError {
    pub(super) fn setting(
        field: &'static str,
        given: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Setting {
            field,
            given: given.to_string(),
            allowed: allowed.into(),
        }
    }
}
