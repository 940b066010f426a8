//! What the goldens' small checkpoints do not show: other shapes and options of every family, against
//! a plain transcription of the official code, which is itself held to the goldens.

#[path = "support/reference.rs"]
mod reference;
mod support;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use reference::Reference;
use serde_json::{Value, json};
use support::{TOLERANCE, forward_goldens, golden, integers};
use unmask::models::registry::family_of;
use unmask::models::{AttentionPattern, Checkpoint};

/// Largest difference of a network's logits from those of the reference, and how large those are.
fn difference(got: &Tensor, reference: &[Vec<f64>]) -> (f64, f64) {
    let got: Vec<Vec<f32>> = got.to_vec2().unwrap();
    assert_eq!(got.len(), reference.len());
    let (mut difference, mut largest) = (0.0f64, 0.0f64);
    for (got, reference) in got.iter().zip(reference) {
        assert_eq!(got.len(), reference.len());
        for (got, reference) in got.iter().zip(reference) {
            difference = difference.max((f64::from(*got) - reference).abs());
            largest = largest.max(reference.abs());
        }
    }
    (difference, largest)
}

#[test]
fn the_reference_equals_the_official_logits() {
    for (name, block) in [
        ("dream", None),
        ("a2d_qwen3", None),
        ("llada_moe", None),
        ("llada2_moe", None),
        ("sdar", Some(4)),
    ] {
        let directory = golden(name);
        let tensors =
            candle_core::safetensors::load(directory.join("model.safetensors"), &Device::Cpu);
        let config = support::json(&directory.join("config.json"));
        let reference = Reference::new(&config, &tensors.unwrap());
        let goldens = forward_goldens(name);
        let tokens = integers(&goldens["case0.input_ids"].narrow(0, 0, 1).unwrap());
        let allowed = |i: usize, j: usize| block.is_none_or(|block| j / block <= i / block);
        let official = goldens["case0.logits"].get(0).unwrap();
        let (difference, _) = difference(&official, &reference.logits(&tokens, allowed));
        assert!(difference < f64::from(TOLERANCE), "{name}: {difference}");
    }
}

/// Writes a checkpoint of `config` with weights drawn from a fixed sequence; the weights.
fn write_checkpoint(directory: &Path, config: &Value) -> HashMap<String, Tensor> {
    let mut state = 1u64;
    let mut draw = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let shapes = (family_of(config).unwrap().tensors)(config).unwrap();
    let tensors: HashMap<String, Tensor> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let (offset, scale) = match shape.as_slice() {
                [_] if name.contains("norm") => (1.0, 0.3),
                [_] => (0.0, 0.3),
                _ => (0.0, 0.35),
            };
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| offset + scale * draw()).collect();
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    tensors
}

