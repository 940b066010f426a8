use super::*;

/// Questions with short answers that follow from them.
fn pairs(count: usize) -> String {
    let animals = ["cat", "dog", "bear", "fox"];
    let colours = ["red", "blue", "green", "grey"];
    let line = |i: usize| {
        let kind = (i * 7 + i / 3) % 4;
        let prompt = format!("What is the {} like? ", animals[kind]);
        let answer = format!("It is {}.", colours[kind]);
        serde_json::json!({"prompt": prompt, "answer": answer}).to_string() + "\n"
    };
    (0..count).map(line).collect()
}

impl Case {
    /// Trains on pairs.
    fn on_pairs() -> Self {
        let mut case = Self::new();
        let at = |name: &str| case.directory.path().join(name);
        fs::write(at("train.jsonl"), pairs(120)).unwrap();
        fs::write(at("valid.jsonl"), pairs(30)).unwrap();
        case.config.pairs = Some(at("train.jsonl"));
        case.config.valid = at("valid.jsonl");
        case.config.data = Vec::new();
        case.config.vocab_size = Some(280);
        case.config.context = 40;
        case
    }
}

#[test]
fn answers_alone_are_noised_and_end_tokens_fill_the_window() {
    for process in [ForwardProcess::Absorbing, ForwardProcess::Uniform] {
        let mut case = Case::on_pairs();
        case.config.process = process;
        case.config.batch = 64;
        let data = Data::prepare(&case.config, None).unwrap();
        let batch = data.batch(&case.config, 0).unwrap();
        let windows = (0..batch.windows()).map(|window| batch.slice(window..window + 1));
        for (window, weight) in windows.zip(&batch.weights) {
            let text = |tokens: &[u32]| data.tokenizer.decode(tokens, true).unwrap();
            let whole = text(&window.clean);
            let (prompt, answer) = whole.split_once("? ").unwrap();
            let end = window
                .clean
                .iter()
                .position(|token| *token == data.specials.end)
                .unwrap();
            assert!(
                window.clean[end..]
                    .iter()
                    .all(|token| *token == data.specials.end)
            );
            let length = (0..end)
                .find(|&slot| text(&window.clean[..slot]).ends_with("? "))
                .unwrap();
            assert_eq!(window.clean[..length], window.noisy[..length], "{prompt}");
            assert!(
                window.scored.iter().all(|slot| *slot as usize >= length),
                "{answer}"
            );
            if process == ForwardProcess::Uniform {
                assert_eq!(window.scored.len(), 40 - length);
            }
            assert!(*weight > 0.0);
        }
        let padding = |slot: &u32| batch.clean[*slot as usize] == data.specials.end;
        assert!(batch.scored.iter().any(padding), "padding is learned");
    }
}

/// A tokenizer that has a template's tokens, which are special.
fn tokenizer_of_chats() -> tokenizers::Tokenizer {
    let mut tokenizer = Data::prepare(&Case::on_pairs().config, None)
        .unwrap()
        .tokenizer;
    let tokens = ["<|user|>", "<|assistant|>", "<|eot|>"];
    let tokens = tokens.map(|token| tokenizers::AddedToken::from(token, true));
    tokenizer.add_special_tokens(tokens).unwrap();
    tokenizer
}

#[test]
fn a_rendered_template_has_the_tokens_in_training_that_it_has_in_serving() {
    let mut case = Case::on_pairs();
    case.config.vocab_size = None;
    let prompt = "<|user|>\nWhat is the cat like?<|eot|>\n<|assistant|>\n";
    let answer = "It is red.<|eot|>";
    let line = serde_json::json!({"prompt": prompt, "answer": answer}).to_string();
    fs::write(case.config.pairs.clone().unwrap(), line).unwrap();
    let data = Data::prepare(&case.config, Some(tokenizer_of_chats())).unwrap();
    let served = data.tokenizer.to_string(false).unwrap();
    let served = HfTokenizer::from_bytes(served.as_bytes()).unwrap();
    let mut expected = served.encode(prompt).unwrap();
    for token in ["<|user|>", "<|eot|>", "<|assistant|>"] {
        assert!(expected.contains(&data.tokenizer.token_to_id(token).unwrap()));
    }
    expected.extend(served.encode_continuation(answer).unwrap());
    assert_eq!(
        data.tokenizer.token_to_id("<|eot|>").as_ref(),
        expected.last()
    );
    expected.resize(case.config.context, data.specials.end);
    assert_eq!(data.train.tokens(), expected);
}

