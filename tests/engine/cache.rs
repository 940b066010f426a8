//! Cached keys and values.

use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Budget, Cache, CachePolicy, DecodePlan};
use unmask::engine::{CacheScheme, Engine, EngineConfig, SubmitError};
use unmask::models::AttentionPattern;

use crate::support::{denoise, engine, load};
use crate::{end, finish};

/// The golden checkpoints whose attention is block-causal, by their nature or as the engine is told.
fn block_causal() -> Vec<(String, Engine)> {
    ["llada2_moe", "llada21", "sdar"]
        .into_iter()
        .map(|name| (name.to_owned(), engine(name)))
        .collect()
}

fn prompt(length: usize, seed: u32) -> Vec<TokenId> {
    (0..length as u32)
        .map(|i| 3 + (i * 31 + seed * 17 + i * i) % 400)
        .collect()
}

fn with_policy(plan: &DecodePlan, policy: CachePolicy) -> DecodePlan {
    DecodePlan {
        cache: Cache {
            policy,
            refresh: None,
        },
        ..plan.clone()
    }
}

#[test]
fn finished_blocks_from_the_cache_give_bit_for_bit_what_recomputing_them_gives() {
    for (name, engine) in block_causal() {
        let AttentionPattern::BlockCausal { block_length } = engine.spec().attention else {
            panic!("{name}");
        };
        for seed in 0..50 {
            let mut plan = engine.spec().default_plan.clone();
            plan.sampling.seed = u64::from(seed);
            plan.sampling.temperature = [0.0, 1.0][seed as usize % 2];
            plan.sampling.guidance_scale = [0.0, 0.0, 0.5][seed as usize % 3];
            if seed % 5 == 0 {
                plan.block_origin = Default::default();
            }
            let canvas = Canvas::builder(engine.mask_token().unwrap())
                .fixed(&prompt(1 + (seed as usize * 7) % 41, seed))
                .gap(1 + (seed as usize * 5) % (block_length + 9))
                .build()
                .unwrap();
            let canvas = engine.spec().with_scratch(&plan, canvas);
            let cached = denoise(&engine, canvas.clone(), &plan).1;
            let plain = with_policy(&plan, CachePolicy::None);
            let recomputed = denoise(&engine, canvas, &plain).1;
            // Tokens, probabilities and scores.
            assert_eq!(cached, recomputed, "{name} {seed}");
        }
    }
}

#[test]
fn a_prompt_that_another_request_began_with_is_not_computed_again() {
    for (name, engine) in block_causal() {
        let plan = &engine.spec().default_plan;
        let canvas = |last: TokenId| {
            let mut tokens = prompt(70, 1);
            *tokens.last_mut().unwrap() = last;
            let canvas = Canvas::builder(engine.mask_token().unwrap())
                .fixed(&tokens)
                .gap(9);
            engine.spec().with_scratch(plan, canvas.build().unwrap())
        };
        denoise(&engine, canvas(5), plan);
        let before = engine.status();
        let answer = denoise(&engine, canvas(6), plan).1;
        let after = engine.status();
        assert!(after.reused - before.reused >= 32, "{name} {after:?}");
        let fresh = self::engine(&name);
        assert_eq!(answer, denoise(&fresh, canvas(6), plan).1, "{name}");
        assert!(fresh.status().rows > after.rows - before.rows, "{name}");
    }
}

#[test]
fn one_prompt_asked_for_many_times_at_once_is_computed_once() {
    let engine = engine("sdar");
    let plan = &engine.spec().default_plan;
    let canvas = Canvas::builder(engine.mask_token().unwrap())
        .fixed(&prompt(96, 2))
        .gap(4);
    let canvas = engine.spec().with_scratch(plan, canvas.build().unwrap());
    let generations: Vec<_> = (0..8)
        .map(|_| engine.submit(canvas.clone(), plan).unwrap())
        .collect();
    for generation in generations {
        finish(generation).unwrap();
    }
    assert_eq!(engine.status().reused, 7 * 96);
}

#[test]
fn a_cache_that_is_refreshed_at_every_step_changes_nothing() {
    let engine = engine("llada");
    for policy in [CachePolicy::Prefix, CachePolicy::Dual] {
        for guidance_scale in [0.0, 1.5] {
            let mut plan = DecodePlan {
                block_length: Some(8),
                ..DecodePlan::default()
            };
            plan.sampling.guidance_scale = guidance_scale;
            let canvas = || {
                let builder = Canvas::builder(engine.mask_token().unwrap())
                    .fixed(&prompt(9, 3))
                    .gap(17);
                builder.fixed(&prompt(4, 4)).build().unwrap()
            };
            let expected = denoise(&engine, canvas(), &plan).1;
            plan.cache = Cache {
                policy,
                refresh: Some(1),
            };
            assert_eq!(denoise(&engine, canvas(), &plan).1, expected);
        }
    }
}

