//! `GET /openapi.json` and `GET /docs`.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::Mock;
use crate::server::{Server, Setup};

async fn document(server: &Server) -> Value {
    let (status, text) = server.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_str(&text).unwrap()
}

/// Why `value` does not satisfy `schema`; the part of JSON Schema that the document uses.
fn wrong(document: &Value, schema: &Value, value: &Value, path: &str) -> Option<String> {
    let at = |what: String| Some(format!("{path}: {what}"));
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#'));
        let target = target.unwrap_or_else(|| panic!("no {reference}"));
        return wrong(document, target, value, path);
    }
    for parts in schema["allOf"].as_array().into_iter() {
        for part in parts {
            if let Some(reason) = wrong(document, part, value, path) {
                return Some(reason);
            }
        }
    }
    for (kinds, kinds_exclude) in [("oneOf", true), ("anyOf", false)] {
        if let Some(kinds) = schema[kinds].as_array() {
            let reasons = kinds.iter().map(|kind| wrong(document, kind, value, path));
            let reasons: Vec<Option<String>> = reasons.collect();
            let fits = reasons.iter().filter(|reason| reason.is_none()).count();
            if fits == 0 {
                return at(format!("{value} is none of its kinds: {reasons:?}"));
            }
            if fits > 1 && kinds_exclude {
                return at(format!("{value} is of {fits} kinds, and may be of one"));
            }
        }
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return at(format!("{value} is none of {allowed:?}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().map(|t| t.as_str().unwrap()).collect(),
        _ => Vec::new(),
    };
    let is = |name: &&str| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("the type {other}"),
    };
    if !types.is_empty() && !types.iter().any(is) {
        return at(format!("{value} is none of {types:?}"));
    }
    if let Some(items) = value.as_array().filter(|_| schema.get("items").is_some()) {
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let Some(reason) = wrong(document, &schema["items"], item, &path) {
                return Some(reason);
            }
        }
    }
    let fields = value.as_object()?;
    for required in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(required.as_str().unwrap()) {
            return at(format!("{required} is missing"));
        }
    }
    for (name, field) in fields {
        let path = format!("{path}.{name}");
        let reason = match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => Some(format!("{path} is unknown")),
            (Value::Null, Value::Null | Value::Bool(true)) => None,
            (Value::Null, rest) => wrong(document, rest, field, &path),
            (known, _) => wrong(document, known, field, &path),
        };
        if reason.is_some() {
            return reason;
        }
    }
    None
}

#[tokio::test]
async fn every_example_fits_its_schema_and_is_answered_as_described() {
    let setup = Setup {
        chat_template: Some("{% for m in messages %}{{ m.content }}{% endfor %}"),
        ..Setup::default()
    };
    let server = Server::with(Mock::uniform(), setup).await;
    let document = document(&server).await;
    let mut examples = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(operation) = methods.get("post") else {
            continue;
        };
        let body = &operation["requestBody"]["content"]["application/json"];
        let example = &body["example"];
        assert!(example.is_object(), "{path} has no example");
        assert_eq!(wrong(&document, &body["schema"], example, path), None);
        let answer = server.answer(path, example).await;
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(wrong(&document, schema, &answer, path), None);
        let unknown = json!({"nonsense": 1});
        assert!(wrong(&document, &body["schema"], &unknown, path).is_some());
        let (_, refusal) = server.ask(path, &unknown).await;
        let schema = &operation["responses"]["4XX"]["content"]["application/json"]["schema"];
        assert_eq!(wrong(&document, schema, &refusal, path), None);
        examples += 1;
    }
    assert!(examples >= 9);
}

#[tokio::test]
async fn empty_lists_fit_their_schemas() {
    let server = Server::of(Mock::uniform()).await;
    let document = document(&server).await;
    let operation = |path: &str| &document["paths"][path]["post"];
    let schema = |of: &Value| of["content"]["application/json"]["schema"].clone();
    for request in [
        json!({"content": ""}),
        json!({"content": "", "with_pieces": true}),
    ] {
        let answer = server.answer("/tokenize", &request).await;
        assert_eq!(answer["tokens"], json!([]));
        let described = schema(&operation("/tokenize")["responses"]["200"]);
        assert_eq!(wrong(&document, &described, &answer, "answer"), None);
    }
    let request = json!({"prompt": [], "stop": []});
    let described = schema(&operation("/v1/completions")["requestBody"]);
    assert_eq!(wrong(&document, &described, &request, "request"), None);
}

