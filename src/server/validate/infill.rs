//! An infilling: fixed pieces and gaps.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{GapFields, InfillRequest, Segment, Whole};
use super::choices::ChoiceForwards;
use super::constraint::no_such_length;
use super::decoding::{DecodeFields, NEGATIVE_PROMPT, frames, plan, repetitions, stream_options};
use super::gaps::{Gap, Length, gap};
use super::logits::chat_logprobs;
use super::{Place, check_model, check_seen_ahead, encode};
use crate::canvas::{Canvas, TokenId};
use crate::constraint::{CanvasConstraint, ConstraintError, GapConstraint};
use crate::decode::{DecodePlan, EarlyStop, StopTokens};
use crate::models::{AttentionPattern, ModelSpec};
use crate::text::gaps::{self, Piece};
use crate::text::{Layout, TextError};

/// A request to fill gaps that can be queued.
#[derive(Debug)]
pub struct InfillJob {
    /// The text, piece by piece.
    pub pieces: Vec<InfillPiece>,
    /// What is tried: the slots of every gap, those of gaps with choices at their most. One entry unless there
    /// are gaps whose length is to be found.
    pub lengths: Vec<Vec<usize>>,
    /// The forwards that gaps with choices take.
    pub choices: ChoiceForwards,
    /// Sequences that are returned.
    pub n: usize,
    /// How they are denoised.
    pub plan: DecodePlan,
    /// How many of the most probable tokens are reported with each; `None` if no log-probabilities are.
    pub top_logprobs: Option<usize>,
    /// Whether to answer with server-sent events.
    pub stream: bool,
    /// Whether they bring frames of the canvas.
    pub frames: bool,
}

/// A piece of the text.
#[derive(Debug)]
pub enum InfillPiece {
    /// Text that stays as it is.
    Text {
        /// The text.
        text: String,
        /// Its tokens.
        tokens: Vec<TokenId>,
    },
    /// A gap.
    Gap(Gap),
}

impl InfillJob {
    /// The gaps in order.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.pieces.iter().filter_map(|piece| match piece {
            InfillPiece::Gap(gap) => Some(gap),
            InfillPiece::Text { .. } => None,
        })
    }

    /// Tokens of the fixed text.
    pub fn prompt_tokens(&self) -> usize {
        let tokens = self.pieces.iter().map(|piece| match piece {
            InfillPiece::Gap(_) => 0,
            InfillPiece::Text { tokens, .. } => tokens.len(),
        });
        tokens.sum()
    }

    /// The first piece that has to be seen from a gap before it: text, or where the model only goes on from a text
    /// another gap too.
    fn seen_ahead(&self, spec: &ModelSpec) -> Option<usize> {
        let only_goes_on = matches!(spec.attention, AttentionPattern::EncodedBlocks { .. });
        let is_gap = |piece: &InfillPiece| matches!(piece, InfillPiece::Gap(_));
        let first = self.pieces.iter().position(is_gap)?;
        let mut rest = self.pieces.iter().enumerate().skip(first + 1);
        let seen = rest.find(|(_, piece)| match piece {
            InfillPiece::Text { tokens, .. } => !tokens.is_empty(),
            InfillPiece::Gap(_) => only_goes_on,
        });
        seen.map(|(at, _)| at)
    }

    /// Whether several lengths of gaps are tried, of which the best is known only when all are filled.
    pub fn is_searched(&self) -> bool {
        self.lengths.len() > 1
    }

    /// The slots of every gap at its longest.
    pub fn longest(&self) -> Vec<usize> {
        self.gaps().map(|gap| gap.length.most()).collect()
    }

    /// The text on a canvas, with so many slots for each gap and the scratch slots that the model needs after
    /// it.
    pub fn canvas(&self, lengths: &[usize], spec: &ModelSpec) -> Result<Canvas, ApiError> {
        let mut builder = Canvas::builder(spec.blank());
        let mut lengths = lengths.iter();
        for piece in &self.pieces {
            builder = match piece {
                InfillPiece::Text { tokens, .. } => builder.fixed(tokens),
                InfillPiece::Gap(gap) => {
                    let length = lengths.next().copied().unwrap_or_default();
                    match gap.limits {
                        Some((least, most)) => builder.gap_between(length, least, most),
                        None => builder.gap(length),
                    }
                }
            };
        }
        let canvas = builder
            .build()
            .map_err(|error| ApiError::internal(format!("a text cannot be laid out: {error}")))?;
        Ok(spec.with_scratch(&self.plan, canvas))
    }

    /// What the gaps of such a canvas may be filled with; none if anything may fill all of them.
    ///
    /// # Errors
    /// [`ConstraintError::Empty`] if no text is as long as a gap.
    pub fn constraint(&self, canvas: &Canvas) -> Result<Option<CanvasConstraint>, ConstraintError> {
        let constraints: Vec<GapConstraint> = self
            .gaps()
            .enumerate()
            .filter_map(|(gap, fields)| {
                Some(GapConstraint {
                    gap,
                    language: fields.language.clone()?,
                    may_end: self.may_stop_in(canvas, gap),
                })
            })
            .collect();
        match constraints.is_empty() {
            true => Ok(None),
            false => CanvasConstraint::new(canvas, constraints).map(Some),
        }
    }

    /// Whether stop tokens may stand in the `gap`th gap of such a canvas. A choice after it is like text around the gaps,
    /// also before it is made.
    fn may_stop_in(&self, canvas: &Canvas, gap: usize) -> bool {
        let sampling = &self.plan.sampling;
        let is_choice = |gap: &Gap| matches!(gap.length, Length::Choices(_));
        let before_choice = self.gaps().skip(gap + 1).any(is_choice);
        sampling.may_stop_in(canvas, gap)
            && (sampling.stop_tokens == StopTokens::Anywhere || !before_choice)
    }

    /// How the text is read back from such a canvas.
    pub fn layout(&self, lengths: &[usize]) -> Layout {
        let mut lengths = lengths.iter();
        let pieces = self.pieces.iter().map(|piece| match piece {
            InfillPiece::Text { text, .. } => Piece::Text(text.clone()),
            InfillPiece::Gap(_) => Piece::Gap(lengths.next().copied().unwrap_or_default()),
        });
        Layout::of(pieces.collect())
    }
}

