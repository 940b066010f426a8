//! The plan of a model unless a request says otherwise, and what a model makes of a preset.

use serde_json::{Value, json};
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::{
    BlockOrigin, Budget, DecodePlan, EarlyStop, ResizeTokens, Resizing, Revision, Rounding, Score,
    preset,
};
use unmask::models::registry::family_of;
use unmask::models::{Checkpoint, ModelSpec};

use crate::support::{golden, json as read};

/// What a golden's config.json says, with other `fields`.
fn spec(name: &str, fields: Value) -> ModelSpec {
    let mut config = read(&golden(name).join("config.json"));
    config["mask_token_id"] = 507.into();
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    (family_of(&config).unwrap().spec)(&config).unwrap()
}

/// Goldens of families whose generation_config.json is of transformers' own class.
const OF_TRANSFORMERS: [&str; 9] = [
    "llada",
    "llada_moe",
    "llada2_moe",
    "sdar",
    "a2d_qwen3",
    "mdlm",
    "bd3lm",
    "sedd_absorb",
    "sedd_uniform",
];

/// What a golden's files say beside a generation_config.json, without its weights.
fn with_generation_config(name: &str, options: &Value) -> Checkpoint {
    let directory = tempfile::tempdir().unwrap();
    // Some leave the mask token to the tokenizer.
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let source = golden(name).join(file);
        if source.exists() {
            std::fs::copy(source, directory.path().join(file)).unwrap();
        }
    }
    let path = directory.path().join("generation_config.json");
    std::fs::write(path, options.to_string()).unwrap();
    Checkpoint::open(directory.path()).unwrap()
}

fn preset_of(spec: &ModelSpec, name: &str) -> DecodePlan {
    spec.plan(&preset::by_name(name).unwrap())
}

#[test]
fn default_plans_are_those_of_the_official_samplers() {
    for (name, fields, preset) in [
        ("llada", json!({}), "llada"),
        ("llada_moe", json!({}), "llada"),
        ("dream", json!({}), "dream-entropy"),
        ("a2d_qwen3", json!({}), "dllm"),
        ("llada2_moe", json!({}), "llada2"),
        (
            "llada21",
            json!({"model_type": "llada21_moe", "architectures": null}),
            "llada2.1",
        ),
        ("sdar", json!({}), "sdar-dynamic"),
        ("mdlm", json!({"mask_token_id": null}), "mdlm-ancestral"),
        (
            "mdlm",
            json!({"mask_token_id": null, "time_conditioning": true}),
            "mdlm-ancestral",
        ),
        (
            "bd3lm",
            json!({"mask_token_id": null}),
            "bd3lm-first-hitting",
        ),
    ] {
        let spec = spec(name, fields);
        assert_eq!(spec.default_plan, preset_of(&spec, preset), "{name}");
        spec.default_plan.validate().unwrap();
    }
}

#[test]
fn an_a2d_model_with_blocks_begins_them_at_the_gap_and_stops_after_one() {
    let spec = spec("a2d_qwen3", json!({"block_size": 8}));
    let expected = DecodePlan {
        block_length: Some(8),
        early_stop: EarlyStop::AfterBlock,
        ..preset::by_name("dllm").unwrap().plan().clone()
    };
    assert_eq!(spec.default_plan, expected);
    assert_eq!(expected.block_origin, BlockOrigin::Gap);
}

#[test]
fn a_block_causal_model_keeps_its_blocks_under_every_preset() {
    let spec = spec("sdar", json!({"block_size": 16}));
    for preset in spec.presets() {
        let plan = spec.plan(&preset);
        assert_eq!(plan.block_length, Some(16), "{}", preset.name);
        assert_eq!(plan.block_origin, BlockOrigin::Canvas, "{}", preset.name);
        plan.validate().unwrap();
    }
}

