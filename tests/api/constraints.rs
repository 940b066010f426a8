//! `response_format`, and gaps with a regular expression.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::{Mock, STOP};
use crate::server::{Server, Setup};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const INFILL: &str = "/v1/infill";

fn person() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    }}})
}

fn check_person(text: &str) {
    let person: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let name = person["name"].as_str().unwrap();
    assert!((1..=8).contains(&name.chars().count()), "{text}");
    assert!(
        (0..=120).contains(&person["age"].as_i64().unwrap()),
        "{text}"
    );
    assert!(person["tags"].as_array().unwrap().len() <= 2, "{text}");
    assert_eq!(person.as_object().unwrap().len(), 3, "{text}");
}

#[tokio::test]
async fn completions_are_valid_by_their_schema_whole_and_streamed() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({
        "prompt": "A person: ", "max_tokens": 96, "n": 6, "seed": 1, "temperature": 1,
        "response_format": person(), "diffusion": {"steps": 12},
    });
    let answer = server.answer(COMPLETIONS, &body).await;
    let mut streamed = vec![String::new(); 6];
    for frame in server.frames(COMPLETIONS, &body).await {
        for choice in frame["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            streamed[index].push_str(choice["text"].as_str().unwrap());
        }
    }
    for (choice, streamed) in answer["choices"].as_array().unwrap().iter().zip(streamed) {
        check_person(choice["text"].as_str().unwrap());
        assert_eq!(choice["text"], streamed);
        assert_eq!(choice["finish_reason"], "stop");
    }
    let mut alone = body.clone();
    alone["n"] = 1.into();
    alone["seed"] = 4.into();
    let alone = server.answer(COMPLETIONS, &alone).await;
    assert_eq!(alone["choices"][0]["text"], answer["choices"][3]["text"]);
}

#[tokio::test]
async fn what_a_model_says_of_itself_is_kept_where_it_is_valid() {
    let said = r#"{"name": "Ann", "age": 7, "tags": ["b"]}"#;
    let tokens = said.bytes().map(u32::from).chain([STOP; 20]);
    let server = Server::of(Mock::saying(3, tokens)).await;
    let body = json!({"prompt": "Me:", "max_tokens": 60, "response_format": person()});
    let answer = server.answer(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["text"], said);
}

