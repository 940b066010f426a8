//! Cached keys and values.

use candle_core::{DType, Device};
use serde_json::{Value, json};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{Budget, Cache, CachePolicy, DecodePlan, EarlyStop};
use unmask::engine::{CacheScheme, Engine, EngineConfig, SubmitError};
use unmask::models::{AttentionPattern, Checkpoint, Denoiser, WeightFormat};

use crate::support::{self, denoise, engine, golden, load};
use crate::{end, finish};

/// An engine of every block-causal family: the golden checkpoints, A2D's with the blocks of its bd3lm variants,
/// BD3-LM's with room for more than a block of the pool, and SDAR-MoE, of which there is no golden, with made-up
/// weights.
fn block_causal() -> Vec<(&'static str, Engine)> {
    let mut engines: Vec<_> = ["llada2_moe", "llada21", "sdar"]
        .into_iter()
        .map(|name| (name, engine(name)))
        .collect();
    engines.push(("a2d bd3lm", edited("a2d_qwen3", "block_size", 8)));
    engines.push(("bd3lm", edited("bd3lm", "model_length", 128)));
    // Its context of 16 slots slides.
    engines.push(("bd3lm sliding", engine("bd3lm")));
    let mut config = support::json(&golden("sdar").join("config.json"));
    for (field, value) in [
        ("architectures", json!(["SDARMoeForCausalLM"])),
        ("model_type", "sdar_moe".into()),
        ("num_experts", 6.into()),
        ("num_experts_per_tok", 2.into()),
        ("moe_intermediate_size", 24.into()),
        ("norm_topk_prob", true.into()),
    ] {
        config[field] = value;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sdar-moe.json");
    std::fs::write(&file, config.to_string()).unwrap();
    engines.push(("sdar_moe", start(&Checkpoint::open_dummy(&file).unwrap())));
    engines
}

/// An engine of a golden checkpoint whose config.json says something else of `field`.
fn edited(name: &str, field: &str, value: impl Into<Value>) -> Engine {
    start_model(edited_model(name, field, value, DType::F32.into()))
}

/// A golden checkpoint's network whose config.json says something else of `field`.
pub fn edited_model(
    name: &str,
    field: &str,
    value: impl Into<Value>,
    format: WeightFormat,
) -> Box<dyn Denoiser> {
    let directory = tempfile::tempdir().unwrap();
    for file in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(golden(name).join(file), directory.path().join(file)).ok();
    }
    let mut config = support::json(&golden(name).join("config.json"));
    config[field] = value.into();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    checkpoint.load(format, &Device::Cpu).unwrap()
}

fn start(checkpoint: &Checkpoint) -> Engine {
    start_model(checkpoint.load(DType::F32, &Device::Cpu).unwrap())
}

