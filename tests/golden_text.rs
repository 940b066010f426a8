//! Tokenizers and chat templates against the official libraries.

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use support::{golden, ids, json};
use unmask::canvas::{Canvas, Commit, TokenId};
use unmask::text::gaps::Piece;
use unmask::text::{
    ChatEnding, ChatFiles, ChatMessage, ChatTemplate, ChatTemplateError, HfTokenizer, Layout,
    Tokenizer, VocabularyFiles,
};

/// The families' goldens with a tokenizer of their own, and the small tokenizers that are not byte-level.
fn tokenizers() -> Vec<PathBuf> {
    let families = [
        "a2d_qwen3",
        "diffusion_gemma",
        "dream",
        "llada",
        "llada2_moe",
        "mdlm",
        "sdar",
    ];
    let kinds = ["llama", "metaspace", "gemma", "unigram"];
    let kinds = kinds.map(|kind| golden("text").join("tokenizers").join(kind));
    families.map(golden).into_iter().chain(kinds).collect()
}

fn tokenizer(directory: &Path) -> HfTokenizer {
    HfTokenizer::from_file(&directory.join("tokenizer.json")).unwrap()
}

fn cases(directory: &Path, kind: &str) -> Vec<Value> {
    let cases = json(&directory.join("tokenizer_cases.json"));
    cases[kind].as_array().cloned().unwrap_or_default()
}

fn read_file(directory: &Path, name: &str) -> Option<Vec<u8>> {
    std::fs::read(directory.join(name)).ok()
}

fn template(directory: &Path) -> Option<ChatTemplate> {
    let files = ChatFiles::read::<()>(|name| Ok(read_file(directory, name))).unwrap();
    ChatTemplate::from_files(&files).unwrap()
}

fn messages(case: &Value) -> Vec<ChatMessage> {
    let messages = case["messages"].as_array().unwrap().iter();
    messages
        .map(|message| ChatMessage {
            role: message["role"].as_str().unwrap().to_owned(),
            content: message["content"].as_str().unwrap().to_owned(),
            name: message["name"].as_str().map(str::to_owned),
        })
        .collect()
}

#[test]
fn texts_have_the_tokens_of_the_official_tokenizers_and_come_back_as_from_them() {
    for directory in tokenizers() {
        let tokenizer = tokenizer(&directory);
        let cases = cases(&directory, "encode");
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let got = match case["add_special_tokens"] == true {
                true => tokenizer.encode_with_special(text),
                false => tokenizer.encode(text),
            };
            let got = got.unwrap();
            assert_eq!(got, ids(&case["ids"]), "{directory:?} {case}");
            assert_eq!(
                tokenizer.decode_whole(&got).unwrap(),
                case["decoded"],
                "{directory:?} {case}"
            );
        }
    }
}

/// The vocabulary files of the golden Dream, whose tokenizer.json is there too, with `edits`; a file that is edited to
/// null is left out.
fn vocabulary(edits: &[(&str, Value)]) -> Result<Vec<u8>, String> {
    let files = VocabularyFiles::read::<()>(|name| {
        let edit = edits.iter().find(|(file, _)| *file == name);
        Ok(match edit {
            Some((_, Value::Null)) => None,
            Some((_, Value::String(text))) => Some(text.clone().into_bytes()),
            Some((_, json)) => Some(json.to_string().into_bytes()),
            None => read_file(&golden("dream"), name),
        })
    });
    let files = files.unwrap().unwrap();
    files.tokenizer_json().map_err(|error| error.to_string())
}

#[test]
fn a_vocabulary_with_merges_gives_the_ids_of_the_tokenizer_json() {
    let whole = tokenizer(&golden("dream"));
    // The ids in `added_tokens_decoder`, and in the file of older tokenizers.
    let mut config = json(&golden("dream").join("tokenizer_config.json"));
    let decoder = config["added_tokens_decoder"].take();
    let ids_of_added = decoder.as_object().unwrap().iter().map(|(id, token)| {
        let content = token["content"].as_str().unwrap().to_owned();
        (content, json!(id.parse::<u32>().unwrap()))
    });
    let ids_of_added = Value::Object(ids_of_added.collect());
    let older = [
        ("tokenizer_config.json", config),
        ("added_tokens.json", ids_of_added),
    ];
    for edits in [&[][..], &older] {
        let built = HfTokenizer::from_bytes(&vocabulary(edits).unwrap()).unwrap();
        assert_eq!(built.vocab_size(), whole.vocab_size());
        for token in 0..whole.vocab_size() as TokenId {
            assert_eq!(built.piece(token), whole.piece(token), "{token}");
        }
        for special in ["<|endoftext|>", "<|mask|>"] {
            let id = built.encode(special).unwrap();
            assert_eq!(built.bytes(id[0]), b"", "{special}");
        }
        let texts = cases(&golden("dream"), "encode");
        let texts = texts.iter().map(|case| case["text"].as_str().unwrap());
        // A combining accent that NFC joins, clitics, digits, line ends and blanks before them.
        let more =
            "cafe\u{301} I'LL we've 1234 \u{2028}x\r\n \n\n  y\u{a0}z<|im_start|>user\n日本 ";
        for text in texts.chain([more]) {
            let tokens = whole.encode(text).unwrap();
            assert_eq!(built.encode(text).unwrap(), tokens, "{text:?}");
            assert_eq!(built.decode_whole(&tokens), whole.decode_whole(&tokens));
        }
    }
}

