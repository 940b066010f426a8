//! A model that denoises blocks after what its encoder has read: of it nothing is measured, and the reason is said.

use std::process::Command;

use unmask::canvas::TokenId;
use unmask::engine::{Engine, EngineConfig};
use unmask::eval::likelihood::{Estimator, Settings, estimate};
use unmask::eval::{
    Corpus, EvalError, Selection, Target, check, infill, reason_against_guidance,
    reason_against_spans, speed,
};
use unmask::text::ByteTokenizer;

use crate::support::{golden, load};
use crate::texts;

const NAME: &str = "diffusion_gemma";

/// Why its likelihood is not bounded.
const NOT_PUBLISHED: &str = "its blocks are denoised after what an encoder left of those before them, and the process \
                             that it was trained on is not published";

/// Why it fills no spans.
const UNSEEN: &str =
    "a span's right side is unseen by a model that denoises one block after what an encoder read";

fn reason(error: EvalError) -> &'static str {
    match error {
        EvalError::Unsupported { family, reason } => {
            assert_eq!(family, NAME);
            reason
        }
        other => panic!("{other}"),
    }
}

#[test]
fn no_bound_of_its_likelihood_is_given_guided_or_not() {
    let model = load(NAME);
    assert_eq!(reason(check(model.spec()).unwrap_err()), NOT_PUBLISHED);
    let tokens: Vec<TokenId> = (1..13).collect();
    let target = Target::after_prompt(&tokens[..4], &tokens[4..]);
    for guidance_scale in [0.0, 1.5] {
        let settings = Settings {
            estimator: Estimator::ContinuousTime,
            guidance_scale,
            ..Settings::default()
        };
        let error = estimate(&*model, &[&target], &settings, &mut |_| ()).unwrap_err();
        assert_eq!(reason(error), NOT_PUBLISHED);
    }
    let exact = estimate(&*model, &[&target], &Settings::default(), &mut |_| ()).unwrap_err();
    assert!(reason(exact).contains("noise level"));
    let against_guidance = reason_against_guidance(model.spec()).unwrap();
    assert!(against_guidance.contains("which this model's encoder reads, and it knows no mask"));
}

#[test]
fn no_span_is_filled_by_one_forward_by_the_default_plan_or_at_a_threshold() {
    let model = load(NAME);
    assert_eq!(reason_against_spans(model.spec()), Some(UNSEEN));
    let selection = Selection {
        documents: 2,
        windows: 1,
        context: Some(16),
        refuse_long_documents: false,
        seed: 0,
    };
    let corpus = Corpus::new(
        &texts(),
        &ByteTokenizer::default(),
        model.spec(),
        &selection,
    );
    let corpus = corpus.unwrap();
    let settings = infill::Settings {
        mask_rates: vec![0.5],
        span: 1,
        decode_windows: 1,
        seed: 0,
    };
    let error = infill::one_forward(&*model, &corpus, &settings, &mut |_| ()).unwrap_err();
    assert_eq!(reason(error), UNSEEN);
    let engine = Engine::start(model, EngineConfig::unshared()).unwrap();
    let error = infill::decoded(&engine, &corpus, &settings, &mut |_| ()).unwrap_err();
    assert_eq!(reason(error), UNSEEN);
    let settings = speed::Settings {
        thresholds: vec![0.9],
        mask_rate: 0.5,
        span: 1,
        decode_windows: 1,
        seed: 0,
    };
    let error = speed::evaluate(&engine, &corpus, &settings, &mut |_| ()).unwrap_err();
    assert_eq!(reason(error), UNSEEN);
}

#[test]
fn the_command_refuses_it_whatever_is_to_be_measured() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.zst");
    let texts = texts().join("\n<|doc|>\n");
    std::fs::write(&text, zstd::encode_all(texts.as_bytes(), 1).unwrap()).unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    std::fs::write(&pairs, r#"{"prompt": "a", "answer": "b"}"#).unwrap();
    let [text, pairs] = [&text, &pairs].map(|path| path.to_str().unwrap());
    for options in [
        vec!["--data", text],
        vec!["--data", text, "--parts", "likelihood"],
        vec!["--data", text, "--parts", "infill"],
        vec!["--data", text, "--parts", "speed"],
        vec!["--data", text, "--estimators", "exact-count"],
        vec!["--pairs", pairs, "--guidance-scale", "1"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["eval", "--device", "cpu", "--model"])
            .arg(golden(NAME))
            .args(&options)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{options:?}");
        assert!(errors.contains(NOT_PUBLISHED), "{options:?}: {errors}");
    }
}