/// Checks a request to fill gaps.
pub fn infill(request: InfillRequest, state: &AppState) -> Result<InfillJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    let param = match request.segments {
        Some(_) => "segments",
        None => "text",
    };
    let segments = segments(request.text, request.segments, state)?;
    if !segments.iter().any(|(_, s)| matches!(s, Segment::Gap(_))) {
        return Err(ApiError::unusable(
            param,
            "there is no gap to fill; allowed: at least one gap, written {{8}} in text or {\"gap\": {\"tokens\": 8}} in segments",
        ));
    }
    let n = repetitions(request.n, 1, state)?;
    let early_stop = request.diffusion.as_ref().and_then(|d| d.0.early_stop);
    if early_stop.is_some_and(|early_stop| early_stop != EarlyStop::Never) {
        return Err(ApiError::unusable(
            "diffusion.early_stop",
            "a stop token in one gap must not leave the others unfilled; allowed: \"never\"",
        ));
    }
    let options = request.diffusion.as_ref();
    if options.is_some_and(|options| options.0.negative_prompt.is_some()) {
        return Err(ApiError::unusable(
            NEGATIVE_PROMPT,
            "it stands in the place of a prompt, and the text around gaps is none; allowed in completions, with or \
             without a suffix, and chats",
        ));
    }
    let top_logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
    let stop_tokens = request.diffusion.as_ref().and_then(|d| d.0.stop_tokens);
    let fields = DecodeFields {
        temperature: request.temperature,
        top_p: request.top_p,
        min_p: request.min_p,
        top_k: request.top_k,
        seed: request.seed,
        logit_bias: request.logit_bias,
        diffusion: request.diffusion,
        prompt_place: Place::Start,
    };
    let mut plan = DecodePlan {
        early_stop: EarlyStop::Never,
        ..plan(fields, state)?
    };
    plan.sampling.stop_tokens = stop_tokens.unwrap_or(StopTokens::AtEnd);
    let stream = request.stream.unwrap_or(false);
    let stream_options = stream_options(request.stream_options, stream)?;
    let mut job = InfillJob {
        pieces: pieces(segments, param, state)?,
        lengths: Vec::new(),
        choices: ChoiceForwards::default(),
        n,
        plan,
        top_logprobs,
        stream,
        frames: frames(stream_options.diffusion, request.diffusing, stream)?,
    };
    check_length(&job, param, state)?;
    if let Some(at) = job.seen_ahead(state.engine.spec()) {
        let path = match param {
            "segments" => format!("segments[{at}]"),
            param => param.to_owned(),
        };
        check_seen_ahead(&path, &job.plan, state.engine.spec())?;
    }
    job.lengths = lengths(&job, state)?;
    job.choices = ChoiceForwards::of(&job, &job.longest(), state.limits.choice_forwards)?;
    Ok(job)
}