#[test]
fn another_model_takes_the_blocks_of_a_preset_that_names_some() {
    let mut spec = spec("llada", json!({}));
    spec.default_plan.block_length = Some(16);
    spec.default_plan.block_origin = BlockOrigin::Canvas;
    let blocks = |name| {
        let plan = preset_of(&spec, name);
        (plan.block_length, plan.block_origin)
    };
    assert_eq!(blocks("llada"), (Some(16), BlockOrigin::Canvas));
    assert_eq!(blocks("fast-dllm"), (Some(32), BlockOrigin::Gap));
    assert_eq!(blocks("sdar-static"), (Some(4), BlockOrigin::Canvas));
}

#[test]
fn the_block_that_a_canvas_ends_in_is_made_whole_for_a_model_that_knows_no_other() {
    let sdar = spec("sdar", json!({}));
    let plan = sdar.default_plan.clone();
    let lengths = |spec: &ModelSpec, plan: &DecodePlan, fixed: &[u32], gap, suffix: &[u32]| {
        let canvas = Canvas::builder(507).fixed(fixed).gap(gap).fixed(suffix);
        let canvas = spec.with_scratch(plan, canvas.build().unwrap());
        (canvas.scratch().start, canvas.len())
    };
    assert_eq!(lengths(&sdar, &plan, &[1, 2], 3, &[]), (5, 8));
    assert_eq!(lengths(&sdar, &plan, &[1], 3, &[]), (4, 4));
    assert_eq!(lengths(&sdar, &plan, &[1], 1, &[2]), (3, 4));
    // No slot of a gap shares the last block.
    assert_eq!(lengths(&sdar, &plan, &[1], 3, &[2]), (5, 5));
    let from_gap = DecodePlan {
        block_origin: BlockOrigin::Gap,
        ..plan
    };
    assert_eq!(lengths(&sdar, &from_gap, &[1, 2], 3, &[]), (5, 5));
    let dream = spec("dream", json!({}));
    assert_eq!(
        lengths(&dream, &dream.default_plan, &[1, 2], 3, &[]),
        (5, 5)
    );
    let endless = sdar.canvas_length(&sdar.default_plan, 0..usize::MAX, usize::MAX);
    assert_eq!(endless, usize::MAX);
}

#[test]
fn dreams_default_plan_has_the_options_of_generation_config_json() {
    let plan = |options: Value| {
        let spec = with_generation_config("dream", &options).spec();
        spec.map(|spec| spec.default_plan)
    };
    let entropy = preset::by_name("dream-entropy").unwrap().plan().clone();
    assert_eq!(plan(json!({"eos_token_id": 500})).unwrap(), entropy);
    // The class's own options, which a release holds that chose none.
    let released = read(&golden("dream").join("generation_config.json"));
    assert_eq!(plan(released.clone()).unwrap(), entropy);
    let origin = preset::by_name("dream-origin").unwrap().plan().clone();
    let chosen = [("steps", json!(256)), ("top_p", json!(0.95))];
    for (name, value) in chosen {
        let mut options = released.clone();
        options[name] = value;
        assert_eq!(plan(options).unwrap().budget, origin.budget, "{name}");
    }

    let mut expected = DecodePlan {
        steps: Some(512),
        score: Score::Margin,
        score_temperature: 0.5,
        budget: Budget::Schedule {
            rounding: Rounding::Floor,
            eps: 0.01,
        },
        ..entropy
    };
    expected.sampling.temperature = 0.25;
    expected.sampling.top_p = Some(0.95);
    expected.sampling.top_k = Some(50);
    let options = json!({
        "alg": "topk_margin", "alg_temp": 0.5, "eps": 0.01, "steps": 512, "temperature": 0.25,
        "top_p": 0.95, "top_k": 50,
    });
    assert_eq!(plan(options).unwrap(), expected);
    // `origin` ranks no slots, so that it has no use for a temperature of their ranking.
    for options in [
        json!({"alg": "origin", "top_p": null, "top_k": 0}),
        json!({"alg": "origin", "alg_temp": 0.3}),
    ] {
        assert_eq!(plan(options).unwrap(), origin);
    }

    for (options, says) in [
        (json!({"alg": "magic"}), "alg is \"magic\""),
        (json!({"temperature": "hot"}), "temperature is \"hot\""),
        (json!({"top_p": 2}), "top_p is 2"),
        (json!({"eps": 1}), "eps is 1"),
    ] {
        let error = plan(options).unwrap_err().to_string();
        assert!(error.starts_with("generation_config.json: "), "{error}");
        assert!(error.contains(says), "{error}");
    }
}

