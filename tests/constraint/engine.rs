//! What holds of an engine that is given constraints.

use std::sync::Arc;

use serde_json::json;
use unmask::canvas::{Canvas, TokenId};
use unmask::constraint::{
    ByteDfa, CanvasConstraint, ConstraintError, GapConstraint, STEP_WORK, TokenDfa,
};
use unmask::decode::{
    Budget, Candidate, DecodePlan, Decoder, EarlyStop, Remasking, Revision, Score, StopTokens,
    preset,
};
use unmask::engine::{EngineConfig, Event, StepReport, Submission, SubmitError};
use unmask::models::Corruption;
use unmask::sampling::LogitBias;

use crate::babbler::{Babbler, MASK, STOP, bytes, constrained, denoise, text, vocabulary};
use crate::random::mix;

fn language(pattern: &str) -> Arc<TokenDfa> {
    let language = ByteDfa::regex(pattern).unwrap();
    Arc::new(TokenDfa::new(language, vocabulary()).unwrap())
}

fn plan(seed: u64) -> DecodePlan {
    let mut plan = DecodePlan::default();
    plan.sampling.temperature = 1.0;
    plan.sampling.seed = seed;
    plan
}

/// A plan of each kind.
fn plans() -> Vec<DecodePlan> {
    let mut plans = vec![
        DecodePlan {
            steps: Some(1),
            ..plan(1)
        },
        DecodePlan {
            steps: Some(5),
            score: Score::LeftToRight,
            ..plan(2)
        },
        DecodePlan {
            block_length: Some(4),
            steps: Some(10),
            ..plan(3)
        },
        DecodePlan {
            budget: Budget::Threshold(0.0),
            ..plan(4)
        },
        DecodePlan {
            budget: Budget::EntropyBound(3.0),
            score: Score::Random,
            ..plan(5)
        },
        DecodePlan {
            budget: Budget::Ancestral { eps: 0.001 },
            steps: Some(7),
            ..plan(6)
        },
        DecodePlan {
            budget: Budget::Ancestral { eps: 0.001 },
            steps: Some(9),
            revision: Revision::Remask(Remasking::Cap(0.4)),
            ..plan(7)
        },
        DecodePlan {
            revision: Revision::Edit {
                threshold: 0.0,
                max_post_steps: 4,
            },
            steps: Some(6),
            ..plan(8)
        },
        DecodePlan {
            block_length: Some(3),
            early_stop: EarlyStop::AfterBlock,
            ..plan(9)
        },
        DecodePlan {
            early_stop: EarlyStop::AtOnce,
            ..plan(10)
        },
    ];
    let mut greedy = plan(11);
    greedy.sampling.temperature = 0.0;
    greedy.steps = Some(3);
    plans.push(greedy);
    let mut filtered = plan(12);
    filtered.sampling.top_k = Some(2);
    filtered.sampling.top_p = Some(0.5);
    plans.push(filtered);
    plans
}

