//! An infilling: one canvas of fixed pieces and gaps.

use std::collections::HashMap;

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{GapFields, InfillRequest, Segment, Whole};
use super::decoding::{DecodeFields, plan, repetitions, size};
use super::logits::chat_logprobs;
use super::{check_model, encode};
use crate::canvas::Canvas;
use crate::decode::{DecodePlan, EarlyStop, StopTokens};
use crate::text::Layout;
use crate::text::gaps::{self, Piece};

/// A request to fill gaps that can be queued.
#[derive(Debug)]
pub struct InfillJob {
    /// The text, piece by piece.
    pub layout: Layout,
    /// The gaps' names, where they have one.
    pub names: Vec<Option<String>>,
    /// All of the text, and the scratch slots that the model needs after it.
    pub canvas: Canvas,
    /// Sequences.
    pub n: usize,
    /// How they are denoised.
    pub plan: DecodePlan,
    /// How many of the most probable tokens are reported with each; `None` if no log-probabilities are.
    pub top_logprobs: Option<usize>,
    /// Whether to answer with server-sent events.
    pub stream: bool,
}

/// Checks a request to fill gaps.
pub fn infill(request: InfillRequest, state: &AppState) -> Result<InfillJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    let param = match request.segments {
        Some(_) => "segments",
        None => "text",
    };
    let segments = segments(request.text, request.segments)?;
    if !segments.iter().any(|(_, s)| matches!(s, Segment::Gap(_))) {
        return Err(ApiError::unusable(
            param,
            "there is no gap to fill; allowed: at least one gap, written {{8}} in text or {\"gap\": {\"tokens\": 8}} in segments",
        ));
    }
    let n = repetitions(request.n, 1, &state.limits)?;
    let early_stop = request.diffusion.as_ref().and_then(|d| d.0.early_stop);
    if early_stop.is_some_and(|early_stop| early_stop != EarlyStop::Never) {
        return Err(ApiError::unusable(
            "diffusion.early_stop",
            "a stop token in one gap must not leave the others unfilled; allowed: \"never\"",
        ));
    }
    let top_logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
    let stop_tokens = request.diffusion.as_ref().and_then(|d| d.0.stop_tokens);
    let fields = DecodeFields {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed,
        logit_bias: request.logit_bias,
        diffusion: request.diffusion,
    };
    let mut plan = DecodePlan {
        early_stop: EarlyStop::Never,
        ..plan(fields, state)?
    };
    plan.sampling.stop_tokens = stop_tokens.unwrap_or(StopTokens::AtEnd);
    let (layout, names, canvas) = lay_out(segments, param, &plan, state)?;
    Ok(InfillJob {
        layout,
        names,
        canvas,
        n,
        plan,
        top_logprobs,
        stream: request.stream.unwrap_or(false),
    })
}

/// The pieces, each with the path by which an error names it.
fn segments(
    text: Option<String>,
    segments: Option<Vec<Segment>>,
) -> Result<Vec<(String, Segment)>, ApiError> {
    match (text, segments) {
        (None, None) => Err(ApiError::missing("text", "either text or segments")),
        (Some(_), Some(_)) => Err(ApiError::unusable(
            "segments",
            "both text and segments are given; allowed: one of them",
        )),
        (None, Some(segments)) => {
            let path = |(i, segment)| (format!("segments[{i}]"), segment);
            Ok(segments.into_iter().enumerate().map(path).collect())
        }
        (Some(text), None) => {
            let pieces = gaps::parse(&text).map_err(|error| ApiError::unusable("text", error))?;
            let segment = |piece| match piece {
                Piece::Text(text) => Segment::Text(text),
                Piece::Gap(tokens) => Segment::Gap(GapFields {
                    tokens: Some(Whole(tokens as u64)),
                    name: None,
                }),
            };
            let pieces = pieces.into_iter().map(segment);
            Ok(pieces.map(|piece| ("text".to_owned(), piece)).collect())
        }
    }
}

fn lay_out(
    segments: Vec<(String, Segment)>,
    param: &str,
    plan: &DecodePlan,
    state: &AppState,
) -> Result<(Layout, Vec<Option<String>>, Canvas), ApiError> {
    let spec = state.engine.spec();
    let limit = spec.max_canvas;
    let too_long = |slots: usize| {
        ApiError::canvas_too_long(param, format_args!("{param} is too long"), slots, limit)
    };
    // The gaps' lengths are known before any text is encoded: a canvas too long by them alone is
    // refused before anything of that size is built.
    let mut names = HashMap::new();
    let mut in_gaps = 0usize;
    for (path, segment) in &segments {
        if let Segment::Gap(gap) = segment {
            in_gaps = in_gaps.saturating_add(check_gap(gap, path, &mut names, state)?);
        }
    }
    if in_gaps > limit {
        return Err(too_long(in_gaps));
    }
    let mut builder = Canvas::builder(state.engine.mask_token());
    let mut pieces = Vec::with_capacity(segments.len());
    let mut gap_names = Vec::new();
    for (path, segment) in segments {
        match segment {
            Segment::Text(text) => {
                let tokens = encode(&text, &path, state)?;
                builder = builder.fixed(&tokens);
                pieces.push(Piece::Text(text));
            }
            Segment::Gap(gap) => {
                let length = gap.tokens.map_or(0, size);
                builder = builder.gap(length);
                pieces.push(Piece::Gap(length));
                gap_names.push(gap.name);
            }
        }
    }
    let canvas = builder
        .build()
        .map_err(|error| ApiError::unusable(param, error))?;
    let canvas = spec.with_scratch(plan, canvas);
    if canvas.len() > limit {
        return Err(too_long(canvas.len()));
    }
    Ok((Layout::of(pieces), gap_names, canvas))
}

/// Checks a gap; its length.
fn check_gap<'a>(
    gap: &'a GapFields,
    path: &'a str,
    names: &mut HashMap<&'a str, &'a str>,
    state: &AppState,
) -> Result<usize, ApiError> {
    let limit = state.engine.spec().max_canvas;
    if let Some(name) = &gap.name {
        let param = format!("{path}.gap.name");
        let longest = state.limits.gap_name_bytes;
        if name.len() > longest {
            return Err(ApiError::value(
                &param,
                format_args!("a string of {} bytes", name.len()),
                format_args!("at most {longest} bytes"),
            ));
        }
        if let Some(other) = names.insert(name, path) {
            return Err(ApiError::value(
                &param,
                format_args!("{name:?}"),
                format_args!("a name of its own, and {other} has this one"),
            ));
        }
    }
    let param = format!("{path}.gap.tokens");
    match gap.tokens.map(size) {
        None => Err(ApiError::missing(&param, format_args!("1 to {limit}"))),
        Some(0) => Err(ApiError::value(&param, 0, format_args!("1 to {limit}"))),
        Some(length) => Ok(length),
    }
}