#[test]
fn vocabulary_files_that_are_no_tokenizer_of_qwen2_are_refused_with_the_reason() {
    let class = |class: Value| ("tokenizer_config.json", json!({"tokenizer_class": class}));
    let dream = || class(json!("DreamTokenizer"));
    for (edits, says) in [
        (
            vec![class(json!("GPT2Tokenizer"))],
            "tokenizer_class is \"GPT2Tokenizer\"",
        ),
        (
            vec![("tokenizer_config.json", Value::Null)],
            "tokenizer_class is null",
        ),
        (
            vec![("merges.txt", Value::Null)],
            "merges.txt: it is missing",
        ),
        (
            vec![("vocab.json", json!({"a": 0, "b": 2}))],
            "vocab.json: \"b\" has the id 2",
        ),
        (vec![("vocab.json", json!("["))], "vocab.json: "),
        (
            vec![("merges.txt", json!("#version: 0.2\na b\na b c\n"))],
            "merges.txt: line 3 is \"a b c\"",
        ),
        (
            vec![dream(), ("added_tokens.json", json!({"<|far|>": 501}))],
            "\"<|far|>\" has the id 501, where 500 is next",
        ),
        (
            vec![("added_tokens.json", json!({"<|mask|>": 505}))],
            "added_tokens.json: \"<|mask|>\" has the id 505, which contradicts",
        ),
    ] {
        let error = vocabulary(&edits).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_text_is_neither_cut_nor_filled_up_as_the_file_was_saved_to_do() {
    for name in ["llada", "text/tokenizers/llama"] {
        let directory = golden(name);
        let mut file = json(&directory.join("tokenizer.json"));
        file["truncation"] = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        file["padding"] = json!({
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<pad>",
        });
        let saved = HfTokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        let text = "A cat and a dog";
        let expected = tokenizer(&directory).encode(text).unwrap();
        assert!(expected.len() > 2);
        assert_eq!(saved.encode(text).unwrap(), expected);
        assert_eq!(
            saved.encode_continuation(text).unwrap(),
            tokenizer(&directory).encode_continuation(text).unwrap()
        );
    }
}

/// The template of Llama 3's and of BERT's tokenizers.
#[test]
fn a_prompt_begins_with_the_special_tokens_that_the_tokenizer_puts_before_a_text() {
    let file = golden("a2d_qwen3").join("tokenizer.json");
    let single = |ends: bool| {
        let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let mut single = vec![special("<|endoftext|>"), text];
        single.extend(ends.then(|| special("<|im_end|>")));
        single
    };
    for ends in [false, true] {
        let mut document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        document["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": single(ends),
            "pair": single(ends),
            "special_tokens": {
                "<|endoftext|>": {"id": "<|endoftext|>", "ids": [500], "tokens": ["<|endoftext|>"]},
                "<|im_end|>": {"id": "<|im_end|>", "ids": [502], "tokens": ["<|im_end|>"]},
            },
        });
        let tokenizer = HfTokenizer::from_bytes(document.to_string().as_bytes()).unwrap();
        let text = tokenizer.encode("Beautiful").unwrap();
        let prompt = [&[500], &text[..]].concat();
        assert_eq!(tokenizer.beginning(), [500]);
        assert_eq!(tokenizer.encode_prompt("Beautiful").unwrap(), prompt);
        let written = tokenizer.encode_prompt("<|endoftext|>Beautiful");
        assert_eq!(written.unwrap(), prompt, "once");
        let pieces = vec![Piece::Text("Beautiful".into()), Piece::Gap(2)];
        let (layout, canvas) = Layout::new(pieces, &tokenizer, 507).unwrap();
        let fixed: Vec<TokenId> = canvas.tokens().take(prompt.len()).collect();
        assert_eq!(fixed, prompt);
        let reading = layout.read_until(&canvas, &[], &tokenizer);
        assert_eq!(reading.text, "Beautiful");
    }
    let plain = HfTokenizer::from_file(&file).unwrap();
    assert!(plain.beginning().is_empty());
}

#[test]
fn a_token_id_that_would_take_the_whole_memory_is_refused_by_name() {
    let mut file = json(&golden("llada").join("tokenizer.json"));
    file["model"]["vocab"]["far"] = json!(u32::MAX);
    let error = HfTokenizer::from_bytes(file.to_string().as_bytes())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("4294967295") && error.contains("far"),
        "{error}"
    );
}

