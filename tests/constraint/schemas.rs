//! Texts by random JSON Schemas.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use unmask::canvas::Canvas;
use unmask::constraint::{ByteDfa, ConstraintError, TokenDfa};
use unmask::decode::{Budget, DecodePlan};

use crate::babbler::{Babbler, MASK, constrained, denoise, text, vocabulary};
use crate::random::Random;
use crate::validator::is_valid;

const NAMES: [&str; 7] = ["name", "age", "items", "a b", "é", "quote\"", "kind"];

fn literal(random: &mut Random) -> Value {
    let values = [
        json!(null),
        json!(true),
        json!(-12),
        json!(2.5),
        json!("abc"),
        json!("tab\t\"é\\"),
        json!({"a": [1, {}]}),
        json!([]),
    ];
    values[random.below(values.len())].clone()
}

fn schema(random: &mut Random, depth: usize) -> Value {
    let mut schema = match random.below(if depth == 0 { 7 } else { 13 }) {
        0 => json!({"type": "null"}),
        1 => json!({"type": "boolean"}),
        2 => {
            let mut schema = json!({"type": "number"});
            let parts = [0.0, 0.0, 0.5, 0.25, 0.875];
            let least = random.below(30) as f64 - 20.0 + random.pick(&parts);
            if random.chance(0.4) {
                schema[random.pick(&["minimum", "exclusiveMinimum"])] = least.into();
            }
            if random.chance(0.4) {
                let most = least + 1.0 + random.below(100) as f64 + random.pick(&parts);
                schema[random.pick(&["maximum", "exclusiveMaximum"])] = most.into();
            }
            schema
        }
        3 => {
            let mut schema = json!({"type": "integer"});
            let least = random.below(300) as i64 - 150;
            if random.chance(0.5) {
                schema[random.pick(&["minimum", "exclusiveMinimum"])] = least.into();
            }
            if random.chance(0.5) {
                let most =
                    (least + 2 + random.below(2000) as i64) as f64 + random.pick(&[0.0, 0.5]);
                schema[random.pick(&["maximum", "exclusiveMaximum"])] = most.into();
            }
            schema
        }
        4 => {
            let mut schema = json!({"type": "string"});
            let least = random.below(4);
            if random.chance(0.4) {
                schema["minLength"] = least.into();
            }
            if random.chance(0.4) {
                schema["maxLength"] = (least + random.below(6)).into();
            }
            if random.chance(0.3) {
                schema = json!({"type": "string", "pattern": random.pick(
                    &["^[a-z]{2,4}$", r"^\d{4}-\d{2}$", "a", r#"^["\\\n]+$"#, "^(yes|no)", "é$"],
                )});
                if random.chance(0.5) {
                    schema["maxLength"] = (7 + random.below(5)).into();
                }
            }
            schema
        }
        5 => json!({"const": literal(random)}),
        6 => json!({"enum": [literal(random), literal(random), literal(random)]}),
        7 => json!({"anyOf": [inner(random, depth), inner(random, depth)]}),
        8 => {
            let mut schema = json!({"type": "array"});
            let least = random.below(3);
            if random.chance(0.9) {
                schema["items"] = inner(random, depth);
            }
            if random.chance(0.2) {
                schema["prefixItems"] = json!([inner(random, depth), inner(random, depth)]);
                if random.chance(0.5) {
                    schema["items"] = false.into();
                }
            }
            if random.chance(0.5) {
                schema["minItems"] = least.into();
            }
            if random.chance(0.5) {
                schema["maxItems"] = (least + random.below(3)).into();
            }
            schema
        }
        9 => json!({"oneOf": [
            {"type": ["string", "null"], "maxLength": 3},
            {"type": "array", "items": inner(random, depth), "maxItems": 2},
        ]}),
        10 => json!({"type": "object", "additionalProperties": inner(random, depth)}),
        _ => {
            let count = random.below(4);
            let mut properties = Map::new();
            for _ in 0..count {
                properties.insert(random.pick(&NAMES).into(), inner(random, depth));
            }
            let names = properties.keys().filter(|_| random.chance(0.6));
            let required: Vec<Value> = names.map(|name| name.as_str().into()).collect();
            let mut schema =
                json!({"type": "object", "properties": properties, "required": required});
            if random.chance(0.5) {
                schema["additionalProperties"] = random.chance(0.5).into();
            }
            schema
        }
    };
    if random.chance(0.1) {
        schema["description"] = "Anything.".into();
    }
    schema
}

fn inner(random: &mut Random, depth: usize) -> Value {
    match random.chance(0.1) {
        true => json!({"$ref": random.pick(&["#/$defs/tree", "#/$defs/word"])}),
        false => schema(random, depth - 1),
    }
}

fn with_definitions(mut schema: Value) -> Value {
    schema["$defs"] = json!({
        "word": {"type": "string", "pattern": "^[ab]+$"},
        "tree": {
            "type": "object",
            "properties": {
                "value": {"$ref": "#/$defs/word"},
                "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["value"],
        },
    });
    schema
}

#[test]
fn texts_by_500_random_schemas_parse_and_are_valid_and_fixed_slots_stay() {
    let engine = Babbler::engine();
    let vocabulary = vocabulary();
    let mut random = Random(7);
    let mut done = 0;
    while done < 500 {
        let schema = with_definitions(schema(&mut random, 3));
        let language = match ByteDfa::json_schema(&schema) {
            Ok(language) => Arc::new(TokenDfa::new(language, vocabulary.clone()).unwrap()),
            // An enumeration without a value of its type, a maximum below the minimum.
            Err(ConstraintError::Empty) => continue,
            Err(error) => panic!("{schema}: {error}"),
        };
        let before_text = random.chance(0.5);
        let lengths = language.lengths(120, !before_text);
        let fitting: Vec<usize> = (1..=120).filter(|length| lengths[*length]).collect();
        let Some(shortest) = fitting.first() else {
            continue;
        };
        let lengths: Vec<usize> = fitting
            .iter()
            .copied()
            .filter(|l| *l < shortest + 40)
            .collect();
        let length = random.pick(&lengths);
        let canvas = Canvas::builder(MASK).fixed(&[65, 66]).gap(length);
        let canvas = match before_text {
            true => canvas.fixed(&[67]),
            false => canvas,
        };
        let canvas = canvas.build().unwrap();
        let mut plan = DecodePlan {
            steps: Some(1 + random.below(12)),
            budget: random.pick(&[
                Budget::Even,
                Budget::Threshold(0.6),
                Budget::Ancestral { eps: 0.0 },
            ]),
            ..DecodePlan::default()
        };
        plan.sampling.temperature = 1.0;
        plan.sampling.seed = done;
        plan.sampling.stop_tokens = unmask::decode::StopTokens::AtEnd;
        let constraint = constrained(&canvas, &plan, &[(0, language)]);
        let (_, finished) = denoise(&engine, &canvas, &plan, Some(constraint));
        let text = text(&finished, 0);
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(is_valid(&value, &schema, &schema), "{text} by {schema}");
        assert_eq!(finished.masked(), 0);
        for slot in (0..canvas.len()).filter(|slot| canvas.is_fixed(*slot)) {
            assert_eq!(finished.token(slot), canvas.token(slot));
        }
        done += 1;
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    for (schema, path) in [
        (json!({"type": "string", "format": "uri"}), ".format"),
        (json!({"type": "strin"}), ".type"),
        (
            json!({"properties": {"a": {"not": {}}}}),
            ".properties.a.not",
        ),
        (
            json!({"type": "array", "items": {"type": "array", "uniqueItems": true}}),
            ".items.uniqueItems",
        ),
        (json!({"type": "array", "minItems": -1}), ".minItems"),
        (json!({"type": "number", "minimum": "0.5"}), ".minimum"),
        (json!({"type": "array", "prefixItems": {}}), ".prefixItems"),
        (
            json!({"prefixItems": [{}, {"type": "int"}]}),
            ".prefixItems[1].type",
        ),
        (json!({"type": "integer", "maximum": "3"}), ".maximum"),
        (
            json!({"type": "object", "properties": {}, "required": ["a"]}),
            ".required[0]",
        ),
        (json!({"$ref": "#/$defs/none"}), ".$ref"),
        (json!({"$ref": "https://example.com/schema"}), ".$ref"),
        (json!({"allOf": [{}, {}]}), ".allOf"),
        (
            json!({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "("}]}),
            ".anyOf[1].pattern",
        ),
        (json!({"anyOf": [], "title": "none"}), ".anyOf"),
        (json!({"anyOf": [true], "type": "string"}), ".type"),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
            ".oneOf",
        ),
        (json!({"enum": []}), ".enum"),
        (json!({"type": "string", "pattern": r"^(?=a)"}), ".pattern"),
        (
            json!({"type": "object", "properties": {"a": 1}}),
            ".properties.a",
        ),
        (json!(3), ""),
    ] {
        match ByteDfa::json_schema(&schema).unwrap_err() {
            ConstraintError::Schema { path: given, .. } => assert_eq!(given, path, "{schema}"),
            other => panic!("{schema}: {other}"),
        }
    }
    let tagged = |kind: &str| json!({"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]});
    assert!(ByteDfa::json_schema(&json!({"oneOf": [tagged("a"), tagged("b")]})).is_ok());
    assert!(ByteDfa::json_schema(&json!({"oneOf": [tagged("a"), tagged("a")]})).is_err());
}

#[test]
fn a_tuple_has_an_item_of_each_of_its_schemas() {
    let first = json!([{"type": "integer"}, {"type": "string", "maxLength": 3}]);
    // As pydantic writes tuple[int, str], and as others do.
    let exact = [
        json!({"type": "array", "prefixItems": first, "minItems": 2, "maxItems": 2}),
        json!({"type": "array", "prefixItems": first, "items": false, "minItems": 2}),
        json!({"prefixItems": first, "items": {"type": "null"}, "minItems": 2, "maxItems": 2}),
    ];
    let open = json!({"prefixItems": first, "items": {"type": "null"}, "minItems": 1});
    for (text, is_exact, is_open) in [
        (r#"[1,"a"]"#, true, true),
        (r#"[1, "a"]"#, true, true),
        ("[1]", false, true),
        ("[]", false, false),
        (r#"["a",1]"#, false, false),
        (r#"[1,"a",null]"#, false, true),
        (r#"[1,"a",null,null,null]"#, false, true),
        (r#"[1,"a","b"]"#, false, false),
        (r#"[1,null]"#, false, false),
    ] {
        for schema in &exact {
            let language = ByteDfa::json_schema(schema).unwrap();
            assert_eq!(language.matches(text.as_bytes()), is_exact, "{text}");
        }
        let language = ByteDfa::json_schema(&open).unwrap();
        assert_eq!(language.matches(text.as_bytes()), is_open, "{text}");
    }
    let one = json!({"prefixItems": first, "items": false, "minItems": 3});
    assert_eq!(
        ByteDfa::json_schema(&one).unwrap_err(),
        ConstraintError::Empty
    );
}

#[test]
fn recursion_ends_and_what_never_ends_is_refused() {
    let tree = with_definitions(json!({"$ref": "#/$defs/tree"}));
    let language = ByteDfa::json_schema(&tree).unwrap();
    let mut text = r#"{"value":"a"}"#.to_owned();
    let mut deepest = 0;
    for depth in 1..8 {
        if language.matches(text.as_bytes()) {
            deepest = depth;
        }
        text = format!(r#"{{"value":"b", "next":{text}}}"#);
    }
    assert_eq!(deepest, unmask::constraint::RECURSION + 1);
    let endless = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]});
    assert_eq!(
        ByteDfa::json_schema(&endless).unwrap_err(),
        ConstraintError::Empty
    );
    let doubling = json!({
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "array", "items": {"anyOf": vec![json!({"$ref": "#/$defs/a"}); 40]}}},
    });
    let error = ByteDfa::json_schema(&doubling).unwrap_err();
    assert!(matches!(error, ConstraintError::TooLarge(_)), "{error}");
}
