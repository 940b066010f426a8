//! Checkpoints in Hugging Face's layout: a directory of `config.json`, `model.safetensors` (or shards
//! with an index), `tokenizer.json` and optional files beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::{MmapedSafetensors, SliceSafetensors};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde_json::Value;

use crate::models::mask_token::mask_token;
use crate::models::registry::{Family, family_of};
use crate::models::{Denoiser, ModelError, ModelSpec};

/// Tensor names with their shapes.
pub type Shapes = BTreeMap<String, Vec<usize>>;

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
const HEAD: &str = "lm_head.weight";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// An opened checkpoint: its small files read, its weights not yet.
pub struct Checkpoint {
    name: String,
    directory: Option<PathBuf>,
    config: Value,
    generation_config: Value,
    tokenizer: Option<Vec<u8>>,
    weights: Weights,
    family: &'static Family,
}

enum Weights {
    Files(Vec<PathBuf>),
    Bytes(&'static [u8]),
}

impl Checkpoint {
    /// Opens a checkpoint directory.
    ///
    /// # Errors
    /// Names the file that is missing or does not hold what it should.
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        let read = |name: &str| read(directory, name);
        let read_if_there = |name: &str| read_if_there(directory, name);
        let name = directory
            .canonicalize()
            .unwrap_or_else(|_| directory.to_owned())
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut config = parse(CONFIG, &read(CONFIG)?)?;
        if config.is_object()
            && config["mask_token_id"].is_null()
            && let Some(mask_token) = mask_token(read_if_there)?
        {
            config["mask_token_id"] = mask_token.into();
        }
        let generation_config = read_if_there(GENERATION_CONFIG)?
            .map(|json| parse(GENERATION_CONFIG, &json))
            .transpose()?;
        let files = match read_if_there(INDEX)? {
            Some(index) => shards(&parse(INDEX, &index)?)?,
            None => BTreeSet::from([WEIGHTS.to_owned()]),
        };
        let files = files.iter().map(|file| directory.join(file)).collect();
        let tokenizer = read_if_there(TOKENIZER)?;
        let checkpoint = Self::new(
            name,
            config,
            generation_config,
            tokenizer,
            Weights::Files(files),
        )?;
        Ok(Self {
            directory: Some(directory.to_owned()),
            ..checkpoint
        })
    }

    /// A checkpoint that is already in memory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(
        name: &str,
        config: &[u8],
        tokenizer: &[u8],
        weights: &'static [u8],
    ) -> Result<Self, ModelError> {
        let config = parse(CONFIG, config)?;
        let tokenizer = Some(tokenizer.to_vec());
        Self::new(
            name.to_owned(),
            config,
            None,
            tokenizer,
            Weights::Bytes(weights),
        )
    }

    fn new(
        name: String,
        config: Value,
        generation_config: Option<Value>,
        tokenizer: Option<Vec<u8>>,
        weights: Weights,
    ) -> Result<Self, ModelError> {
        let family = family_of(&config)?;
        Ok(Self {
            name,
            directory: None,
            config,
            generation_config: generation_config.unwrap_or_default(),
            tokenizer,
            weights,
            family,
        })
    }

    /// The directory's name, or the name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same checkpoint under another name.
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// The contents of a small file beside the weights, such as `tokenizer_config.json`, if it is there.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
        match &self.directory {
            Some(directory) => read_if_there(directory, name),
            None => Ok(None),
        }
    }

    /// Tensors that the family's official forward takes besides `input_ids`.
    pub fn inputs(&self) -> &'static [&'static str] {
        self.family.inputs
    }

    /// The parsed config.json. Where it names no mask token, `mask_token_id` is the one that the
    /// tokenizer's files name.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The contents of tokenizer.json.
    ///
    /// # Errors
    /// If the checkpoint has none.
    pub fn tokenizer_json(&self) -> Result<&[u8], ModelError> {
        self.tokenizer
            .as_deref()
            .ok_or_else(|| ModelError::Invalid {
                file: TOKENIZER.into(),
                reason: format!(
                    "{} has none; texts cannot be read or written without it",
                    self.name
                ),
            })
    }

    /// What config.json and generation_config.json say of the model.
    ///
    /// # Errors
    /// Names the field that is missing or out of range.
    pub fn spec(&self) -> Result<ModelSpec, ModelError> {
        self.spec_of(&self.config)
    }

    fn spec_of(&self, config: &Value) -> Result<ModelSpec, ModelError> {
        let mut spec = (self.family.spec)(config)?;
        for token in token_ids(&self.generation_config["eos_token_id"]) {
            if !spec.stop_tokens.contains(&token) {
                spec.stop_tokens.push(token);
            }
        }
        (self.family.generation_config)(&self.generation_config, &mut spec.default_plan)?;
        Ok(spec)
    }

    /// Name and shape of every tensor in the weight files.
    ///
    /// # Errors
    /// If a file cannot be read or is no safetensors file.
    pub fn shapes(&self) -> Result<Shapes, ModelError> {
        let shape =
            |(name, view): (String, safetensors::tensor::TensorView)| (name, view.shape().to_vec());
        Ok(match &self.weights {
            Weights::Files(files) => {
                let mapped = map_files(files)?;
                mapped.tensors().into_iter().map(shape).collect()
            }
            Weights::Bytes(bytes) => {
                let slice = SliceSafetensors::new(bytes)?;
                slice.tensors().into_iter().map(shape).collect()
            }
        })
    }

    /// Loads the network onto `device` with weights of type `dtype`.
    ///
    /// # Errors
    /// If the weight files do not hold exactly the tensors that config.json asks for, or the device
    /// fails.
    pub fn load(&self, dtype: DType, device: &Device) -> Result<Box<dyn Denoiser>, ModelError> {
        let (mut config, found) = (self.config.clone(), self.shapes()?);
        // transformers 5 does not tie a head that the files hold; before, a tied head was not saved.
        if config["tie_word_embeddings"] == true && found.contains_key(HEAD) {
            config["tie_word_embeddings"] = false.into();
        }
        check_shapes(&(self.family.tensors)(&config)?, &found)?;
        let weights = match &self.weights {
            Weights::Files(files) => {
                VarBuilder::from_backend(Box::new(map_files(files)?), dtype, device.clone())
            }
            Weights::Bytes(bytes) => VarBuilder::from_slice_safetensors(bytes, dtype, device)?,
        };
        (self.family.load)(&config, self.spec_of(&config)?, weights)
    }
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, ModelError> {
    let path = directory.join(name);
    std::fs::read(&path).map_err(|source| ModelError::Io { path, source })
}

