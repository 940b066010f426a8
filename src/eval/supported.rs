//! Which models can be evaluated.

use super::EvalError;
use crate::models::{AttentionPattern, Corruption, ModelSpec, Parameterisation};

/// The longest sequence of a block-causal model that is scored: who sees whom in it is a matrix of
/// (2 · length)² entries, a byte each.
const MAX_BLOCK_CAUSAL: usize = 4096;

/// Why spans are not filled in by block-causal models.
pub const SPANS_ARE_FOR_BIDIRECTIONAL: &str =
    "a span's right side is unseen by a block-causal model, which reads the blocks before it alone";

/// Checks that the likelihood of a text can be bounded: that a forward of a partly noised sequence gives each
/// slot a distribution given the others that it sees.
///
/// # Errors
/// [`EvalError::Unsupported`] for models of log-scores, models that have to be told the noise level, and
/// block-causal ones of the uniform process.
pub fn check(spec: &ModelSpec) -> Result<(), EvalError> {
    let block_causal = spec.attention != AttentionPattern::Bidirectional;
    let reason = if block_causal && spec.corruption == Corruption::Uniform {
        "it is block-causal and of the uniform process"
    } else if spec.parameterisation == Parameterisation::LogScore {
        "its output is a log-score, not logits"
    } else if spec.noise_conditioned {
        "it has to be told the noise level"
    } else {
        return Ok(());
    };
    Err(EvalError::Unsupported {
        family: spec.family,
        reason,
    })
}

/// Checks that spans of a text can be masked and filled in: that a slot sees what is on both sides of it.
///
/// # Errors
/// [`EvalError::Unsupported`] for block-causal models, and those that [`check`] refuses.
pub(super) fn check_spans(spec: &ModelSpec) -> Result<(), EvalError> {
    check(spec)?;
    match spec.attention {
        AttentionPattern::Bidirectional => Ok(()),
        AttentionPattern::BlockCausal { .. } => Err(EvalError::Unsupported {
            family: spec.family,
            reason: SPANS_ARE_FOR_BIDIRECTIONAL,
        }),
    }
}

/// The longest sequence that is evaluated, in tokens.
pub fn max_context(spec: &ModelSpec) -> usize {
    match spec.attention {
        AttentionPattern::Bidirectional => spec.max_canvas,
        AttentionPattern::BlockCausal { .. } => spec.max_canvas.min(MAX_BLOCK_CAUSAL),
    }
}
