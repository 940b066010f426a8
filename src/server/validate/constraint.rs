//! What gaps may be filled with.

use std::sync::Arc;

use serde_json::Value;

use super::super::error::ApiError;
use super::super::languages::{LanguageError, Source};
use super::super::state::AppState;
use super::super::wire::{Object, ResponseFormat};
use crate::canvas::Canvas;
use crate::constraint::{CanvasConstraint, ConstraintError, GapConstraint, TokenDfa};
use crate::decode::DecodePlan;

const FORMATS: &str = r#""text", "json_object", "json_schema""#;

/// The fields of a request that say what form its text is to have.
#[derive(Default)]
pub(super) struct FormFields {
    pub response_format: Option<Object<ResponseFormat>>,
    pub grammar: Option<String>,
    /// llama.cpp's way to give a schema.
    pub json_schema: Option<Value>,
}

/// The language of the form that a request asks for; none for any text.
pub(super) fn form(
    fields: FormFields,
    state: &AppState,
) -> Result<Option<Arc<TokenDfa>>, ApiError> {
    let FormFields {
        response_format: format,
        grammar: text,
        json_schema: schema,
    } = fields;
    let format = response_format(format)?;
    let given = [
        ("response_format", format.is_some()),
        ("json_schema", schema.is_some()),
        ("grammar", text.is_some()),
    ];
    let given: Vec<&str> = given
        .iter()
        .filter(|given| given.1)
        .map(|given| given.0)
        .collect();
    if let [first, .., last] = given[..] {
        return Err(ApiError::unusable(
            last,
            format_args!("{first} is given as well; allowed: one of them"),
        ));
    }
    if let Some(text) = text {
        return grammar(text, "grammar", state).map(Some);
    }
    if let Some(schema) = schema {
        return language(Source::Schema(schema), "json_schema", state).map(Some);
    }
    format
        .map(|(source, param)| language(source, param, state))
        .transpose()
}

/// What a request's `response_format` asks for, and the field that says so; none for text.
fn response_format(
    given: Option<Object<ResponseFormat>>,
) -> Result<Option<(Source, &'static str)>, ApiError> {
    let Some(Object(format)) = given else {
        return Ok(None);
    };
    let kind = format
        .kind
        .ok_or_else(|| ApiError::missing("response_format.type", FORMATS))?;
    if kind != "json_schema" && format.json_schema.is_some() {
        return Err(ApiError::unusable(
            "response_format.json_schema",
            format_args!("type is {kind:?}; allowed only with \"json_schema\""),
        ));
    }
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some((Source::Object, "response_format"))),
        "json_schema" => {
            const PARAM: &str = "response_format.json_schema.schema";
            let Object(format) = format.json_schema.unwrap_or_default();
            let schema = format
                .schema
                .ok_or_else(|| ApiError::missing(PARAM, "a JSON Schema"))?;
            Ok(Some((Source::Schema(schema), PARAM)))
        }
        _ => Err(ApiError::value(
            "response_format.type",
            format_args!("{kind:?}"),
            FORMATS,
        )),
    }
}

/// The language of a gap's regular expression.
pub(super) fn regex(
    pattern: String,
    param: &str,
    state: &AppState,
) -> Result<Arc<TokenDfa>, ApiError> {
    let longest = state.limits.regex_bytes;
    if pattern.len() > longest {
        return Err(ApiError::value(
            param,
            format_args!("a regular expression of {} bytes", pattern.len()),
            format_args!("at most {longest} bytes"),
        ));
    }
    language(Source::Regex(pattern), param, state)
}

/// The language of a grammar.
pub(super) fn grammar(
    grammar: String,
    param: &str,
    state: &AppState,
) -> Result<Arc<TokenDfa>, ApiError> {
    language(Source::Grammar(grammar), param, state)
}

fn language(source: Source, param: &str, state: &AppState) -> Result<Arc<TokenDfa>, ApiError> {
    let spec = state.engine.spec();
    if spec.mask_token().is_none() {
        return Err(ApiError::unsupported(
            param,
            "given",
            "this model was trained on the uniform process, in which every slot changes at every step, so that \
             gaps cannot be held to a constraint; allowed: null",
        ));
    }
    let vocabulary = || spec.vocabulary(|token| state.tokenizer.bytes(token));
    let language = state.languages.of(source, vocabulary);
    language.map_err(|error| match error {
        LanguageError::Busy => ApiError::too_many_forms(),
        LanguageError::Constraint(ConstraintError::Schema { path, reason }) => {
            ApiError::unusable(&format!("{param}{path}"), reason)
        }
        LanguageError::Constraint(error) => ApiError::unusable(param, error),
    })
}

/// The constraint of a canvas whose one gap is to hold a text of `language`; `size_param` is the field that
/// gives the gap's length.
pub(super) fn of_completion(
    language: &Arc<TokenDfa>,
    size_param: &str,
    canvas: &Canvas,
    plan: &DecodePlan,
    state: &AppState,
) -> Result<CanvasConstraint, ApiError> {
    plan.check_constrained()
        .map_err(|error| ApiError::plan(&error))?;
    let may_end = plan.sampling.may_stop_in(canvas, 0);
    let constraint = GapConstraint {
        gap: 0,
        language: language.clone(),
        may_end,
    };
    CanvasConstraint::new(canvas, [constraint]).map_err(|error| match error {
        ConstraintError::Empty => {
            let slots = canvas.gaps()[0].len();
            no_such_length(language, size_param, slots, may_end, state)
        }
        error => ApiError::unusable(size_param, error),
    })
}

/// The error that no text of `language` has `given` tokens, and which numbers there are.
pub(super) fn no_such_length(
    language: &TokenDfa,
    param: &str,
    given: usize,
    may_end: bool,
    state: &AppState,
) -> ApiError {
    let context = state.engine.spec().canvas_limit();
    let lengths = language.lengths(context, may_end);
    let context = context.min(lengths.len().saturating_sub(1));
    let Some(least) = (1..=context).find(|length| lengths[*length]) else {
        return ApiError::unusable(
            param,
            format_args!("no text that is asked for has 1 to {context} tokens, the model's limit"),
        );
    };
    let below = (1..given.min(context))
        .rev()
        .find(|length| lengths[*length]);
    let above = (given + 1..=context).find(|length| lengths[*length]);
    if may_end {
        return ApiError::unusable(
            param,
            format_args!(
                "it is {given}; the shortest text that is asked for has {least} tokens; allowed: at least {least}"
            ),
        );
    }
    let near = match (below, above) {
        (Some(below), Some(above)) => format!("{below} or {above} are the nearest that are"),
        (Some(length), None) | (None, Some(length)) => format!("{length} is the nearest that is"),
        (None, None) => format!("{least} is"),
    };
    ApiError::unusable(
        param,
        format_args!(
            "it is {given}; a text that is asked for has to fill the gap, and none has so many tokens; {near} allowed"
        ),
    )
}