/// A config.json of `class` with `fields` added to, or put in the place of, those of all families.
fn config(class: &str, fields: Value) -> Value {
    let mut config = json!({
        "architectures": [class],
        "vocab_size": 29,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "mask_token_id": 28,
        "eos_token_id": 27,
    });
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn assert_equals_reference(class: &str, fields: Value) {
    let config = config(class, fields);
    let directory = tempfile::tempdir().unwrap();
    let tensors = write_checkpoint(directory.path(), &config);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let model = checkpoint.load(DType::F32, &Device::Cpu).unwrap();
    let tokens: Vec<u32> = vec![3, 28, 28, 0, 11, 28, 27, 5, 28, 19, 1];
    let input: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
    let input = Tensor::from_vec(input, (1, tokens.len()), &Device::Cpu).unwrap();
    let pattern = model.spec().attention;
    let got = support::logits(&*model, &input, None, &[pattern.allowed(tokens.len())]);
    let block_length = match pattern {
        AttentionPattern::Bidirectional => tokens.len(),
        AttentionPattern::BlockCausal { block_length } => block_length,
        AttentionPattern::EncodedBlocks { .. } => panic!("the reference has no encoder"),
    };
    let reference = Reference::new(&config, &tensors)
        .logits(&tokens, |i, j| j / block_length <= i / block_length);
    let (difference, largest) = difference(&got.get(0).unwrap(), &reference);
    assert!(largest > 0.1, "{config}: logits tell nothing");
    assert!(difference < f64::from(TOLERANCE), "{config}: {difference}");
}

#[test]
fn dream_in_other_shapes() {
    for fields in [
        json!({"num_key_value_heads": 1, "tie_word_embeddings": true}),
        json!({"num_key_value_heads": 4, "num_hidden_layers": 1}),
    ] {
        assert_equals_reference("DreamModel", fields);
    }
}

#[test]
fn a2d_of_qwen2_has_biases_of_queries_keys_and_values() {
    for fields in [
        json!({"tie_word_embeddings": true}),
        json!({"head_dim": 10, "num_key_value_heads": 1}),
    ] {
        assert_equals_reference("A2DQwen2LMHeadModel", fields);
    }
}

#[test]
fn a2d_of_qwen3_in_other_shapes_and_block_causal() {
    for fields in [
        json!({"tie_word_embeddings": true, "head_dim": 16}),
        json!({"attention_bias": true, "num_key_value_heads": null}),
        json!({"block_size": 3}),
        // As transformers 5 writes it.
        json!({
            "rope_theta": null,
            "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
        }),
    ] {
        assert_equals_reference("A2DQwen3LMHeadModel", fields);
    }
}

#[test]
fn a2d_of_llama_with_biases_and_a_stretched_context() {
    let scaling = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    for fields in [
        json!({"rope_scaling": {"rope_type": "default"}}),
        json!({"attention_bias": true, "mlp_bias": true, "head_dim": 12}),
        json!({"rope_scaling": scaling, "head_dim": 12, "rope_theta": 100.0}),
    ] {
        assert_equals_reference("A2DLlamaLMHeadModel", fields);
    }
}

#[test]
fn llada_moe_with_dense_layers_shared_expert_and_biases() {
    let common = json!({
        "moe_layer_freq": [1, 1, 1],
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "expert_intermediate_size": 9,
        "qk_layernorm": true,
        // Not read by the official code.
        "norm_topk_prob": true,
        "moe_router_score_function": "sigmoid",
    });
    for fields in [
        json!({"num_key_value_heads": 4}),
        json!({
            "moe_layer_freq": [0, 1, 0],
            "dense_intermediate_size": 13,
            "shared_expert_intermediate_size": 7,
        }),
        json!({"moe_router_enable_expert_bias": true, "attention_bias": true}),
        json!({"num_experts_per_tok": 1, "qk_layernorm": false, "tie_word_embeddings": true}),
        json!({"num_attention_heads": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.5}),
    ] {
        assert_equals_reference("LLaDAMoEModelLM", merged(&common, fields));
    }
}

#[test]
fn llada2_with_other_groups_experts_and_biases() {
    let common = json!({
        "head_dim": 8,
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 9,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "partial_rotary_factor": 0.5,
        "use_qkv_bias": false,
        "use_bias": false,
        "use_qk_norm": true,
        "block_size": 4,
    });
    for fields in [
        json!({}),
        json!({"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "num_shared_experts": null}),
        json!({"use_qkv_bias": true, "use_bias": true, "use_qk_norm": false}),
        json!({"num_experts_per_tok": 1, "num_shared_experts": 2, "tie_word_embeddings": true}),
        json!({"num_experts": null, "partial_rotary_factor": 1.0, "block_size": null}),
        json!({"first_k_dense_replace": 2, "num_key_value_heads": 4, "n_group": 6, "topk_group": 5}),
    ] {
        assert_equals_reference("LLaDA2MoeModelLM", merged(&common, fields));
    }
}

#[test]
fn illada_with_and_without_biases() {
    for fields in [
        json!({"tie_word_embeddings": true}),
        json!({"tie_word_embeddings": false, "attention_bias": true, "mlp_bias": true}),
    ] {
        assert_equals_reference("ILLaDAForCausalLM", fields);
    }
}

#[test]
fn sdar_dense_and_with_experts() {
    for fields in [
        json!({"block_size": 2, "tie_word_embeddings": true}),
        json!({"block_size": 8, "attention_bias": true, "head_dim": 14}),
    ] {
        assert_equals_reference("SDARForCausalLM", fields);
    }
    let common = json!({
        "block_size": 4,
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 9,
        "norm_topk_prob": true,
    });
    for fields in [
        json!({}),
        json!({"norm_topk_prob": false, "mlp_only_layers": [1]}),
        json!({"decoder_sparse_step": 2}),
    ] {
        assert_equals_reference("SDARMoeForCausalLM", merged(&common, fields));
    }
}

fn merged(common: &Value, fields: Value) -> Value {
    let mut all = common.clone();
    for (name, value) in fields.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

/// As in transformers 5; some training code saves a head that is tied, or that came apart from the
/// embedding.
#[test]
fn a_head_in_the_files_is_used_although_config_json_ties_it() {
    let mut config = config("A2DQwen3LMHeadModel", json!({"head_dim": 8}));
    let directory = tempfile::tempdir().unwrap();
    let tensors = write_checkpoint(directory.path(), &config);
    config["tie_word_embeddings"] = true.into();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let model = checkpoint.load(DType::F32, &Device::Cpu).unwrap();
    let input = Tensor::new(&[[1i64, 2, 28, 3]], &Device::Cpu).unwrap();
    let got = support::logits(&*model, &input, None, &[None]);
    let reference = Reference::new(&config, &tensors).logits(&[1, 2, 28, 3], |_, _| true);
    let (difference, _) = difference(&got.get(0).unwrap(), &reference);
    assert!(difference < f64::from(TOLERANCE), "{difference}");
}

/// In bf16 only the size of the difference can be told, and experts may be others: most slots' best
/// token must stay the same.
#[test]
fn networks_run_in_bf16() {
    for name in ["dream", "a2d_qwen3", "llada_moe", "llada2_moe", "sdar"] {
        let checkpoint = Checkpoint::open(&golden(name)).unwrap();
        let model = checkpoint.load(DType::BF16, &Device::Cpu).unwrap();
        let goldens = forward_goldens(name);
        let input = goldens["case0.input_ids"].narrow(0, 0, 1).unwrap();
        let allowed = model.spec().attention.allowed(input.dim(1).unwrap());
        let best = |logits: &Tensor| -> Vec<u32> {
            let best = logits.get(0).unwrap().argmax(1).unwrap();
            best.to_vec1().unwrap()
        };
        let allowed = [allowed];
        let got = best(&support::logits(&*model, &input, None, &allowed));
        let f32 = checkpoint.load(DType::F32, &Device::Cpu).unwrap();
        let expected = best(&support::logits(&*f32, &input, None, &allowed));
        let same = got.iter().zip(&expected).filter(|(a, b)| a == b).count();
        assert!(same * 4 >= got.len() * 3, "{name}: {same} of {}", got.len());
    }
}
