//! JSON Schema, as far as it is regular.
//!
//! The texts that come out of a schema are a subset of those that it allows: properties come in the order in
//! which the schema names them, none that it does not name is written, and recursion ends at [`RECURSION`].

mod budget;
mod formats;
mod keywords;
mod numbers;
mod one_of;
mod pattern;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::json::{ANY_DEPTH, JsonBuilder};
use super::nfa::{Built, Next};
use super::{ByteDfa, ConstraintError};
use budget::Budget;
use keywords::{Keywords, Kind};

/// How often a definition may be part of itself, one within the other.
pub const RECURSION: usize = 3;

/// How deep schemas may nest in one another.
const MAX_NESTING: usize = 64;

/// The most bytes of a schema, written without white space.
const MAX_SCHEMA: usize = 1 << 16;

/// The most bytes of a `pattern`.
const MAX_PATTERN: usize = 4096;

/// The most schemas of an `anyOf` or `oneOf`.
const MAX_PARTS: usize = 256;

impl ByteDfa {
    /// Texts of JSON that are valid by `schema`.
    ///
    /// # Errors
    /// Names the first part of the schema that is not supported, or says that no text is valid, or that the
    /// automaton is too large.
    pub fn json_schema(schema: &Value) -> Result<Self, ConstraintError> {
        let bytes = schema.to_string().len();
        if bytes > MAX_SCHEMA {
            let reason = format!("it is {bytes} bytes long; allowed: at most {MAX_SCHEMA}");
            return Err(refused("", reason));
        }
        Reader::new(schema).read()
    }
}

/// The error about the part of a schema at `path`.
fn refused(path: impl Into<String>, reason: impl Into<String>) -> ConstraintError {
    ConstraintError::Schema {
        path: path.into(),
        reason: reason.into(),
    }
}

/// What the texts of a string or number depend on.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Text<'a> {
    /// Those that match a pattern of Rust's from end to end.
    Number(String),
    String {
        pattern: Option<&'a str>,
        format: Option<&'a str>,
        least: usize,
        most: Option<usize>,
    },
}

struct Reader<'a> {
    root: &'a Value,
    budget: Budget,
    /// The languages that were made, none where there are no texts: a schema may be read many times, as that of
    /// the items of an array is.
    languages: HashMap<Text<'a>, Option<Rc<ByteDfa>>>,
    /// The lists of `oneOf` that are known to be disjoint, by where they are in memory.
    disjoint: HashSet<*const Value>,
    /// How many references to a definition are being read, one within the other.
    open: HashMap<&'a str, usize>,
    nesting: usize,
}

impl<'a> Reader<'a> {
    fn new(root: &'a Value) -> Self {
        Self {
            root,
            budget: Budget::new(),
            languages: HashMap::new(),
            disjoint: HashSet::new(),
            open: HashMap::new(),
            nesting: 0,
        }
    }

    /// The texts of the whole schema.
    fn read(&mut self) -> Result<ByteDfa, ConstraintError> {
        JsonBuilder::build(|json, end| self.value(json, self.root, "", end))
    }

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
        let size = schema.as_object().map_or(0, budget::size);
        self.budget.spend(1 + size)?;
        self.nesting += 1;
        let built = match schema {
            Value::Bool(true) => json.any_value(ANY_DEPTH, next),
            Value::Bool(false) => json.states.never(),
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
                .map(|value| json.states.literal(&value.to_string(), next))
                .collect::<Result<_, _>>()?;
            return json.states.either(literals);
        }
        let Some(kinds) = kinds.or_else(|| keywords.implied_kind().map(|kind| vec![kind])) else {
            keywords.finish("without a type")?;
            return json.any_value(ANY_DEPTH, next);
        };
        let mut either = Vec::new();
        for kind in &kinds {
            either.push(match kind {
                Kind::Null => json.states.literal("null", next)?,
                Kind::Boolean => json.boolean(next)?,
                Kind::Number => match numbers::decimals(&mut keywords)? {
                    Some(pattern) => self.bounded(json, pattern, next)?,
                    None => json.any_number(next)?,
                },
                Kind::Integer => match numbers::integers(&mut keywords)? {
                    Some(pattern) => self.bounded(json, pattern, next)?,
                    None => json.any_integer(next)?,
                },
                Kind::String => self.string(json, &mut keywords, next)?,
                Kind::Array => self.array(json, &mut keywords, next)?,
                Kind::Object => self.object(json, &mut keywords, next)?,
            });
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        keywords.finish(&format!("for the type {}", names.join(", ")))?;
        json.states.either(either)
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
            return json.states.never();
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
        if parts.len() > MAX_PARTS {
            let reason = format!(
                "it has {} schemas; allowed: at most {MAX_PARTS}",
                parts.len()
            );
            return Err(refused(path, reason));
        }
        if name == "oneOf" && !self.disjoint.contains(&parts.as_ptr()) {
            one_of::check_disjoint(parts, self.root, path, &mut self.budget)?;
            self.disjoint.insert(parts.as_ptr());
        }
        let either = parts
            .iter()
            .enumerate()
            .map(|(index, part)| self.value(json, part, &format!("{path}[{index}]"), next))
            .collect::<Result<_, _>>()?;
        json.states.either(either)
    }