/// The pieces as they were given, each with the path by which an error names it.
fn segments(
    text: Option<String>,
    segments: Option<Vec<Segment>>,
    state: &AppState,
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
            let pieces = gaps::parse(&text).map_err(|error| match error {
                TextError::GapTooLong { .. } => {
                    let limit = state.engine.spec().canvas_limit();
                    too_long(
                        "text",
                        format_args!("more than {}", usize::MAX),
                        limit,
                        state,
                    )
                }
                error => ApiError::unusable("text", error),
            })?;
            let segment = |piece| match piece {
                Piece::Text(text) => Segment::Text(text),
                Piece::Gap(tokens) => Segment::Gap(GapFields {
                    tokens: Some(Whole(tokens as u64)),
                    ..GapFields::default()
                }),
            };
            let pieces = pieces.into_iter().map(segment);
            Ok(pieces.map(|piece| ("text".to_owned(), piece)).collect())
        }
    }
}

fn pieces(
    segments: Vec<(String, Segment)>,
    param: &str,
    state: &AppState,
) -> Result<Vec<InfillPiece>, ApiError> {
    // The gaps' lengths are known before any text is encoded: a canvas too long by them alone is
    // refused before anything of that size is built.
    let mut names = HashMap::new();
    let mut in_gaps = 0usize;
    let mut checked = Vec::with_capacity(segments.len());
    check_forms(&segments, state)?;
    for (path, segment) in segments {
        checked.push(match segment {
            Segment::Gap(fields) => {
                let gap = gap(fields, &path, &mut names, state)?;
                in_gaps = in_gaps.saturating_add(gap.length.most());
                Ok(gap)
            }
            Segment::Text(text) => Err((path, text)),
        });
    }
    let limit = state.engine.spec().canvas_limit();
    if in_gaps > limit {
        return Err(too_long(param, in_gaps, limit, state));
    }
    let pieces = checked
        .into_iter()
        .enumerate()
        .map(|(at, piece)| match piece {
            Ok(gap) => Ok(InfillPiece::Gap(gap)),
            Err((path, text)) => {
                let place = if at == 0 { Place::Start } else { Place::Later };
                Ok(InfillPiece::Text {
                    tokens: encode(&text, place, &path, state)?,
                    text,
                })
            }
        });
    pieces.collect()
}

/// Each expression and each grammar takes a while to make.
fn check_forms(segments: &[(String, Segment)], state: &AppState) -> Result<(), ApiError> {
    let limit = state.limits.forms;
    let mut forms = HashSet::new();
    for (path, segment) in segments {
        let Segment::Gap(GapFields { regex, grammar, .. }) = segment else {
            continue;
        };
        let given = [("regex", regex), ("grammar", grammar)];
        for (field, form) in given.into_iter().filter(|(_, form)| form.is_some()) {
            if forms.insert((field, form)) && forms.len() > limit {
                return Err(ApiError::value(
                    &format!("{path}.gap.{field}"),
                    format_args!("form {} of the request", forms.len()),
                    format_args!("at most {limit} different regular expressions and grammars"),
                ));
            }
        }
    }
    Ok(())
}

fn too_long(param: &str, slots: impl Display, limit: usize, state: &AppState) -> ApiError {
    let limit = state.slot_limit(limit);
    ApiError::canvas_too_long(param, format_args!("{param} is too long"), slots, limit)
}

/// Checks that the text fits the model with every gap at its longest.
fn check_length(job: &InfillJob, param: &str, state: &AppState) -> Result<(), ApiError> {
    let spec = state.engine.spec();
    let most: usize = job.longest().iter().sum();
    let tokens_of = |piece: &InfillPiece| match piece {
        InfillPiece::Text { tokens, .. } => Some(tokens.len()),
        InfillPiece::Gap(_) => None,
    };
    let before_gaps = job.pieces.iter().map_while(tokens_of).sum::<usize>();
    let after_gaps = job.pieces.iter().rev().map_while(tokens_of).sum::<usize>();
    let length = job.prompt_tokens() + most;
    let gaps = before_gaps..length - after_gaps;
    let slots = spec.canvas_length(&job.plan, gaps, length);
    let limit = spec.longest_canvas(&job.plan);
    match slots > limit {
        true => Err(too_long(param, slots, limit, state)),
        false => Ok(()),
    }
}

