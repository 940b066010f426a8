//! Scoring: texts, each a target of its own.

use super::super::error::ApiError;
use super::super::random;
use super::super::state::AppState;
use super::super::wire::{EstimatorName, Real, ScoreRequest, Texts, Whole};
use super::decoding::size;
use super::{Place, Use, check_model, encode_for};
use crate::canvas::TokenId;
use crate::decode::MAX_GUIDANCE_SCALE;
use crate::eval::likelihood::{Estimator, Settings};
use crate::eval::{Target, depends_on_level};
use crate::models::AttentionPattern;

/// Samples a text if the request does not say.
const DEFAULT_SAMPLES: usize = 64;

/// Samples that are stratified together if the request does not say, at most (LLaDA's).
const DEFAULT_STRATA: usize = 16;

/// A request to score that can be run.
#[derive(Debug)]
pub struct ScoreJob {
    /// The token of a masked slot.
    pub mask: TokenId,
    /// One a text.
    pub targets: Vec<Target>,
    /// Bytes of each text.
    pub bytes: Vec<usize>,
    /// How many samples are taken, and how.
    pub settings: Settings,
}

/// Checks a request to score.
pub fn score(request: ScoreRequest, state: &AppState) -> Result<ScoreJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    let spec = state.engine.spec();
    let unsupported = |reason: &str| {
        let model = format_args!("{:?}", state.model_name);
        ApiError::unsupported("model", model, reason)
    };
    match spec.attention {
        AttentionPattern::Bidirectional => {}
        AttentionPattern::BlockCausal { .. } => {
            return Err(unsupported(
                "texts are scored where every slot sees all others, and this model is block-causal; `unmask eval` \
                 bounds its likelihood",
            ));
        }
        AttentionPattern::EncodedBlocks { .. } => {
            return Err(unsupported(
                "texts are scored where every slot sees all others, and this model denoises one block after what \
                 an encoder read; nothing bounds its likelihood",
            ));
        }
    }
    let mask = state.engine.mask_token().ok_or_else(|| {
        unsupported(
            "texts are scored with tokens masked, and this model was trained on the uniform process, which has \
             no mask; `unmask eval` bounds its likelihood",
        )
    })?;
    if depends_on_level(spec) {
        return Err(unsupported(
            "texts are scored by how many of their tokens are masked, and the loss of this model depends on the noise \
             level too; `unmask eval` bounds its likelihood",
        ));
    }
    let (texts, is_list) = match request.input {
        None => return Err(ApiError::missing("input", "a string or a list of strings")),
        Some(Texts::One(text)) => (vec![text], false),
        Some(Texts::Many(texts)) => (texts, true),
    };
    let samples = request.samples.map_or(DEFAULT_SAMPLES, size);
    let most = state.limits.score_samples;
    if !(1..=most).contains(&samples) {
        return Err(ApiError::value(
            "samples",
            samples,
            format_args!("1 to {most}"),
        ));
    }
    if texts.is_empty() || texts.len().saturating_mul(samples) > most {
        return Err(ApiError::value(
            "input",
            format_args!("a list of {} texts", texts.len()),
            format_args!(
                "1 to {} texts, at most {most} samples a request",
                most / samples
            ),
        ));
    }
    let divisor = |strata: usize| strata > 0 && samples.is_multiple_of(strata);
    let strata = match request.strata.map(size) {
        Some(strata) if divisor(strata) => strata,
        Some(strata) => {
            return Err(ApiError::value(
                "strata",
                strata,
                format_args!("a divisor of samples, which is {samples}"),
            ));
        }
        // 1 divides all.
        None => (1..=DEFAULT_STRATA)
            .rev()
            .find(|n| divisor(*n))
            .unwrap_or(1),
    };
    let guidance = request
        .diffusion
        .and_then(|options| options.0.guidance_scale);
    let guidance = guidance.map_or(0.0, |Real(scale)| scale);
    if !(0.0..=MAX_GUIDANCE_SCALE).contains(&guidance) {
        return Err(ApiError::value(
            "diffusion.guidance_scale",
            guidance,
            format_args!("0 to {MAX_GUIDANCE_SCALE}"),
        ));
    }
    let settings = Settings {
        estimator: match request.estimator {
            None | Some(EstimatorName::ExactCount) => Estimator::ExactCount,
            Some(EstimatorName::ContinuousTime) => Estimator::ContinuousTime,
        },
        groups: samples / strata,
        strata,
        guidance_scale: f64::from(guidance),
        seed: match request.seed {
            Some(Whole(seed)) => seed,
            None => random::seed()?,
        },
    };
    let prompt = encode_for(
        Use::Score,
        request.prompt.as_deref().unwrap_or_default(),
        Place::Bare,
        "prompt",
        state,
    )?;
    let place = match prompt.is_empty() {
        true => Place::Bare,
        false => Place::Later,
    };
    let mut targets = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let path = match is_list {
            true => format!("input[{index}]"),
            false => "input".to_owned(),
        };
        let tokens = encode_for(Use::Score, text, place, &path, state)?;
        if tokens.is_empty() {
            return Err(ApiError::value(
                &path,
                "an empty text",
                "a text of at least one token",
            ));
        }
        let length = prompt.len() + tokens.len();
        if length > spec.max_canvas {
            let what = format_args!(
                "{path} has {} tokens, prompt {}",
                tokens.len(),
                prompt.len()
            );
            return Err(ApiError::canvas_too_long(
                &path,
                what,
                length,
                state.slot_limit(spec.max_canvas),
            ));
        }
        targets.push(Target::after_prompt(&prompt, &tokens));
    }
    Ok(ScoreJob {
        mask,
        targets,
        bytes: texts.iter().map(String::len).collect(),
        settings,
    })
}
