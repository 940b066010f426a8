//! The keywords of one schema, each of which is read or refused.

use serde_json::{Map, Number, Value};

use super::refused;
use crate::constraint::ConstraintError;

/// Keywords that no text depends on.
const ANNOTATIONS: [&str; 13] = [
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "example",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// A type of JSON Schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Null,
        Self::Boolean,
        Self::Integer,
        Self::Number,
        Self::String,
        Self::Array,
        Self::Object,
    ];

    /// As schemas call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::String => "string",
            Self::Array => "array",
            Self::Object => "object",
        }
    }

    /// Whether a value is of this type.
    pub fn has(self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Self::Number => value.is_number(),
            Self::String => value.is_string(),
            Self::Array => value.is_array(),
            Self::Object => value.is_object(),
        }
    }
}

/// Whether two values are the same to JSON Schema, by which numbers are what they amount to: 1.0 is 1.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (whole(a), whole(b)) {
            (Some(a), Some(b)) => a == b,
            (None, None) => a.as_f64() == b.as_f64(),
            _ => false,
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let has = |(name, value): (&String, &Value)| {
                b.get(name).is_some_and(|other| is_same(value, other))
            };
            a.len() == b.len() && a.iter().all(has)
        }
        _ => a == b,
    }
}

/// A number as an integer; none if it is not whole, or too large.
fn whole(number: &Number) -> Option<i128> {
    let integer = number.as_i64().map(i128::from);
    integer
        .or_else(|| number.as_u64().map(i128::from))
        .or_else(|| {
            let number = number.as_f64()?;
            (number.fract() == 0.0 && number.abs() < 1e38).then_some(number as i128)
        })
}

/// The keywords of a schema that are not read yet.
pub(super) struct Keywords<'a> {
    path: String,
    all: &'a Map<String, Value>,
    rest: Vec<&'a str>,
}

impl<'a> Keywords<'a> {
    /// Those of the schema at `path`.
    pub fn new(all: &'a Map<String, Value>, path: &str) -> Self {
        let names = all.keys().map(String::as_str);
        Self {
            path: path.to_owned(),
            all,
            rest: names.filter(|name| !ANNOTATIONS.contains(name)).collect(),
        }
    }

    /// Where a keyword is.
    pub fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// Reads a keyword.
    pub fn take(&mut self, name: &str) -> Option<&'a Value> {
        let value = self.all.get(name)?;
        self.rest.retain(|rest| *rest != name);
        Some(value)
    }

    fn refused<T>(&self, name: &str, allowed: &str) -> Result<T, ConstraintError> {
        let given = &self.all[name];
        Err(refused(
            self.path(name),
            format!("it is {given}; allowed: {allowed}"),
        ))
    }

    /// Refuses what was not read.
    pub fn finish(&self, context: &str) -> Result<(), ConstraintError> {
        match self.rest.first() {
            Some(name) => Err(refused(
                self.path(name),
                format!("it is not supported {context}"),
            )),
            None => Ok(()),
        }
    }

    /// A keyword that is supported at one value only.
    pub fn only(&mut self, name: &str, allowed: &Value) -> Result<(), ConstraintError> {
        match self.take(name) {
            Some(value) if value != allowed => self.refused(name, &allowed.to_string()),
            _ => Ok(()),
        }
    }

    /// A number of things.
    pub fn count(&mut self, name: &str) -> Result<Option<usize>, ConstraintError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count {
            Some(count) => Ok(Some(count)),
            None => self.refused(name, "a whole number of at least 0"),
        }
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Result<Option<&'a str>, ConstraintError> {
        match self.take(name) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.refused(name, "a string"),
            None => Ok(None),
        }
    }

    /// Schemas by name.
    pub fn schemas(
        &mut self,
        name: &str,
    ) -> Result<Option<&'a Map<String, Value>>, ConstraintError> {
        match self.take(name) {
            Some(Value::Object(schemas)) => Ok(Some(schemas)),
            Some(_) => self.refused(name, "an object of schemas"),
            None => Ok(None),
        }
    }

    /// A list of schemas; empty if there is none.
    pub fn list(&mut self, name: &str) -> Result<&'a [Value], ConstraintError> {
        match self.take(name) {
            Some(Value::Array(schemas)) if !schemas.is_empty() => Ok(schemas),
            Some(_) => self.refused(name, "a list of at least one schema"),
            None => Ok(&[]),
        }
    }

    /// A list of names.
    pub fn names(&mut self, name: &str) -> Result<Vec<&'a str>, ConstraintError> {
        let Some(value) = self.take(name) else {
            return Ok(Vec::new());
        };
        let names = value.as_array().and_then(|names| {
            let names = names.iter().map(Value::as_str);
            names.collect::<Option<Vec<_>>>()
        });
        match names {
            Some(names) => Ok(names),
            None => self.refused(name, "a list of strings"),
        }
    }

    /// The types that `type` names.
    pub fn kinds(&mut self) -> Result<Option<Vec<Kind>>, ConstraintError> {
        let Some(value) = self.take("type") else {
            return Ok(None);
        };
        let names = match value {
            Value::Array(names) => names.as_slice(),
            name => std::slice::from_ref(name),
        };
        let kind = |name: &Value| {
            Kind::ALL
                .into_iter()
                .find(|kind| Some(kind.name()) == name.as_str())
        };
        let kinds: Option<Vec<Kind>> = names.iter().map(kind).collect();
        match kinds {
            Some(kinds) if !kinds.is_empty() => Ok(Some(kinds)),
            _ => self.refused(
                "type",
                "null, boolean, integer, number, string, array, object, or a list of them",
            ),
        }
    }

    /// The type that keywords speak of in a schema that names none.
    pub fn implied_kind(&self) -> Option<Kind> {
        let kinds: [(Kind, &[&str]); 3] = [
            (
                Kind::Object,
                &["properties", "required", "additionalProperties"],
            ),
            (
                Kind::Array,
                &["prefixItems", "items", "minItems", "maxItems"],
            ),
            (
                Kind::String,
                &["pattern", "format", "minLength", "maxLength"],
            ),
        ];
        let has = |names: &[&str]| names.iter().any(|name| self.rest.contains(name));
        let implied = kinds.into_iter().find(|(_, names)| has(names));
        implied.map(|(kind, _)| kind)
    }

    /// The values that `const` and `enum` allow, of the given types.
    pub fn literals(
        &mut self,
        kinds: Option<&[Kind]>,
    ) -> Result<Option<Vec<&'a Value>>, ConstraintError> {
        let constant = self.take("const");
        let mut values = match self.take("enum") {
            Some(Value::Array(values)) if !values.is_empty() => values.iter().collect(),
            Some(_) => return self.refused("enum", "a list of at least one value"),
            None => match constant {
                Some(constant) => vec![constant],
                None => return Ok(None),
            },
        };
        values.retain(|value| {
            constant.is_none_or(|constant| is_same(constant, value))
                && kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind.has(value)))
        });
        Ok(Some(values))
    }
}
