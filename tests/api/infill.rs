//! `POST /v1/infill`.

use proptest::prelude::*;
use serde_json::{Value, json};
use unmask::canvas::TokenId;
use unmask::decode::{DecodePlan, EarlyStop, Score};

use crate::conformance::for_random;
use crate::mock::{Mock, SPECIAL, STOP};
use crate::server::{MODEL, Server};

const PATH: &str = "/v1/infill";

/// A part of a text: fixed, or a gap.
#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Gap(usize),
}

/// Texts in the character class `class` with at least one gap. A backslash, or one and a brace, right before a gap is
/// what a text with gaps written in it cannot say: a point is between them.
fn parts(class: &'static str) -> impl Strategy<Value = Vec<Part>> {
    let text = class.prop_map(|text| match text.ends_with('\\') || text.ends_with(r"\{") {
        true => Part::Text(text + "."),
        false => Part::Text(text),
    });
    let part = prop_oneof![text, (1usize..6).prop_map(Part::Gap)];
    proptest::collection::vec(part, 1..7).prop_map(|mut parts| {
        if parts.iter().all(|part| matches!(part, Part::Text(_))) {
            parts.push(Part::Gap(2));
        }
        parts
    })
}

fn segments(parts: &[Part]) -> Value {
    parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => json!(text),
            Part::Gap(tokens) => json!({"gap": {"tokens": tokens}}),
        })
        .collect()
}

/// Checks that a choice's gaps stand where they say, and that all else is as it was sent.
fn check_choice(parts: &[Part], choice: &Value) {
    let is_empty = |part: &Part| matches!(part, Part::Text(text) if text.is_empty());
    let last = parts.iter().rposition(|part| !is_empty(part));
    let text = choice["text"].as_str().unwrap();
    let characters: Vec<char> = text.chars().collect();
    let mut gaps = choice["gaps"].as_array().unwrap().iter().enumerate();
    let mut at = 0;
    for (place, part) in parts.iter().enumerate() {
        match part {
            Part::Text(fixed) => {
                assert_eq!(&text[at..at + fixed.len()], fixed);
                at += fixed.len();
            }
            Part::Gap(tokens) => {
                let (index, gap) = gaps.next().unwrap();
                let offset = |name: &str| gap[name].as_u64().unwrap() as usize;
                let filling = gap["text"].as_str().unwrap();
                assert_eq!(gap["index"], index);
                assert_eq!(offset("start_byte"), at);
                at = offset("end_byte");
                assert_eq!(&text[offset("start_byte")..at], filling);
                let sliced: String = characters[offset("start")..offset("end")].iter().collect();
                assert_eq!(sliced, filling);
                let given = gap["tokens"].as_array().unwrap().len();
                match last == Some(place) {
                    // It may have ended at a stop token.
                    true => assert!(given <= *tokens),
                    false => assert_eq!(given, *tokens),
                }
                let provenance = gap["provenance"].as_array().unwrap();
                for (token, of_token) in gap["tokens"].as_array().unwrap().iter().zip(provenance) {
                    assert_eq!(of_token["token"], *token);
                    let probability = of_token["probability"].as_f64().unwrap();
                    assert!((0.0..=1.0).contains(&probability));
                }
                assert_eq!(provenance.len(), given);
            }
        }
    }
    assert_eq!(at, text.len());
    assert!(gaps.next().is_none());
}

/// Fills random texts, and checks that fixed text is as it was sent.
fn fill_random_texts(
    cases: u32,
    server: impl Future<Output = Server>,
    class: &'static str,
    body: impl Fn(&[Part]) -> Value,
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(server);
    for_random(cases, parts(class), |parts| {
        let mut body = body(&parts);
        body["n"] = 2.into();
        body["temperature"] = 1.into();
        let answer = runtime.block_on(server.answer(PATH, &body));
        for choice in answer["choices"].as_array().unwrap() {
            check_choice(&parts, choice);
        }
    });
}

/// Characters that are hard on texts, borders and templates: several bytes, combining marks, joiners, ends of
/// lines, marks of special tokens, braces and backslashes.
const HARD: &str = r"[a-c \t\r\n\x00\u{FFFD}\u{301}\u{200D}\u{FEFF}é漢🦀👩<|>\\{}\PC]{0,9}";