#[tokio::test]
async fn every_described_page_is_there() {
    let server = Server::of(Mock::uniform()).await;
    let document = document(&server).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_some() {
            let page = path.replace("{id}", "mini");
            let (status, text) = server.get(&page).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            let answer = &methods["get"]["responses"]["200"]["content"];
            if let Some(json) = answer.get("application/json") {
                let given: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(wrong(&document, &json["schema"], &given, path), None);
            }
        }
        for operation in methods.as_object().unwrap().values() {
            let about = operation["summary"].as_str().unwrap_or_default();
            assert!(!about.is_empty(), "{path} has no summary");
        }
    }
}

#[tokio::test]
async fn streams_and_the_largest_numbers_are_described_as_they_are_taken() {
    let server = Server::of(Mock::uniform()).await;
    let document = document(&server).await;
    let mut streams = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["post"];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let name = schema.as_str().unwrap_or_default();
        let fields = document.pointer(&format!("{}/properties", name.trim_start_matches('#')));
        if fields.is_some_and(|fields| fields.get("stream").is_some()) {
            let answers = &operation["responses"]["200"]["content"];
            assert!(answers.get("text/event-stream").is_some(), "{path}");
            streams += 1;
        }
    }
    assert_eq!(streams, 5);
    let part = json!({"n_predict": 2, "response_fields": ["content"]});
    let part = server.answer("/infill", &part).await;
    let of_part = "/paths/~1infill/post/responses/200/content/application~1json/schema";
    let of_part = document.pointer(of_part).unwrap();
    assert_eq!(wrong(&document, of_part, &part, "part"), None);
    // Formats of 64 bits with a sign end at half of the seeds that are taken.
    let whole = &document["components"]["schemas"]["Whole"];
    assert_eq!(whole["minimum"], 0, "{whole}");
    assert_ne!(whole["format"], "int64", "{whole}");
}

#[tokio::test]
async fn what_a_frame_is_and_what_a_model_can_do_is_described_in_full() {
    let server = Server::of(Mock::uniform().in_blocks_of(4).sliding(512)).await;
    let document = document(&server).await;
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let objects = schemas.values().filter_map(|schema| {
        let object = schema["properties"].get("object")?;
        object["description"].as_str()
    });
    for description in objects {
        assert!(!description.contains('['), "{description}");
    }
    assert!(!document.to_string().contains("[`"));
    for (schema, object) in [
        ("CanvasFrame", "diffusion.frame"),
        ("InfillStep", "infill.step"),
    ] {
        let described = &schemas[schema]["properties"]["object"]["description"];
        assert!(described.as_str().unwrap().contains(object), "{described}");
    }
    let path = "/v1/models/mini";
    let model: Value = serde_json::from_str(&server.get(path).await.1).unwrap();
    let described = &schemas["Model"];
    assert_eq!(wrong(&document, described, &model, path), None);
    for (at, value) in [
        ("/limits/sequences", json!("many")),
        (
            "/default_plan/cache",
            json!({"policy": "none", "refresh": "often"}),
        ),
        ("/sliding_window/slots", json!(null)),
        ("/attention", json!("forwards")),
        ("/cache", json!({"auto": "all"})),
    ] {
        let mut other = model.clone();
        *other.pointer_mut(at).unwrap() = value;
        assert!(wrong(&document, described, &other, path).is_some(), "{at}");
    }
    let request = json!({"prompt": "p", "diffusion": {"cache": {"policy": "all"}}});
    let described = &schemas["CompletionRequest"];
    assert!(wrong(&document, described, &request, "request").is_some());
}

#[tokio::test]
async fn every_type_that_is_named_is_described() {
    let server = Server::of(Mock::uniform()).await;
    let document = document(&server).await;
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let target = reference.split('"').next().unwrap();
        assert!(document.pointer(target).is_some(), "{target}");
    }
}

#[tokio::test]
async fn the_page_asks_for_nothing_from_elsewhere() {
    let server = Server::of(Mock::uniform()).await;
    let url = format!("{}/docs", server.url);
    let response = server.client.get(url).send().await.unwrap();
    let policy = response.headers()["content-security-policy"].clone();
    assert!(policy.to_str().unwrap().starts_with("default-src 'none'"));
    let page = response.text().await.unwrap();
    assert!(page.contains("/openapi.json"));
    for outside in ["http://", "https://", "src=", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
}
