//! Fields of the original APIs that are known and not supported: taken at the values that have no effect.

use serde_json::Value;

use super::super::error::ApiError;
use super::super::wire::Real;

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

/// A number of which only `allowed` has no effect; to leave it out has none either.
pub(super) fn neutral(param: &str, given: Option<Real>, allowed: f32) -> Result<(), ApiError> {
    match given {
        Some(Real(given)) if given != allowed => Err(ApiError::unsupported(
            param,
            given,
            format_args!("it is not supported; allowed: {allowed}"),
        )),
        _ => Ok(()),
    }
}
