//! The gaps of an infilling.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{GapFields, GapLength};
use super::completion::stops;
use super::constraint::{grammar, regex};
use super::decoding::size;
use super::{Place, Use, encode_for};
use crate::canvas::TokenId;
use crate::constraint::TokenDfa;
use crate::decode::DecodePlan;
use crate::models::AttentionPattern;

/// A gap that can be laid out.
#[derive(Debug, Clone)]
pub struct Gap {
    /// How an error names it.
    pub path: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What its whole text is to be, if not any.
    pub language: Option<Arc<TokenDfa>>,
    /// How many slots it has.
    pub length: Length,
    /// The fewest and the most slots that it may come to have, if the request says.
    pub limits: Option<(usize, usize)>,
    /// Strings before which its text ends.
    pub stops: Arc<[String]>,
}

/// Slots that a gap begins with whose length the network is to find, where its limits allow it: as many as
/// DreamOn's authors take.
const FIRST_SLOTS: usize = 4;

impl Gap {
    /// What decides how many slots it has under `plan`.
    pub fn length_source(&self, plan: &DecodePlan) -> GapLength {
        let is_fixed = self.limits.is_some_and(|(least, most)| least == most);
        match self.length {
            Length::Choices(_) => GapLength::Choices,
            _ if is_fixed => GapLength::Given,
            _ if plan.is_resizing() => GapLength::Resized,
            Length::Exact(_) => GapLength::Given,
            Length::Between(..) => GapLength::Searched,
        }
    }

    /// The slots that it begins with where the network changes its length.
    pub fn first_slots(&self) -> usize {
        match self.length {
            Length::Between(least, most) => FIRST_SLOTS.clamp(least, most),
            _ => self.length.most(),
        }
    }
}

/// How many slots a gap has.
#[derive(Debug, Clone)]
pub enum Length {
    /// So many.
    Exact(usize),
    /// Between two bounds, which are not the same.
    Between(usize, usize),
    /// Those of one of its choices.
    Choices(Arc<[Choice]>),
}

/// A text that may fill a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The text.
    pub text: String,
    /// Its tokens, at least one.
    pub tokens: Vec<TokenId>,
}

impl Length {
    /// The most slots that the gap may have.
    pub fn most(&self) -> usize {
        match self {
            Self::Exact(length) | Self::Between(_, length) => *length,
            Self::Choices(choices) => {
                let lengths = choices.iter().map(|choice| choice.tokens.len());
                lengths.max().unwrap_or(0)
            }
        }
    }
}

