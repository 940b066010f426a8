//! The decode plan of a request, and how many sequences it asks for.

use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::random;
use super::super::state::AppState;
use super::super::wire::{DiffusionOptions, Integer, Object, Real, StreamedDiffusion, Whole};
use super::logits::logit_bias;
use super::{Place, check_known, encode};
use crate::decode::{Cache, DecodePlan};

/// The field that gives the negative prompt.
pub(super) const NEGATIVE_PROMPT: &str = "diffusion.negative_prompt";

/// The fields of a request that make its plan.
pub(super) struct DecodeFields {
    pub temperature: Option<Real>,
    pub top_p: Option<Real>,
    pub min_p: Option<Real>,
    pub top_k: Option<Integer>,
    pub seed: Option<Whole>,
    pub logit_bias: Option<Map<String, Value>>,
    pub diffusion: Option<Object<DiffusionOptions>>,
    /// Where the prompt stands, and so a negative one in its place.
    pub prompt_place: Place,
}

/// The plan: the named preset's, or the model's default, with the given fields in place of its own.
pub(super) fn plan(fields: DecodeFields, state: &AppState) -> Result<DecodePlan, ApiError> {
    let spec = state.engine.spec();
    let Object(options) = fields.diffusion.unwrap_or_default();
    let preset = options.preset.as_deref().map(|name| spec.preset(name));
    let preset = preset.transpose().map_err(|error| ApiError::plan(&error))?;
    let mut plan = match &preset {
        Some(preset) => spec.plan(preset),
        None => spec.default_plan.clone(),
    };
    // A plan has one of these: to give the one takes the other back.
    if options.steps.is_some() || options.steps_per_block.is_some() {
        plan.steps = options.steps.map(size);
        plan.steps_per_block = options.steps_per_block.map(size);
    }
    if let Some(length) = options.block_length {
        plan.block_length = Some(size(length));
    }
    plan.block_origin = options.block_origin.unwrap_or(plan.block_origin);
    plan.block_entry = options.block_entry.unwrap_or(plan.block_entry);
    if let Some(budget) = options.budget {
        plan.replace_budget(budget);
    }
    plan.score = options.score.unwrap_or(plan.score);
    if let Some(Real(temperature)) = options.score_temperature {
        plan.score_temperature = temperature;
    }
    if let Some(tokens) = &options.commit_last {
        let tokens = tokens
            .iter()
            .enumerate()
            .map(|(i, token)| check_known(token.0, &format!("diffusion.commit_last[{i}]"), state));
        plan.commit_last = tokens.collect::<Result<_, _>>()?;
    }
    plan.at_least = options.at_least.map_or(plan.at_least, size);
    plan.finish = options.finish.unwrap_or(plan.finish);
    plan.revision = options.revision.unwrap_or(plan.revision);
    plan.early_stop = options.early_stop.unwrap_or(plan.early_stop);
    if let Some(Object(cache)) = options.cache {
        plan.cache = Cache {
            policy: cache.policy.unwrap_or(plan.cache.policy),
            refresh: cache.refresh.map(size).or(plan.cache.refresh),
        };
    }
    plan.left_context = options.left_context.unwrap_or(plan.left_context);
    plan.sliding_window = options.sliding_window.unwrap_or(plan.sliding_window);
    let sampling = &mut plan.sampling;
    sampling.filter_order = options.filter_order.unwrap_or(sampling.filter_order);
    sampling.basis = options.basis.unwrap_or(sampling.basis);
    sampling.stop_tokens = options.stop_tokens.unwrap_or(sampling.stop_tokens);
    sampling.logit_bias = logit_bias(fields.logit_bias, state)?;
    if let Some(Real(scale)) = options.guidance_scale {
        sampling.guidance_scale = scale;
    }
    if let Some(text) = &options.negative_prompt {
        let prompt = encode(text, fields.prompt_place, NEGATIVE_PROMPT, state)?;
        sampling.negative_prompt = Some(prompt);
    }
    if let Some(Real(temperature)) = fields.temperature {
        sampling.set_temperature(temperature);
    }
    sampling.temperature_schedule = options
        .temperature_schedule
        .unwrap_or(sampling.temperature_schedule);
    if let Some(Real(top_p)) = fields.top_p {
        sampling.top_p = Some(top_p);
    }
    if let Some(Real(min_p)) = fields.min_p {
        sampling.min_p = Some(min_p);
    }
    if let Some(Integer(top_k)) = fields.top_k {
        sampling
            .set_top_k(top_k)
            .map_err(|error| ApiError::plan(&error))?;
    }
    sampling.seed = match fields.seed {
        Some(Whole(seed)) => seed,
        None => random::seed()?,
    };
    plan.validate()
        .and_then(|()| plan.check_asked(options.score, options.finish))
        .and_then(|()| match &preset {
            Some(preset) => spec.check_preset(preset, &plan),
            None => Ok(()),
        })
        .map_err(|error| ApiError::plan(&error))?;
    Ok(plan)
}

/// The plan of one of the `n` sequences that are made from one canvas: the next number as its seed,
/// so that each equals what a request for it alone would give.
pub(in super::super) fn nth_plan(plan: &DecodePlan, number: usize) -> DecodePlan {
    let mut plan = plan.clone();
    plan.sampling.seed = plan.sampling.seed.wrapping_add(number as u64);
    plan
}

/// `n`, for a request of so many canvases.
pub(super) fn repetitions(
    n: Option<Whole>,
    canvases: usize,
    state: &AppState,
) -> Result<usize, ApiError> {
    let n = n.map_or(1, size);
    let limit = state.sequence_limit();
    let sequences = limit.of_sequences();
    if n == 0 || n > limit.most {
        return Err(ApiError::value("n", n, format_args!("1 to {sequences}")));
    }
    if canvases > limit.most {
        return Err(ApiError::value(
            "prompt",
            format_args!("a list of {canvases} prompts"),
            format_args!("at most {sequences}"),
        ));
    }
    match canvases.checked_mul(n) {
        Some(all) if all <= limit.most => Ok(n),
        _ => Err(ApiError::value(
            "n",
            n,
            format_args!(
                "at most {sequences}; {canvases} prompts with n = {n} are {}",
                canvases.saturating_mul(n)
            ),
        )),
    }
}

/// A number of things in memory. What does not fit is above every limit all the same.
pub(super) fn size(number: Whole) -> usize {
    usize::try_from(number.0).unwrap_or(usize::MAX)
}

/// `stream_options`, which only a stream may have.
pub(super) fn stream_options<T: Default>(
    given: Option<Object<T>>,
    stream: bool,
) -> Result<T, ApiError> {
    if given.is_some() && !stream {
        return Err(ApiError::unsupported(
            "stream_options",
            "given",
            "it is allowed only with stream = true",
        ));
    }
    Ok(given.unwrap_or_default().0)
}

/// Whether a stream brings frames of the canvas.
pub(super) fn frames(
    given: Option<StreamedDiffusion>,
    diffusing: Option<bool>,
    stream: bool,
) -> Result<bool, ApiError> {
    let diffusing = diffusing.unwrap_or(false);
    if diffusing && !stream {
        return Err(ApiError::unsupported(
            "diffusing",
            true,
            "it is allowed only with stream = true",
        ));
    }
    Ok(diffusing || given == Some(StreamedDiffusion::Frames))
}