#[test]
fn by_every_plan_a_gap_holds_a_text_of_its_language() {
    let engine = Babbler::engine();
    let language = language(r#"\{"name": "[a-z é]{3,9}"(, "age": [1-9][0-9]{0,2})?\}"#);
    let canvas = Canvas::builder(MASK).fixed(&[65]).gap(32).build().unwrap();
    for (index, plan) in plans().iter().enumerate() {
        for seed in 0..8 {
            let mut plan = plan.clone();
            plan.sampling.seed += 100 * seed;
            let constraint = constrained(&canvas, &plan, &[(0, language.clone())]);
            let (_, finished) = denoise(&engine, &canvas, &plan, Some(constraint));
            let text = text(&finished, 0);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let name = value["name"].as_str().unwrap();
            assert!(
                (3..=9).contains(&name.chars().count()),
                "plan {index}: {text}"
            );
        }
    }
}

#[test]
fn at_every_step_the_gap_can_be_completed() {
    let engine = Babbler::engine();
    let language = language("(?:ab|ba)+(?:10|2024)?");
    let canvas = Canvas::builder(MASK).gap(12).fixed(&[65]).build().unwrap();
    for plan in plans() {
        let mut plan = plan;
        plan.sampling.stop_tokens = StopTokens::AtEnd;
        let mut check = constrained(&canvas, &plan, &[(0, language.clone())]);
        let constraint = check.clone();
        let (steps, _) = denoise(&engine, &canvas, &plan, Some(constraint));
        for step in steps {
            // An edit frees what it replaces.
            step.committed
                .iter()
                .for_each(|(slot, _)| check.free(*slot));
            for (slot, commit) in &step.committed {
                assert!(check.commit(*slot, commit.token), "{plan:?}");
            }
            step.remasked.iter().for_each(|slot| check.free(*slot));
        }
    }
}

#[test]
fn gaps_have_languages_of_their_own_and_others_none() {
    let engine = Babbler::engine();
    let canvas = Canvas::builder(MASK)
        .gap(4)
        .fixed(&[65])
        .gap(6)
        .fixed(&[66])
        .gap(5)
        .build()
        .unwrap();
    let mut plan = DecodePlan {
        steps: Some(2),
        ..plan(3)
    };
    plan.sampling.stop_tokens = StopTokens::AtEnd;
    let gaps = [(0, language("[0-9]+")), (2, language("[a-c]*"))];
    let constraint = constrained(&canvas, &plan, &gaps);
    let (_, finished) = denoise(&engine, &canvas, &plan, Some(constraint));
    assert!(text(&finished, 0).bytes().all(|byte| byte.is_ascii_digit()));
    assert!(
        text(&finished, 2)
            .bytes()
            .all(|byte| b"abc".contains(&byte))
    );
    // The gap before text has no stop token, the last may.
    assert!(
        !finished.gaps()[0]
            .clone()
            .any(|slot| finished.token(slot) == STOP)
    );
    let between: Vec<TokenId> = finished.gaps()[1]
        .clone()
        .map(|slot| finished.token(slot))
        .collect();
    let free = denoise(&engine, &canvas, &plan, None).1;
    let free: Vec<TokenId> = free.gaps()[1]
        .clone()
        .map(|slot| free.token(slot))
        .collect();
    assert_eq!(between.len(), free.len());
    assert!(
        between
            .iter()
            .any(|token| !bytes(*token).iter().all(u8::is_ascii_digit))
    );
}

#[test]
fn an_answer_is_the_same_alone_and_among_others() {
    let language = language(r#"\{"[a-z]+": ?(?:true|false|-?[0-9]+)\}"#);
    let canvas = |length| {
        Canvas::builder(MASK)
            .fixed(&[65])
            .gap(length)
            .build()
            .unwrap()
    };
    let requests: Vec<(Canvas, DecodePlan, bool)> = (0..12)
        .map(|i| {
            let plan = DecodePlan {
                steps: Some(3),
                ..plan(i)
            };
            (canvas(9 + i as usize), plan, i % 3 != 0)
        })
        .collect();
    let run = |max_sequences| -> Vec<Vec<TokenId>> {
        let config = EngineConfig {
            max_sequences,
            ..EngineConfig::default()
        };
        let engine = Babbler::engine_with(config, |_| ());
        let generations: Vec<_> = requests
            .iter()
            .map(|(canvas, plan, is_constrained)| {
                let constraint =
                    is_constrained.then(|| constrained(canvas, plan, &[(0, language.clone())]));
                engine
                    .enqueue(Submission {
                        constraint,
                        ..Submission::new(canvas.clone(), plan)
                    })
                    .unwrap()
            })
            .collect();
        generations
            .into_iter()
            .map(|mut generation| {
                loop {
                    match generation.next_blocking().unwrap() {
                        Event::Finished(canvas, _) => break canvas.tokens().collect(),
                        Event::Failed(error) => panic!("{error}"),
                        Event::Step(_) => {}
                    }
                }
            })
            .collect()
    };
    let together = run(12);
    assert_eq!(together, run(1));
    assert_eq!(together, run(5));
}

#[test]
fn what_was_put_off_is_made_up_for_after_the_plans_steps() {
    let engine = Babbler::engine();
    let canvas = Canvas::builder(MASK).gap(16).build().unwrap();
    let plan = DecodePlan {
        steps: Some(1),
        ..plan(0)
    };
    let constraint = constrained(
        &canvas,
        &plan,
        &[(0, language("a{16}|(?:ab){8}|[b-e]{16}"))],
    );
    let (steps, finished) = denoise(&engine, &canvas, &plan, Some(constraint));
    assert_eq!(finished.masked(), 0);
    let taken = |steps: &[StepReport]| steps.last().map_or(0, |report| report.statistics.steps);
    assert!((2..=16).contains(&taken(&steps)), "{}", taken(&steps));
    // Without a constraint the plan's steps are all that there are.
    assert_eq!(taken(&denoise(&engine, &canvas, &plan, None).0), 1);
}

#[test]
fn a_gap_that_no_text_fills_is_refused() {
    let canvas = Canvas::builder(MASK).gap(3).build().unwrap();
    let refused = |pattern: &str, may_end| {
        let constraint = GapConstraint {
            gap: 0,
            language: language(pattern),
            may_end,
        };
        CanvasConstraint::new(&canvas, [constraint]).err() == Some(ConstraintError::Empty)
    };
    assert!(refused("x{4}", true));
    assert!(!refused("x{3}", false));
    assert!(refused("x{2}", false));
    assert!(!refused("x{2}", true));
    let lengths = language("(?:xx){2,3}").lengths(8, false);
    let fitting: Vec<usize> = (0..=8).filter(|length| lengths[*length]).collect();
    assert_eq!(fitting, [4, 6]);
}

#[test]
fn models_of_the_uniform_process_are_not_constrained() {
    let uniform = preset::by_name("uniform-ancestral").unwrap().plan().clone();
    let engine = Babbler::engine_with(EngineConfig::default(), |spec| {
        spec.corruption = Corruption::Uniform;
        spec.default_plan = uniform.clone();
    });
    let canvas = Canvas::builder(engine.blank()).gap(3).build().unwrap();
    let constraint = constrained(&canvas, &uniform, &[(0, language("x+"))]);
    let error = engine.enqueue(Submission {
        constraint: Some(constraint),
        ..Submission::new(canvas, &uniform)
    });
    assert!(matches!(error, Err(SubmitError::CannotConstrain { .. })));
}

#[test]
fn gaps_that_change_their_length_are_not_constrained() {
    let plan = preset::by_name("dreamon").unwrap().plan().clone();
    let canvas = Canvas::builder(MASK).gap(3).build().unwrap();
    let constraint = constrained(&canvas, &plan, &[(0, language("x+"))]);
    let error = Babbler::engine().enqueue(Submission {
        constraint: Some(constraint),
        ..Submission::new(canvas, &plan)
    });
    match error {
        Err(SubmitError::Plan(error)) => assert_eq!(error.field(), "revision"),
        other => panic!("{other:?}"),
    }
}

/// A language that loops, of tokens of a byte: once the gap is longer than the period each set is as the one before
/// it, until a token is committed; what that leaves out is another state in each slot after it.
fn looping(period: usize) -> Arc<TokenDfa> {
    language(&format!("(?:[A-Z]{{1,{period}}}x)*[A-Z]*"))
}

#[test]
fn a_form_that_would_hold_up_every_step_is_refused() {
    let refused = |language, slots| {
        let canvas = Canvas::builder(MASK).gap(slots).build().unwrap();
        let constraint = GapConstraint {
            gap: 0,
            language,
            may_end: true,
        };
        let error = CanvasConstraint::new(&canvas, [constraint]).unwrap_err();
        let expected = format!("over {slots} slots may take more than");
        assert!(error.to_string().contains(&expected), "{error}");
    };
    refused(language("[a-c]{9000}"), 8000);
    // It takes little to begin with, as tokens of several bytes lead to all of it soon, and may take much later.
    refused(language("(?:[a-z ]{1,3500}X)*[a-z ]*"), 16_000);
}

#[test]
fn forms_of_everyday_use_are_taken_in_long_gaps() {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": {
                "type": "object",
                "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                "required": ["street"],
            },
            "kind": {"enum": ["a", "b", "c"]},
        },
        "required": ["name", "age"],
    });
    let forms = [
        (ByteDfa::json_object(), 2048),
        (ByteDfa::json_schema(&person), 4096),
        (
            ByteDfa::json_schema(&json!({"type": "array", "items": person})),
            4096,
        ),
        (ByteDfa::regex(r"(?:[^\n]{0,80}\n)*"), 4096),
        (ByteDfa::regex(r"[A-Z][a-z]+(?: [A-Z]?[a-z]+)*[.!?]"), 8192),
    ];
    for (form, slots) in forms {
        let language = Arc::new(TokenDfa::new(form.unwrap(), vocabulary()).unwrap());
        let canvas = Canvas::builder(MASK).gap(slots).build().unwrap();
        let constraint = GapConstraint {
            gap: 0,
            language,
            may_end: true,
        };
        assert!(CanvasConstraint::new(&canvas, [constraint]).is_ok());
    }
}