fn start_model(model: Box<dyn Denoiser>) -> Engine {
    Engine::start(model, EngineConfig::unshared()).unwrap()
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
            plan.sliding_window = name == "bd3lm sliding";
            let canvas = Canvas::builder(engine.mask_token().unwrap())
                .fixed(&prompt(1 + (seed as usize * 7) % 41, seed))
                .gap(1 + (seed as usize * 5) % (block_length + 9))
                .build()
                .unwrap();
            let canvas = engine.spec().with_scratch(&plan, canvas);
            assert_eq!(engine.cache_scheme(&plan), Ok(CacheScheme::Block), "{name}");
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
    for name in ["llada2_moe", "llada21", "sdar"] {
        let engine = engine(name);
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
        let fresh = self::engine(name);
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
    let told = edited("mdlm", "time_conditioning", true);
    for (name, engine) in [
        ("llada", engine("llada")),
        ("mdlm", engine("mdlm")),
        ("mdlm with time_conditioning", told),
        ("sedd_absorb", engine("sedd_absorb")),
    ] {
        let room = engine.spec().max_canvas.min(30);
        let (prompt_length, text_length) = (room * 3 / 10, room / 8);
        let gap = room - prompt_length - text_length;
        for policy in [CachePolicy::Prefix, CachePolicy::Dual] {
            for guidance_scale in [0.0, 1.5] {
                for budget in [Budget::Even, Budget::Threshold(0.05)] {
                    let mut plan = DecodePlan {
                        block_length: Some(gap / 2),
                        budget,
                        ..DecodePlan::default()
                    };
                    plan.sampling.guidance_scale = guidance_scale;
                    let canvas = || {
                        let builder = Canvas::builder(engine.mask_token().unwrap())
                            .fixed(&prompt(prompt_length, 3))
                            .gap(gap);
                        builder.fixed(&prompt(text_length, 4)).build().unwrap()
                    };
                    let expected = denoise(&engine, canvas(), &plan).1;
                    plan.cache = Cache {
                        policy,
                        refresh: Some(1),
                    };
                    assert_eq!(denoise(&engine, canvas(), &plan).1, expected, "{name}");
                    plan.cache.refresh = None;
                    let cached = denoise(&engine, canvas(), &plan).1;
                    assert_eq!(cached.masked(), 0);
                    // A threshold may commit a whole block at its first step.
                    let grows_old = budget == Budget::Even;
                    assert!(!grows_old || cached != expected, "{name}: what is kept");
                }
            }
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

/// Nothing is computed after the last block that could read what it would leave.
#[test]
fn finished_blocks_take_memory_for_what_comes_before_the_last_and_no_more() {
    let slots_of = |name: &str, slots: usize| {
        let model = load(name);
        let config = EngineConfig {
            kv_memory: slots * model.spec().kv_width() * 4,
            ..EngineConfig::unshared()
        };
        Engine::start(model, config).unwrap()
    };
    let needed = |engine: &Engine, prompt_length: usize, gap: usize, guidance_scale: f32| {
        let mut plan = with_policy(&engine.spec().default_plan, CachePolicy::Prefix);
        plan.sampling.guidance_scale = guidance_scale;
        plan.early_stop = EarlyStop::Never;
        let canvas = Canvas::builder(engine.blank())
            .fixed(&prompt(prompt_length, 1))
            .gap(gap);
        let canvas = engine.spec().with_scratch(&plan, canvas.build().unwrap());
        match engine.submit(canvas, &plan) {
            Ok(generation) => {
                let (finished, statistics) = end(generation).unwrap();
                assert_eq!(finished.masked_in(0..prompt_length + gap).count(), 0);
                assert_eq!(statistics.cache, CacheScheme::Block);
                0
            }
            Err(SubmitError::CannotEncode { needed, .. }) => needed,
            Err(SubmitError::CacheTooLarge { needed, .. }) => needed,
            Err(error) => panic!("{error}"),
        }
    };
    // Blocks of 8 slots after the prompt, of which there is memory for 16 slots or 32.
    let name = "diffusion_gemma";
    let [none, one, two] = [0, 16, 32].map(|slots| slots_of(name, slots));
    for (prompt_length, gap, slots) in [(0, 8, 0), (1, 3, 16), (16, 8, 16), (8, 16, 16)] {
        assert_eq!(needed(&none, prompt_length, gap, 0.0), slots);
        assert_eq!(needed(&one, prompt_length, gap, 0.0), 0);
    }
    for (prompt_length, gap) in [(17, 8), (9, 16), (1, 24), (16, 24)] {
        assert_eq!(needed(&none, prompt_length, gap, 0.0), 32);
        assert_eq!(needed(&one, prompt_length, gap, 0.0), 32);
        assert_eq!(needed(&two, prompt_length, gap, 0.0), 0);
    }
    // Blocks of 4 slots, counted from the first slot of the canvas.
    let [none, one, two] = [0, 16, 32].map(|slots| slots_of("sdar", slots));
    assert_eq!(
        none.spec().attention,
        AttentionPattern::BlockCausal { block_length: 4 }
    );
    for (prompt_length, gap) in [(5, 15), (16, 4), (16, 3), (17, 1)] {
        assert_eq!(needed(&none, prompt_length, gap, 0.0), 16);
        assert_eq!(needed(&one, prompt_length, gap, 0.0), 0);
        assert_eq!(needed(&one, prompt_length, gap, 1.0), 32);
        assert_eq!(needed(&two, prompt_length, gap, 1.0), 0);
    }
    assert_eq!(needed(&one, 16, 5, 0.0), 32);
    assert_eq!(needed(&two, 16, 5, 0.0), 0);
    // One block has nothing before it to keep.
    assert_eq!(needed(&one, 0, 4, 0.0), 0);
}

#[test]
fn a_window_slides_over_canvases_longer_than_the_context_where_a_model_is_sampled_so() {
    let engine = engine("bd3lm");
    let context = engine.spec().max_canvas;
    let canvas = |gap| {
        let canvas = Canvas::builder(engine.mask_token().unwrap());
        canvas.fixed(&prompt(5, 1)).gap(gap).build().unwrap()
    };
    let sliding = engine.spec().default_plan.clone();
    assert!(sliding.sliding_window);
    let plan = DecodePlan {
        sliding_window: false,
        ..sliding.clone()
    };
    // Within the context it changes nothing.
    let (_, within) = denoise(&engine, canvas(context - 5), &plan);
    assert_eq!(denoise(&engine, canvas(context - 5), &sliding).1, within);
    let error = engine.submit(canvas(context), &plan).unwrap_err();
    assert!(matches!(error, SubmitError::CanvasTooLong { limit, .. } if limit == context));
    let (_, beyond) = denoise(&engine, canvas(3 * context), &sliding);
    assert_eq!((beyond.len(), beyond.masked()), (3 * context + 5, 0));
    // What comes first is written as without the rest.
    let first = |canvas: &Canvas| canvas.tokens().take(12).collect::<Vec<_>>();
    assert_eq!(first(&beyond), first(&within));
    let limit = engine.spec().longest_canvas(&sliding);
    let error = engine.submit(canvas(limit), &sliding).unwrap_err();
    assert!(error.to_string().contains(&limit.to_string()), "{error}");
    for name in ["sdar", "llada2_moe", "llada", "a2d_qwen3"] {
        let other = self::engine(name);
        let canvas = Canvas::builder(other.mask_token().unwrap()).gap(4);
        let plan = DecodePlan {
            sliding_window: true,
            ..other.spec().default_plan.clone()
        };
        let error = other.submit(canvas.build().unwrap(), &plan).unwrap_err();
        assert!(error.to_string().contains("sliding_window"), "{error}");
        let presets = other.spec().presets();
        assert!(
            !presets
                .iter()
                .any(|preset| preset.name.starts_with("bd3lm"))
        );
    }
}
