//! Reading config.json: every error names the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::canvas::TokenId;
use crate::models::ModelError;
use crate::models::checkpoint::{CONFIG, config_error};

/// Sizes are below this, so that the product of two of them is far from overflowing, and of three with a byte
/// width is caught where tensors are counted.
const MAX_SIZE: usize = 1 << 24;

/// Layers, and experts of a layer, are at most so many: a config.json alone can make neither the list of
/// tensors nor what is computed from it grow without bound.
const MAX_COUNT: usize = 1024;

/// The number of layers or experts that the field `name` holds.
///
/// # Errors
/// If it is out of range.
pub(super) fn check_count(name: &str, count: usize) -> Result<usize, ModelError> {
    if (1..=MAX_COUNT).contains(&count) {
        return Ok(count);
    }
    Err(config_error(format!(
        "{name} is {count}; it must be 1 to {MAX_COUNT}"
    )))
}

/// Reads the fields of a config.json into a struct. A field that is null counts as absent.
///
/// # Errors
/// Names the field that is missing or of the wrong type.
pub(super) fn read<T: DeserializeOwned>(config: &Value) -> Result<T, ModelError> {
    serde_path_to_error::deserialize(without_nulls(config)).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        config_error(match path.as_str() {
            // The reason names a field that is missing.
            "." => reason.to_string(),
            field => format!("{field}: {reason}"),
        })
    })
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                given
                    .map(|(name, value)| (name.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// The size that the field `name` holds.
///
/// # Errors
/// If it is out of range.
pub(super) fn check_size(name: &str, size: usize) -> Result<usize, ModelError> {
    if (1..MAX_SIZE).contains(&size) {
        return Ok(size);
    }
    Err(config_error(format!(
        "{name} is {size}; it must be at least 1 and less than {MAX_SIZE}"
    )))
}

/// The token that the field `name` holds.
///
/// # Errors
/// If it is none of the vocabulary.
pub(super) fn check_token(
    name: &str,
    token: TokenId,
    vocab_size: usize,
) -> Result<TokenId, ModelError> {
    if (token as usize) < vocab_size {
        return Ok(token);
    }
    Err(config_error(format!(
        "{name} {token} is outside the vocabulary of {vocab_size}"
    )))
}

/// The field `name` of `object`, which is the contents of `file`, if it is there. One that is null counts as
/// absent.
///
/// # Errors
/// If it is of the wrong type.
pub(super) fn optional<T: DeserializeOwned>(
    file: &str,
    object: &Value,
    name: &str,
) -> Result<Option<T>, ModelError> {
    let given = &object[name];
    serde_json::from_value(given.clone()).map_err(|error| ModelError::Invalid {
        file: file.to_owned(),
        reason: format!("{name} is {given}: {error}"),
    })
}

/// The fields of a config.json. A field that is null counts as absent.
pub(super) struct Fields<'a>(pub &'a Value);

impl Fields<'_> {
    /// A field.
    ///
    /// # Errors
    /// If it is absent or of the wrong type.
    pub fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, ModelError> {
        self.optional(name)?
            .ok_or_else(|| config_error(format!("{name} is missing")))
    }

    /// A field, if it is there.
    ///
    /// # Errors
    /// If it is of the wrong type.
    pub fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ModelError> {
        optional(CONFIG, self.0, name)
    }

    /// A size, in 1..2^24.
    ///
    /// # Errors
    /// If it is absent, of the wrong type, or out of range.
    pub fn size(&self, name: &str) -> Result<usize, ModelError> {
        self.optional_size(name)?
            .ok_or_else(|| config_error(format!("{name} is missing")))
    }

    /// A size, in 1..2^24, if it is there.
    ///
    /// # Errors
    /// If it is of the wrong type or out of range.
    pub fn optional_size(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let size = self.optional::<usize>(name)?;
        size.map(|size| check_size(name, size)).transpose()
    }

    /// A number of layers or experts, in 1..=1024.
    ///
    /// # Errors
    /// If it is absent, of the wrong type, or out of range.
    pub fn count(&self, name: &str) -> Result<usize, ModelError> {
        check_count(name, self.required(name)?)
    }

    /// A finite number above zero, also in f32.
    ///
    /// # Errors
    /// If it is absent, of the wrong type, or out of range.
    pub fn positive(&self, name: &str) -> Result<f64, ModelError> {
        let number: f64 = self.required(name)?;
        let narrow = number as f32;
        if narrow.is_finite() && narrow > 0.0 {
            return Ok(number);
        }
        Err(config_error(format!(
            "{name} is {number}; it must be more than 0, and neither vanish nor overflow in f32"
        )))
    }

    /// Checks fields that would change the network, each with the one value that is built here. An
    /// absent field stands for that value.
    ///
    /// # Errors
    /// Names the first field with another value.
    pub fn only(&self, built: &[(&str, Value)]) -> Result<(), ModelError> {
        let other = built
            .iter()
            .find(|(name, built)| !self.0[*name].is_null() && self.0[*name] != *built);
        match other {
            Some((name, built)) => Err(config_error(format!(
                "{name} is {}; only {built} is supported",
                self.0[*name]
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn structs_are_read_with_errors_that_name_the_field_and_nulls_as_absent() {
        #[derive(Debug, serde::Deserialize)]
        struct Shape {
            width: usize,
            #[serde(default)]
            tied: bool,
        }
        let shape: Shape = read(&json!({"width": 3, "tied": null})).unwrap();
        assert_eq!((shape.width, shape.tied), (3, false));
        let error = |config| read::<Shape>(&config).unwrap_err().to_string();
        assert!(error(json!({"width": "3"})).starts_with("config.json: width: invalid type"));
        assert_eq!(
            error(json!({"width": null})),
            "config.json: missing field `width`"
        );
    }

    #[test]
    fn errors_name_the_field_and_what_was_given() {
        let config = json!({"a": "x", "b": 0, "c": null, "d": -1.0, "e": true});
        let fields = Fields(&config);
        let error = |result: Result<usize, ModelError>| result.unwrap_err().to_string();
        assert!(error(fields.size("a")).starts_with("config.json: a is \"x\": "));
        assert!(error(fields.size("b")).starts_with("config.json: b is 0; "));
        assert_eq!(error(fields.size("c")), "config.json: c is missing");
        let tiny = json!({"eps": 1e-300});
        assert!(Fields(&tiny).positive("eps").is_err());
        let number = fields.positive("d").unwrap_err().to_string();
        assert!(number.starts_with("config.json: d is -1; "));
        let built = fields.only(&[("c", true.into()), ("e", false.into())]);
        assert_eq!(
            built.unwrap_err().to_string(),
            "config.json: e is true; only false is supported"
        );
        assert!(fields.only(&[("e", true.into()), ("f", 1.into())]).is_ok());
    }
}
