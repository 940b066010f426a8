//! Documents, and the bound over them.

use unmask::eval::likelihood::{Estimator, Settings};
use unmask::eval::{Corpus, EvalError, Measure, Selection, bound};
use unmask::models::Denoiser;
use unmask::text::{ByteTokenizer, HfTokenizer};

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

    let fewer = Selection {
        documents: 2,
        windows: 2,
        context: None,
    };
    let corpus = Corpus::new(&texts, &ByteTokenizer::default(), &spec, &fewer).unwrap();
    assert_eq!((corpus.skipped, corpus.windows().count()), (1, 2));
}

#[test]
fn documents_that_cannot_be_evaluated_are_refused_with_the_reason() {
    let spec = MockModel::new().spec().clone();
    let refuse = |text: &str, context| {
        let selection = Selection {
            documents: 1,
            windows: 1,
            context,
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