#[tokio::test]
async fn chats_answer_with_an_object() {
    let setup = Setup {
        chat_template: Some("{{ messages[0].content }}"),
        ..Setup::default()
    };
    let server = Server::with(Mock::uniform(), setup).await;
    for seed in 0..4 {
        let body = json!({
            "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 40, "seed": seed,
            "temperature": 1, "response_format": {"type": "json_object"},
        });
        let answer = server.answer(CHAT, &body).await;
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let object: Value = serde_json::from_str(text).unwrap();
        assert!(object.is_object(), "{text}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn gaps_match_their_expressions_and_only_lengths_that_can_are_tried() {
    let server = Server::of(Mock::uniform()).await;
    let body = json!({
        "segments": [
            "On ", {"gap": {"tokens": 10, "regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}", "name": "date"}},
            " é ", {"gap": {"max_tokens": 9, "regex": "(?:ab|abc){2}"}},
            " end", {"gap": {"tokens": 12, "regex": "[a-c]+"}},
        ],
        "seed": 2, "temperature": 1, "diffusion": {"steps": 3},
    });
    let choice = &server.answer(INFILL, &body).await["choices"][0];
    let text = |gap: usize| choice["gaps"][gap]["text"].as_str().unwrap();
    let date: Vec<&str> = text(0).split('-').collect();
    assert_eq!(
        date.iter().map(|part| part.len()).collect::<Vec<_>>(),
        [4, 2, 2]
    );
    assert!(date.concat().bytes().all(|byte| byte.is_ascii_digit()));
    assert!(["abab", "ababc", "abcab", "abcabc"].contains(&text(1)));
    assert!(!text(2).is_empty() && text(2).bytes().all(|byte| b"abc".contains(&byte)));
    let tried = choice["candidates"].as_array().unwrap();
    let tried: Vec<&Value> = tried
        .iter()
        .map(|candidate| &candidate["tokens"][1])
        .collect();
    assert_eq!(tried, [4, 5, 6]);
    let whole = format!("On {} é {} end{}", text(0), text(1), text(2));
    assert_eq!(choice["text"], whole);
}

#[tokio::test]
async fn a_real_tokenizers_pieces_make_up_the_text() {
    let server = Server::golden().await;
    for seed in 0..6 {
        let body = json!({
            "segments": ["The ", {"gap": {"tokens": 8, "regex": "[a-z]+( [a-z]+)*"}}, ", and ",
                {"gap": {"tokens": 9, "regex": r#"\{"n":[0-9]+\}"#}}, "."],
            "temperature": 1, "seed": seed, "diffusion": {"steps": 2},
        });
        let choice = &server.answer(INFILL, &body).await["choices"][0];
        let words = choice["gaps"][0]["text"].as_str().unwrap();
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase());
        assert!(words.split(' ').all(is_word), "{words}");
        serde_json::from_str::<Value>(choice["gaps"][1]["text"].as_str().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_by_its_path() {
    let server = Server::of(Mock::uniform()).await;
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"schema": schema}});
    let completion = |format: Value| {
        (
            COMPLETIONS,
            json!({"prompt": "a", "max_tokens": 8, "response_format": format}),
        )
    };
    let gap = |gap: Value| (INFILL, json!({"segments": ["a", {"gap": gap}, "b"]}));
    let too_long = "a".repeat(5000);
    let stopped = json!({
        "prompt": "a", "stop": "x", "max_tokens": 40, "response_format": {"type": "json_object"},
    });
    for ((path, body), param, says) in [
        (completion(json!({})), "response_format.type", "json_schema"),
        (
            completion(json!({"type": "xml"})),
            "response_format.type",
            "\"json_object\"",
        ),
        (
            completion(json!({"type": "json_schema"})),
            "response_format.json_schema.schema",
            "missing",
        ),
        (
            completion(json!({"type": "text", "json_schema": {}})),
            "response_format.json_schema",
            "only with",
        ),
        (
            completion(json!({"type": "json_schema", "json_schema": {"shema": {}}})),
            "response_format.json_schema.shema",
            "unknown field",
        ),
        (
            completion(schema(
                json!({"type": "object", "properties": {"a": {"format": "x"}}}),
            )),
            "response_format.json_schema.schema.properties.a.format",
            "ipv4",
        ),
        (
            completion(schema(json!({"enum": ["a"], "type": "null"}))),
            "response_format.json_schema.schema",
            "no text matches",
        ),
        (
            completion(schema(json!({"const": "0123456789"}))),
            "max_tokens",
            "the shortest text that is asked for has 12 tokens",
        ),
        ((COMPLETIONS, stopped), "stop", "cut short"),
        (
            gap(json!({"tokens": 2, "regex": "("})),
            "segments[1].gap.regex",
            "unclosed group",
        ),
        (
            gap(json!({"tokens": 2, "regex": "(?=a)b"})),
            "segments[1].gap.regex",
            "look-around",
        ),
        (
            gap(json!({"tokens": 2, "regex": too_long})),
            "segments[1].gap.regex",
            "4096 bytes",
        ),
        (
            gap(json!({"tokens": 2, "regex": "(?:a{1000}){1000}"})),
            "segments[1].gap.regex",
            "too large",
        ),
        (
            gap(json!({"tokens": 2, "regex": "abc"})),
            "segments[1].gap.tokens",
            "3 is the nearest that is allowed",
        ),
        (
            gap(json!({"tokens": 4, "regex": "abc"})),
            "segments[1].gap.tokens",
            "3 is the nearest that is allowed",
        ),
        (
            gap(json!({"max_tokens": 2, "regex": "abc"})),
            "segments[1].gap.max_tokens",
            "3 is the nearest that is allowed",
        ),
        (
            gap(json!({"tokens": 3, "regex": "abc", "stop": "b"})),
            "segments[1].gap.regex",
            "stop is given as well",
        ),
        (
            gap(json!({"choices": ["a"], "regex": "a"})),
            "segments[1].gap.regex",
            "choices is given as well",
        ),
        (
            gap(json!({"tokens": 2, "grammar": "start: \"a\""})),
            "segments[1].gap.grammar",
            "regex in its place",
        ),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn models_say_what_gaps_can_be_held_to() {
    let absorbing = Server::of(Mock::uniform()).await;
    let uniform = Server::of(Mock::uniform().of_the_uniform_process()).await;
    for (server, constraints) in [
        (&absorbing, json!(["regex", "json_object", "json_schema"])),
        (&uniform, json!([])),
    ] {
        let (_, models) = server.get("/v1/models").await;
        let models: Value = serde_json::from_str(&models).unwrap();
        assert_eq!(models["data"][0]["constraints"], constraints);
    }
    let body = json!({"segments": [{"gap": {"tokens": 2, "regex": "ab"}}]});
    let (status, answer) = uniform.ask(INFILL, &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("uniform process"), "{message}");
}
