//! Fields of OpenAI's API that are known and not supported: taken at the value that has no effect.

use serde_json::{Map, Value};

use super::super::error::ApiError;
use super::super::wire::Real;

/// A penalty: 0 has no effect.
pub(super) fn penalty(param: &str, given: Option<Real>) -> Result<(), ApiError> {
    match given {
        Some(Real(penalty)) if penalty != 0.0 => Err(ApiError::unsupported(
            param,
            penalty,
            "it is not supported; allowed: 0",
        )),
        _ => Ok(()),
    }
}

/// `logit_bias`: an empty object has no effect.
pub(super) fn logit_bias(given: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    match given {
        Some(bias) if !bias.is_empty() => Err(ApiError::unsupported(
            "logit_bias",
            format_args!("an object of {} entries", bias.len()),
            "it is not supported; allowed: an empty object",
        )),
        _ => Ok(()),
    }
}

/// A field of which `allowed` have no effect; null never has.
pub(super) fn only(param: &str, given: Option<&Value>, allowed: &[Value]) -> Result<(), ApiError> {
    let Some(given) = given.filter(|given| !allowed.contains(given)) else {
        return Ok(());
    };
    let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
    let allowed = match allowed.join(", ") {
        values if values.is_empty() => "null".to_owned(),
        values => format!("null, {values}"),
    };
    Err(ApiError::unsupported(
        param,
        given,
        format_args!("it is not supported; allowed: {allowed}"),
    ))
}