/// The lengths of gaps that are tried: the first ones where the network changes them, else all combinations of as many lengths of each gap as the limit on
/// sequences allows, evenly spread over its range.
fn lengths(job: &InfillJob, state: &AppState) -> Result<Vec<Vec<usize>>, ApiError> {
    if job.gaps().any(|gap| gap.language.is_some()) {
        let is_possible = job.plan.check_constrained();
        is_possible.map_err(|error| ApiError::plan(&error))?;
    }
    if job.plan.is_resizing() {
        return Ok(vec![job.gaps().map(Gap::first_slots).collect()]);
    }
    let open = job
        .gaps()
        .filter(|gap| matches!(gap.length, Length::Between(..)));
    let open = open.count() as u32;
    let limit = state.limits.sequences;
    let sequences = state.sequence_limit().of_sequences();
    let most = limit.checked_ilog2().unwrap_or(0);
    if open > most {
        return Err(ApiError::unusable(
            "segments",
            format_args!(
                "{open} gaps have max_tokens, and at least two lengths of each are tried with every other's, of at most \
                 {sequences}; allowed: at most {most} such gaps, and tokens in the others"
            ),
        ));
    }
    // The largest count of which the open gaps' combinations are few enough.
    let fits = |count: &usize| {
        let combinations = count
            .checked_pow(open)
            .and_then(|all| all.checked_mul(job.n));
        combinations.is_some_and(|all| all <= limit)
    };
    let count = (1..=limit).take_while(fits).last().unwrap_or(1);
    if open > 0 && count < 2 {
        return Err(ApiError::value(
            "n",
            job.n,
            format_args!(
                "fewer, or fewer gaps with max_tokens: at least two lengths of each of {open} gaps and n \
                 together have to be at most {sequences}"
            ),
        ));
    }
    let canvas = job.canvas(&job.longest(), state.engine.spec())?;
    let mut combinations = vec![Vec::new()];
    for (index, gap) in job.gaps().enumerate() {
        let may_end = job.may_stop_in(&canvas, index);
        let of_gap = spread(&possible_lengths(gap, may_end, state)?, count);
        combinations = combinations
            .into_iter()
            .flat_map(|shorter| {
                of_gap.iter().map(move |length| {
                    let mut longer = shorter.clone();
                    longer.push(*length);
                    longer
                })
            })
            .collect();
    }
    Ok(combinations)
}

/// The lengths that a gap may have, ascending, of which texts of its language fill it.
fn possible_lengths(gap: &Gap, may_end: bool, state: &AppState) -> Result<Vec<usize>, ApiError> {
    let (least, most, field) = match gap.length {
        Length::Between(least, most) => (least, most, "max_tokens"),
        _ => (gap.length.most(), gap.length.most(), "tokens"),
    };
    let mut lengths: Vec<usize> = (least..=most).collect();
    if let Some(language) = &gap.language {
        let fits = language.lengths(most, may_end);
        lengths.retain(|length| fits.get(*length).is_some_and(|fits| *fits));
        if lengths.is_empty() {
            let param = format!("{}.{field}", gap.path);
            return Err(no_such_length(language, &param, most, may_end, state));
        }
    }
    Ok(lengths)
}

/// At most `count`, of at least 2, of some lengths, the first and the last among them.
fn spread(lengths: &[usize], count: usize) -> Vec<usize> {
    let last = lengths.len().saturating_sub(1);
    let steps = (count - 1).min(last);
    (0..=steps)
        .map(|step| lengths[(step * last + steps / 2) / steps.max(1)])
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::spread;

    #[test]
    fn lengths_are_spread_evenly_from_end_to_end() {
        let spread =
            |lengths: RangeInclusive<usize>, count| spread(&lengths.collect::<Vec<_>>(), count);
        assert_eq!(spread(3..=3, 16), [3]);
        assert_eq!(spread(1..=4, 16), [1, 2, 3, 4]);
        assert_eq!(spread(1..=32, 2), [1, 32]);
        assert_eq!(spread(2..=10, 5), [2, 4, 6, 8, 10]);
        assert_eq!(spread(1..=20, 4), [1, 7, 14, 20]);
    }
}
