//! What a config.json makes of a checkpoint: released sizes, refusals that name the field, where the mask
//! token comes from.

use serde_json::{Value, json};
use unmask::models::registry::family_of;
use unmask::models::{AttentionPattern, Checkpoint, ModelError, ModelSpec};

fn spec(config: &Value) -> Result<ModelSpec, ModelError> {
    (family_of(config)?.spec)(config)
}

/// The fields that decide the size of Qwen-like models.
fn qwen(class: &str, sizes: [usize; 7], fields: Value) -> Value {
    let [hidden, layers, heads, kv_heads, head_dim, width, vocab] = sizes;
    let mut config = json!({
        "architectures": [class],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": width,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": false,
        "mask_token_id": vocab - 1,
        "eos_token_id": 0,
    });
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn dream(fields: Value) -> Value {
    let mut config = qwen(
        "DreamModel",
        [3584, 28, 28, 4, 128, 18944, 152_064],
        json!({"mask_token_id": 151_666, "eos_token_id": 151_643}),
    );
    config.as_object_mut().unwrap().remove("head_dim");
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn llada_moe(fields: Value) -> Value {
    let common = json!({
        "model_type": "llada",
        "mask_token_id": 156_895,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "expert_intermediate_size": 1024,
        "dense_intermediate_size": 8192,
        "shared_expert_intermediate_size": null,
        "moe_layer_freq": vec![1; 16],
        "moe_router_enable_expert_bias": false,
        "qk_layernorm": true,
    });
    let sizes = [2048, 16, 16, 16, 128, 0, 157_184];
    let mut config = qwen("LLaDAMoEModelLM", sizes, common);
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn llada2_mini(fields: Value) -> Value {
    let common = json!({
        "mask_token_id": 156_895,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "moe_intermediate_size": 512,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": true,
        "use_qkv_bias": false,
        "use_bias": false,
    });
    let sizes = [2048, 20, 16, 4, 128, 5120, 157_184];
    let mut config = qwen("LLaDA2MoeModelLM", sizes, common);
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn sdar(sizes: [usize; 7], fields: Value) -> Value {
    let common = json!({"mask_token_id": 151_669, "block_size": 4});
    let mut config = qwen("SDARForCausalLM", sizes, common);
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn llada() -> Value {
    json!({
        "architectures": ["LLaDAModelLM"],
        "d_model": 4096,
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "mlp_hidden_size": 12288,
        "vocab_size": 126_464,
        "embedding_size": 126_464,
        "max_sequence_length": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "weight_tying": false,
        "mask_token_id": 126_336,
        "eos_token_id": 126_081,
    })
}

/// Sizes are those of the released config.json files; counts in billions, to as many digits as are
/// published. SDAR-4B's head is not tied, unlike that of Qwen3-4B with its 4.0 billion.
#[test]
fn released_models_have_the_published_number_of_parameters() {
    let qwen3_moe = json!({
        "architectures": ["SDARMoeForCausalLM"],
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": true,
    });
    for (name, config, billions) in [
        ("LLaDA-8B", llada(), 8.02),
        ("Dream-7B", dream(json!({})), 7.62),
        ("LLaDA-MoE-7B-A1B", llada_moe(json!({})), 7.36),
        ("LLaDA2.0-mini", llada2_mini(json!({})), 16.26),
        (
            "SDAR-4B",
            sdar([2560, 36, 32, 8, 128, 9728, 151_936], json!({})),
            4.41,
        ),
        (
            "SDAR-8B",
            sdar([4096, 36, 32, 8, 128, 12288, 151_936], json!({})),
            8.19,
        ),
        (
            "SDAR-30B-A3B",
            sdar([2048, 48, 32, 4, 128, 6144, 151_936], qwen3_moe),
            30.5,
        ),
    ] {
        let parameters = spec(&config).unwrap().parameters as f64 / 1e9;
        let error = (parameters / billions - 1.0f64).abs();
        assert!(error < 0.01, "{name}: {parameters} billion");
    }
}

#[test]
fn a_released_llada_moe_is_told_from_dense_llada_by_its_class() {
    for class in ["LLaDAMoEModel", "LLaDAMoEModelLM"] {
        let config = llada_moe(json!({"architectures": [class], "model_type": "llada"}));
        assert_eq!(spec(&config).unwrap().family, "llada_moe");
    }
}

#[test]
fn llada2_norms_queries_and_keys_unless_config_json_says_otherwise() {
    let parameters = |norms: Value| {
        let config = llada2_mini(json!({"use_qk_norm": norms}));
        spec(&config).unwrap().parameters
    };
    assert_eq!(parameters(json!(null)), parameters(json!(true)));
    // Two norms over a head of 128 in each of 20 layers.
    assert_eq!(
        parameters(json!(true)) - parameters(json!(false)),
        2 * 128 * 20
    );
}

#[test]
fn model_type_decides_where_no_class_is_given() {
    for (model_type, family) in [
        ("Dream", "dream"),
        ("llada2_moe", "llada2_moe"),
        ("sdar", "sdar"),
        ("a2d-qwen2", "a2d"),
        ("a2d-llama", "a2d"),
    ] {
        let config = json!({"model_type": model_type});
        assert_eq!(family_of(&config).unwrap().name, family);
    }
}

#[test]
fn unknown_classes_are_refused_with_the_known_ones() {
    let config = json!({"architectures": ["DreamForCausalLM"], "model_type": "Dream"});
    let error = spec(&config).unwrap_err().to_string();
    assert!(error.contains("\"DreamForCausalLM\""), "{error}");
    assert!(error.contains("DreamModel"), "{error}");
}

#[test]
fn fields_of_networks_that_are_not_built_are_refused_by_name() {
    let qwen3 = |fields| {
        let sizes = [64, 2, 4, 2, 16, 96, 100];
        qwen("A2DQwen3LMHeadModel", sizes, fields)
    };
    let sdar = |fields| sdar([64, 2, 4, 2, 16, 96, 151_936], fields);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    for (config, expected) in [
        (
            dream(json!({"use_mrope": true})),
            "use_mrope is true; only false",
        ),
        (
            dream(json!({"use_sliding_window": true})),
            "use_sliding_window is true; only",
        ),
        (
            dream(json!({"hidden_act": "gelu"})),
            "hidden_act is \"gelu\"; only \"silu\"",
        ),
        (qwen3(json!({"rope_scaling": yarn})), "rope_scaling is {"),
        (
            qwen3(json!({"quantization_config": {"bits": 4}})),
            "quantization_config is {",
        ),
        (
            llada_moe(json!({"clip_qkv": 8.0})),
            "clip_qkv is 8.0; only null",
        ),
        (
            qwen3(json!({"use_sliding_window": true})),
            "use_sliding_window is true; only",
        ),
        (
            {
                let mut config = llada();
                config["quantization_config"] = json!({"bits": 4});
                config
            },
            "quantization_config is {",
        ),
        (
            sdar(json!({"use_sliding_window": true})),
            "use_sliding_window is true; only",
        ),
    ] {
        let error = spec(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_and_impossible_fields_are_named() {
    let without = |mut config: Value, field: &str| {
        config.as_object_mut().unwrap().remove(field);
        config
    };
    for field in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "mask_token_id",
    ] {
        let error = spec(&without(dream(json!({})), field)).unwrap_err();
        assert!(
            error.to_string().contains(&format!("{field} is missing")),
            "{error}"
        );
    }
    let sizes = [64, 2, 4, 2, 16, 96, 151_936];
    for (config, expected) in [
        (sdar(sizes, json!({"block_size": 0})), "block_size is 0"),
        (
            without(llada2_mini(json!({})), "n_group"),
            "n_group is missing",
        ),
        (
            without(llada2_mini(json!({})), "partial_rotary_factor"),
            "partial_rotary_factor is missing",
        ),
        (
            llada2_mini(json!({"n_group": 7})),
            "n_group 7 does not divide num_experts 256",
        ),
        (llada2_mini(json!({"n_group": 256})), "groups of at least 2"),
        (
            llada2_mini(json!({"topk_group": 9})),
            "topk_group 9 is more than n_group 8",
        ),
        (
            llada2_mini(json!({"topk_group": 1, "num_experts_per_tok": 33})),
            "fewer than num_experts_per_tok 33",
        ),
        (
            llada2_mini(json!({"num_experts_per_tok": 257})),
            "num_experts_per_tok 257 is more than num_experts 256",
        ),
        (
            llada_moe(json!({"moe_layer_freq": [1]})),
            "moe_layer_freq has 1 entries",
        ),
        (
            dream(json!({"num_key_value_heads": 3})),
            "num_key_value_heads 3",
        ),
        (
            dream(json!({"hidden_size": 3585})),
            "hidden_size 3585 is not a multiple",
        ),
        (
            dream(json!({"hidden_size": "wide"})),
            "hidden_size is \"wide\"",
        ),
        (
            dream(json!({"hidden_size": 1_u64 << 40})),
            "hidden_size is 1099511627776",
        ),
        (
            dream(json!({"mask_token_id": 152_064})),
            "mask_token_id 152064 is outside",
        ),
        (
            dream(json!({"partial_rotary_factor": 1.5})),
            "partial_rotary_factor 1.5 rotates 192",
        ),
        (dream(json!({"rope_theta": -1.0})), "rope_theta is -1"),
        (
            llada2_mini(
                json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}),
            ),
            "partial_rotary_factor is 0.5, and in rope_parameters 1.0",
        ),
        (
            dream(json!({"rope_parameters": {"rope_type": "yarn"}})),
            "rope_parameters is {",
        ),
        (
            dream(json!({
                "rope_parameters": {"rope_type": "default"},
                "rope_scaling": {"rope_type": "llama3"},
            })),
            "rope_parameters and rope_scaling are both given and differ",
        ),
        (
            dream(json!({"num_hidden_layers": 16_000_000})),
            "num_hidden_layers is 16000000; it must be 1 to 1024",
        ),
        (
            llada2_mini(json!({"num_shared_experts": 5000})),
            "num_shared_experts is 5000",
        ),
        (
            llada2_mini(json!({"num_shared_experts": 1024, "moe_intermediate_size": 65_536})),
            "num_shared_experts × moe_intermediate_size is 67108864",
        ),
        (
            {
                let mut config = without(llada(), "mlp_hidden_size");
                config["mlp_ratio"] = json!(16_777_215);
                config
            },
            "mlp_ratio × d_model is 68719472640",
        ),
        (
            {
                let mut config = llada();
                config["eos_token_id"] = json!("end");
                config
            },
            "config.json: eos_token_id is \"end\"; it must be a token id or a list of them",
        ),
        (
            dream(
                json!({"num_attention_heads": 8_388_608, "num_key_value_heads": 1, "head_dim": 8_388_608}),
            ),
            "num_attention_heads × head_dim is",
        ),
    ] {
        let error = spec(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn fields_of_the_rotary_embedding_are_read_wherever_they_are() {
    let rotary = |fields: Value| {
        let mut config = llada2_mini(json!({}));
        let object = config.as_object_mut().unwrap();
        object.remove("rope_theta");
        object.remove("partial_rotary_factor");
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        spec(&config)
    };
    let both = json!({"rope_type": "default", "rope_theta": 6e5, "partial_rotary_factor": 0.5});
    assert!(rotary(json!({"rope_parameters": both})).is_ok());
    assert!(
        rotary(json!({
            "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 6e5},
        }))
        .is_ok()
    );
    let error = rotary(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 6e5}}));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("partial_rotary_factor is missing"),
        "{error}"
    );
}

#[test]
fn block_lengths_come_from_the_configuration() {
    let attention = |config: &Value| spec(config).unwrap().attention;
    let blocks = |block_length| AttentionPattern::BlockCausal { block_length };
    let sizes = [64, 2, 4, 2, 16, 96, 151_936];
    assert_eq!(
        attention(&sdar(sizes, json!({"block_size": 16}))),
        blocks(16)
    );
    assert_eq!(
        attention(&sdar(sizes, json!({"block_size": null}))),
        blocks(4)
    );
    assert_eq!(attention(&llada2_mini(json!({}))), blocks(32));
    assert_eq!(attention(&llada2_mini(json!({"block_size": 8}))), blocks(8));
    let a2d = |fields| qwen("A2DQwen3LMHeadModel", sizes, fields);
    assert_eq!(attention(&a2d(json!({}))), AttentionPattern::Bidirectional);
    assert_eq!(attention(&a2d(json!({"block_size": 32}))), blocks(32));
}

#[test]
fn stop_tokens_may_be_one_several_or_none() {
    for (given, expected) in [
        (json!(7), vec![7]),
        (json!([7, 9]), vec![7, 9]),
        (json!(null), vec![]),
    ] {
        let mut of_llada = llada();
        of_llada["eos_token_id"] = given.clone();
        for config in [dream(json!({"eos_token_id": given})), of_llada] {
            assert_eq!(spec(&config).unwrap().stop_tokens, expected);
        }
    }
}

#[test]
fn a_checkpoint_whose_files_name_no_end_takes_the_tokenizers() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, json: &Value| {
        std::fs::write(directory.path().join(name), json.to_string()).unwrap();
    };
    let spec = || Checkpoint::open(directory.path()).unwrap().spec().unwrap();
    write("config.json", &llada2_mini(json!({"eos_token_id": null})));
    assert!(spec().stop_tokens.is_empty());
    assert!(spec().never_stops());
    let inspect = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args([
                "inspect",
                "--load-format",
                "dummy",
                "--device",
                "cpu",
                "--model",
            ])
            .arg(directory.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = inspect();
    assert!(
        said.contains("stop tokens    [], so that the default plan"),
        "{said}"
    );

    write(
        "tokenizer.json",
        &json!({"added_tokens": [{"id": 156_892, "content": "<|endoftext|>"}]}),
    );
    write(
        "tokenizer_config.json",
        &json!({"eos_token": "<|endoftext|>"}),
    );
    assert_eq!(spec().stop_tokens, [156_892]);
    assert!(!spec().never_stops());
    // Of that file only the added tokens are there, and `unmask inspect` reads the whole tokenizer.
    std::fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    let added = json!({"156892": {"content": "<|endoftext|>"}});
    write(
        "tokenizer_config.json",
        &json!({"eos_token": "<|endoftext|>", "added_tokens_decoder": added}),
    );
    assert_eq!(spec().stop_tokens, [156_892]);
    let said = inspect();
    assert!(said.contains("stop tokens    [156892]\n"), "{said}");
    // What a file names goes before it.
    write("generation_config.json", &json!({"eos_token_id": 7}));
    assert_eq!(spec().stop_tokens, [7]);
    write("config.json", &llada2_mini(json!({"eos_token_id": [8, 9]})));
    write("generation_config.json", &json!({}));
    assert_eq!(spec().stop_tokens, [8, 9]);
    // Documents of MDLM's training follow one another: a text does not end with one.
    let mdlm = json!({
        "architectures": ["MDLM"], "cond_dim": 128, "hidden_dim": 64, "model_length": 32, "n_blocks": 1,
        "n_heads": 1, "vocab_size": 156_900,
    });
    write("config.json", &mdlm);
    assert!(spec().stop_tokens.is_empty());
}

#[test]
fn a_stop_token_outside_the_vocabulary_is_refused_with_the_file_and_the_field() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, json: &Value| {
        std::fs::write(directory.path().join(name), json.to_string()).unwrap();
    };
    let refusal = || {
        let spec = Checkpoint::open(directory.path()).unwrap().spec();
        spec.unwrap_err().to_string()
    };
    let mut config = llada();
    let vocab = config["embedding_size"].as_u64();
    let vocab = vocab.or(config["vocab_size"].as_u64()).unwrap();
    write("config.json", &config);
    for given in [json!(vocab), json!([1, vocab])] {
        write("generation_config.json", &json!({"eos_token_id": given}));
        assert_eq!(
            refusal(),
            format!(
                "generation_config.json: eos_token_id {vocab} is outside the vocabulary of {vocab}"
            )
        );
    }
    write(
        "generation_config.json",
        &json!({"eos_token_id": vocab - 1}),
    );
    let spec = Checkpoint::open(directory.path()).unwrap().spec().unwrap();
    assert!(spec.stop_tokens.contains(&(vocab as u32 - 1)));

    config["eos_token_id"] = vocab.into();
    write("config.json", &config);
    assert_eq!(
        refusal(),
        format!("config.json: eos_token_id {vocab} is outside the vocabulary of {vocab}")
    );

    config["eos_token_id"] = Value::Null;
    write("config.json", &config);
    write("generation_config.json", &json!({}));
    write(
        "tokenizer.json",
        &json!({"added_tokens": [{"id": vocab, "content": "</s>"}]}),
    );
    write("tokenizer_config.json", &json!({"eos_token": "</s>"}));
    assert_eq!(
        refusal(),
        format!("tokenizer_config.json: eos_token {vocab} is outside the vocabulary of {vocab}")
    );
}

#[test]
fn a_checkpoint_without_a_mask_token_in_config_json_takes_the_tokenizers() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, json: &Value| {
        std::fs::write(directory.path().join(name), json.to_string()).unwrap();
    };
    let mask = || {
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        checkpoint.spec().map(|spec| spec.mask_token())
    };
    write("config.json", &llada2_mini(json!({"mask_token_id": null})));
    let error = mask().unwrap_err().to_string();
    assert!(error.contains("mask_token_id is missing"), "{error}");
    let tokens = json!([
        {"id": 156_892, "content": "<|endoftext|>"},
        {"id": 156_895, "content": "<|mask|>"},
    ]);
    write("tokenizer.json", &json!({"added_tokens": tokens}));
    assert_eq!(mask().unwrap(), Some(156_895));
    write("config.json", &llada2_mini(json!({"mask_token_id": 5})));
    assert_eq!(mask().unwrap(), Some(5));
}

#[test]
fn a_config_json_that_is_no_object_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), "[]").unwrap();
    let tokenizer = r#"{"added_tokens": [{"id": 1, "content": "<|mask|>"}]}"#;
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer).unwrap();
    let error = Checkpoint::open(directory.path()).err().unwrap();
    assert!(
        matches!(error, ModelError::UnknownArchitecture { .. }),
        "{error}"
    );
}
