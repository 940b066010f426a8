//! Whether a value is valid by a JSON Schema, as far as the tests go.

use regex_automata::meta::Regex;
use serde_json::Value;

/// Whether `value` is valid by `schema`, which is part of `root`.
pub fn is_valid(value: &Value, schema: &Value, root: &Value) -> bool {
    let Value::Object(fields) = schema else {
        return schema == &Value::Bool(true);
    };
    fields
        .iter()
        .all(|(name, argument)| keyword(name, argument, value, schema, root))
}

fn keyword(name: &str, argument: &Value, value: &Value, schema: &Value, root: &Value) -> bool {
    let count = || argument.as_u64().unwrap() as usize;
    let number = || argument.as_f64().unwrap();
    let text = value.as_str();
    let items = value.as_array();
    let fields = value.as_object();
    let parts = || {
        argument
            .as_array()
            .unwrap()
            .iter()
            .filter(|part| is_valid(value, part, root))
    };
    match name {
        "type" => match argument {
            Value::Array(kinds) => kinds.iter().any(|kind| has_type(value, kind)),
            kind => has_type(value, kind),
        },
        "enum" => argument.as_array().unwrap().contains(value),
        "const" => argument == value,
        "minLength" => text.is_none_or(|text| text.chars().count() >= count()),
        "maxLength" => text.is_none_or(|text| text.chars().count() <= count()),
        "pattern" => text.is_none_or(|text| {
            Regex::new(argument.as_str().unwrap())
                .unwrap()
                .is_match(text)
        }),
        "minimum" => value.as_f64().is_none_or(|value| value >= number()),
        "maximum" => value.as_f64().is_none_or(|value| value <= number()),
        "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number()),
        "exclusiveMaximum" => value.as_f64().is_none_or(|value| value < number()),
        "minItems" => items.is_none_or(|items| items.len() >= count()),
        "maxItems" => items.is_none_or(|items| items.len() <= count()),
        "items" => items.is_none_or(|items| {
            let first = schema.get("prefixItems").and_then(Value::as_array);
            let mut others = items.iter().skip(first.map_or(0, Vec::len));
            others.all(|item| is_valid(item, argument, root))
        }),
        "prefixItems" => items.is_none_or(|items| {
            let mut first = items.iter().zip(argument.as_array().unwrap());
            first.all(|(item, schema)| is_valid(item, schema, root))
        }),
        "required" => fields.is_none_or(|fields| {
            let names = argument.as_array().unwrap();
            names
                .iter()
                .all(|name| fields.contains_key(name.as_str().unwrap()))
        }),
        "properties" => fields.is_none_or(|fields| {
            let mut properties = argument.as_object().unwrap().iter();
            properties.all(|(name, schema)| {
                fields
                    .get(name)
                    .is_none_or(|value| is_valid(value, schema, root))
            })
        }),
        "additionalProperties" => fields.is_none_or(|fields| {
            let known = schema.get("properties").and_then(Value::as_object);
            let is_known = |name: &str| known.is_some_and(|known| known.contains_key(name));
            let mut others = fields.iter().filter(|(name, _)| !is_known(name));
            others.all(|(_, value)| is_valid(value, argument, root))
        }),
        "anyOf" => parts().count() >= 1,
        "oneOf" => parts().count() == 1,
        "allOf" => parts().count() == argument.as_array().unwrap().len(),
        "$ref" => {
            let pointer = argument.as_str().unwrap().strip_prefix('#').unwrap();
            is_valid(value, root.pointer(pointer).unwrap(), root)
        }
        "$defs" | "title" | "description" | "default" => true,
        _ => panic!("{name} is not known"),
    }
}

fn has_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        // −0 is read as a float.
        "integer" => value.is_i64() || value.as_f64() == Some(0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    }
}