fn read_if_there(directory: &Path, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
    match read(directory, name) {
        Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// An error about a field of config.json.
pub(super) fn config_error(reason: String) -> ModelError {
    ModelError::Invalid {
        file: CONFIG.into(),
        reason,
    }
}

pub(super) fn parse(file: &str, json: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(json).map_err(|error| ModelError::Invalid {
        file: file.to_owned(),
        reason: format!("not valid JSON: {error}"),
    })
}

/// `eos_token_id` is one id or a list of them.
pub(super) fn token_ids(value: &Value) -> impl Iterator<Item = u32> + '_ {
    let one = std::iter::once(value);
    let many = value.as_array().into_iter().flatten();
    one.chain(many)
        .filter_map(|id| u32::try_from(id.as_u64()?).ok())
}

/// The files that an index names. A name with a directory in it could lead out of the checkpoint.
pub(super) fn shards(index: &Value) -> Result<BTreeSet<String>, ModelError> {
    let invalid = |reason: String| ModelError::Invalid {
        file: INDEX.into(),
        reason,
    };
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| invalid("weight_map is missing".into()))?;
    map.iter()
        .map(|(tensor, file)| {
            let file = file.as_str().unwrap_or_default();
            let plain = Path::new(file).file_name().is_some_and(|name| name == file);
            if plain && file.ends_with(".safetensors") {
                Ok(file.to_owned())
            } else {
                Err(invalid(format!(
                    "weight_map.{tensor} is {file:?}; it must be the name of a .safetensors file"
                )))
            }
        })
        .collect()
}

fn map_files(files: &[PathBuf]) -> Result<MmapedSafetensors, ModelError> {
    for path in files {
        std::fs::File::open(path).map_err(|source| ModelError::Io {
            path: path.clone(),
            source,
        })?;
    }
    // SAFETY: the mapping is read only; a checkpoint must not be changed while it is being loaded,
    // as the documentation of `--model` says.
    unsafe { MmapedSafetensors::multi(files) }.map_err(|error| ModelError::Invalid {
        file: files
            .iter()
            .map(|file| file.display().to_string())
            .collect::<Vec<_>>()
            .join(", "),
        reason: format!("not a valid safetensors file: {error}"),
    })
}

fn check_shapes(expected: &Shapes, found: &Shapes) -> Result<(), ModelError> {
    let invalid = |reason: String| ModelError::Invalid {
        file: WEIGHTS.into(),
        reason,
    };
    for (name, shape) in expected {
        match found.get(name) {
            None => return Err(invalid(format!("tensor {name} {shape:?} is missing"))),
            Some(given) if given != shape => {
                return Err(invalid(format!(
                    "tensor {name} has shape {given:?}; config.json asks for {shape:?}"
                )));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !expected.contains_key(*name)) {
        Some(name) => Err(invalid(format!(
            "tensor {name} is not part of the network that config.json describes"
        ))),
        None => Ok(()),
    }
}