#[test]
fn fixed_text_comes_back_unchanged_in_1000_random_infills() {
    let body = |parts: &[Part]| json!({"segments": segments(parts), "diffusion": {"steps": 2}});
    fill_random_texts(500, Server::of(Mock::uniform()), HARD, body);
    fill_random_texts(250, Server::golden(), HARD, body);
    fill_random_texts(
        250,
        Server::golden(),
        HARD,
        |parts| json!({"text": template(parts)}),
    );
}

/// A text with gaps written in it.
fn template(parts: &[Part]) -> String {
    let mut text = String::new();
    let mut fixed = String::new();
    for part in parts {
        match part {
            Part::Text(part) => fixed += part,
            Part::Gap(tokens) => {
                text += &std::mem::take(&mut fixed).replace("{{", r"\{{");
                text += &format!("{{{{{tokens}}}}}");
            }
        }
    }
    text + &fixed.replace("{{", r"\{{")
}

#[tokio::test]
async fn an_infilling_says_where_each_token_came_from() {
    let server = Server::of(Mock::saying_text(0, "..é..!")).await;
    let body = json!({
        "model": MODEL, "seed": 7, "diffusion": {"preset": "left-to-right"},
        "segments": ["ab", {"gap": {"tokens": 2, "name": "letter"}}, "cd", {"gap": {"tokens": 1}}],
    });
    let mut answer = server.answer(PATH, &body).await;
    assert!(answer["id"].take().as_str().unwrap().starts_with("infill-"));
    assert!(answer["created"].take().as_u64().unwrap() > 1_700_000_000);
    for time in ["queued_ms", "denoise_ms"] {
        answer["diffusion"][time].take();
    }
    for gap in answer["choices"][0]["gaps"].as_array_mut().unwrap() {
        for token in gap["provenance"].as_array_mut().unwrap() {
            assert!(token["probability"].take().as_f64().unwrap() > 0.99);
        }
    }
    let provenance = |token: u8, text: &str, score: f32, step: usize| json!({"token": token, "text": text, "probability": null, "score": score, "step": step, "remasked": 0, "edited": 0});
    assert_eq!(
        answer,
        json!({
            "id": null, "object": "infill", "created": null, "model": MODEL,
            "choices": [{
                "index": 0,
                "text": "abécd!",
                "gaps": [
                    {
                        "index": 0, "name": "letter", "text": "é", "tokens": [0xC3, 0xA9],
                        "length": "given", "start": 2, "end": 3, "start_byte": 2, "end_byte": 4,
                        "provenance": [
                            provenance(0xC3, "\u{FFFD}", -2.0, 1),
                            provenance(0xA9, "\u{FFFD}", -3.0, 2),
                        ],
                    },
                    {
                        "index": 1, "name": null, "text": "!", "tokens": [b'!'],
                        "length": "given", "start": 5, "end": 6, "start_byte": 6, "end_byte": 7,
                        "provenance": [provenance(b'!', "!", -6.0, 3)],
                    },
                ],
            }],
            "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
            "diffusion": {
                "steps": 3, "nfe": 3, "tokens_per_forward": 1.0,
                "queued_ms": null, "denoise_ms": null, "cache": "none", "seed": 7,
            },
        })
    );
}

#[tokio::test]
async fn special_tokens_in_a_gap_have_no_text() {
    let said = [TokenId::from(b'a'), STOP, SPECIAL, TokenId::from(b'b')];
    let server = Server::of(Mock::saying(1, said)).await;
    let body = json!({"text": "({{4}})", "diffusion": {"stop_tokens": "anywhere"}});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["choices"][0]["text"], "(ab)");
    let gap = &answer["choices"][0]["gaps"][0];
    assert_eq!(gap["tokens"], json!(said));
    assert_eq!(gap["provenance"][1]["text"], "");
}

#[tokio::test]
async fn a_stop_token_has_no_text_in_a_gap_even_if_the_tokenizer_gives_it_one() {
    let model = Mock::saying_text(0, "a.b").ending_at(TokenId::from(b'.'));
    let server = Server::of(model).await;
    let body = json!({"text": ".{{3}}!", "diffusion": {"stop_tokens": "anywhere"}});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["choices"][0]["text"], ".bx!");
}