#[test]
fn the_bytes_of_a_text_are_those_of_its_tokens_end_to_end() {
    for directory in tokenizers() {
        let tokenizer = tokenizer(&directory);
        for case in cases(&directory, "encode") {
            let text = case["text"].as_str().unwrap();
            let tokens = tokenizer.encode_continuation(text).unwrap();
            let written: Vec<u8> = tokens
                .iter()
                .flat_map(|token| tokenizer.piece(*token))
                .copied()
                .collect();
            let written = String::from_utf8(written).unwrap();
            // What the small vocabularies cannot spell is not theirs to give back, and sentencepiece's mark
            // for a space is a space.
            if !written.contains("<unk>") && !text.contains('▁') {
                assert_eq!(written, text, "{directory:?}");
            }
        }
    }
}

#[test]
fn text_around_a_gap_gains_no_space_and_is_read_back_as_it_was_given() {
    let mask = 3;
    for kind in ["llama", "metaspace", "gemma", "unigram"] {
        let tokenizer = tokenizer(&golden("text").join("tokenizers").join(kind));
        let pieces = || {
            vec![
                Piece::Text("A cat".into()),
                Piece::Gap(1),
                Piece::Text("s and a dog".into()),
                Piece::Text(" too.".into()),
            ]
        };
        let (layout, mut canvas) = Layout::new(pieces(), &tokenizer, mask).unwrap();
        let after: Vec<TokenId> = canvas.tokens().skip(canvas.gaps()[0].end).collect();
        assert_eq!(tokenizer.decode(&after), "s and a dog too.", "{kind}");
        let slot = canvas.gaps()[0].start;
        let space = tokenizer.encode_continuation(" ").unwrap();
        canvas.gap_slot_mut(slot).unwrap().commit(Commit {
            token: space[0],
            probability: 1.0,
            score: 1.0,
            step: 1,
        });
        let reading = layout.read_until(&canvas, &[], &tokenizer);
        assert_eq!(reading.text, "A cat s and a dog too.", "{kind}");
    }
}

#[test]
fn a_character_of_fallback_bytes_is_read_whatever_order_its_bytes_are_committed_in() {
    let directory = golden("text").join("tokenizers/llama");
    let tokenizer = tokenizer(&directory);
    let mask = 3;
    let crab = tokenizer.encode_continuation("🦀").unwrap();
    assert_eq!(crab.len(), 4, "four bytes, none of which is text by itself");
    for order in [[0, 1, 2, 3], [3, 1, 0, 2]] {
        let mut canvas = Canvas::builder(mask).gap(4).build().unwrap();
        let layout = Layout::of(vec![Piece::Gap(4)]);
        for (done, at) in order.into_iter().enumerate() {
            canvas.gap_slot_mut(at).unwrap().commit(Commit {
                token: crab[at],
                probability: 1.0,
                score: 1.0,
                step: done + 1,
            });
            let is_whole = layout.read_until(&canvas, &[], &tokenizer).text == "🦀";
            assert_eq!(is_whole, done == 3);
        }
    }
}

#[test]
fn tokenizers_whose_tokens_have_no_bytes_of_their_own_are_refused_with_the_reason() {
    let json = json(&golden("mdlm").join("tokenizer.json"));
    for (decoder, reason) in [
        (
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            "WordPiece",
        ),
        (
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            "BPEDecoder",
        ),
        (
            json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}),
            "regular expression",
        ),
        (
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}]}),
            "empty",
        ),
    ] {
        let mut json = json.clone();
        json["decoder"] = decoder;
        let error = HfTokenizer::from_bytes(json.to_string().as_bytes())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.contains("same bytes wherever"), "{error}");
    }
}