    /// The texts that `make` makes the first time, adding how many states that took; none if there are none.
    fn language(
        &mut self,
        text: Text<'a>,
        make: impl FnOnce(&mut usize) -> Result<ByteDfa, ConstraintError>,
    ) -> Result<Option<Rc<ByteDfa>>, ConstraintError> {
        if let Some(language) = self.languages.get(&text) {
            return Ok(language.clone());
        }
        let mut made = 0;
        let language = match make(&mut made) {
            Ok(language) => Some(Rc::new(language)),
            Err(ConstraintError::Empty) => None,
            Err(error) => return Err(error),
        };
        self.budget.spend(1 + made)?;
        self.languages.insert(text, language.clone());
        Ok(language)
    }

    fn bounded(&mut self, json: &mut JsonBuilder, pattern: String, next: Next) -> Built {
        let text = Text::Number(pattern.clone());
        match self.language(text, |made| ByteDfa::counted_regex(&pattern, made))? {
            Some(language) => json.states.embed(&language, next),
            None => json.states.never(),
        }
    }

    fn string(&mut self, json: &mut JsonBuilder, keywords: &mut Keywords<'a>, next: Next) -> Built {
        let least = keywords.count("minLength")?.unwrap_or(0);
        let most = keywords.count("maxLength")?;
        let pattern = keywords.text("pattern")?;
        if let Some(pattern) = pattern.filter(|pattern| pattern.len() > MAX_PATTERN) {
            let reason = format!(
                "it is {} bytes long; allowed: at most {MAX_PATTERN}",
                pattern.len()
            );
            return Err(refused(keywords.path("pattern"), reason));
        }
        let format = keywords.text("format")?;
        let of_format = match format {
            Some(format) => Some(formats::pattern(format).ok_or_else(|| {
                let reason = format!("it is {format:?}; allowed: {}", formats::NAMES);
                refused(keywords.path("format"), reason)
            })?),
            None => None,
        };
        if most.is_some_and(|most| most < least) {
            return json.states.never();
        }
        if pattern.is_none() && format.is_none() {
            return json.string(least, most, next);
        }
        let text = Text::String {
            pattern,
            format,
            least,
            most,
        };
        let language = self.language(text, |made| {
            // What an error is about is what was added last.
            let about = |name: &str| {
                let path = keywords.path(name);
                move |error| match error {
                    ConstraintError::Empty => error,
                    error => refused(path, error.to_string()),
                }
            };
            let mut all: Option<ByteDfa> = None;
            let mut add = |name: &str, language: Result<ByteDfa, _>, made: &mut usize| {
                let language = language.map_err(about(name))?;
                all = Some(match &all {
                    Some(all) => all.intersection(&language, made).map_err(about(name))?,
                    None => language,
                });
                Ok(())
            };
            if let Some(pattern) = pattern {
                let language = ByteDfa::searching(&pattern::in_rust(pattern), made);
                add("pattern", language, made)?;
            }
            if let Some(pattern) = of_format {
                let language = ByteDfa::counted_regex(&pattern, made);
                add("format", language, made)?;
            }
            if least > 0 || most.is_some() {
                let name = if most.is_some() {
                    "maxLength"
                } else {
                    "minLength"
                };
                let most = most.map(|most| most.to_string()).unwrap_or_default();
                let length = format!("(?s:.{{{least},{most}}})");
                add(name, ByteDfa::counted_regex(&length, made), made)?;
            }
            all.ok_or(ConstraintError::Empty)
        })?;
        match language {
            Some(language) => json.string_of(&language, next),
            None => json.states.never(),
        }
    }