#[tokio::test]
async fn a_gap_at_the_end_of_a_text_ends_at_its_first_stop_token_as_a_completion_does() {
    let said = [u32::from(b'a'), STOP, u32::from(b'.'), u32::from(b'b')];
    let server = Server::of(Mock::saying(1, said)).await;
    let completion = json!({"prompt": "(", "max_tokens": 4});
    let completion = server.answer("/v1/completions", &completion).await;
    assert_eq!(completion["choices"][0]["text"], "a");
    let body = json!({"text": "({{4}}", "logprobs": true});
    let answer = server.answer(PATH, &body).await;
    assert_eq!(answer["choices"][0]["text"], "(a");
    let gap = &answer["choices"][0]["gaps"][0];
    assert_eq!(gap["text"], "a");
    assert_eq!(gap["tokens"], json!([b'a']));
    assert_eq!(gap["provenance"].as_array().unwrap().len(), 1);
    assert_eq!(answer["usage"], completion["usage"]);
    let frames = server.frames(PATH, &body).await;
    assert_eq!(frames.last().unwrap()["choices"], answer["choices"]);
    // Nothing is cut where anything comes after the gap, nor from a choice.
    let anywhere = json!({"stop_tokens": "anywhere"});
    let before_text = json!({"text": "({{4}})", "diffusion": anywhere});
    let before_gap = json!({"text": "({{4}}{{1}}"});
    let choice = json!({"segments": ["(", {"gap": {"tokens": 2}}, {"gap": {"choices": [".b"]}}]});
    for (body, text) in [
        (before_text, "(a.b)"),
        (before_gap, "(a.bx"),
        (choice, "(a\0.b"),
    ] {
        let answer = server.answer(PATH, &body).await;
        assert_eq!(answer["choices"][0]["text"], text);
    }
}

