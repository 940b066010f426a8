//! JSON Schema, as far as it is regular.
//!
//! The texts that come out of a schema are a subset of those that it allows: properties come in the order in
//! which the schema names them, none that it does not name is written, and recursion ends at [`RECURSION`].

mod formats;
mod keywords;
mod numbers;
mod one_of;
mod pattern;

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::json::{ANY_DEPTH, Built, JsonBuilder, Next};
use super::{ByteDfa, ConstraintError};
use keywords::{Keywords, Kind};

/// How often a definition may be part of itself, one within the other.
pub const RECURSION: usize = 3;

/// How deep schemas may nest in one another.
const MAX_NESTING: usize = 64;

impl ByteDfa {
    /// Texts of JSON that are valid by `schema`.
    ///
    /// # Errors
    /// Names the first part of the schema that is not supported, or says that no text is valid, or that the
    /// automaton is too large.
    pub fn json_schema(schema: &Value) -> Result<Self, ConstraintError> {
        JsonBuilder::build(|json, end| {
            let mut reader = Reader {
                root: schema,
                open: HashMap::new(),
                nesting: 0,
            };
            reader.value(json, schema, "", end)
        })
    }
}

/// The error about the part of a schema at `path`.
fn refused(path: impl Into<String>, reason: impl Into<String>) -> ConstraintError {
    ConstraintError::Schema {
        path: path.into(),
        reason: reason.into(),
    }
}

struct Reader<'a> {
    root: &'a Value,
    /// How many references to a definition are being read, one within the other.
    open: HashMap<&'a str, usize>,
    nesting: usize,
}

impl<'a> Reader<'a> {
    /// A value by `schema`, and then `next`.
    fn value(
        &mut self,
        json: &mut JsonBuilder,
        schema: &'a Value,
        path: &str,
        next: Next,
    ) -> Built {
        if self.nesting >= MAX_NESTING {
            let reason = format!("it nests deeper than {MAX_NESTING} schemas");
            return Err(refused(path, reason));
        }
        self.nesting += 1;
        let built = match schema {
            Value::Bool(true) => json.any_value(ANY_DEPTH, next),
            Value::Bool(false) => json.never(),
            Value::Object(fields) => self.fields(json, fields, path, next),
            _ => Err(refused(
                path,
                format!("it is {schema}; allowed: an object, true or false"),
            )),
        };
        self.nesting -= 1;
        built
    }