#[test]
fn chats_have_the_texts_and_tokens_of_the_official_ones() {
    let mut seen = 0;
    for directory in tokenizers() {
        let tokenizer = tokenizer(&directory);
        for case in cases(&directory, "chat") {
            let ending = match case["add_generation_prompt"] == true {
                true => ChatEnding::Answer,
                false => ChatEnding::Closed,
            };
            let text = template(&directory)
                .unwrap()
                .render(&messages(&case), ending, &Map::new())
                .unwrap();
            assert_eq!(text, case["rendered"], "{directory:?}");
            assert_eq!(tokenizer.encode(&text).unwrap(), ids(&case["ids"]));
            seen += 1;
        }
    }
    assert_eq!(seen, 24);
    assert!(template(&golden("mdlm")).is_none());
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let goldens = json(&golden("text").join("chat_templates/cases.json"));
    for case in goldens["cases"].as_array().unwrap() {
        let mut config = goldens["special_tokens"].clone();
        config["chat_template"] = goldens["templates"][case["template"].as_str().unwrap()].clone();
        let ending = match case["ending"].as_str().unwrap() {
            "answer" => ChatEnding::Answer,
            "continued" => ChatEnding::Continued,
            _ => ChatEnding::Closed,
        };
        let variables = case["variables"].as_object().unwrap();
        let got = of_config(&config)
            .unwrap()
            .unwrap()
            .render(&messages(case), ending, variables);
        match (&case["rendered"], case["refused"].as_str()) {
            (Value::String(rendered), _) => assert_eq!(&got.unwrap(), rendered, "{case}"),
            (_, Some(said)) if said.starts_with("continue_final_message") => {
                assert_eq!(got, Err(ChatTemplateError::NotContinuable));
            }
            (_, said) => assert_eq!(
                got,
                Err(ChatTemplateError::Refused(said.unwrap().to_owned()))
            ),
        }
    }
}

fn of_config(config: &Value) -> Result<Option<ChatTemplate>, ChatTemplateError> {
    ChatTemplate::from_files(&ChatFiles {
        tokenizer_config: Some(config.to_string().into_bytes()),
        ..ChatFiles::default()
    })
}

fn of_source(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
    of_config(&json!({"chat_template": source})).map(Option::unwrap)
}

fn rendered(source: &str) -> Result<String, ChatTemplateError> {
    let message = ChatMessage {
        role: "user".into(),
        content: "Hi".into(),
        name: None,
    };
    of_source(source)?.render(&[message], ChatEnding::Answer, &Map::new())
}

#[test]
fn a_template_is_found_wherever_checkpoints_keep_it() {
    let several = json!({"chat_template": [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}"},
    ], "bos_token": {"content": "<s>"}, "eos_token": null});
    let mut files = ChatFiles {
        tokenizer_config: Some(several.to_string().into_bytes()),
        special_tokens_map: Some(br#"{"bos_token": "<no>", "eos_token": "</s>"}"#.to_vec()),
        chat_template: None,
    };
    let render = |files: &ChatFiles| {
        let template = ChatTemplate::from_files(files).unwrap().unwrap();
        template
            .render(&[], ChatEnding::Closed, &Map::new())
            .unwrap()
    };
    assert_eq!(render(&files), "<s></s>");
    files.chat_template = Some(b"of its own {{ bos_token }}".to_vec());
    assert_eq!(render(&files), "of its own <s>");
    files.tokenizer_config = None;
    files.special_tokens_map = None;
    assert_eq!(render(&files), "of its own ");
    files.chat_template = None;
    assert!(ChatTemplate::from_files(&files).unwrap().is_none());
}