#[tokio::test]
async fn a_stop_token_in_one_gap_leaves_no_other_unfilled() {
    let plan = DecodePlan {
        score: Score::LeftToRight,
        early_stop: EarlyStop::AtOnce,
        ..DecodePlan::default()
    };
    let said = [STOP, TokenId::from(b'a'), TokenId::from(b'b')];
    let server = Server::of(Mock::saying(0, said).by_default(plan)).await;
    let answer = server.answer(PATH, &json!({"text": "{{2}}{{1}}"})).await;
    assert_eq!(answer["choices"][0]["text"], "ab");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_stream_reports_revisions_so_that_its_frames_add_up_to_the_answer() {
    let server = Server::golden().await;
    let body = json!({
        "text": "The {{9}} of {{9}}.", "temperature": 1, "seed": 5,
        "diffusion": {
            "steps": 20,
            "budget": {"ancestral": {"eps": 0.001}},
            "revision": {"remask": {"rescale": 0.9}},
        },
    });
    let mut frames = server.frames(PATH, &body).await;
    let answer = frames.pop().unwrap();
    let gaps = answer["choices"][0]["gaps"].as_array().unwrap();
    let mut tokens = vec![vec![Value::Null; 9]; 2];
    let mut remasked = 0;
    for frame in &frames {
        let at = |slot: &Value| {
            let index = |name: &str| slot[name].as_u64().unwrap() as usize;
            (index("gap"), index("position"))
        };
        for slot in frame["committed"].as_array().unwrap() {
            let (gap, position) = at(slot);
            tokens[gap][position] = slot["token"].clone();
        }
        for slot in frame["remasked"].as_array().unwrap() {
            let (gap, position) = at(slot);
            tokens[gap][position].take();
            remasked += 1;
        }
    }
    assert!(remasked > 0, "nothing was revised");
    let mut counted = 0;
    for (gap, tokens) in gaps.iter().zip(tokens) {
        assert_eq!(gap["tokens"], json!(tokens));
        for token in gap["provenance"].as_array().unwrap() {
            counted += token["remasked"].as_u64().unwrap();
        }
    }
    assert_eq!(counted, remasked);
    let evaluations = answer["diffusion"]["nfe"].as_f64().unwrap();
    assert!(evaluations <= answer["diffusion"]["steps"].as_f64().unwrap());
    let per_forward = answer["diffusion"]["tokens_per_forward"].as_f64().unwrap();
    assert!((per_forward - 18.0 / evaluations).abs() < 1e-12);
}

#[tokio::test]
async fn gaps_may_touch_each_other_and_the_ends() {
    let server = Server::of(Mock::saying_text(0, "abcdef")).await;
    let answer = server
        .answer(PATH, &json!({"text": "{{1}}{{2}}-{{2}}"}))
        .await;
    assert_eq!(answer["choices"][0]["text"], "abc-ef");
    let gaps = answer["choices"][0]["gaps"].as_array().unwrap();
    let texts: Vec<&str> = gaps.iter().map(|g| g["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "bc", "ef"]);
}

#[tokio::test]
async fn escaped_braces_are_text() {
    let server = Server::of(Mock::saying_text(0, "x")).await;
    let answer = server.answer(PATH, &json!({"text": r"\{{8}}{{1}}"})).await;
    assert_eq!(answer["choices"][0]["text"], "{{8}}x");
}

#[tokio::test]
async fn text_and_segments_of_the_same_pieces_are_filled_alike() {
    let server = Server::golden().await;
    let options = |body: Value| {
        let mut body = body;
        body["temperature"] = 1.into();
        body["seed"] = 4.into();
        body
    };
    let text = server
        .answer(PATH, &options(json!({"text": "The {{3}} of {{2}}."})))
        .await;
    let segments = json!(["The ", {"gap": {"tokens": 3}}, " of ", {"gap": {"tokens": 2}}, "."]);
    let segments = server
        .answer(PATH, &options(json!({"segments": segments})))
        .await;
    assert_eq!(text["choices"], segments["choices"]);
}

#[tokio::test]
async fn seeds_repeat_an_infilling_and_choices_differ() {
    let server = Server::golden().await;
    let body = json!({"text": "The {{6}} of", "temperature": 1, "seed": 11, "n": 3});
    let first = server.answer(PATH, &body).await;
    let again = server.answer(PATH, &body).await;
    assert_eq!(first["choices"], again["choices"]);
    assert_ne!(first["choices"][0]["text"], first["choices"][1]["text"]);
    let alone = json!({"text": "The {{6}} of", "temperature": 1, "seed": 13});
    let alone = server.answer(PATH, &alone).await;
    assert_eq!(first["choices"][2]["text"], alone["choices"][0]["text"]);
    let committed = 18;
    assert_eq!(first["usage"]["completion_tokens"], committed);
}

#[tokio::test]
async fn a_stream_reports_every_slot_once_and_ends_in_the_same_answer() {
    let server = Server::golden().await;
    let body = json!({
        "segments": ["The ", {"gap": {"tokens": 5, "name": "a"}}, " of ", {"gap": {"tokens": 4}}],
        "temperature": 1, "seed": 2, "n": 2, "diffusion": {"steps": 4},
    });
    let mut whole = server.answer(PATH, &body).await;
    let mut frames = server.frames(PATH, &body).await;
    let mut last = frames.pop().unwrap();
    let mut steps = [0, 0];
    let mut slots = std::collections::BTreeSet::new();
    for frame in &frames {
        assert_eq!(frame["object"], "infill.step");
        assert_eq!(frame["id"], last["id"]);
        let choice = frame["index"].as_u64().unwrap() as usize;
        steps[choice] += 1;
        assert_eq!(frame["step"], steps[choice]);
        assert_eq!(frame["remasked"], json!([]));
        for slot in frame["committed"].as_array().unwrap() {
            let gap = slot["gap"].as_u64().unwrap() as usize;
            let position = slot["position"].as_u64().unwrap() as usize;
            assert!(slots.insert((choice, gap, position)), "twice");
            let provenance = &last["choices"][choice]["gaps"][gap]["provenance"][position];
            for field in ["token", "text", "probability"] {
                assert_eq!(slot[field], provenance[field]);
            }
            assert_eq!(provenance["step"], frame["step"]);
        }
    }
    assert_eq!(steps, [4, 4]);
    assert_eq!(slots.len(), 2 * 9);
    for answer in [&mut whole, &mut last] {
        for field in ["id", "created"] {
            answer[field].take();
        }
        for time in ["queued_ms", "denoise_ms"] {
            answer["diffusion"][time].take();
        }
    }
    assert_eq!(last, whole);
}

#[tokio::test]
async fn tokens_to_commit_last_wait_until_no_other_is_left() {
    let server = Server::of(Mock::saying_text(0, "abc")).await;
    let steps = |answer: Value| -> Vec<Value> {
        let slots = answer["choices"][0]["gaps"][0]["provenance"].as_array();
        let slots = slots.unwrap().iter();
        slots.map(|slot| slot["step"].clone()).collect()
    };
    let left_to_right = |commit_last: &[u8]| {
        let diffusion = json!({"score": "left_to_right", "commit_last": commit_last});
        json!({"text": "{{3}}", "diffusion": diffusion})
    };
    let body = left_to_right(b"");
    assert_eq!(steps(server.answer(PATH, &body).await), [1, 2, 3]);
    let body = left_to_right(b"ab");
    assert_eq!(steps(server.answer(PATH, &body).await), [2, 3, 1]);
}