#[test]
fn the_work_of_one_token_and_of_one_step_is_counted_and_bounded() {
    const SLOTS: usize = 3000;
    let canvas = Canvas::builder(MASK).gap(SLOTS).build().unwrap();
    let plan = DecodePlan {
        steps: Some(1),
        ..plan(0)
    };
    let mut constraint = constrained(&canvas, &plan, &[(0, looping(1500))]);
    assert_eq!(constraint.work(), 0);

    let mut one = constraint.clone();
    assert!(one.commit(SLOTS / 2, TokenId::from(b'A')));
    one.allowed(0);
    one.allowed(SLOTS - 1);
    let work = one.work();
    assert!((STEP_WORK / 50..=STEP_WORK).contains(&work), "{work}");
    one.begin_step();
    assert!(one.commit(SLOTS / 2, TokenId::from(b'A')));
    assert!(one.work() < 10_000, "nothing changed: {}", one.work());

    let candidates: Vec<Candidate> = (0..SLOTS)
        .map(|slot| {
            let probability = mix(slot as u64) as f32 / u64::MAX as f32;
            Candidate {
                slot,
                token: TokenId::from(b'A'),
                probability,
                most_probable: TokenId::from(b'A'),
                best: probability,
                second: 0.0,
                entropy: 0.0,
                uniform: 0.0,
                unmasking: None,
            }
        })
        .collect();
    let mut canvas = canvas;
    let mut decoder = Decoder::new(&plan, &canvas, &[STOP]).unwrap();
    for _ in 0..2 {
        constraint.begin_step();
        let masked = |candidate: &&Candidate| canvas.is_masked(candidate.slot);
        let candidates: Vec<Candidate> = candidates.iter().filter(masked).copied().collect();
        let change = decoder.advance_within(&mut canvas, &candidates, Some(&mut constraint));
        let committed = change.committed.len();
        assert!((1..SLOTS / 2).contains(&committed), "{committed}");
        // The last token may go beyond the share, by as much as one may take.
        let work = constraint.work();
        assert!((STEP_WORK..=2 * STEP_WORK).contains(&work), "{work}");
    }
    // A step whose share is spent still commits a token.
    let masked = |candidate: &&Candidate| canvas.is_masked(candidate.slot);
    let candidates: Vec<Candidate> = candidates.iter().filter(masked).copied().collect();
    assert!(constraint.is_spent());
    let change = decoder.advance_within(&mut canvas, &candidates, Some(&mut constraint));
    assert_eq!(change.committed.len(), 1);
}

