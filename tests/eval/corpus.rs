//! Documents, and the bound over them.

use std::error::Error;

use unmask::canvas::TokenId;
use unmask::eval::likelihood::{Estimator, Settings};
use unmask::eval::{Corpus, EvalError, Measure, Selection, Window, bound};
use unmask::models::Denoiser;
use unmask::text::{ByteTokenizer, HfTokenizer, TextError, Tokenizer};

use crate::oracle::Oracle;
use crate::support::golden;
use crate::support::mock::MockModel;
use crate::{load, texts};

/// A corpus of the golden tokenizer: three documents, and one that is too short.
fn text_corpus(model: &dyn Denoiser, context: usize) -> Corpus {
    let tokenizer = HfTokenizer::from_file(&golden("llada").join("tokenizer.json")).unwrap();
    let selection = Selection {
        documents: 10,
        windows: 2,
        context: Some(context),
        refuse_long_documents: false,
        seed: 0,
    };
    Corpus::new(&texts(), &tokenizer, model.spec(), &selection).unwrap()
}

#[test]
fn both_estimators_agree_on_a_corpus() {
    let model = load();
    let corpus = text_corpus(&*model, 40);
    let [count, time] = Estimator::ALL.map(|estimator| {
        let settings = Settings {
            estimator,
            groups: 12,
            ..Settings::default()
        };
        bound::evaluate(&*model, &corpus, &settings, &mut |_| ()).unwrap()
    });
    let error = |bound: &bound::Bound| bound.monte_carlo_error.unwrap();
    let apart = (count.nats_per_token.value - time.nats_per_token.value).abs();
    let allowed = 3.0 * (error(&count).powi(2) + error(&time).powi(2)).sqrt();
    assert!(apart < allowed && allowed < 0.5, "{apart} {allowed}");
    let ends = |measure: Measure| (measure.low.unwrap(), measure.high.unwrap());
    let (low, high) = ends(count.nats_per_token);
    assert!(low < count.nats_per_token.value && count.nats_per_token.value < high);
    assert_eq!(ends(count.perplexity_bound), (low.exp(), high.exp()));
    // The text has characters of two bytes.
    assert!(count.bits_per_byte.value < count.bits_per_character.value);
}