/// The fields of transformers' own class, which the families read that have no other.
#[test]
fn a_default_plan_draws_tokens_as_generation_config_json_says() {
    let plan = |family: &str, options: Value| {
        let spec = with_generation_config(family, &options).spec();
        spec.map(|spec| spec.default_plan)
    };
    // What Qwen3 came with, from which models were made.
    let of_qwen3 = json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95});
    for family in OF_TRANSFORMERS {
        let own = plan(family, json!({})).unwrap();
        let mut expected = own.clone();
        expected.sampling.temperature = 0.6;
        expected.sampling.top_k = Some(20);
        expected.sampling.top_p = Some(0.95);
        assert_eq!(
            plan(family, of_qwen3.clone()).unwrap(),
            expected,
            "{family}"
        );
        // Without do_sample the others count for nothing, as in transformers.
        let options = json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95});
        assert_eq!(plan(family, options).unwrap(), own, "{family}");
    }

    let mut expected = preset::by_name("llada").unwrap().plan().clone();
    expected.sampling.temperature = 1.0;
    for options in [
        json!({"do_sample": true}),
        json!({"do_sample": true, "temperature": 1, "top_k": 0, "top_p": null}),
        json!({"do_sample": true, "temperature": null, "top_k": null, "min_p": null}),
    ] {
        assert_eq!(plan("llada", options).unwrap(), expected);
    }
    let own = preset::by_name("llada").unwrap().plan().clone();
    let options = json!({"do_sample": null, "temperature": 0.5});
    assert_eq!(plan("llada", options).unwrap(), own);
    expected.sampling.min_p = Some(0.25);
    let options = json!({"do_sample": true, "min_p": 0.25});
    assert_eq!(plan("llada", options).unwrap(), expected);
    let options = json!({"do_sample": true, "min_p": 0.25, "top_k": -1});
    assert_eq!(plan("llada", options).unwrap(), expected);
    let mut greedy = plan("mdlm", json!({})).unwrap();
    assert_eq!(greedy.sampling.temperature, 1.0);
    greedy.sampling.temperature = 0.0;
    let options = json!({"do_sample": false, "temperature": 0.6, "top_k": 20});
    assert_eq!(plan("mdlm", options).unwrap(), greedy);
    // A plan that is written for this server comes last.
    expected.sampling.temperature = 0.5;
    let options = json!({
        "do_sample": true, "temperature": 0.75, "min_p": 0.25,
        "unmask_plan": {"sampling": {"temperature": 0.5}},
    });
    assert_eq!(plan("llada", options).unwrap(), expected);

    for (options, says) in [
        (json!({"do_sample": "yes"}), "do_sample is \"yes\""),
        (
            json!({"do_sample": true, "temperature": -1}),
            "temperature is -1; allowed: at least 0",
        ),
        (
            json!({"do_sample": true, "top_k": -2}),
            "top_k is -2; allowed: -1 or 0 for all tokens, otherwise at least 1",
        ),
        (
            json!({"do_sample": true, "top_p": 2}),
            "top_p is 2; allowed: more than 0 and at most 1",
        ),
        (
            json!({"do_sample": true, "min_p": 2}),
            "min_p is 2; allowed: 0 to 1",
        ),
    ] {
        let error = plan("llada", options).unwrap_err().to_string();
        assert!(error.starts_with("generation_config.json: "), "{error}");
        assert!(error.contains(says), "{error}");
    }
}

