//! Which models can be evaluated.

use super::EvalError;
use crate::models::{AttentionPattern, Corruption, ModelSpec, Parameterisation};

/// The longest sequence of a block-causal model that is scored: who sees whom in it is a matrix of
/// (2 · length)² entries, a byte each.
const MAX_BLOCK_CAUSAL: usize = 4096;

/// Why spans are not filled in by block-causal models.
const SPANS_ARE_FOR_BIDIRECTIONAL: &str =
    "a span's right side is unseen by a block-causal model, which reads the blocks before it alone";

/// Why spans are not filled in by models that denoise encoded blocks.
const SPANS_ARE_NOT_FOR_ENCODED_BLOCKS: &str =
    "a span's right side is unseen by a model that denoises one block after what an encoder read";

/// Why spans are not filled in by models of the uniform process that give log-scores or are told the noise level.
const SPANS_ARE_NO_NOISE: &str = "what this model of the uniform process gives is no distribution of the clean token \
     without the token that a slot holds, and a span is predicted by what is around it alone";

/// Why spans are not filled in by models that are told the noise level where nothing says it.
const SPANS_HAVE_NO_LEVEL: &str =
    "this model has to be told the noise level, and its noise schedule is not known";

/// Checks that the likelihood of a text can be bounded.
///
/// # Errors
/// [`EvalError::Unsupported`] for block-causal models whose loss [depends on the noise level](depends_on_level), and
/// for models that denoise after an encoder.
pub fn check(spec: &ModelSpec) -> Result<(), EvalError> {
    if matches!(spec.attention, AttentionPattern::EncodedBlocks { .. }) {
        return Err(EvalError::Unsupported {
            family: spec.family,
            reason: "its blocks are denoised after what an encoder left of those before them, and the process \
                     that it was trained on is not published",
        });
    }
    let block_causal = spec.attention != AttentionPattern::Bidirectional;
    match block_causal && depends_on_level(spec) {
        true => Err(EvalError::Unsupported {
            family: spec.family,
            reason: "it is block-causal, and its loss depends on the noise level",
        }),
        false => Ok(()),
    }
}

/// Whether a model's loss depends on the noise level itself, and not only on which slots are masked: of the uniform
/// process, of log-scores, and of models that have to be told the level.
pub fn depends_on_level(spec: &ModelSpec) -> bool {
    spec.corruption == Corruption::Uniform
        || spec.parameterisation == Parameterisation::LogScore
        || spec.noise_conditioned
}

/// Why spans of a text cannot be masked and filled in by a model, if they cannot: a slot has to see what is on both
/// sides of it, and the model has to predict its clean token from that.
///
/// A model that is told the noise level is told that of a plan in which the spans are what is to be filled
/// ([`ModelSpec::sigma_of_masked`]).
pub fn reason_against_spans(spec: &ModelSpec) -> Option<&'static str> {
    match spec.attention {
        AttentionPattern::BlockCausal { .. } => return Some(SPANS_ARE_FOR_BIDIRECTIONAL),
        AttentionPattern::EncodedBlocks { .. } => return Some(SPANS_ARE_NOT_FOR_ENCODED_BLOCKS),
        AttentionPattern::Bidirectional => {}
    }
    let is_of_scores = spec.parameterisation == Parameterisation::LogScore;
    if spec.corruption == Corruption::Uniform && (is_of_scores || spec.noise_conditioned) {
        return Some(SPANS_ARE_NO_NOISE);
    }
    (spec.noise_conditioned && spec.noise_schedule.is_none()).then_some(SPANS_HAVE_NO_LEVEL)
}

/// Why the likelihood of a model cannot be that of the guided one, if it cannot.
pub fn reason_against_guidance(spec: &ModelSpec) -> Option<&'static str> {
    match spec.attention {
        AttentionPattern::BlockCausal { .. } => {
            Some("guidance masks the prompt, which a block-causal model reads in clean blocks")
        }
        AttentionPattern::EncodedBlocks { .. } => Some(
            "guidance masks the prompt, which this model's encoder reads, and it knows no mask",
        ),
        AttentionPattern::Bidirectional => depends_on_level(spec).then_some(
            "guidance masks the prompt, and this model's loss depends on the noise level of what it sees",
        ),
    }
}

/// # Errors
/// [`EvalError::Unsupported`] of a guided likelihood, with the [reason against guidance](reason_against_guidance).
pub(super) fn check_guidance(spec: &ModelSpec, guidance_scale: f64) -> Result<(), EvalError> {
    match reason_against_guidance(spec).filter(|_| guidance_scale > 0.0) {
        None => Ok(()),
        Some(reason) => Err(EvalError::Unsupported {
            family: spec.family,
            reason,
        }),
    }
}

/// # Errors
/// [`EvalError::Unsupported`] with the [reason against spans](reason_against_spans).
pub(super) fn check_spans(spec: &ModelSpec) -> Result<(), EvalError> {
    match reason_against_spans(spec) {
        None => Ok(()),
        Some(reason) => Err(EvalError::Unsupported {
            family: spec.family,
            reason,
        }),
    }
}

/// The longest sequence that is evaluated, in tokens.
pub fn max_context(spec: &ModelSpec) -> usize {
    match spec.attention {
        AttentionPattern::Bidirectional => spec.max_canvas,
        AttentionPattern::BlockCausal { .. } | AttentionPattern::EncodedBlocks { .. } => {
            spec.max_canvas.min(MAX_BLOCK_CAUSAL)
        }
    }
}