#[test]
fn a_mask_token_in_a_pair_is_refused_by_line_and_field() {
    for field in ["prompt", "answer"] {
        let case = Case::on_pairs();
        let mut pair = serde_json::json!({"prompt": "a", "answer": "b"});
        pair[field] = "the <|mask|>".into();
        fs::write(&case.config.valid, format!("{}{pair}\n", pairs(4))).unwrap();
        let error = case.fails();
        let expected = format!("valid.jsonl, line 5: {field} holds the mask token <|mask|>");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn a_pair_weighs_as_much_as_another_whatever_its_prompts_length() {
    // The weights of an answer's masked tokens sum to as much as those of a whole window: LLaDA's loss is
    // the mean over pairs of the mean over an answer's tokens.
    let mut case = Case::on_pairs();
    case.config.batch = 4096;
    let data = Data::prepare(&case.config, None).unwrap();
    let batch = data.batch(&case.config, 0).unwrap();
    let weights = batch
        .scored
        .iter()
        .map(|slot| f64::from(batch.weights[*slot as usize / 40]));
    let mean = weights.sum::<f64>() / batch.tokens() as f64;
    assert!((mean - 1.0).abs() < 0.05, "{mean}");
    // A validation's loss is by token: that of a model that knows nothing is ln V.
    let mut trainer = case.trainer();
    let loss = trainer.validate().unwrap().nats_per_token;
    assert!((loss / 280f64.ln() - 1.0).abs() < 0.1, "{loss}");
    assert_eq!(
        trainer
            .data()
            .valid
            .iter()
            .map(Batch::windows)
            .sum::<usize>(),
        16
    );
}

#[test]
fn a_model_fine_tuned_on_pairs_gives_the_learned_answers_and_ends_there() {
    let mut base = Case::new();
    base.config.context = 40;
    base.config.hidden = 64;
    base.config.steps = 10;
    base.run().unwrap();
    let mut case = Case::on_pairs();
    case.config.vocab_size = None;
    case.config.hidden = 64;
    case.config.init = Some(base.config.out.clone());
    case.config.lr = 3e-3;
    case.config.steps = 800;
    let mut validations = Vec::new();
    let trained = train::run(case.config.clone(), &NEVER, |event| {
        if let Event::Validated(validation) = event {
            validations.push(validation.nats_per_token);
        }
    });
    let trained = trained.unwrap();
    assert_eq!(trained.shape().vocab, 300, "the checkpoint's tokenizer");
    let (first, last) = (validations[0], validations[validations.len() - 1]);
    assert!(last < 0.25 * first, "{validations:?}");
    for (animal, colour) in [
        ("cat", "red"),
        ("dog", "blue"),
        ("bear", "green"),
        ("fox", "grey"),
    ] {
        let prompt = format!("What is the {animal} like? ");
        // A whole window, as in training: the slots after the answer are the end.
        let encoded = trained.data().tokenizer.encode(prompt.as_str(), false);
        let gap = (40 - encoded.unwrap().len()).to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["generate", &prompt, "--gap", &gap, "--model"])
            .arg(&case.config.out)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, format!("{prompt}It is {colour}.\n"));
    }

    case.config.resume = true;
    assert_eq!(case.run().unwrap().progress().step, 800);
    case.config.truncate_pairs = true;
    assert!(case.fails().contains("cannot resume: truncate-pairs"));
}

#[test]
fn lines_that_are_no_pairs_are_refused_by_number() {
    let good = pairs(2);
    for (third, says) in [
        ("{\"prompt\": \"a\"}", "missing field `answer`"),
        (
            "{\"prompt\": \"a\", \"answer\": \"b\", \"text\": \"c\"}",
            "unknown field `text`",
        ),
        (
            "{\"prompt\": 5, \"answer\": \"b\"}",
            "invalid type: integer `5`",
        ),
        ("", "EOF"),
        ("[\"a\", \"b\"]", "it is a list; a line is {\"prompt\""),
        ("1", "line is {\"prompt\""),
        ("{\"prompt\": \"a\", \"answer\": \"\"}", "answer is empty"),
    ] {
        let case = Case::on_pairs();
        let file = case.config.pairs.clone().unwrap();
        fs::write(file, format!("{good}{third}\n{good}")).unwrap();
        let error = case.fails();
        assert!(
            error.contains("train.jsonl, line 3: ") && error.contains(says),
            "{error}"
        );
    }
    let case = Case::on_pairs();
    fs::write(&case.config.valid, "").unwrap();
    assert!(case.fails().contains("valid.jsonl holds no documents"));
}

#[test]
fn a_pair_longer_than_the_window_is_refused_or_cut_off_when_asked() {
    let mut case = Case::on_pairs();
    let file = case.config.pairs.clone().unwrap();
    let long = serde_json::json!({"prompt": "Tell. ", "answer": "It is red. ".repeat(30)});
    fs::write(&file, format!("{}{long}\n", pairs(120))).unwrap();
    let error = case.fails();
    assert!(
        error.contains("line 121") && error.contains("the window 40"),
        "{error}"
    );
    assert!(error.contains("--truncate-pairs"), "{error}");
    case.config.truncate_pairs = true;
    let data = Data::prepare(&case.config, None).unwrap();
    let last = &data.train.tokens()[120 * 40..];
    assert!(
        !last.contains(&data.specials.end),
        "cut off: it does not end there"
    );

    let prompt = serde_json::json!({"prompt": "Is it red? ".repeat(30), "answer": "Yes."});
    fs::write(&file, format!("{}{prompt}\n", pairs(120))).unwrap();
    let error = case.fails();
    assert!(error.contains("line 121: the prompt alone has"), "{error}");
}

#[test]
fn settings_that_mean_nothing_with_or_without_pairs_are_refused() {
    type Change = fn(&mut TrainConfig);
    let changes: [(&str, Change); 3] = [
        ("pairs is given; allowed: data or pairs, not both", |c| {
            c.data = vec![c.valid.clone()]
        }),
        ("packing is documents; allowed: stream", |c| {
            c.packing = Packing::Documents
        }),
        ("data is empty; allowed: one file or more, or pairs", |c| {
            c.pairs = None
        }),
    ];
    for (expected, change) in changes {
        let mut case = Case::on_pairs();
        change(&mut case.config);
        let error = case.fails();
        assert!(error.contains(expected), "{error}");
    }
    let mut case = Case::new();
    case.config.truncate_pairs = true;
    assert!(
        case.fails()
            .contains("truncate-pairs is true; allowed: false")
    );
}