/// What transformers writes there, and what authors of models leave there from other samplers.
#[test]
fn a_field_of_generation_config_json_is_read_or_said_not_to_be() {
    let fields = [
        "alg",
        "alg_temp",
        "do_sample",
        "eps",
        "max_denoising_steps",
        "min_p",
        "repetition_penalty",
        "steps",
        "t_max",
        "temperature",
        "top_k",
        "top_p",
    ];
    let read_by = |family: &str, do_sample: Option<bool>| -> Vec<&str> {
        let is_read = |field: &&str| {
            let mut nonsense = json!({"eos_token_id": 5, "do_sample": do_sample, "top_h": null});
            nonsense[field] = json!({"nobody": "knows"});
            let checkpoint = with_generation_config(family, &nonsense);
            match checkpoint.unread_generation_fields() {
                Ok(unread) => {
                    assert_eq!(unread, [*field], "{family}");
                    assert!(checkpoint.spec().is_ok(), "{family}: {field}");
                    false
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.contains(*field), "{family}: {error}");
                    true
                }
            }
        };
        fields.into_iter().filter(is_read).collect()
    };
    for family in OF_TRANSFORMERS {
        assert_eq!(read_by(family, None), ["do_sample"], "{family}");
        let drawing = ["do_sample", "min_p", "temperature", "top_k", "top_p"];
        assert_eq!(read_by(family, Some(true)), drawing, "{family}");
    }
    let of_dream = [
        "alg",
        "alg_temp",
        "eps",
        "steps",
        "temperature",
        "top_k",
        "top_p",
    ];
    assert_eq!(read_by("dream", None), of_dream);
    let of_diffusion_gemma = ["max_denoising_steps", "t_max"];
    assert_eq!(read_by("diffusion_gemma", None), of_diffusion_gemma);
}

/// The field `unmask_plan` of generation_config.json, for any family.
#[test]
fn a_checkpoint_may_bring_a_default_plan_of_its_own() {
    let plan = |family: &str, choices: Value| {
        let options = json!({ "unmask_plan": choices, "temperature": 0.25 });
        let spec = with_generation_config(family, &options).spec();
        spec.map(|spec| spec.default_plan)
    };
    let choices = json!({
        "steps": 16, "score": "random", "budget": {"threshold": 0.9}, "sampling": {"temperature": 0.75, "top_p": 0.5},
    });
    let mut expected = DecodePlan {
        steps: Some(16),
        score: Score::Random,
        budget: Budget::Threshold(0.9),
        ..preset::by_name("llada").unwrap().plan().clone()
    };
    (expected.sampling.temperature, expected.sampling.top_p) = (0.75, Some(0.5));
    assert_eq!(plan("llada", choices).unwrap(), expected);
    assert_eq!(
        plan("llada", json!(null)).unwrap(),
        preset::by_name("llada").unwrap().plan().clone()
    );
    // What it does not name is as the family's own fields have it.
    let dream = plan("dream", json!({"sampling": {"top_k": 5}})).unwrap();
    assert_eq!(
        (dream.sampling.temperature, dream.sampling.top_k),
        (0.25, Some(5))
    );

    for (choices, says) in [
        (json!([]), "is no object"),
        (json!({"stepz": 1}), "`stepz`"),
        (json!({"sampling": {"seed": 1}}), "`seed`"),
        (json!({"score": "loudness"}), "`loudness`"),
        (json!({"steps": 0}), "steps is 0"),
        (
            json!({"revision": {"resize": {"max_gap": 8, "expansions": 8, "delete_right": false}}}),
            "resize",
        ),
    ] {
        let error = plan("llada", choices).unwrap_err().to_string();
        assert!(
            error.starts_with("generation_config.json: unmask_plan: "),
            "{error}"
        );
        assert!(error.contains(says), "{error}");
    }
}

