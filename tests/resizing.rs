//! Gaps whose length the network changes (DreamOn), held to the official algorithm and to what must hold of any.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use unmask::canvas::{Canvas, Splice, TokenId};
use unmask::decode::{
    Budget, CachePolicy, DecodePlan, ResizeTokens, Resizing, Revision, Score, StopTokens, preset,
};
use unmask::engine::{Engine, EngineConfig, Event, StepReport};
use unmask::models::{
    AttentionPattern, Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation,
    RaggedBatch,
};

const VOCAB: usize = 24;
const MASK: TokenId = 20;
const EXPAND: TokenId = 21;
/// The end of the text, which the fixed text after a gap may hold.
const DELETE: TokenId = 22;
const CONTEXT: usize = 96;

/// Logits `[VOCAB]` of row `row` of a canvas: numbers that depend on all of it, with `leaning` on the expand
/// token and on the delete token.
fn row_logits(tokens: &[TokenId], row: usize, leaning: [f32; 2]) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(row as u64 + 1);
    for (slot, token) in tokens.iter().enumerate() {
        let word = (slot as u64 + 3).wrapping_mul(u64::from(*token) + 17);
        state = (state ^ word)
            .wrapping_mul(0xBF58_476D_1CE4_E5B9)
            .rotate_left(23);
    }
    let mut logits: Vec<f32> = (0..VOCAB as u64)
        .map(|token| {
            let mut word = state ^ token.wrapping_mul(0x94D0_49BB_1331_11EB);
            word ^= word >> 31;
            word = word.wrapping_mul(0xD6E8_FEB8_6659_FD93);
            word ^= word >> 29;
            (word >> 40) as f32 / (1u64 << 24) as f32 * 5.0
        })
        .collect();
    logits[EXPAND as usize] += leaning[0];
    logits[DELETE as usize] += leaning[1];
    logits[MASK as usize] = -30.0;
    logits
}

/// A network of such logits, which are read one row to the left of their slot.
struct Leaning {
    spec: ModelSpec,
    leaning: [f32; 2],
}

impl Leaning {
    fn new(leaning: [f32; 2]) -> Self {
        Self {
            spec: ModelSpec {
                family: "mock",
                parameters: 0,
                active_parameters: 0,
                hidden_size: VOCAB,
                layers: 0,
                kv_heads: 1,
                head_dim: 1,
                other_layers: Default::default(),
                vocab_size: VOCAB,
                max_canvas: CONTEXT,
                sliding_window: None,
                corruption: Corruption::Absorbing { mask_token: MASK },
                parameterisation: Parameterisation::Logits,
                noise_conditioned: false,
                self_conditioned: false,
                noise_schedule: None,
                stop_tokens: vec![DELETE],
                resize_tokens: Some(ResizeTokens {
                    expand: EXPAND,
                    delete: DELETE,
                }),
                attention: AttentionPattern::Bidirectional,
                logit_shift: 1,
                default_plan: dreamon(),
            },
            leaning,
        }
    }

    fn engine(self) -> Engine {
        Engine::start(Box::new(self), EngineConfig::unshared()).unwrap()
    }
}

impl Denoiser for Leaning {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        let mut hidden = Vec::new();
        for segment in batch.segments() {
            let tokens = &batch.tokens()[segment.rows.clone()];
            for row in 0..tokens.len() {
                hidden.extend(row_logits(tokens, row, self.leaning));
            }
        }
        Ok(Tensor::from_vec(
            hidden,
            (batch.rows(), VOCAB),
            &Device::Cpu,
        )?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(hidden.to_dtype(DType::F32)?)
    }
}

fn dreamon() -> DecodePlan {
    preset::by_name("dreamon").unwrap().plan().clone()
}

fn resizing(resizing: Resizing) -> DecodePlan {
    DecodePlan {
        revision: Revision::Resize(resizing),
        ..dreamon()
    }
}

