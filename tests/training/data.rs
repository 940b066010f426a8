use super::*;

#[test]
fn moving_text_from_training_to_validation_is_other_data() {
    let case = Case::new();
    let given = case.trainer().data().tokenizer.clone();
    let fingerprint = |train: &[&str], valid: &[&str]| {
        let long = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| text.repeat(9)).collect();
            texts.join("\n<|doc|>\n")
        };
        fs::write(&case.config.data[0], long(train)).unwrap();
        fs::write(&case.config.valid, long(valid)).unwrap();
        let data = Data::prepare(&case.config, Some(given.clone())).unwrap();
        data.fingerprint
    };
    let (a, b, c) = ("the cat sees the river. ", "my sister. ", "le héros. ");
    let first = fingerprint(&[a, b], &[c]);
    assert_eq!(first, fingerprint(&[a, b], &[c]));
    assert_ne!(first, fingerprint(&[a], &[b, c]));
}

#[test]
fn a_tokenizer_that_no_model_can_use_is_refused() {
    let mut case = Case::new();
    case.config.steps = 1;
    case.run().unwrap();
    let good = json(&case.config.out.join("tokenizer.json"));
    case.config.out = case.path("second");
    case.config.vocab_size = None;
    let file = case.path("tokenizer.json");
    case.config.tokenizer = Some(file.clone());
    let fails = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut bad = good.clone();
        change(bad["model"]["vocab"].as_object_mut().unwrap());
        fs::write(&file, bad.to_string()).unwrap();
        case.run().map(|_| ()).unwrap_err()
    };
    let vocabulary = good["model"]["vocab"].as_object().unwrap();
    let last = vocabulary.iter().find(|(_, id)| **id == 299).unwrap().0;

    let hole = fails(&|vocab| vocab[last] = 400.into());
    assert!(
        matches!(
            hole,
            TrainError::TokenizerIds {
                tokens: 300,
                largest_id: 400,
                ..
            }
        ),
        "{hole}"
    );
    assert!(hole.to_string().contains("0 to 299"), "{hole}");
    let words = fails(&|vocab| {
        vocab.insert("▁word".into(), 300.into());
    });
    assert!(words.to_string().contains("not byte-level"), "{words}");
    let letter = fails(&|vocab| {
        let id = vocab.remove("~").unwrap();
        vocab.insert("~~".into(), id);
    });
    assert!(letter.to_string().contains("the byte 0x7e"), "{letter}");
}

#[test]
fn a_tokenizer_can_be_taken_from_another_run() {
    let mut first = Case::new();
    first.config.steps = 1;
    first.run().unwrap();
    let mut second = Case::new();
    second.config.steps = 1;
    second.config.vocab_size = None;
    second.config.tokenizer = Some(first.config.out.join("tokenizer.json"));
    assert_eq!(second.run().unwrap().shape().vocab, 300);

    let mut other = Case::new();
    other.config.vocab_size = Some(310);
    other.config.tokenizer = second.config.tokenizer.clone();
    let error = other.fails();
    assert!(
        error.contains("vocab-size is 310") && error.contains("300"),
        "{error}"
    );
}

#[test]
fn zstd_and_plain_text_are_the_same_corpus() {
    let case = Case::new();
    let plain = case.trainer().data().fingerprint;
    let text = fs::read(&case.config.data[0]).unwrap();
    fs::write(
        &case.config.data[0],
        zstd::encode_all(text.as_slice(), 3).unwrap(),
    )
    .unwrap();
    assert_eq!(case.trainer().data().fingerprint, plain);
}
