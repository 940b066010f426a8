//! `response_format`, and gaps with a regular expression.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::mock::{Mock, STOP};
use crate::server::{Server, Setup};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const INFILL: &str = "/v1/infill";
const FIM: &str = "/v1/fim/completions";
const LLAMA: &str = "/infill";

/// Sums in brackets, of GBNF and of Lark.
const SUMS: [&str; 2] = [
    "root ::= sum\nsum ::= term (\"+\" term)*\nterm ::= [1-9] | \"(\" sum \")\"",
    "start: start \"+\" term | term\nterm: /[1-9]/ | \"(\" start \")\"",
];

/// Takes a sum off the beginning of a text.
fn sum(text: &str) -> Option<&str> {
    let mut rest = term(text)?;
    while let Some(more) = rest.strip_prefix('+') {
        rest = term(more)?;
    }
    Some(rest)
}

fn term(text: &str) -> Option<&str> {
    match text.strip_prefix('(') {
        Some(inner) => sum(inner)?.strip_prefix(')'),
        None => text.strip_prefix(|digit: char| ('1'..='9').contains(&digit)),
    }
}

#[track_caller]
fn check_sum(text: &Value) {
    assert_eq!(sum(text.as_str().unwrap()), Some(""), "{text}");
}

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
async fn texts_are_of_their_grammar_wherever_one_can_be_given() {
    let setup = Setup {
        chat_template: Some("{{ messages[0].content }}"),
        ..Setup::default()
    };
    let server = Server::with(Mock::uniform(), setup).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (seed, grammar) in SUMS.iter().cycle().take(6).enumerate() {
        for (path, mut body, text) in [
            (
                COMPLETIONS,
                json!({"prompt": "1+1=", "max_tokens": 12}),
                "/choices/0/text",
            ),
            (
                CHAT,
                json!({"messages": messages, "max_tokens": 9}),
                "/choices/0/message/content",
            ),
            (
                FIM,
                json!({"prompt": "x = ", "suffix": ";", "max_tokens": 11}),
                "/choices/0/message/content",
            ),
            (
                LLAMA,
                json!({"input_prefix": "x = ", "n_predict": 7}),
                "/content",
            ),
        ] {
            body["grammar"] = (*grammar).into();
            body["seed"] = seed.into();
            body["temperature"] = 1.into();
            body["diffusion"] = json!({"steps": 4});
            let answer = server.answer(path, &body).await;
            check_sum(answer.pointer(text).unwrap());
        }
        let body = json!({
            "segments": ["a ", {"gap": {"tokens": 7, "grammar": grammar}}, " é ",
                {"gap": {"min_tokens": 2, "max_tokens": 9, "grammar": grammar}}, " b"],
            "seed": seed, "temperature": 1, "diffusion": {"steps": 3},
        });
        let choice = &server.answer(INFILL, &body).await["choices"][0];
        let gaps = &choice["gaps"];
        check_sum(&gaps[0]["text"]);
        check_sum(&gaps[1]["text"]);
        assert_eq!(gaps[0]["text"].as_str().unwrap().len(), 7);
        let whole = format!(
            "a {} é {} b",
            gaps[0]["text"].as_str().unwrap(),
            gaps[1]["text"].as_str().unwrap()
        );
        assert_eq!(choice["text"], whole);
    }
}

#[tokio::test]
async fn an_editors_filling_can_be_json() {
    let server = Server::of(Mock::uniform()).await;
    let schema = json!({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2});
    let body = json!({
        "input_prefix": "x = ", "input_suffix": ";", "n_predict": 12, "json_schema": schema, "temperature": 1,
        "grammar": "",
    });
    let content = server.answer(LLAMA, &body).await["content"].take();
    let list: Vec<u8> = serde_json::from_str(content.as_str().unwrap()).unwrap();
    assert!(list.len() == 2 && list.iter().all(|item| [1, 2].contains(item)));
    let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
    let body = json!({
        "prompt": "x = ", "suffix": ";", "max_tokens": 12, "temperature": 1, "response_format": format,
    });
    let answer = server.answer(FIM, &body).await;
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Vec<u8>>(content).unwrap().len(), 2);
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
    let grammar = |path: &'static str, mut body: Value| {
        body["grammar"] = "root ::= \"a\"+".into();
        (path, body)
    };
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
            gap(json!({"tokens": 2, "grammar": "root ::= \"a\"\nroot2 ::= [b"})),
            "segments[1].gap.grammar",
            "(line 2, column 11)",
        ),
        (
            gap(json!({"tokens": 2, "grammar": "%import other.NAME\nstart: NAME"})),
            "segments[1].gap.grammar",
            "not supported (line 1, column 9)",
        ),
        (
            gap(json!({"tokens": 2, "grammar": "start: \"a\"", "regex": "a"})),
            "segments[1].gap.grammar",
            "regex is given as well",
        ),
        (
            gap(json!({"tokens": 2, "grammar": "start: \"a\"", "stop": "a"})),
            "segments[1].gap.grammar",
            "stop is given as well",
        ),
        (
            gap(json!({"tokens": 2, "grammar": "start: \"abc\""})),
            "segments[1].gap.tokens",
            "3 is the nearest that is allowed",
        ),
        (
            gap(json!({"tokens": 2, "grammar": "start: (\"a\"~1000)~1000"})),
            "segments[1].gap.grammar",
            "too large",
        ),
        (
            grammar(
                COMPLETIONS,
                json!({"prompt": "a", "response_format": {"type": "json_object"}}),
            ),
            "grammar",
            "response_format is given as well",
        ),
        (
            grammar(COMPLETIONS, json!({"prompt": "a", "stop": "x"})),
            "stop",
            "cut short",
        ),
        (
            grammar(
                FIM,
                json!({"prompt": "a", "response_format": {"type": "json_object"}}),
            ),
            "grammar",
            "response_format is given as well",
        ),
        (
            grammar(LLAMA, json!({"input_prefix": "a", "json_schema": {}})),
            "grammar",
            "json_schema is given as well",
        ),
        (
            grammar(LLAMA, json!({"input_prefix": "a", "n_indent": 4})),
            "n_indent",
            "cut short",
        ),
        (
            (
                LLAMA,
                json!({"input_prefix": "a", "json_schema": {"format": "x"}}),
            ),
            "json_schema.format",
            "ipv4",
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
        (
            &absorbing,
            json!(["regex", "grammar", "json_object", "json_schema"]),
        ),
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