#[test]
fn an_answer_whose_steps_share_is_spent_is_the_same_alone_and_among_others() {
    const SLOTS: usize = 1500;
    let language = looping(SLOTS);
    let canvas = Canvas::builder(MASK).gap(SLOTS).build().unwrap();
    let run = |others: u64| {
        let config = EngineConfig::default();
        let engine = Babbler::engine_with(config, |spec| spec.max_canvas = SLOTS);
        let mut generations: Vec<_> = (0..=others)
            .map(|seed| {
                let mut plan = DecodePlan {
                    steps: Some(1),
                    ..plan(seed)
                };
                // Letters alone do not contradict one another, so that it is for the share that any is put off.
                let barred = [TokenId::from(b'x'), STOP].map(|token| (token, -100.0));
                plan.sampling.logit_bias = LogitBias::new(barred);
                let constraint = constrained(&canvas, &plan, &[(0, language.clone())]);
                engine
                    .enqueue(Submission {
                        constraint: Some(constraint),
                        ..Submission::new(canvas.clone(), &plan)
                    })
                    .unwrap()
            })
            .collect();
        loop {
            match generations[0].next_blocking().unwrap() {
                Event::Finished(canvas, statistics) => {
                    let tokens: Vec<TokenId> = canvas.tokens().collect();
                    break (tokens, text(&canvas, 0), statistics.steps);
                }
                Event::Failed(error) => panic!("{error}"),
                Event::Step(_) => {}
            }
        }
    };
    let alone = run(0);
    assert!(alone.1.bytes().all(|byte| byte.is_ascii_uppercase()));
    assert!((2..SLOTS / 8).contains(&alone.2), "{} steps", alone.2);
    assert_eq!(run(2), alone);
}