    fn fields(
        &mut self,
        json: &mut JsonBuilder,
        fields: &'a Map<String, Value>,
        path: &str,
        next: Next,
    ) -> Built {
        let mut keywords = Keywords::new(fields, path);
        if let Some(reference) = keywords.take("$ref") {
            let at = keywords.path("$ref");
            keywords.finish("beside $ref")?;
            return self.reference(json, reference, &at, next);
        }
        for name in ["anyOf", "oneOf", "allOf"] {
            let Some(parts) = keywords.take(name) else {
                continue;
            };
            let at = keywords.path(name);
            keywords.finish(&format!("beside {name}"))?;
            return self.combination(json, name, parts, &at, next);
        }
        let kinds = keywords.kinds()?;
        if let Some(values) = keywords.literals(kinds.as_deref())? {
            keywords.finish("beside const and enum")?;
            let literals: Vec<Next> = values
                .iter()
                .map(|value| json.literal(&value.to_string(), next))
                .collect::<Result<_, _>>()?;
            return json.either(literals);
        }
        let Some(kinds) = kinds.or_else(|| keywords.implied_kind().map(|kind| vec![kind])) else {
            keywords.finish("without a type")?;
            return json.any_value(ANY_DEPTH, next);
        };
        let mut either = Vec::new();
        for kind in &kinds {
            either.push(match kind {
                Kind::Null => json.literal("null", next)?,
                Kind::Boolean => json.boolean(next)?,
                Kind::Number => match numbers::decimals(&mut keywords)? {
                    Some(pattern) => self.bounded(json, &pattern, next)?,
                    None => json.any_number(next)?,
                },
                Kind::Integer => match numbers::integers(&mut keywords)? {
                    Some(pattern) => self.bounded(json, &pattern, next)?,
                    None => json.any_integer(next)?,
                },
                Kind::String => self.string(json, &mut keywords, next)?,
                Kind::Array => self.array(json, &mut keywords, next)?,
                Kind::Object => self.object(json, &mut keywords, next)?,
            });
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        keywords.finish(&format!("for the type {}", names.join(", ")))?;
        json.either(either)
    }

    fn reference(
        &mut self,
        json: &mut JsonBuilder,
        reference: &'a Value,
        path: &str,
        next: Next,
    ) -> Built {
        let name = reference.as_str().unwrap_or_default();
        let pointer = name.strip_prefix('#');
        let target = pointer.and_then(|pointer| self.root.pointer(pointer));
        let Some(target) = target else {
            let allowed = "allowed: # and what is in this schema, such as #/$defs/name";
            return Err(refused(
                path,
                format!("{reference} is not found; {allowed}"),
            ));
        };
        let depth = self.open.entry(name).or_default();
        if *depth > RECURSION {
            return json.never();
        }
        *depth += 1;
        let built = self.value(json, target, &name[1..].replace('/', "."), next);
        if let Some(depth) = self.open.get_mut(name) {
            *depth -= 1;
        }
        built
    }

    fn combination(
        &mut self,
        json: &mut JsonBuilder,
        name: &str,
        parts: &'a Value,
        path: &str,
        next: Next,
    ) -> Built {
        let parts = match parts.as_array() {
            Some(parts) if !parts.is_empty() => parts,
            _ => return Err(refused(path, "it has to be a list of at least one schema")),
        };
        if name == "allOf" && parts.len() > 1 {
            return Err(refused(
                path,
                "several schemas at once are not supported; allowed: a list of one schema",
            ));
        }
        if name == "oneOf" {
            one_of::check_disjoint(parts, self.root, path)?;
        }
        let either = parts
            .iter()
            .enumerate()
            .map(|(index, part)| self.value(json, part, &format!("{path}[{index}]"), next))
            .collect::<Result<_, _>>()?;
        json.either(either)
    }

    fn bounded(&self, json: &mut JsonBuilder, pattern: &str, next: Next) -> Built {
        match ByteDfa::regex(pattern) {
            Ok(language) => json.embed(&language, next),
            Err(ConstraintError::Empty) => json.never(),
            Err(error) => Err(error),
        }
    }

    fn string(&mut self, json: &mut JsonBuilder, keywords: &mut Keywords<'a>, next: Next) -> Built {
        let least = keywords.count("minLength")?.unwrap_or(0);
        let most = keywords.count("maxLength")?;
        let path = keywords.path("pattern");
        let refuse = |error: ConstraintError| refused(&path, error.to_string());
        let mut languages = Vec::new();
        if let Some(pattern) = keywords.text("pattern")? {
            let language = ByteDfa::searching(&pattern::in_rust(pattern));
            languages.push(language.map_err(refuse)?);
        }
        if let Some(format) = keywords.text("format")? {
            let Some(pattern) = formats::pattern(format) else {
                let reason = format!("it is {format:?}; allowed: {}", formats::NAMES);
                return Err(refused(keywords.path("format"), reason));
            };
            languages.push(ByteDfa::regex(&pattern)?);
        }
        if most.is_some_and(|most| most < least) {
            return json.never();
        }
        if languages.is_empty() {
            return json.string(least, most, next);
        }
        if least > 0 || most.is_some() {
            let most = most.map(|most| most.to_string()).unwrap_or_default();
            let length = ByteDfa::regex(&format!("(?s:.{{{least},{most}}})"));
            languages.push(length.map_err(refuse)?);
        }
        let all = languages.into_iter().map(Ok);
        let all = all.reduce(|both, language| both?.intersection(&language?));
        match all {
            Some(Ok(language)) => json.string_of(&language, next),
            Some(Err(ConstraintError::Empty)) | None => json.never(),
            Some(Err(error)) => Err(refuse(error)),
        }
    }

    fn array(&mut self, json: &mut JsonBuilder, keywords: &mut Keywords<'a>, next: Next) -> Built {
        let least = keywords.count("minItems")?.unwrap_or(0);
        let most = keywords.count("maxItems")?;
        keywords.only("uniqueItems", &Value::Bool(false))?;
        let path = keywords.path("items");
        let items = keywords.take("items").unwrap_or(&Value::Bool(true));
        if most.is_some_and(|most| most < least) {
            return json.never();
        }
        json.array(least, most, next, |json, next| {
            self.value(json, items, &path, next)
        })
    }

    fn object(&mut self, json: &mut JsonBuilder, keywords: &mut Keywords<'a>, next: Next) -> Built {
        let at = keywords.path("properties");
        let properties = keywords.schemas("properties")?;
        let required = keywords.names("required")?;
        for (index, name) in required.iter().enumerate() {
            if !properties.is_some_and(|properties| properties.contains_key(*name)) {
                let path = format!("{}[{index}]", keywords.path("required"));
                let reason =
                    format!("{name:?} is not among the properties, and no others are written");
                return Err(refused(path, reason));
            }
        }
        let others_path = keywords.path("additionalProperties");
        let others = keywords.take("additionalProperties");
        let no_others = matches!(others, Some(Value::Bool(false)));
        let properties: Vec<(&'a String, &'a Value)> = match (properties, others) {
            (Some(properties), None | Some(Value::Bool(_))) => properties.iter().collect(),
            (Some(properties), Some(_)) if !properties.is_empty() => {
                return Err(refused(
                    others_path,
                    "beside properties a schema is not supported, as no others are written; allowed: false, true",
                ));
            }
            _ if no_others => Vec::new(),
            (_, None | Some(Value::Bool(true))) => return json.any_object(ANY_DEPTH, next),
            (_, Some(schema)) => {
                return json.map(next, |json, next| {
                    self.value(json, schema, &others_path, next)
                });
            }
        };
        let close = json.literal("}", next)?;
        // What follows where a property was written before, and where none was.
        let (mut after_some, mut after_none) = (close, close);
        for (name, schema) in properties.into_iter().rev() {
            let entry = self.value(json, schema, &format!("{at}.{name}"), after_some)?;
            let entry = json.separator(":", entry)?;
            let key = Value::from(name.as_str()).to_string();
            let entry = json.literal(&key, entry)?;
            let more = json.separator(",", entry)?;
            (after_some, after_none) = match required.contains(&name.as_str()) {
                true => (more, entry),
                false => (
                    json.either(vec![more, after_some])?,
                    json.either(vec![entry, after_none])?,
                ),
            };
        }
        json.literal("{", after_none)
    }
}