/// The steps of a generation, and the canvas that they come to.
fn steps(engine: &Engine, canvas: Canvas, plan: &DecodePlan) -> (Vec<StepReport>, Canvas) {
    let mut generation = engine.submit(canvas, plan).unwrap();
    let mut steps = Vec::new();
    loop {
        match generation.next_blocking().unwrap() {
            Event::Step(report) => steps.push(report),
            Event::Finished(canvas, _) => return (steps, canvas),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// Takes a step in, as a client that is told of it does.
fn follow(tokens: &mut Vec<TokenId>, report: &StepReport) {
    for (slot, commit) in &report.committed {
        tokens[*slot] = commit.token;
    }
    Splice::apply(&report.spliced, tokens, 0, &MASK);
}

/// What `diffusion_generate` of DreamOn is given.
struct Official {
    max_new_tokens: usize,
    expand_budget: usize,
    pad_delete_to_right: bool,
    number_transfer_tokens: usize,
}

/// `_sample` of DreamOn's `generation_utils.py` with `alg="entropy"` and `temperature=0`, written from it line by
/// line: the canvas in use after every step. None where a step of several slots has no room for what it expands,
/// and cuts off what follows the gap, or overruns its budget, and goes on without one.
fn official(input: &[TokenId], leaning: [f32; 2], config: &Official) -> Option<Vec<Vec<TokenId>>> {
    let start = input.iter().filter(|id| **id == MASK).count();
    let max_length = config.max_new_tokens + input.len() - start;
    let mut generated = start;
    let mut budget = config.expand_budget;
    let mut x = input.to_vec();
    x.resize(max_length, DELETE);
    let mut history = Vec::new();
    loop {
        let window = input.len() - start + generated;
        let masks: Vec<usize> = (0..window).filter(|i| x[*i] == MASK).collect();
        if masks.is_empty() {
            return Some(history);
        }
        let mut candidates: Vec<(f64, usize, TokenId)> = Vec::new();
        for &i in &masks {
            let mut logits = row_logits(&x[..window], i.saturating_sub(1), leaning);
            if window == max_length || budget == 0 {
                logits[EXPAND as usize] -= 1e9;
            }
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f64> = logits
                .iter()
                .map(|logit| f64::from(logit - largest).exp())
                .collect();
            let sum: f64 = weights.iter().sum();
            let confidence = weights.iter().map(|w| w / sum * (w / sum + 1e-10).ln());
            let best = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
            candidates.push((confidence.sum(), i, best.unwrap() as TokenId));
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, i, token) in candidates.iter().take(config.number_transfer_tokens) {
            x[*i] = *token;
        }
        if config.pad_delete_to_right
            && let Some(first) = (0..window).find(|i| x[*i] == DELETE && masks.contains(i))
        {
            masks
                .iter()
                .filter(|i| **i >= first)
                .for_each(|i| x[*i] = DELETE);
        }
        for &i in masks.iter().rev() {
            if x[i] == DELETE {
                x.remove(i);
                x.push(MASK);
                generated -= 1;
            }
        }
        let expanded: Vec<usize> = (0..x.len()).filter(|i| x[*i] == EXPAND).collect();
        for i in expanded.into_iter().rev() {
            x[i] = MASK;
            x.insert(i, MASK);
            generated += 1;
            budget = budget.checked_sub(1)?;
            if generated > config.max_new_tokens {
                return None;
            }
            x.truncate(max_length);
        }
        history.push(x[..input.len() - start + generated].to_vec());
    }
}

/// A prefix, a gap, and a suffix that ends in the end of the text.
fn infilling(prefix: usize, gap: usize, suffix: usize, seed: u32) -> Vec<TokenId> {
    let text = |from: usize, length: usize| {
        (from..from + length).map(move |i| (i as u32 * 7 + seed * 13) % 20)
    };
    let mut ids: Vec<TokenId> = text(0, prefix).collect();
    ids.extend(std::iter::repeat_n(MASK, gap));
    ids.extend(text(prefix, suffix));
    ids.push(DELETE);
    ids
}

#[test]
fn every_canvas_equals_the_official_algorithms_step_by_step() {
    let (mut grown, mut shrunk, mut emptied) = (0, 0, 0);
    for seed in 0..60 {
        let leaning = [[0.5, 0.5], [3.0, 0.0], [0.0, 3.0], [2.5, 2.5], [6.0, 1.0]][seed % 5];
        let engine = Leaning::new(leaning).engine();
        let gap = 1 + seed % 7;
        let config = Official {
            max_new_tokens: gap + [0, 3, 20][seed % 3],
            expand_budget: [0, 2, 40, 9][seed % 4],
            pad_delete_to_right: seed % 4 == 3,
            number_transfer_tokens: 1,
        };
        let ids = infilling(1 + seed % 5, gap, seed % 6, seed as u32);
        let plan = resizing(Resizing {
            max_gap: config.max_new_tokens,
            expansions: config.expand_budget,
            delete_right: config.pad_delete_to_right,
        });
        let (reports, finished) = steps(&engine, Canvas::from_ids(&ids, MASK).unwrap(), &plan);
        let mut tokens = ids.clone();
        let canvases: Vec<_> = reports
            .iter()
            .map(|report| {
                follow(&mut tokens, report);
                tokens.clone()
            })
            .collect();
        assert_eq!(Some(canvases), official(&ids, leaning, &config), "{seed}");
        assert_eq!(finished.tokens().collect::<Vec<_>>(), tokens);
        let length = finished.gaps()[0].len();
        grown += usize::from(length > gap);
        shrunk += usize::from(length < gap);
        emptied += usize::from(length == 0);
    }
    assert!(
        grown > 5 && shrunk > 5 && emptied > 0,
        "{grown} {shrunk} {emptied}"
    );
}

#[test]
fn several_slots_a_step_equal_the_official_ones_where_there_is_room_for_them() {
    let mut compared = 0;
    for seed in 0..24 {
        let leaning = [[1.0, 1.0], [2.0, 2.5]][seed % 2];
        let engine = Leaning::new(leaning).engine();
        let config = Official {
            max_new_tokens: 60,
            expand_budget: 1000,
            pad_delete_to_right: seed % 3 == 0,
            number_transfer_tokens: 2 + seed % 2,
        };
        let ids = infilling(3, 6 + seed % 4, 4, seed as u32);
        let plan = DecodePlan {
            score: Score::Entropy,
            at_least: config.number_transfer_tokens,
            ..resizing(Resizing {
                max_gap: 60,
                expansions: 1000,
                delete_right: config.pad_delete_to_right,
            })
        };
        let Some(expected) = official(&ids, leaning, &config) else {
            continue;
        };
        let (_, finished) = steps(&engine, Canvas::from_ids(&ids, MASK).unwrap(), &plan);
        let finished: Vec<_> = finished.tokens().collect();
        assert_eq!(Some(&finished), expected.last(), "{seed}");
        compared += 1;
    }
    assert!(compared > 12, "{compared}");
}

fn fixed(canvas: &Canvas) -> Vec<TokenId> {
    let slots = (0..canvas.len()).filter(|slot| canvas.is_fixed(*slot));
    slots.map(|slot| canvas.token(slot)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn fixed_text_never_changes_gaps_keep_their_limits_and_every_request_ends(
        texts in proptest::collection::vec(proptest::collection::vec(0u32..20, 0..6), 2..5),
        gaps in proptest::collection::vec((1usize..6, 0usize..3, 0usize..9), 4),
        leaning in prop::array::uniform2(0f32..6.0),
        expansions in 0usize..60,
        delete_right: bool,
        budget in prop_oneof![Just(Budget::Even), Just(Budget::Threshold(0.2)), Just(Budget::Factor(1.0))],
        (at_least, seed) in (0usize..4, 0u64..1000),
        temperature in prop_oneof![Just(0f32), Just(1.0)],
        guidance_scale in prop_oneof![Just(0f32), Just(0.5)],
    ) {
        let engine = Leaning::new(leaning).engine();
        let mut builder = Canvas::builder(MASK);
        let mut limits = Vec::new();
        for (text, (length, below, above)) in texts.iter().zip(&gaps) {
            let (least, most) = (length.saturating_sub(*below), length + above);
            builder = builder.fixed(text).gap_between(*length, least, most);
            limits.push(least..=most);
        }
        let canvas = builder.build().unwrap();
        let mut plan = DecodePlan {
            budget,
            at_least,
            ..resizing(Resizing { max_gap: 1, expansions, delete_right })
        };
        plan.sampling.temperature = temperature;
        plan.sampling.guidance_scale = guidance_scale;
        plan.sampling.stop_tokens = StopTokens::AtEnd;
        plan.sampling.seed = seed;
        let masked = canvas.masked();
        let mut replayed = canvas.clone();
        let (reports, finished) = steps(&engine, canvas.clone(), &plan);
        prop_assert!(reports.len() <= masked + 2 * expansions);
        let mut seen = 0;
        for report in &reports {
            for (slot, commit) in &report.committed {
                replayed.gap_slot_mut(*slot).unwrap().commit(*commit);
                prop_assert!(![MASK, EXPAND, DELETE].contains(&commit.token));
            }
            replayed.splice(&report.spliced);
            seen += report.spliced.iter().filter(|splice| splice.count == 2).count();
            prop_assert_eq!(fixed(&replayed), fixed(&canvas));
            for (gap, limits) in replayed.gaps().iter().zip(&limits) {
                prop_assert!(limits.contains(&gap.len()), "{} {:?}", gap.len(), limits);
            }
        }
        prop_assert!(seen <= expansions);
        prop_assert_eq!(&replayed, &finished);
        prop_assert_eq!(finished.masked(), 0);
        prop_assert_eq!(steps(&engine, canvas, &plan).1, finished);
    }
}

#[test]
fn a_gap_grows_up_to_the_models_context_and_no_further() {
    let engine = Leaning::new([30.0, -30.0]).engine();
    let plan = resizing(Resizing {
        max_gap: 500,
        expansions: 4000,
        delete_right: false,
    });
    let ids = infilling(30, 2, 20, 1);
    let (reports, finished) = steps(&engine, Canvas::from_ids(&ids, MASK).unwrap(), &plan);
    assert_eq!(finished.len(), CONTEXT);
    assert!(reports.iter().all(|report| report.step <= CONTEXT * 2));
}

#[test]
fn what_else_is_denoised_changes_neither_canvases_nor_the_rows_they_take() {
    let engine = Leaning::new([2.5, 2.0]).engine();
    let canvas =
        |seed: u32| Canvas::from_ids(&infilling(2 + seed as usize, 4, 3, seed), MASK).unwrap();
    let alone: Vec<_> = (0..8)
        .map(|seed| steps(&engine, canvas(seed), &dreamon()).1)
        .collect();
    let rows_alone = engine.status().rows;
    let generations: Vec<_> = (0..8)
        .map(|seed| engine.submit(canvas(seed), &dreamon()).unwrap())
        .collect();
    for (seed, mut generation) in generations.into_iter().enumerate() {
        loop {
            match generation.next_blocking().unwrap() {
                Event::Step(_) => {}
                Event::Finished(canvas, _) => break assert_eq!(canvas, alone[seed]),
                Event::Failed(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(engine.status().rows, 2 * rows_alone);
}

#[test]
fn without_resizing_gaps_keep_their_length_and_no_slot_becomes_an_expand_token() {
    let engine = Leaning::new([20.0, 0.0]).engine();
    let plan = DecodePlan {
        revision: Revision::None,
        ..dreamon()
    };
    let canvas = Canvas::from_ids(&infilling(2, 9, 3, 4), MASK).unwrap();
    let (_, finished) = steps(&engine, canvas.clone(), &plan);
    assert_eq!(finished.gaps(), canvas.gaps());
    assert!(finished.tokens().all(|token| token != EXPAND));
}

#[test]
fn plans_that_count_slots_beforehand_and_models_without_the_tokens_are_refused() {
    let engine = Leaning::new([0.0, 0.0]).engine();
    let canvas = || Canvas::from_ids(&infilling(2, 3, 1, 1), MASK).unwrap();
    type Edit = fn(&mut DecodePlan);
    let edits: [(&str, Edit); 6] = [
        ("block_length", |plan| plan.block_length = Some(4)),
        ("steps", |plan| plan.steps = Some(4)),
        ("budget", |plan| {
            plan.budget = Budget::Ancestral { eps: 0.0 }
        }),
        ("cache.policy", |plan| plan.cache.policy = CachePolicy::Dual),
        ("cache.policy", |plan| {
            plan.cache.policy = CachePolicy::Prefix;
        }),
        ("revision", |plan| {
            plan.revision = Revision::Resize(Resizing {
                max_gap: 0,
                ..Resizing::default()
            });
        }),
    ];
    for (field, edit) in edits {
        let mut plan = dreamon();
        edit(&mut plan);
        let error = engine.submit(canvas(), &plan).unwrap_err().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    let mut model = Leaning::new([0.0, 0.0]);
    model.spec.resize_tokens = None;
    assert!(model.spec.presets().iter().all(|p| p.name != "dreamon"));
    let error = model.engine().submit(canvas(), &dreamon()).unwrap_err();
    assert!(error.to_string().contains("expand"), "{error}");
}
