//! Classifier-free guidance away from a negative prompt.

use candle_core::{Device, Tensor};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Cache, CachePolicy, DecodePlan};
use unmask::engine::SubmitError;
use unmask::models::Denoiser;

use crate::finish;
use crate::support::{TOLERANCE, engine, load, logits};

const PROMPT: [TokenId; 5] = [40, 7, 93, 12, 5];
const SUFFIX: [TokenId; 2] = [33, 8];
const GAP: usize = 6;

/// Logits of each slot of a text.
fn of_text(model: &dyn Denoiser, text: &[TokenId]) -> Vec<Vec<f32>> {
    let ids: Vec<i64> = text.iter().map(|token| i64::from(*token)).collect();
    let ids = Tensor::from_vec(ids, (1, text.len()), &Device::Cpu).unwrap();
    let logits = logits(model, &ids, None, &[None]);
    logits.squeeze(0).unwrap().to_vec2().unwrap()
}

#[test]
fn the_logits_are_led_away_from_those_of_the_canvas_with_the_negative_prompt() {
    for family in ["llada", "dream"] {
        let model = load(family);
        let spec = model.spec();
        let mask = spec.mask_token().unwrap();
        let engine = engine(family);
        for negative in [
            &[][..],
            &[9, 61],
            &PROMPT,
            &[3, 1, 4, 1, 59, 26, 5, 35, 8, 97],
        ] {
            if negative.is_empty() && spec.logit_shift > 0 {
                continue;
            }
            let scale = 1.5;
            let mut plan = DecodePlan {
                steps: Some(1),
                ..DecodePlan::default()
            };
            plan.sampling.guidance_scale = scale;
            plan.sampling.negative_prompt = Some(negative.to_vec());
            let canvas = Canvas::builder(mask)
                .fixed(&PROMPT)
                .gap(GAP)
                .fixed(&SUFFIX)
                .build()
                .unwrap();
            let finished = finish(engine.submit(canvas, &plan).unwrap()).unwrap();
            let text = |prompt: &[TokenId]| [prompt, &[mask; GAP], &SUFFIX].concat();
            let conditional = of_text(&*model, &text(&PROMPT));
            let unconditional = of_text(&*model, &text(negative));
            for at in 0..GAP {
                let row = |prompt: usize| (prompt + at).saturating_sub(spec.logit_shift);
                let (c, u) = (
                    &conditional[row(PROMPT.len())],
                    &unconditional[row(negative.len())],
                );
                let guided: Vec<f64> = c
                    .iter()
                    .zip(u)
                    .map(|(c, u)| f64::from(*u) + (f64::from(scale) + 1.0) * f64::from(c - u))
                    .collect();
                let best = (0..guided.len())
                    .filter(|token| *token != mask as usize)
                    .max_by(|a, b| guided[*a].total_cmp(&guided[*b]))
                    .unwrap();
                let total: f64 = guided
                    .iter()
                    .map(|logit| (logit - guided[best]).exp())
                    .sum();
                let commit = finished.provenance(PROMPT.len() + at).unwrap();
                assert_eq!(
                    commit.token as usize, best,
                    "{family}, slot {at} of {negative:?}"
                );
                let difference = (f64::from(commit.probability) - 1.0 / total).abs();
                assert!(difference < f64::from(TOLERANCE), "{family}: {difference}");
            }
        }
    }
}

#[test]
fn away_from_the_prompt_itself_nothing_is_led() {
    for family in ["llada", "dream", "sdar", "mdlm"] {
        let engine = engine(family);
        let spec = engine.spec();
        let mut plan = spec.default_plan.clone();
        plan.sampling.temperature = 1.0;
        plan.sampling.seed = 3;
        plan.cache = Cache {
            policy: CachePolicy::None,
            refresh: None,
        };
        let canvas = Canvas::builder(engine.blank()).fixed(&PROMPT).gap(GAP);
        let canvas = spec.with_scratch(&plan, canvas.build().unwrap());
        let unguided = finish(engine.submit(canvas.clone(), &plan).unwrap()).unwrap();
        plan.sampling.guidance_scale = 2.0;
        plan.sampling.negative_prompt = Some(PROMPT.to_vec());
        let guided = finish(engine.submit(canvas.clone(), &plan).unwrap()).unwrap();
        assert!(guided.tokens().eq(unguided.tokens()), "{family}");
        plan.sampling.negative_prompt = Some(vec![77; 9]);
        let other = finish(engine.submit(canvas, &plan).unwrap()).unwrap();
        assert!(!other.tokens().eq(unguided.tokens()), "{family}");
    }
}

#[test]
fn where_a_slot_is_scored_by_the_one_before_it_no_prompt_is_empty() {
    let engine = engine("dream");
    let mut plan = DecodePlan::default();
    plan.sampling.guidance_scale = 1.0;
    for (prompt, negative) in [(&PROMPT[..], &[][..]), (&[], &PROMPT), (&[], &[])] {
        plan.sampling.negative_prompt = Some(negative.to_vec());
        let canvas = Canvas::builder(engine.blank()).fixed(prompt).gap(GAP);
        let error = engine.submit(canvas.build().unwrap(), &plan).unwrap_err();
        assert!(
            matches!(&error, SubmitError::Plan(error) if error.field() == "negative_prompt"),
            "{error}"
        );
    }
}

#[test]
fn a_negative_prompt_has_to_fit_and_to_have_an_effect() {
    let engine = engine("llada");
    let spec = engine.spec();
    let canvas = Canvas::builder(engine.blank()).fixed(&PROMPT).gap(GAP);
    let canvas = canvas.build().unwrap();
    let mut plan = DecodePlan::default();
    plan.sampling.negative_prompt = Some(vec![1; spec.max_canvas - GAP]);
    let refused = |plan: &DecodePlan| engine.submit(canvas.clone(), plan).unwrap_err();
    assert!(
        matches!(refused(&plan), SubmitError::Plan(error) if error.field() == "negative_prompt")
    );
    plan.sampling.guidance_scale = 1.0;
    engine.submit(canvas.clone(), &plan).unwrap();
    plan.cache.policy = CachePolicy::Dual;
    assert!(matches!(refused(&plan), SubmitError::Plan(error) if error.field() == "cache.policy"));
    plan.cache.policy = CachePolicy::Auto;
    plan.sampling.negative_prompt = Some(vec![1; spec.max_canvas - GAP + 1]);
    let error = refused(&plan);
    assert!(
        matches!(error, SubmitError::NegativePromptTooLong { .. }),
        "{error}"
    );
    plan.sampling.negative_prompt = Some(vec![spec.vocab_size as TokenId]);
    let error = refused(&plan);
    assert!(matches!(error, SubmitError::UnknownToken { .. }), "{error}");
}
