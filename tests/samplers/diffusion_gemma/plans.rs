//! Where the default plan comes from, and what is refused.

use serde_json::{Value, json};
use unmask::canvas::Canvas;
use unmask::decode::{Budget, DecodePlan, TemperatureSchedule};
use unmask::engine::{CacheScheme, Engine, EngineConfig, SubmitError};
use unmask::models::Checkpoint;

use super::{NAME, goes_on, plan};
use crate::support::{engine, golden, load};

#[test]
fn the_default_plan_is_what_generation_config_json_says() {
    let official = plan();
    let at_hand = load(NAME).spec().default_plan.clone();
    assert_eq!(
        at_hand,
        DecodePlan {
            block_length: Some(8),
            ..official
        }
    );
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(NAME).join(file), directory.path().join(file)).unwrap();
    }
    let spec = |options: Value| {
        let file = directory.path().join("generation_config.json");
        std::fs::write(file, options.to_string()).unwrap();
        Checkpoint::open(directory.path()).unwrap().spec()
    };
    assert_eq!(spec(json!({})).unwrap().default_plan, at_hand);
    let chosen = spec(json!({
        "max_denoising_steps": 12, "t_min": 0.2, "t_max": 1.5, "stability_threshold": 3,
        "confidence_threshold": 0.5,
        "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 2.0}
    }));
    let chosen = chosen.unwrap().default_plan;
    assert_eq!(chosen.steps_per_block, Some(12));
    assert_eq!(chosen.budget, Budget::EntropyBound(2.0));
    assert_eq!(chosen.sampling.temperature, 1.5);
    let schedule = TemperatureSchedule::LinearInBlock(0.2);
    assert_eq!(chosen.sampling.temperature_schedule, schedule);
    assert_eq!(chosen.revision.to_string(), "renoise_rest:3,0.5");
    for (options, named) in [
        (json!({"max_denoising_steps": 0}), "steps_per_block is 0"),
        (json!({"t_max": "hot"}), "t_max is \"hot\""),
        (
            json!({"sampler_config": {"_cls_name": "OtherConfig"}}),
            "OtherConfig",
        ),
        (
            json!({"sampler_config": {"_cls_name": 7}}),
            "sampler_config._cls_name is 7",
        ),
        (
            json!({"sampler_config": "EntropyBoundSamplerConfig"}),
            "sampler_config is \"EntropyBoundSamplerConfig\"",
        ),
    ] {
        let error = spec(options).unwrap_err().to_string();
        assert!(
            error.starts_with("generation_config.json") && error.contains(named),
            "{error}"
        );
    }
}

#[test]
fn what_the_network_cannot_do_is_refused_with_the_reason() {
    let engine = engine(NAME);
    let default = engine.spec().default_plan.clone();
    assert_eq!(engine.cache_scheme(&default).unwrap(), CacheScheme::Block);
    let presets = engine.spec().presets();
    assert_eq!(
        presets.iter().map(|p| p.name).collect::<Vec<_>>(),
        ["diffusion-gemma"]
    );
    let refused = |field: &str, value: Value| {
        let mut fields = serde_json::to_value(&default).unwrap();
        let (path, name) = field.rsplit_once('.').unwrap_or(("", field));
        match path {
            "" => fields[name] = value,
            path => fields[path][name] = value,
        }
        fields["sampling"].as_object_mut().unwrap().remove("seed");
        let plan: DecodePlan = serde_json::from_value(fields).unwrap();
        let canvas = goes_on(&engine, &[1, 2], 8, &default);
        engine.submit(canvas, &plan).unwrap_err().to_string()
    };
    for (field, value, named) in [
        ("block_length", json!(16), "blocks of 8 slots and no others"),
        ("block_origin", json!("canvas"), "block_origin"),
        ("left_context", json!(true), "only goes on from a text"),
        ("revision", json!("none"), "renoise_rest"),
        ("revision", json!("renoise"), "renoise"),
        (
            "budget",
            json!("even"),
            "allowed: threshold, factor, entropy_bound",
        ),
        (
            "steps_per_block",
            json!(null),
            "give steps or steps_per_block",
        ),
        ("early_stop", json!("at_once"), "after_block"),
        ("block_entry", json!("first_slot"), "block_entry"),
        (
            "cache",
            json!({"policy": "none", "refresh": null}),
            "allowed: auto, prefix",
        ),
        (
            "cache",
            json!({"policy": "dual", "refresh": null}),
            "allowed: auto, prefix",
        ),
        (
            "cache",
            json!({"policy": "prefix", "refresh": 2}),
            "never grows old",
        ),
        ("sampling.guidance_scale", json!(1.0), "guidance_scale"),
    ] {
        let error = refused(field, value);
        assert!(error.contains(named), "{field}: {error}");
    }
    let builder = || Canvas::builder(engine.blank()).fixed(&[1, 2]).gap(4);
    for canvas in [builder().fixed(&[3]).build(), builder().gap(4).build()] {
        let error = engine.submit(canvas.unwrap(), &default).unwrap_err();
        assert!(
            matches!(error, SubmitError::OnlyGoesOn { gap: 0, .. }),
            "{error}"
        );
    }
    for slots in [4, 12] {
        let canvas = Canvas::builder(engine.blank()).fixed(&[1, 2]).gap(slots);
        let error = engine
            .submit(canvas.build().unwrap(), &default)
            .unwrap_err();
        assert!(error.to_string().contains("a multiple of 8"), "{error}");
    }
    let config = EngineConfig {
        kv_memory: 0,
        ..EngineConfig::unshared()
    };
    let without_memory = Engine::start(load(NAME), config).unwrap();
    let canvas = goes_on(&without_memory, &[1], 8, &default);
    let error = without_memory.submit(canvas, &default).unwrap_err();
    assert!(
        matches!(error, SubmitError::CannotEncode { limit: 0, .. }),
        "{error}"
    );
    // Of other models the preset is not to be had.
    let llada = load("llada");
    assert!(llada.spec().check_plan(&plan()).is_err());
    let uniform = load("sedd_uniform");
    let error = uniform.spec().check_plan(&plan()).unwrap_err().to_string();
    assert!(error.contains("encoded blocks"), "{error}");
}
