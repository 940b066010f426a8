//! What is handed in, and what of it is refused before it is queued.

use super::twin::prompt_slots;
use super::{LogprobRequest, SubmitError};
use crate::canvas::Canvas;
use crate::constraint::CanvasConstraint;
use crate::decode::{DecodePlan, Decoder, MAX_STEPS, PlanError};
use crate::models::{AttentionPattern, ModelSpec};

/// A canvas to be denoised, and how.
#[derive(Debug, Clone)]
pub struct Submission<'a> {
    /// The canvas. What its gaps begin as is [`Engine::blank`](super::Engine::blank).
    pub canvas: Canvas,
    /// The plan by which it is denoised.
    pub plan: &'a DecodePlan,
    /// Log-probabilities that the step reports hold.
    pub logprobs: Option<LogprobRequest>,
    /// What the gaps may be filled with, made for `canvas`. Tokens that contradict one another are not committed in
    /// the same step, so that there may be more steps than the plan has, up to one a slot.
    pub constraint: Option<CanvasConstraint>,
}

impl<'a> Submission<'a> {
    /// A canvas whose gaps may be filled with anything, and of which no log-probabilities are reported.
    pub fn new(canvas: Canvas, plan: &'a DecodePlan) -> Self {
        Self {
            canvas,
            plan,
            logprobs: None,
            constraint: None,
        }
    }

    /// Checks that the model of `spec` can denoise it.
    pub(super) fn check(&self, spec: &ModelSpec) -> Result<(), SubmitError> {
        check(spec, &self.canvas, self.plan, self.constraint.is_some())
    }
}

/// Checks that the model of `spec` can denoise `canvas` by `plan`, and fill its gaps within a constraint if they
/// have one.
fn check(
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
    if let AttentionPattern::EncodedBlocks { block_length } = spec.attention {
        let gaps = canvas.gaps();
        let end = canvas.scratch().start;
        if let Some(gap) = gaps.iter().position(|gap| gap.end < end) {
            return Err(SubmitError::OnlyGoesOn {
                gap,
                family: spec.family,
            });
        }
        let slots = gaps.first().map_or(0, |gap| canvas.len() - gap.start);
        if !slots.is_multiple_of(block_length) {
            return Err(SubmitError::PartialBlock {
                slots,
                block_length,
                family: spec.family,
            });
        }
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