#[test]
fn a_seed_decides_every_draw_and_another_seed_decides_others() {
    let model = load();
    let corpus = text_corpus(&*model, 24);
    let run = |seed| {
        let settings = Settings {
            groups: 1,
            strata: 4,
            seed,
            ..Settings::default()
        };
        bound::evaluate(&*model, &corpus, &settings, &mut |_| ()).unwrap()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn the_first_token_of_a_window_is_given_where_no_row_before_it_predicts_it() {
    let mut spec = MockModel::new().spec().clone();
    spec.logit_shift = 1;
    let texts = vec!["abcdefg".to_owned(), "é".to_owned()];
    let mut selection = Selection {
        documents: 2,
        windows: 9,
        context: Some(3),
        refuse_long_documents: false,
        seed: 0,
    };
    let corpus = Corpus::new(&texts, &ByteTokenizer::default(), &spec, &selection).unwrap();
    let scored: Vec<_> = corpus
        .windows()
        .map(|(_, window)| (window.target.tokens.len(), window.target.slots.clone()))
        .collect();
    let two = (2, vec![1]);
    assert_eq!(scored, [two.clone(), two.clone(), (3, vec![1, 2]), two]);
    let bytes: Vec<usize> = corpus.windows().map(|(_, window)| window.bytes).collect();
    assert_eq!(bytes, [1, 1, 2, 1]);
    selection.context = Some(2);
    let error = Corpus::new(&texts, &ByteTokenizer::default(), &spec, &selection).unwrap_err();
    assert_eq!(
        error.to_string(),
        "context is 2; allowed: 3 to the model's context of 64 tokens"
    );
}

#[test]
fn documents_are_cut_into_equal_windows_that_leave_nothing_out() {
    let spec = MockModel::new().spec().clone();
    let texts = vec![
        "a".repeat(100),
        "é".to_owned(),
        "b".to_owned(),
        "c".repeat(64),
    ];
    let selection = Selection {
        documents: 4,
        windows: 9,
        context: Some(30),
        refuse_long_documents: false,
        seed: 0,
    };
    let corpus = Corpus::new(&texts, &ByteTokenizer::default(), &spec, &selection).unwrap();
    let lengths = |document: usize| -> Vec<usize> {
        let windows = &corpus.documents[document].windows;
        windows.iter().map(|window| window.bytes).collect()
    };
    assert_eq!((corpus.skipped, corpus.documents.len()), (1, 3));
    assert_eq!(lengths(0), [25, 25, 25, 25]);
    assert_eq!(lengths(1), [2]);
    assert_eq!(corpus.documents[1].windows[0].characters, 1);
    assert_eq!(lengths(2), [21, 21, 22]);
    assert_eq!(corpus.documents[2].index, 3);
    let weights: Vec<usize> = corpus.windows().map(|(_, window)| window.weight).collect();
    assert_eq!(weights, [1; 8]);
    let available: Vec<usize> = corpus.documents.iter().map(|d| d.available).collect();
    assert_eq!(available, [4, 1, 3]);
}

/// Documents of bytes, cut into windows of 8, few of which are chosen by the seed.
fn sampled(texts: &[String], documents: usize, windows: usize, seed: u64) -> Corpus {
    let selection = Selection {
        documents,
        windows,
        context: Some(8),
        refuse_long_documents: false,
        seed,
    };
    let spec = MockModel::new().spec().clone();
    Corpus::new(texts, &ByteTokenizer::default(), &spec, &selection).unwrap()
}

#[test]
fn the_seed_chooses_one_window_from_every_part_of_a_document_and_one_document_from_every_part() {
    // Window n is eight times the byte n, of a document of 60; six documents.
    let text: String = (0..60u8).flat_map(|n| [char::from(n); 8]).collect();
    let texts = vec![text; 6];
    let (mut first, runs) = (0, 300);
    for seed in 0..runs {
        let corpus = sampled(&texts, 2, 3, seed);
        assert_eq!(corpus, sampled(&texts, 2, 3, seed));
        let documents: Vec<usize> = corpus.documents.iter().map(|d| d.index).collect();
        assert!(
            documents[0] < 3 && (3..6).contains(&documents[1]) && documents.len() == 2,
            "{documents:?}"
        );
        for document in &corpus.documents {
            assert_eq!((document.windows.len(), document.available), (3, 60));
            for (part, window) in document.windows.iter().enumerate() {
                let place = window.target.tokens[0] as usize;
                assert_eq!(place / 20, part);
                assert_eq!(window.weight, 3 * 20);
                first += usize::from(place == 0);
            }
        }
    }
    // Binomial(600, 1/20): mean 30, standard deviation 5.3.
    assert!((10..50).contains(&first), "{first} of {runs} seeds");
}

#[test]
fn few_windows_estimate_the_mean_over_all_tokens_of_the_documents() {
    // A model that expects nothing but a.
    let model = Oracle::new(&[b'a'; 8], 6.0, 0);
    let nats = |texts: &[String], windows, seed| {
        let corpus = sampled(texts, 8, windows, seed);
        let settings = Settings {
            groups: 1,
            strata: 1,
            ..Settings::default()
        };
        let bound = bound::evaluate(&model, &corpus, &settings, &mut |_| ()).unwrap();
        bound.nats_per_token.value
    };
    let of = |text: &str| nats(&[text.to_owned()], 1, 0);
    let (a, b) = (of("aaaaaaaa"), of("bbbbbbbb"));
    assert!(b - a > 5.9, "{a} {b}");

    // Three quarters of all tokens are in the long document, whatever is taken of it.
    let lengths = [("a", 40), ("a", 80), ("b", 360)];
    let texts = lengths.map(|(letter, length)| letter.repeat(length));
    for (windows, seed) in [(1, 0), (2, 1), (7, 2), (100, 3)] {
        let got = nats(&texts, windows, seed);
        assert!((got - (a + 3.0 * b) / 4.0).abs() < 1e-4, "{windows}: {got}");
    }

    // A quarter of each document is an opening that the model expects.
    let texts = vec!["a".repeat(32) + &"b".repeat(96); 8];
    let exact = nats(&texts, 100, 0);
    assert!((exact - (a + 3.0 * b) / 4.0).abs() < 1e-4, "{exact}");
    let runs = 40;
    let mean = (0..runs).map(|seed| nats(&texts, 1, seed)).sum::<f64>() / runs as f64;
    // The share of 320 windows that are openings: standard deviation 0.024, of nats 6 times that.
    assert!((mean - exact).abs() < 0.6, "{mean} {exact}");
}

#[test]
fn the_bytes_of_windows_are_those_of_their_document() {
    let tokenizer = HfTokenizer::from_file(&golden("llada").join("tokenizer.json")).unwrap();
    let texts: Vec<String> = [
        "A <|mdm_mask|> and <|endoftext|>, <|startoftext|>s as well, are text here. ".repeat(5),
        "<|endoftext|>".to_owned(),
        "caf\u{e9} \u{1f642}\n\n\tand  spaces ".repeat(20),
    ]
    .to_vec();
    let selection = Selection {
        documents: 9,
        windows: 99,
        context: Some(16),
        refuse_long_documents: false,
        seed: 0,
    };
    let corpus = Corpus::new(&texts, &tokenizer, load().spec(), &selection).unwrap();
    for (document, text) in corpus.documents.iter().zip(&texts) {
        let sum = |of: fn(&Window) -> usize| document.windows.iter().map(of).sum::<usize>();
        assert_eq!(sum(|window| window.bytes), text.len());
        assert_eq!(sum(|window| window.characters), text.chars().count());
    }
    assert_eq!(corpus.documents.len(), 3);
}

/// A tokenizer that gives every document a token which the model has not.
struct Foreign;

impl Tokenizer for Foreign {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode_as_text(text)
    }

    fn encode_as_text(&self, _: &str) -> Result<Vec<TokenId>, TextError> {
        Ok(vec![1, 999])
    }

    fn bytes(&self, _: TokenId) -> &[u8] {
        b"x"
    }

    fn longest_token(&self) -> Option<usize> {
        None
    }
}

#[test]
fn what_is_wrong_with_a_document_is_said_once() {
    let spec = MockModel::new().spec().clone();
    let selection = Selection {
        documents: 1,
        windows: 1,
        context: None,
        refuse_long_documents: false,
        seed: 0,
    };
    let error = Corpus::new(&["text".to_owned()], &Foreign, &spec, &selection).unwrap_err();
    assert_eq!(error.to_string(), "document 1 cannot be evaluated");
    let reason = error.source().unwrap().to_string();
    assert!(
        reason.starts_with("token 1 of the sequence is 999"),
        "{reason}"
    );
}

#[test]
fn a_document_longer_than_the_context_is_cut_or_refused_by_its_number() {
    let spec = MockModel::new().spec().clone();
    let texts = ["short".to_owned(), "longer than eight".to_owned()];
    let evaluate = |refuse_long_documents, context| {
        let selection = Selection {
            documents: 2,
            windows: 9,
            context: Some(context),
            refuse_long_documents,
            seed: 0,
        };
        Corpus::new(&texts, &ByteTokenizer::default(), &spec, &selection)
    };
    let cut = evaluate(false, 8).unwrap();
    let windows = cut.documents.iter().map(|document| document.windows.len());
    assert_eq!(windows.collect::<Vec<_>>(), [1, 3]);
    let error = evaluate(true, 8).unwrap_err().to_string();
    let expected = "document 2 of the evaluated text is 17 tokens long, and the context 8: ";
    assert!(error.starts_with(expected), "{error}");
    assert!(error.contains("--refuse-long-documents"), "{error}");
    assert_eq!(evaluate(true, 17).unwrap().documents.len(), 2);
}

#[test]
fn documents_that_cannot_be_evaluated_are_refused_with_the_reason() {
    let spec = MockModel::new().spec().clone();
    let refuse = |text: &str, context| {
        let selection = Selection {
            documents: 1,
            windows: 1,
            context,
            refuse_long_documents: false,
            seed: 0,
        };
        let texts = [text.to_owned()];
        Corpus::new(&texts, &ByteTokenizer::default(), &spec, &selection).unwrap_err()
    };
    assert!(matches!(
        refuse("a", None),
        EvalError::NoDocuments { skipped: 1 }
    ));
    for context in [1, 65] {
        assert_eq!(
            refuse("abc", Some(context)).to_string(),
            format!("context is {context}; allowed: 2 to the model's context of 64 tokens")
        );
    }
}