/// DreamOn is a Dream network whose files name an expand token.
#[test]
fn dreamons_default_plan_resizes_gaps_with_the_options_of_generation_config_json() {
    let directory = tempfile::tempdir().unwrap();
    let spec = |expand: Value, delete: Value, options: Value| {
        let mut config = read(&golden("dream").join("config.json"));
        config["expand_token_id"] = expand;
        config["delete_token_id"] = delete;
        let write = |file: &str, json: Value| {
            std::fs::write(directory.path().join(file), json.to_string()).unwrap();
        };
        write("config.json", config);
        write("generation_config.json", options);
        Checkpoint::open(directory.path()).unwrap().spec()
    };
    let config = read(&golden("dream").join("config.json"));
    let end = config["eos_token_id"].as_u64().unwrap() as TokenId;
    let dreamon = preset::by_name("dreamon").unwrap().plan().clone();
    for (config, options) in [
        (json!(505), json!({})),
        (json!(null), json!({"expand_token_id": 505})),
    ] {
        let spec = spec(config, json!(null), options).unwrap();
        let tokens = ResizeTokens {
            expand: 505,
            delete: end,
        };
        assert_eq!(spec.resize_tokens, Some(tokens));
        assert_eq!(spec.default_plan, dreamon);
        assert!(spec.presets().iter().any(|preset| preset.name == "dreamon"));
    }
    let vocabulary = directory.path().join("added_tokens.json");
    std::fs::write(&vocabulary, r#"{"<|expand|>": 505}"#).unwrap();
    let by_name = spec(json!(null), json!(null), json!({})).unwrap();
    assert_eq!(by_name.resize_tokens.map(|tokens| tokens.expand), Some(505));
    assert_eq!(by_name.default_plan, dreamon);
    let by_id = spec(json!(506), json!(null), json!({})).unwrap();
    assert_eq!(by_id.resize_tokens.map(|tokens| tokens.expand), Some(506));
    let ends = |generation_config: &str, tokenizer_config: &str| {
        let mut config = read(&golden("dream").join("config.json"));
        config.as_object_mut().unwrap().remove("eos_token_id");
        let write = |file: &str, json: &str| std::fs::write(directory.path().join(file), json);
        write("config.json", &config.to_string()).unwrap();
        write("generation_config.json", generation_config).unwrap();
        write("tokenizer_config.json", tokenizer_config).unwrap();
        Checkpoint::open(directory.path()).unwrap().spec()
    };
    let declared = r#"{"eos_token": "</s>", "added_tokens_decoder": {"503": {"content": "</s>"}}}"#;
    for (generation_config, delete) in [(r#"{"eos_token_id": [504, 502]}"#, 504), ("{}", 503)] {
        let tokens = ends(generation_config, declared).unwrap().resize_tokens;
        let expand = 505;
        assert_eq!(tokens, Some(ResizeTokens { expand, delete }));
    }
    let error = ends("{}", "{}").unwrap_err().to_string();
    assert!(error.contains("<|expand|>"), "{error}");
    std::fs::remove_file(directory.path().join("tokenizer_config.json")).unwrap();
    std::fs::remove_file(vocabulary).unwrap();

    let options = json!({
        "alg": "maskgit_plus", "temperature": 0.2, "top_p": 0.9, "max_new_tokens": 32,
        "number_transfer_tokens": 2, "pad_delete_to_right": true,
    });
    let plan = spec(json!(505), json!(506), options).unwrap().default_plan;
    let expected = Resizing {
        max_gap: 32,
        expansions: 64,
        delete_right: true,
    };
    assert_eq!(plan.revision, Revision::Resize(expected));
    assert_eq!((plan.score, plan.at_least), (Score::Confidence, 2));
    assert_eq!(
        (plan.sampling.temperature, plan.sampling.top_p),
        (0.2, Some(0.9))
    );

    let without = spec(json!(null), json!(null), json!({})).unwrap();
    assert_eq!(without.resize_tokens, None);
    assert!(
        without
            .presets()
            .iter()
            .all(|preset| preset.name != "dreamon")
    );
    for (expand, delete, options, says) in [
        (
            json!(99999),
            json!(null),
            json!({}),
            "expand_token_id 99999",
        ),
        (json!(505), json!(99999), json!({}), "delete_token_id 99999"),
        (
            json!(505),
            json!(null),
            json!({"alg": "origin"}),
            "alg is \"origin\"",
        ),
        (
            json!(505),
            json!(null),
            json!({"expand_budget": 1_000_000}),
            "expansions",
        ),
    ] {
        let error = spec(expand, delete, options).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