/// Checks the gap that `path` names; `names` holds the names of those before it.
pub(super) fn gap(
    gap: GapFields,
    path: &str,
    names: &mut HashMap<String, String>,
    state: &AppState,
) -> Result<Gap, ApiError> {
    if let Some(name) = &gap.name {
        check_name(name, path, names, state)?;
    }
    let param = |field: &str| format!("{path}.gap.{field}");
    let limit = state.engine.spec().canvas_limit();
    let length = match (gap.tokens.map(size), gap.max_tokens.map(size), gap.choices) {
        (Some(0), None, None) => {
            return Err(ApiError::value(
                &param("tokens"),
                0,
                format_args!("1 to {limit}"),
            ));
        }
        (Some(length), None, None) => Length::Exact(length),
        (None, Some(most), None) => {
            let least = gap.min_tokens.map_or(1, size);
            if least == 0 || least > most {
                return Err(ApiError::value(
                    &param("min_tokens"),
                    least,
                    format_args!("1 to max_tokens, which is {most}"),
                ));
            }
            match least == most {
                true => Length::Exact(most),
                false => Length::Between(least, most),
            }
        }
        (None, None, Some(choices)) => {
            Length::Choices(check_choices(choices, &param("choices"), state)?)
        }
        (None, None, None) => {
            let allowed = format_args!("1 to {limit}, or max_tokens or choices in its place");
            return Err(ApiError::missing(&param("tokens"), allowed));
        }
        (_, max_tokens, _) => {
            let field = if max_tokens.is_some() {
                "max_tokens"
            } else {
                "choices"
            };
            return Err(ApiError::unusable(
                &param(field),
                "the gap's length is given twice; allowed: one of tokens, max_tokens and choices",
            ));
        }
    };
    if gap.min_tokens.is_some() && gap.max_tokens.is_none() {
        return Err(ApiError::unusable(
            &param("min_tokens"),
            "it is allowed only with max_tokens",
        ));
    }
    let form = match (&gap.regex, &gap.grammar) {
        (Some(_), Some(_)) => {
            return Err(ApiError::unusable(
                &param("grammar"),
                "regex is given as well; allowed: one of them",
            ));
        }
        (Some(_), None) => Some("regex"),
        (None, Some(_)) => Some("grammar"),
        (None, None) => None,
    };
    let is_choice = matches!(length, Length::Choices(_));
    if let Some(field) = gap
        .stop
        .as_ref()
        .map(|_| "stop")
        .or(is_choice.then_some("choices"))
        && let Some(form) = form
    {
        return Err(ApiError::unusable(
            &param(form),
            format_args!(
                "{field} is given as well, and the gap's whole text is to match; allowed: one of them"
            ),
        ));
    }
    if is_choice && gap.stop.is_some() {
        return Err(ApiError::unusable(
            &param("stop"),
            "it is not allowed with choices, each of which is a whole text",
        ));
    }
    let limits = gap.max_tokens.map(size);
    let language = match (gap.regex, gap.grammar) {
        (Some(pattern), _) => Some(regex(pattern, &param("regex"), state)?),
        (None, Some(text)) => Some(grammar(text, &param("grammar"), state)?),
        (None, None) => None,
    };
    Ok(Gap {
        path: format!("{path}.gap"),
        name: gap.name,
        language,
        length,
        limits: limits.map(|most| (gap.min_tokens.map_or(1, size), most)),
        stops: stops(gap.stop, &param("stop"), state)?,
    })
}

fn check_name(
    name: &str,
    path: &str,
    names: &mut HashMap<String, String>,
    state: &AppState,
) -> Result<(), ApiError> {
    let param = format!("{path}.gap.name");
    let longest = state.limits.gap_name_bytes;
    if name.len() > longest {
        return Err(ApiError::value(
            &param,
            format_args!("a string of {} bytes", name.len()),
            format_args!("at most {longest} bytes"),
        ));
    }
    match names.insert(name.to_owned(), path.to_owned()) {
        Some(other) => Err(ApiError::value(
            &param,
            format_args!("{name:?}"),
            format_args!("a name of its own, and {other} has this one"),
        )),
        None => Ok(()),
    }
}

fn check_choices(
    texts: Vec<String>,
    param: &str,
    state: &AppState,
) -> Result<Arc<[Choice]>, ApiError> {
    if state.engine.spec().attention != AttentionPattern::Bidirectional {
        return Err(ApiError::unsupported(
            param,
            "given",
            "a model of blocks does not see what follows a choice; allowed: tokens",
        ));
    }
    if state.engine.mask_token().is_none() {
        return Err(ApiError::unsupported(
            param,
            "given",
            "a choice is scored with its other tokens masked, and this model was trained on the uniform process, \
             which has no mask; allowed: tokens",
        ));
    }
    let most = state.limits.choices;
    if !(1..=most).contains(&texts.len()) {
        return Err(ApiError::value(
            param,
            format_args!("a list of {} texts", texts.len()),
            format_args!("1 to {most}"),
        ));
    }
    let mut choices: Vec<Choice> = Vec::with_capacity(texts.len());
    for (index, text) in texts.into_iter().enumerate() {
        let param = format!("{param}[{index}]");
        let tokens = encode_for(Use::Choice, &text, Place::Later, &param, state)?;
        if tokens.is_empty() {
            return Err(ApiError::value(
                &param,
                "an empty text",
                "a text of at least one token",
            ));
        }
        if let Some(same) = choices.iter().position(|choice| choice.tokens == tokens) {
            return Err(ApiError::unusable(
                &param,
                format_args!("it is the same as choice {same}; allowed: each once"),
            ));
        }
        choices.push(Choice { text, tokens });
    }
    Ok(choices.into())
}
