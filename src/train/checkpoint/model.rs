//! The Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use safetensors::tensor::Dtype;
use tokenizers::Tokenizer;

use super::{bytes_of, serialize, write_atomically};
use crate::models::ForwardProcess;
use crate::train::config::ModelDtype;
use crate::train::error::TrainError;
use crate::train::layout::{Layout, NetworkShape};
use crate::train::tokenizer::{END, MASK, PAD, SpecialTokens};

/// The `config.json` of a network, with all fields of LLaDA's; of one that was trained on another process
/// than LLaDA's also `unmask_process`, by which this crate knows it.
pub fn config_json(
    shape: &NetworkShape,
    specials: SpecialTokens,
    process: ForwardProcess,
) -> serde_json::Value {
    // What is the same for every shape: the variants of the architecture that are not used.
    let mut config = serde_json::json!({
        "activation_type": "silu",
        "alibi": false,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": false,
        "attention_layer_norm_with_affine": true,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
            "AutoModel": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": false,
        "block_group_size": 1,
        "block_type": "llama",
        "embedding_dropout": 0.0,
        "flash_attention": false,
        "include_bias": false,
        "include_qkv_bias": false,
        "init_cutoff_factor": null,
        "init_device": "meta",
        "init_fn": "normal",
        "init_std": 0.02,
        "input_emb_norm": false,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": true,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": null,
        "precision": "fp32",
        "residual_dropout": 0.0,
        "rope": true,
        "rope_full_precision": true,
        "scale_logits": false,
        "transformers_version": "4.46.3",
        "use_cache": false,
    });
    for (field, value) in [
        ("d_model", shape.hidden.into()),
        ("embedding_size", shape.vocab.into()),
        ("eos_token_id", specials.end.into()),
        ("mask_token_id", specials.mask.into()),
        ("max_sequence_length", shape.context.into()),
        ("mlp_hidden_size", shape.mlp.into()),
        ("n_heads", shape.heads.into()),
        ("n_kv_heads", shape.heads.into()),
        ("n_layers", shape.layers.into()),
        ("pad_token_id", specials.pad.into()),
        ("rms_norm_eps", shape.norm_eps.into()),
        ("rope_theta", shape.rope_theta.into()),
        ("vocab_size", shape.vocab.into()),
        ("weight_tying", serde_json::Value::Bool(shape.tied)),
    ] {
        config[field] = value;
    }
    if process != ForwardProcess::default() {
        config["unmask_process"] = serde_json::json!(process);
    }
    config
}

/// Writes `tokenizer.json`.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_tokenizer(out: &Path, tokenizer: &Tokenizer) -> Result<(), TrainError> {
    let serialized = tokenizer
        .to_string(true)
        .map_err(|error| TrainError::Tokenizer(error.to_string()))?;
    write_atomically(&out.join("tokenizer.json"), serialized.as_bytes())
}

/// Writes everything of the Hugging Face directory but the weights and `tokenizer.json`.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_model_files(
    out: &Path,
    shape: &NetworkShape,
    specials: SpecialTokens,
    process: ForwardProcess,
) -> Result<(), TrainError> {
    let json = |name: &str, value: serde_json::Value| {
        write_atomically(&out.join(name), format!("{value:#}\n").as_bytes())
    };
    json("config.json", config_json(shape, specials, process))?;
    let added = |content: &str| {
        serde_json::json!({
            "content": content,
            "lstrip": false,
            "normalized": false,
            "rstrip": false,
            "single_word": false,
        })
    };
    let by_id: serde_json::Map<_, _> = [
        (specials.mask, MASK),
        (specials.end, END),
        (specials.pad, PAD),
    ]
    .into_iter()
    .map(|(id, content)| {
        let mut token = added(content);
        token["special"] = true.into();
        (id.to_string(), token)
    })
    .collect();
    json(
        "tokenizer_config.json",
        serde_json::json!({
            "add_bos_token": false,
            "add_eos_token": false,
            "added_tokens_decoder": by_id,
            "clean_up_tokenization_spaces": false,
            "eos_token": END,
            "mask_token": MASK,
            "pad_token": PAD,
            "model_max_length": shape.context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }),
    )?;
    json(
        "special_tokens_map.json",
        serde_json::json!({ "eos_token": added(END), "mask_token": added(MASK), "pad_token": added(PAD) }),
    )?;
    json(
        "generation_config.json",
        serde_json::json!({
            "eos_token_id": specials.end,
            "pad_token_id": specials.pad,
            "mask_token_id": specials.mask,
        }),
    )
}

/// Writes the weights of the Hugging Face directory.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_model(
    out: &Path,
    layout: &Layout,
    weights: &[f32],
    dtype: ModelDtype,
) -> Result<(), TrainError> {
    let (kind, bytes): (_, Vec<u8>) = match dtype {
        ModelDtype::F32 => (Dtype::F32, bytes_of(weights)),
        ModelDtype::F16 => (
            Dtype::F16,
            weights
                .iter()
                .flat_map(|&w| f16::from_f32(w).to_le_bytes())
                .collect(),
        ),
    };
    let width = bytes.len() / weights.len();
    let tensors = layout.parameters.iter().map(|parameter| {
        let range = parameter.range.start * width..parameter.range.end * width;
        (
            parameter.name.clone(),
            kind,
            parameter.shape.clone(),
            &bytes[range],
        )
    });
    let path = out.join("model.safetensors");
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_atomically(&path, &serialize(tensors, metadata, &path)?)
}