#[test]
fn files_and_templates_that_cannot_be_read_are_refused_by_name() {
    for (config, says) in [
        (json!({"chat_template": 5}), "tokenizer_config.json"),
        (
            json!({"chat_template": [{"name": "rag", "template": ""}]}),
            "\"default\"",
        ),
        (json!([]), "not a JSON object"),
        (json!({"chat_template": "{% if %}"}), "cannot be read"),
        (
            json!({"chat_template": "{% for m in messages %}"}),
            "cannot be read",
        ),
    ] {
        let error = of_config(&config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_template_cannot_run_for_long_or_fill_the_memory() {
    let nine = "{% for i in range(99999) %}".repeat(9) + "x" + &"{% endfor %}".repeat(9);
    for source in [
        nine.as_str(),
        "{% set ns = namespace(s='x') %}{% for i in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{% set l = range(99999) | list %}{{ (l * 99) | tojson }}",
        "{{ [1] | tojson(indent=1000000000000) }}",
        "{{ [[1]] | tojson(indent=9223372036854775807) }}",
        "{% set s = 'x' * 100000 %}{% for i in range(99999) %}{% set j = s | tojson %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{{ range(99999) | list | tojson(separators=[s, s]) }}",
        "{{ '{:>9000000000}'.format('a') | length }}",
        "{{ '{:}>9000000000}'.format('a') | length }}",
        "{{ '{:.9000000000f}'.format(1.5) | length }}",
        "{{ '{:>99999999999999999999999}'.format('a') | length }}",
        "{% set s = '{0:>4000}' * 1000000 %}{{ s.format('a') | length }}",
        "{% set s = 'x' * 1000000 %}{{ ('{0}' * 1000000).format(s) | length }}",
        "{{ '{}'.format(['x' * 1000000] * 1000000) | length }}",
        "{{ ''.join(['x' * 1000000] * 1000000) | length }}",
        "{{ ''.join([['x'] * 1000000] * 1000) | length }}",
        "{% set l = [1] * 99999999 %}{% for i in range(999) %}{% set n = l.count(2) %}{% endfor %}",
    ] {
        assert_eq!(rendered(source), Err(ChatTemplateError::TooCostly));
    }
    let endless = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    assert!(matches!(
        rendered(endless),
        Err(ChatTemplateError::Failed(_) | ChatTemplateError::TooCostly)
    ));
}

#[test]
fn python_s_methods_that_are_paid_for_say_what_python_says() {
    for (source, text) in [
        (
            "{{ '{:>4}|{:05.1f}|{:*^5}'.format(7, 2.25, 'b') }}",
            "   7|002.2|**b**",
        ),
        ("{{ '{{{}}} {:}>3}'.format('a', 'b') }}", "{a} }}b"),
        ("{{ '{x}, {y}'.format(x='a', y=2) }}", "a, 2"),
        ("{{ ', '.join(['a', 1, true]) }}", "a, 1, True"),
        ("{{ ''.join([]) }}{{ '-'.join(['a', 'b']) }}", "a-b"),
        ("{{ [1, 2, 1].count(1) }}", "2"),
        ("{{ 'abc'.startswith(('x', 'ab')) }}", "True"),
        ("{{ {'a': 1}.get('b', 2) }}", "2"),
    ] {
        assert_eq!(rendered(source).unwrap(), text, "{source}");
    }
    let path = rendered("{{ '{{{}}} {0.x}'.format('a') }}").unwrap_err();
    assert!(path.to_string().contains("the field {0.x}"), "{path}");
}

#[test]
fn the_longest_chats_that_fit_into_a_request_are_rendered() {
    // A body of a megabyte, as one message and as many.
    const BODY: usize = 1 << 20;
    let message = |role: &str, content: String| ChatMessage {
        role: role.into(),
        content,
        name: None,
    };
    let roles = ["user", "assistant"].into_iter().cycle();
    let shortest = r#"{"role":"user","content":""},"#.len();
    let many = roles
        .take(BODY / shortest)
        .map(|role| message(role, String::new()))
        .collect();
    let one = vec![message("user", "x".repeat(BODY))];
    let goldens = json(&golden("text").join("chat_templates/cases.json"));
    let released = ["qwen3", "llama31", "mistral", "llada"];
    for chat in [many, one] {
        for name in released {
            let mut config = goldens["special_tokens"].clone();
            config["chat_template"] = goldens["templates"][name].clone();
            let template = of_config(&config).unwrap().unwrap();
            let text = template.render(&chat, ChatEnding::Answer, &Map::new());
            assert!(text.is_ok(), "{name}: {text:?}");
        }
    }
}

#[test]
fn a_template_reads_nothing_but_what_it_is_given() {
    for source in [
        "{% include 'Cargo.toml' %}",
        "{{ messages.no_such_method() }}",
        "{{ no_such_function() }}",
        "{{ undefined_thing.field }}",
        "{{ undefined_thing + 'x' }}",
        "{{ strftime_now('%Q') }}",
        "{{ undefined_thing | tojson }}",
    ] {
        let error = rendered(source).unwrap_err();
        assert!(
            matches!(error, ChatTemplateError::Failed(_)),
            "{source}: {error}"
        );
    }
    let variables = Map::from_iter([("messages".to_owned(), json!([]))]);
    let error = of_source("")
        .unwrap()
        .render(&[], ChatEnding::Closed, &variables);
    assert!(matches!(error, Err(ChatTemplateError::Reserved { name }) if name == "messages"));
}

#[test]
fn the_date_of_today_is_written_as_asked() {
    let date = rendered("{{ strftime_now('%d %B %Y') }}").unwrap();
    let parts: Vec<&str> = date.split(' ').collect();
    assert!((1..=31).contains(&parts[0].parse().unwrap()), "{date}");
    assert!(parts[2].parse::<u32>().unwrap() >= 2025, "{date}");
}
