//! Which models can be evaluated.

use super::EvalError;
use crate::models::{AttentionPattern, ModelSpec, Parameterisation};

/// Checks that what is measured here makes sense of a model: that a forward of a partly noised sequence gives
/// each slot a distribution given all the others.
///
/// # Errors
/// [`EvalError::Unsupported`] for block-causal models, models of log-scores and models that have to be told
/// the noise level.
pub fn check(spec: &ModelSpec) -> Result<(), EvalError> {
    let reason = if spec.attention != AttentionPattern::Bidirectional {
        "its slots do not see the whole sequence"
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
