//! What is refused before it is queued.

use super::SubmitError;
use super::twin::prompt_slots;
use crate::canvas::Canvas;
use crate::decode::{DecodePlan, Decoder, MAX_STEPS, PlanError};
use crate::models::{AttentionPattern, ModelSpec};

/// Checks that the model of `spec` can denoise `canvas` by `plan`, and fill its gaps within a constraint if they
/// have one.
pub(super) fn check(
    spec: &ModelSpec,
    canvas: &Canvas,
    plan: &DecodePlan,
    is_constrained: bool,
) -> Result<(), SubmitError> {
    if is_constrained {
        plan.check_constrained()?;
        if spec.mask_token().is_none() {
            return Err(SubmitError::CannotConstrain {
                family: spec.family,
            });
        }
    }
    check_length(spec, canvas, plan)?;
    if canvas.blank() != spec.blank() {
        return Err(SubmitError::Blank {
            given: canvas.blank(),
            model: spec.blank(),
        });
    }
    let negative = plan.sampling.negative_prompt.iter().flatten().copied();
    if let Some(token) = canvas
        .tokens()
        .chain(negative)
        .find(|token| *token as usize >= spec.vocab_size)
    {
        return Err(SubmitError::UnknownToken {
            token,
            vocab_size: spec.vocab_size,
        });
    }
    spec.check_plan(plan)?;
    if matches!(spec.attention, AttentionPattern::BlockCausal { .. })
        && !plan.left_context
        && let Some(gap) = canvas
            .gaps()
            .iter()
            .position(|gap| (gap.end..canvas.len()).any(|slot| canvas.is_fixed(slot)))
    {
        return Err(SubmitError::CannotSeeAhead {
            gap,
            family: spec.family,
        });
    }
    Ok(())
}

/// Checks that the canvas, and the one with the negative prompt beside it, are not too long, nor that prompt too
/// short.
fn check_length(spec: &ModelSpec, canvas: &Canvas, plan: &DecodePlan) -> Result<(), SubmitError> {
    let limit = spec.longest_canvas(plan);
    if canvas.len() > limit {
        return Err(SubmitError::CanvasTooLong {
            length: canvas.len(),
            limit,
        });
    }
    let Some(prompt) = &plan.sampling.negative_prompt else {
        return Ok(());
    };
    let length = canvas.len() - prompt_slots(canvas) + prompt.len();
    if length > limit {
        return Err(SubmitError::NegativePromptTooLong { length, limit });
    }
    if spec.logit_shift > 0 && (prompt.is_empty() || prompt_slots(canvas) == 0) {
        return Err(SubmitError::Plan(PlanError::Invalid {
            field: "negative_prompt",
            reason: "this model scores a slot by the one before it, and without a token before the gap its \
                     first slot has none; allowed: at least one token, in the place of a prompt of at \
                     least one"
                .to_owned(),
        }));
    }
    Ok(())
}

/// The decoder of a canvas, unless it may take too many steps.
pub(super) fn decoder(
    spec: &ModelSpec,
    canvas: &Canvas,
    plan: &DecodePlan,
) -> Result<Decoder, SubmitError> {
    let decoder = match spec.resizable() {
        Some(mut model) => {
            // What the negative prompt is longer than the prompt is no room for gaps to grow into.
            let negative = plan.sampling.negative_prompt.as_ref().map_or(0, Vec::len);
            let longer = negative.saturating_sub(prompt_slots(canvas));
            model.max_canvas = model.max_canvas.saturating_sub(longer);
            Decoder::resizable(plan, canvas, &spec.stop_tokens, model)?
        }
        None => Decoder::new(plan, canvas, &spec.stop_tokens)?,
    };
    let most = MAX_STEPS.max(canvas.len());
    if decoder.step_limit() > most {
        return Err(SubmitError::Plan(PlanError::OutOfRange {
            field: "steps",
            given: format!(
                "up to {}, all blocks and post steps together",
                decoder.step_limit()
            ),
            allowed: "at most 10000, or one a slot",
        }));
    }
    Ok(decoder)
}