    fn array(&mut self, json: &mut JsonBuilder, keywords: &mut Keywords<'a>, next: Next) -> Built {
        let least = keywords.count("minItems")?.unwrap_or(0);
        let most = keywords.count("maxItems")?;
        keywords.only("uniqueItems", &Value::Bool(false))?;
        let first_path = keywords.path("prefixItems");
        let first = keywords.list("prefixItems")?;
        let path = keywords.path("items");
        let items = keywords.take("items").unwrap_or(&Value::Bool(true));
        let most = match items {
            Value::Bool(false) => Some(most.unwrap_or(first.len()).min(first.len())),
            _ => most,
        };
        if most.is_some_and(|most| most < least) {
            return json.states.never();
        }
        json.tuple(
            first.len(),
            least,
            most,
            next,
            |json, index, next| match first.get(index) {
                Some(schema) => self.value(json, schema, &format!("{first_path}[{index}]"), next),
                None => self.value(json, items, &path, next),
            },
        )
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
        let close = json.states.literal("}", next)?;
        // What follows where a property was written before, and where none was.
        let (mut after_some, mut after_none) = (close, close);
        for (name, schema) in properties.into_iter().rev() {
            let entry = self.value(json, schema, &format!("{at}.{name}"), after_some)?;
            let entry = json.separator(":", entry)?;
            let key = Value::from(name.as_str()).to_string();
            let entry = json.states.literal(&key, entry)?;
            let more = json.separator(",", entry)?;
            (after_some, after_none) = match required.contains(&name.as_str()) {
                true => (more, entry),
                false => (
                    json.states.either(vec![more, after_some])?,
                    json.states.either(vec![entry, after_none])?,
                ),
            };
        }
        json.states.literal("{", after_none)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(schema: &Value) -> (Result<ByteDfa, ConstraintError>, usize) {
        let mut reader = Reader::new(schema);
        let built = reader.read();
        (built, reader.budget.spent())
    }

    #[test]
    fn a_pattern_is_made_once_however_often_it_is_needed() {
        let schema = |items: usize| {
            json!({"type": "array", "maxItems": items, "items": {
                "type": "string", "pattern": "^(a|b)*a(a|b){12}$", "maxLength": 0}})
        };
        let (built, once) = read(&schema(1));
        assert!(built.unwrap().matches(b"[]"));
        let (built, often) = read(&schema(1001));
        assert!(built.unwrap().matches(b"[]"));
        // The keywords are read again, the states of the pattern are not made again.
        assert_eq!(often - once, 1000 * 4);
        let (built, _) = read(&schema(50_000));
        let error = built.unwrap_err();
        assert!(matches!(error, ConstraintError::TooLarge(_)), "{error}");
        assert!(error.to_string().contains("100000"), "{error}");
    }

    #[test]
    fn the_work_for_a_schema_is_bounded() {
        // Patterns that differ, each of which takes thousands of states.
        let patterns: Vec<Value> = (0..100)
            .map(|index| json!({"type": "string", "maxLength": 0, "pattern": format!("^{index}(a|b)*a(a|b){{11}}$")}))
            .collect();
        let definitions: Map<String, Value> = (0..20)
            .map(|index| {
                let next = json!({"$ref": format!("#/$defs/{}", index + 1)});
                (
                    index.to_string(),
                    json!({"type": "object", "properties": {"a": next, "b": next}}),
                )
            })
            .chain([("20".into(), json!(false))])
            .collect();
        let numbers: Vec<Value> = (0..4000).map(Value::from).collect();
        let others: Vec<Value> = (4000..8000).map(Value::from).collect();
        for schema in [
            json!({"anyOf": patterns}),
            json!({"$defs": definitions, "$ref": "#/$defs/0"}),
            json!({"oneOf": [{"enum": numbers}, {"enum": others}]}),
        ] {
            let error = read(&schema).0.unwrap_err();
            assert!(matches!(error, ConstraintError::TooLarge(_)), "{error}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused_by_its_path() {
        let many = vec![json!({"type": "null"}); 257];
        for (schema, path) in [
            (
                json!({"items": {"pattern": r"\s".repeat(2049)}}),
                ".items.pattern",
            ),
            (json!({"anyOf": many}), ".anyOf"),
            (json!({"oneOf": many}), ".oneOf"),
            (json!({"title": "a".repeat(1 << 16)}), ""),
            (
                json!({"format": "email", "maxLength": 100_000}),
                ".maxLength",
            ),
            (json!({"format": "email", "maxLength": 5000}), ".maxLength"),
            (json!({"pattern": "a", "minLength": 100_000}), ".minLength"),
        ] {
            let error = ByteDfa::json_schema(&schema).unwrap_err();
            assert!(
                matches!(&error, ConstraintError::Schema { path: at, .. } if at == path),
                "{path}: {error:?}"
            );
        }
    }

    #[test]
    fn numbers_are_compared_by_value() {
        for same in [
            json!([{"const": 1}, {"const": 1.0}]),
            json!([{"enum": [[1, {"a": 2.0}]]}, {"const": [1.0, {"a": 2}]}]),
            json!([{"const": 1e20}, {"const": 100_000_000_000_000_000_000.0}]),
        ] {
            let error = ByteDfa::json_schema(&json!({"oneOf": same})).unwrap_err();
            assert!(matches!(error, ConstraintError::Schema { .. }), "{error}");
        }
        let apart = json!({"oneOf": [{"const": 9_007_199_254_740_993_i64}, {"const": 9_007_199_254_740_992_i64}]});
        assert!(ByteDfa::json_schema(&apart).is_ok());
        let whole = ByteDfa::json_schema(&json!({"type": "integer", "const": 1.0})).unwrap();
        assert!(whole.matches(b"1.0"));
        let both = ByteDfa::json_schema(&json!({"const": 2, "enum": [1, 2.0]})).unwrap();
        assert!(both.matches(b"2.0"));
        assert!(ByteDfa::json_schema(&json!({"type": "integer", "const": 1.5})).is_err());
    }
}
