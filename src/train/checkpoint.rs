//! What a run leaves on disk: a Hugging Face directory with the best model, and the state to
//! resume from. Every file is written beside its place, flushed, and renamed, so that a run killed
//! at any moment leaves each file whole: the old one or the new one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::config::{ModelDtype, TrainConfig};
use super::error::TrainError;
use super::layout::{Layout, NetworkShape};
use super::optimizer::AdamW;
use super::tokenizer::{END, MASK, PAD, SpecialTokens};

/// The version of the state's format.
const VERSION: u32 = 1;

/// Where a run's state lies in its output directory.
pub fn state_path(out: &Path) -> PathBuf {
    out.join("state").join("state.safetensors")
}

/// Writes a file atomically.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), TrainError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = directory.join(name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        // Makes the rename itself durable; directories cannot be opened everywhere.
        if let Ok(directory) = File::open(directory) {
            directory.sync_all().ok();
        }
        Ok(())
    };
    write().map_err(TrainError::io("write", path))
}

/// The `config.json` of a network, with all fields of LLaDA's.
pub fn config_json(shape: &NetworkShape, specials: SpecialTokens) -> serde_json::Value {
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
    config
}

/// Writes everything of the Hugging Face directory but the weights.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_model_files(
    out: &Path,
    shape: &NetworkShape,
    tokenizer: &Tokenizer,
    specials: SpecialTokens,
) -> Result<(), TrainError> {
    let json = |name: &str, value: serde_json::Value| {
        write_atomically(&out.join(name), format!("{value:#}\n").as_bytes())
    };
    json("config.json", config_json(shape, specials))?;
    let serialized = tokenizer
        .to_string(true)
        .map_err(|error| TrainError::Tokenizer(error.to_string()))?;
    write_atomically(&out.join("tokenizer.json"), serialized.as_bytes())?;
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

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn serialize<'a>(
    tensors: impl Iterator<Item = (String, Dtype, Vec<usize>, &'a [u8])>,
    metadata: HashMap<String, String>,
    path: &Path,
) -> Result<Vec<u8>, TrainError> {
    let invalid = |error: safetensors::SafeTensorError| TrainError::Io {
        action: "serialize",
        path: path.to_path_buf(),
        source: std::io::Error::other(error),
    };
    let views: Vec<(String, TensorView)> = tensors
        .map(|(name, kind, shape, bytes)| Ok((name, TensorView::new(kind, shape, bytes)?)))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    safetensors::serialize(views, Some(metadata)).map_err(invalid)
}

/// The numbers of a run beside its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// The best validation loss so far, in nats per token.
    #[serde(with = "exact")]
    pub best: Option<f64>,
    /// Seconds spent training, over all resumptions.
    pub seconds: f64,
    /// Hash of the encoded texts.
    pub data: u64,
}

/// Numbers as their bits: read back from decimal JSON they may differ in the last digit.
mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(f64::to_bits).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(f64::from_bits))
    }
}

/// The resumable state of a run.
pub struct State {
    /// The settings it was started with.
    pub config: TrainConfig,
    /// The network's shape.
    pub shape: NetworkShape,
    /// Step, best loss, …
    pub progress: Progress,
    /// The weights that are trained.
    pub weights: Vec<f32>,
    /// Their moving average.
    pub average: Vec<f32>,
    /// The optimiser's moments.
    pub adam: AdamW,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    config: TrainConfig,
    shape: NetworkShape,
    progress: Progress,
    checksum: u64,
}

/// A hash of all buffers, to tell a damaged file.
fn checksum(buffers: [&[f32]; 4]) -> u64 {
    buffers
        .into_iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |hash, value| {
            (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

const BUFFERS: [&str; 4] = ["weights", "average", "adam_first", "adam_second"];

/// Writes the state of a run, given by parts to spare a copy.
///
/// # Errors
/// When the directory cannot be written.
#[allow(clippy::too_many_arguments)]
pub fn save_state(
    path: &Path,
    layout: &Layout,
    config: &TrainConfig,
    shape: &NetworkShape,
    progress: &Progress,
    weights: &[f32],
    average: &[f32],
    adam: &AdamW,
) -> Result<(), TrainError> {
    let buffers = [weights, average, &adam.first, &adam.second];
    let header = Header {
        version: VERSION,
        config: config.clone(),
        shape: shape.clone(),
        progress: progress.clone(),
        checksum: checksum(buffers),
    };
    let header = serde_json::to_string(&header).map_err(|error| TrainError::Io {
        action: "serialize",
        path: path.to_path_buf(),
        source: error.into(),
    })?;
    let bytes = buffers.map(bytes_of);
    let tensors = BUFFERS.iter().zip(&bytes).flat_map(|(buffer, bytes)| {
        layout.parameters.iter().map(move |parameter| {
            let range = parameter.range.start * 4..parameter.range.end * 4;
            (
                format!("{buffer}.{}", parameter.name),
                Dtype::F32,
                parameter.shape.clone(),
                &bytes[range],
            )
        })
    });
    let metadata = HashMap::from([("unmask_train".to_owned(), header)]);
    write_atomically(path, &serialize(tensors, metadata, path)?)
}

/// Reads the state of a run.
///
/// # Errors
/// [`TrainError::NothingToResume`] when there is none, [`TrainError::CorruptState`] when it is
/// damaged or of another version.
pub fn load_state(path: &Path) -> Result<State, TrainError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(TrainError::NothingToResume {
                path: path.to_path_buf(),
            });
        }
        other => other.map_err(TrainError::io("read", path))?,
    };
    let corrupt = |reason: String| TrainError::CorruptState {
        path: path.to_path_buf(),
        reason,
    };
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|error| corrupt(error.to_string()))?;
    let header = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get("unmask_train"));
    let header = header.ok_or_else(|| corrupt("it has no unmask_train entry".into()))?;
    let header: Header =
        serde_json::from_str(header).map_err(|error| corrupt(error.to_string()))?;
    if header.version != VERSION {
        return Err(corrupt(format!(
            "its format is version {}, not {VERSION}",
            header.version
        )));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| corrupt(error.to_string()))?;
    let layout = Layout::new(&header.shape);
    let buffer = |name: &str| -> Result<Vec<f32>, TrainError> {
        let mut values = Vec::with_capacity(layout.len());
        for parameter in &layout.parameters {
            let name = format!("{name}.{}", parameter.name);
            let tensor = tensors
                .tensor(&name)
                .map_err(|error| corrupt(error.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != parameter.shape {
                return Err(corrupt(format!(
                    "{name} is not an f32 tensor of {:?}",
                    parameter.shape
                )));
            }
            let (words, _) = tensor.data().as_chunks::<4>();
            values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        }
        Ok(values)
    };
    let [weights, average, first, second] = BUFFERS.map(buffer);
    let (weights, average, adam) = (
        weights?,
        average?,
        AdamW {
            first: first?,
            second: second?,
        },
    );
    if checksum([&weights, &average, &adam.first, &adam.second]) != header.checksum {
        return Err(corrupt("its checksum does not match".into()));
    }
    Ok(State {
        config: header.config,
        shape: header.shape,
        progress: header.progress,
        weights,
        average,
        adam,
    })
}