#[test]
fn a_dual_cache_recomputes_the_block_and_refreshes_when_told() {
    let engine = engine("llada");
    let canvas = || {
        let builder = Canvas::builder(engine.mask_token().unwrap())
            .fixed(&prompt(40, 3))
            .gap(16);
        builder.fixed(&prompt(8, 4)).build().unwrap()
    };
    // 16 steps in 2 blocks of 8 slots, of a canvas of 64.
    for (policy, refresh, rows) in [
        (CachePolicy::None, None, 16 * 64),
        (CachePolicy::Dual, None, 2 * (64 + 7 * 8)),
        (CachePolicy::Dual, Some(4), 2 * (2 * 64 + 6 * 8)),
        (CachePolicy::Prefix, None, 2 * 64 + 7 * 24 + 7 * 16),
    ] {
        let plan = DecodePlan {
            block_length: Some(8),
            budget: Budget::Even,
            cache: Cache { policy, refresh },
            ..DecodePlan::default()
        };
        let before = engine.status().rows;
        let (_, statistics) = end(engine.submit(canvas(), &plan).unwrap()).unwrap();
        assert_eq!(
            engine.status().rows - before,
            rows,
            "{policy:?} {refresh:?}"
        );
        assert_eq!(statistics.nfe, 16);
        let scheme = match policy {
            CachePolicy::Dual => CacheScheme::Dual,
            CachePolicy::Prefix => CacheScheme::Prefix,
            _ => CacheScheme::None,
        };
        assert_eq!(statistics.cache, scheme);
    }
}

#[test]
fn a_long_prompt_is_computed_in_pieces() {
    let config = EngineConfig {
        prefill_rows: 16,
        ..EngineConfig::default()
    };
    let engine = Engine::start(load("sdar"), config).unwrap();
    let plan = &engine.spec().default_plan;
    let canvas = Canvas::builder(engine.mask_token().unwrap())
        .fixed(&prompt(64, 2))
        .gap(4);
    let canvas = engine.spec().with_scratch(plan, canvas.build().unwrap());
    let (_, statistics) = end(engine.submit(canvas, plan).unwrap()).unwrap();
    // 64 prompt slots, of which the last 16 go with the first denoise step.
    assert_eq!(engine.status().steps, statistics.steps as u64 + 3);
}

#[test]
fn policies_that_a_model_does_not_allow_and_canvases_without_memory_are_refused() {
    let engine = engine("sdar");
    let plan = with_policy(&engine.spec().default_plan, CachePolicy::Dual);
    let canvas = Canvas::builder(engine.mask_token().unwrap())
        .gap(4)
        .build()
        .unwrap();
    let error = engine.submit(canvas.clone(), &plan).unwrap_err();
    assert!(error.to_string().contains("block-causal"), "{error}");

    let config = EngineConfig {
        kv_memory: 0,
        ..EngineConfig::default()
    };
    let without = Engine::start(load("sdar"), config).unwrap();
    let auto = without.spec().default_plan.clone();
    let (_, statistics) = end(without.submit(canvas.clone(), &auto).unwrap()).unwrap();
    assert_eq!(statistics.cache, CacheScheme::None);
    let plan = with_policy(&auto, CachePolicy::Prefix);
    let error = without.submit(canvas, &plan).unwrap_err();
    assert!(matches!(error, SubmitError::CacheTooLarge { limit: 0, .. }));
}

#[test]
fn a_canvas_too_long_for_the_memory_is_recomputed_unless_a_cache_was_asked_for() {
    // 2 tensors of 4 bytes a number: room for two blocks of 16 slots.
    let spec = load("sdar").spec().clone();
    let config = EngineConfig {
        kv_memory: 32 * 2 * 4 * spec.layers * spec.kv_heads * spec.head_dim,
        ..EngineConfig::default()
    };
    let engine = Engine::start(load("sdar"), config).unwrap();
    let canvas = |prompt_length: usize| {
        let plan = &engine.spec().default_plan;
        let canvas = Canvas::builder(engine.mask_token().unwrap())
            .fixed(&prompt(prompt_length, 1))
            .gap(4);
        engine.spec().with_scratch(plan, canvas.build().unwrap())
    };
    let auto = &engine.spec().default_plan;
    let scheme = |length| {
        end(engine.submit(canvas(length), auto).unwrap())
            .unwrap()
            .1
            .cache
    };
    assert_eq!(scheme(8), CacheScheme::Block);
    assert_eq!(scheme(60), CacheScheme::None);
    let asked = with_policy(auto, CachePolicy::Prefix);
    let error = engine.submit(canvas(60), &asked).unwrap_err();
    assert!(matches!(error, SubmitError::CacheTooLarge { .. }));
}
