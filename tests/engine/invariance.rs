//! A seeded answer does not depend on what else is in the batch.

use candle_core::{DType, Device};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Budget, Cache, CachePolicy, DecodePlan, Score};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{AttentionPattern, Checkpoint, Parameterisation, WeightFormat};

use crate::cache::edited_model;
use crate::finish;
use crate::support::{denoise, golden};

const FORMATS: [WeightFormat; 3] = [
    WeightFormat::Float(DType::F32),
    WeightFormat::Float(DType::BF16),
    WeightFormat::Q8_0,
];
const REQUESTS: u32 = 50;
/// The golden of a network that is not told the noise level, as one that is.
const TOLD: &str = "mdlm with time_conditioning";
const FAMILIES: [&str; 13] = [
    "llada",
    "dream",
    "mdlm",
    TOLD,
    "llada_moe",
    "a2d_qwen3",
    "llada2_moe",
    "llada21",
    "sdar",
    "bd3lm",
    "sedd_absorb",
    "sedd_uniform",
    "diffusion_gemma",
];

fn engine(family: &str, format: WeightFormat) -> Engine {
    let model = match family {
        TOLD => edited_model("mdlm", "time_conditioning", true, format),
        _ => {
            let checkpoint = Checkpoint::open(&golden(family)).unwrap();
            checkpoint.load(format, &Device::Cpu).unwrap()
        }
    };
    Engine::start(model, EngineConfig::unshared()).unwrap()
}

/// Requests of many lengths, plans, caches and seeds, half of them at temperature 1.
fn requests(engine: &Engine) -> Vec<(Canvas, DecodePlan)> {
    let bidirectional = engine.spec().attention == AttentionPattern::Bidirectional;
    let gives_scores = engine.spec().parameterisation == Parameterisation::LogScore;
    (0..REQUESTS)
        .map(|i| {
            let index = i as usize;
            let room = engine.spec().max_canvas.min(40);
            let prompt = 2 + i % (room as u32 / 4);
            let prompt: Vec<TokenId> = (0..prompt).map(|k| (i * 37 + k * 13) % 400).collect();
            let gap = 1 + (index * 5) % (room / 2);
            let builder = Canvas::builder(engine.blank()).fixed(&prompt).gap(gap);
            let mut plan = engine.spec().default_plan.clone();
            // Those that read log-scores as logits among them, where there are masks.
            let by_scores =
                gives_scores && (engine.mask_token().is_none() || index.is_multiple_of(5));
            let canvas = if by_scores {
                plan.steps = Some(2 + index % 9);
                builder.build().unwrap()
            } else if bidirectional {
                plan = DecodePlan {
                    score: Score::ALL[index % Score::ALL.len()],
                    budget: [Budget::Even, Budget::Threshold(0.2)][index % 2],
                    block_length: [None, Some(4), Some(8)][index % 3],
                    cache: Cache {
                        policy: CachePolicy::ALL[index % 4],
                        refresh: None,
                    },
                    steps: index.is_multiple_of(2).then_some(6),
                    ..DecodePlan::default()
                };
                builder.fixed(&prompt[..2]).build().unwrap()
            } else {
                if engine.spec().self_conditioned {
                    plan.steps_per_block = Some(2 + index % 4);
                }
                engine.spec().with_scratch(&plan, builder.build().unwrap())
            };
            plan.sampling.set_temperature([0.0, 1.0][index / 2 % 2]);
            plan.sampling.top_p = [None, Some(0.8)][index / 4 % 2];
            if !by_scores && engine.mask_token().is_some() {
                plan.sampling.guidance_scale = [0.0, 0.0, 1.5][index % 3];
            }
            let is_cached = matches!(plan.cache.policy, CachePolicy::Prefix | CachePolicy::Dual);
            if plan.sampling.guidance_scale > 0.0 && !is_cached {
                // Shorter and longer than the prompt, or nothing at all where a slot is not scored by the one before.
                let least = engine.spec().logit_shift as TokenId;
                let length = (i % 13).min(room as u32 / 3).max(least);
                let negative = (0..length).map(|k| (i * 17 + k * 7) % 400);
                plan.sampling.negative_prompt = Some(negative.collect());
            }
            plan.sampling.seed = u64::from(i);
            (canvas, plan)
        })
        .collect()
}

#[test]
fn a_seeded_answer_is_the_same_alone_and_in_any_mix() {
    for (family, format) in FAMILIES
        .iter()
        .flat_map(|f| FORMATS.map(|format| (f, format)))
    {
        let alone = engine(family, format);
        let requests = requests(&alone);
        let expected: Vec<Canvas> = requests
            .iter()
            .map(|(canvas, plan)| denoise(&alone, canvas.clone(), plan).1)
            .collect();
        let together = engine(family, format);
        for mix in 0..5 {
            // Without a common divisor with the number of requests.
            let stride = [7, 11, 13, 17, 19][mix];
            let order = (0..requests.len()).map(|i| (i * stride + mix) % requests.len());
            let generations: Vec<_> = order
                .map(|i| {
                    let (canvas, plan) = &requests[i];
                    (i, together.submit(canvas.clone(), plan).unwrap())
                })
                .collect();
            for (i, generation) in generations {
                // Tokens, probabilities and scores.
                assert_eq!(
                    finish(generation).unwrap(),
                    expected[i],
                    "{family} {format:?} {mix} {i}"
                );
            }
        }
    }
}

#[test]
fn an_engine_on_a_cpu_says_that_answers_do_not_depend_on_the_batch() {
    for family in ["llada", "mdlm"] {
        for format in FORMATS.into_iter().chain([DType::F16.into()]) {
            assert!(
                engine(family, format).is_batch_invariant(),
                "{family} {format:?}"
            );
        }
    }
}
