//! Checkpoints in Hugging Face's layout: a directory of `config.json`, `model.safetensors` (or shards
//! with an index), `tokenizer.json` and optional files beside them.

mod folder;
mod plan;
mod special_tokens;
mod stop_tokens;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::{Map, Value};

use crate::canvas::TokenId;
use crate::models::generation_config::GenerationConfig;
use crate::models::registry::{Family, family_of};
use crate::models::weights::{
    Dummy, NotFinite, Recorder, SafetensorsFiles, Shapes, Source, WeightFormat, Weights,
};
use crate::models::{Denoiser, ModelError, ModelSpec};
use crate::text::vocabulary::{MERGES, VOCAB};
use crate::text::{ChatFiles, ChatTemplate, HfTokenizer, VocabularyFiles};
pub(crate) use folder::shards;
use folder::{Configs, Folder};
pub(super) use stop_tokens::token_ids;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
const HEAD: &str = "lm_head.weight";
const EXPAND_TOKEN_ID: &str = "expand_token_id";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An opened checkpoint: its small files read, its weights not yet.
pub struct Checkpoint {
    name: String,
    directory: Option<PathBuf>,
    config: Value,
    generation_config: Value,
    /// The tokenizer's end of a text, where neither of them names one.
    end_of_text: Option<TokenId>,
    tokenizer: Option<Vec<u8>>,
    stored: Stored,
    family: &'static Family,
}

/// Where the weights are.
enum Stored {
    Files(Vec<PathBuf>),
    Bytes(&'static [u8]),
    /// Nowhere: they are made up.
    Dummy {
        mask_stands_in: bool,
    },
}

impl Checkpoint {
    /// Opens a checkpoint directory.
    ///
    /// # Errors
    /// Names the file that is missing or does not hold what it should.
    pub fn open(directory: &Path) -> Result<Self, ModelError> {
        let folder = Folder(directory);
        let stored = Stored::Files(folder.weights()?);
        let tokenizer = folder.read_if_there(TOKENIZER)?;
        let checkpoint = Self::new(folder.name(), folder.configs()?, tokenizer, stored)?;
        Ok(Self {
            directory: Some(directory.to_owned()),
            ..checkpoint
        })
    }

    /// Opens a checkpoint that needs no weights, since they are made up: a directory with a config.json, or
    /// a file that holds what such a one would. Where neither it nor a tokenizer's file beside it names the
    /// mask token, the last token of the vocabulary stands in.
    ///
    /// # Errors
    /// Names the file that is missing or does not hold what it should.
    pub fn open_dummy(path: &Path) -> Result<Self, ModelError> {
        if path.is_dir() {
            let folder = Folder(path);
            let tokenizer = folder.read_if_there(TOKENIZER)?;
            let checkpoint = Self::dummy(folder.name(), folder.configs()?, tokenizer)?;
            return Ok(Self {
                directory: Some(path.to_owned()),
                ..checkpoint
            });
        }
        let folder = Folder(path.parent().unwrap_or(Path::new("")));
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let config = parse(&file, &folder.read(&file)?)?;
        Self::dummy(name.into_owned(), Configs::of(config), None)
    }

    /// As [`Checkpoint::open_dummy`], of a config.json that is already in memory.
    ///
    /// # Errors
    /// If the config does not hold what it should.
    pub fn dummy_of(name: &str, config: Value) -> Result<Self, ModelError> {
        Self::dummy(name.to_owned(), Configs::of(config), None)
    }

    fn dummy(
        name: String,
        mut configs: Configs,
        tokenizer: Option<Vec<u8>>,
    ) -> Result<Self, ModelError> {
        let config = &mut configs.config;
        let family = family_of(config)?;
        let mut mask_stands_in = false;
        if config["mask_token_id"].is_null()
            && (family.spec)(config).is_err()
            && let Some(last) = config["vocab_size"].as_u64().and_then(|v| v.checked_sub(1))
        {
            config["mask_token_id"] = last.into();
            mask_stands_in = true;
        }
        let stored = Stored::Dummy { mask_stands_in };
        Self::new(name, configs, tokenizer, stored)
    }

    /// A checkpoint that is already in memory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(
        name: &str,
        config: &[u8],
        generation_config: &[u8],
        tokenizer: &[u8],
        weights: &'static [u8],
    ) -> Result<Self, ModelError> {
        let configs = Configs {
            generation_config: Some(parse(GENERATION_CONFIG, generation_config)?),
            ..Configs::of(parse(CONFIG, config)?)
        };
        let (tokenizer, stored) = (Some(tokenizer.to_vec()), Stored::Bytes(weights));
        Self::new(name.to_owned(), configs, tokenizer, stored)
    }

    fn new(
        name: String,
        configs: Configs,
        tokenizer: Option<Vec<u8>>,
        stored: Stored,
    ) -> Result<Self, ModelError> {
        let Configs {
            config,
            generation_config,
            end_of_text,
        } = configs;
        let family = family_of(&config)?;
        let generation_config = generation_config.unwrap_or_else(|| Value::Object(Map::new()));
        if !generation_config.is_object() {
            return Err(ModelError::Invalid {
                file: GENERATION_CONFIG.into(),
                reason: "it is no JSON object".into(),
            });
        }
        Ok(Self {
            name,
            directory: None,
            config,
            generation_config,
            end_of_text,
            tokenizer,
            stored,
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
            Some(directory) => Folder(directory).read_if_there(name),
            None => Ok(None),
        }
    }

    /// Tensors that the family's official forward takes besides `input_ids`.
    pub fn inputs(&self) -> &'static [&'static str] {
        self.family.inputs
    }

    /// The parsed config.json. Where it names no mask token, `mask_token_id` is the one that the tokenizer's files
    /// name, and likewise `expand_token_id` of a family that has such a token.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The contents of tokenizer.json, or what they would be by the [`VocabularyFiles`] that a checkpoint has in
    /// its place.
    ///
    /// # Errors
    /// If the checkpoint has neither, or its files cannot be read as a tokenizer that is known.
    pub fn tokenizer_json(&self) -> Result<Cow<'_, [u8]>, ModelError> {
        self.own_tokenizer_json()?.ok_or_else(|| ModelError::Invalid {
            file: TOKENIZER.into(),
            reason: format!(
                "{} has none; texts cannot be read or written without it{}",
                self.name,
                match (self.family.tokenizer, &self.directory) {
                    (Some(repository), Some(directory)) => format!(
                        "; the published models of the family {} use that of {repository}: put it into {}",
                        self.family.name,
                        directory.display()
                    ),
                    _ => String::new(),
                }
            ),
        })
    }

    /// As [`tokenizer_json`](Self::tokenizer_json), and `None` where the checkpoint has no files of a tokenizer.
    ///
    /// # Errors
    /// If its files cannot be read as a tokenizer that is known.
    pub fn own_tokenizer_json(&self) -> Result<Option<Cow<'_, [u8]>>, ModelError> {
        if let Some(json) = &self.tokenizer {
            return Ok(Some(Cow::Borrowed(json)));
        }
        let files = VocabularyFiles::read(|name| self.file(name))?;
        let json = files.map(|files| files.tokenizer_json()).transpose()?;
        Ok(json.map(Cow::Owned))
    }

    /// The files that [`own_tokenizer_json`](Self::own_tokenizer_json) is made of; none of a checkpoint that has none.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn tokenizer_files(&self) -> Result<&'static [&'static str], ModelError> {
        if self.tokenizer.is_some() {
            return Ok(&[TOKENIZER]);
        }
        let files = VocabularyFiles::read(|name| self.file(name))?;
        Ok(files.map_or(&[], |_| &[VOCAB, MERGES]))
    }

    /// The tokenizer in its files, if it has any.
    ///
    /// # Errors
    /// If they cannot be read as a tokenizer that is known, or it has more tokens than the model's vocabulary.
    pub fn tokenizer(&self) -> Result<Option<HfTokenizer>, ModelError> {
        let Some(json) = self.own_tokenizer_json()? else {
            return Ok(None);
        };
        let tokenizer = HfTokenizer::from_bytes(&json)?;
        let vocab_size = self.spec()?.vocab_size;
        if tokenizer.vocab_size() > vocab_size {
            return Err(ModelError::Invalid {
                file: self.tokenizer_files()?.join(", "),
                reason: format!(
                    "the tokenizer has {} tokens, but the model's vocabulary is {vocab_size}",
                    tokenizer.vocab_size()
                ),
            });
        }
        Ok(Some(tokenizer))
    }

    /// The chat template in its files, if they hold one.
    ///
    /// # Errors
    /// If a file does not hold what it should, or the template cannot be read.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        let files = ChatFiles::read(|name| self.file(name))?;
        Ok(ChatTemplate::from_files(&files)?)
    }

    /// Refuses what could not be served whatever the weights are.
    ///
    /// # Errors
    /// If config.json asks for what is not built, or there are files of a tokenizer or a chat template that cannot be
    /// read. A checkpoint without any is none to refuse: token ids need no tokenizer.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        self.spec()?;
        self.tokenizer()?;
        self.chat_template().map(drop)
    }

    /// What config.json and generation_config.json say of the model, and where neither names a stop token, the
    /// tokenizer's end of a text.
    ///
    /// # Errors
    /// Names the field that is missing or out of range.
    pub fn spec(&self) -> Result<ModelSpec, ModelError> {
        self.spec_of(&self.config)
    }

    /// Names of the fields of generation_config.json that [`Checkpoint::spec`] does not look at, whatever they hold:
    /// those of other samplers, and those that count for nothing beside the others.
    ///
    /// # Errors
    /// As [`Checkpoint::spec`].
    pub fn unread_generation_fields(&self) -> Result<Vec<String>, ModelError> {
        let generation_config = GenerationConfig::new(&self.generation_config);
        self.spec_by(&self.config, &generation_config)?;
        Ok(generation_config.unread())
    }

    fn spec_of(&self, config: &Value) -> Result<ModelSpec, ModelError> {
        self.spec_by(config, &GenerationConfig::new(&self.generation_config))
    }

    fn spec_by(
        &self,
        config: &Value,
        generation_config: &GenerationConfig,
    ) -> Result<ModelSpec, ModelError> {
        let mut config = config.clone();
        if self.family.expand_token.is_some() && config[EXPAND_TOKEN_ID].is_null() {
            config[EXPAND_TOKEN_ID] = generation_config.get(EXPAND_TOKEN_ID).clone();
        }
        let mut spec = (self.family.spec)(&config)?;
        stop_tokens::complete(&mut spec, generation_config)?;
        if spec.stop_tokens.is_empty() && self.family.ends_texts {
            stop_tokens::end_with(&mut spec, self.end_of_text)?;
        }
        (self.family.generation_config)(generation_config, &mut spec.default_plan)?;
        plan::take_over(generation_config, &mut spec)?;
        Ok(spec)
    }

    /// Whether the weights are made up.
    pub fn is_dummy(&self) -> bool {
        matches!(self.stored, Stored::Dummy { .. })
    }

    /// Whether the mask token is one that stands in for one that no file names.
    pub fn mask_stands_in(&self) -> bool {
        matches!(
            self.stored,
            Stored::Dummy {
                mask_stands_in: true
            }
        )
    }

    /// Name and shape of every tensor in the weight files, or of those that config.json asks for where
    /// weights are made up.
    ///
    /// # Errors
    /// If a file cannot be read or is no safetensors file.
    pub fn shapes(&self) -> Result<Shapes, ModelError> {
        match self.files()? {
            Some(files) => Ok(files.shapes()),
            None => (self.family.tensors)(&self.config),
        }
    }

    /// Bytes of all tensors in the weight files; 0 where weights are made up.
    ///
    /// # Errors
    /// If a file cannot be read or is no safetensors file.
    pub fn stored_bytes(&self) -> Result<u64, ModelError> {
        Ok(self.files()?.map_or(0, |files| files.bytes()))
    }

    /// Bytes that the weights take when they are held as `format` on a GPU; on a CPU norms and biases take four a number
    /// in every format.
    ///
    /// # Errors
    /// If config.json asks for a network that is not built here, or a weight file cannot be read.
    pub fn weight_bytes(&self, format: WeightFormat) -> Result<usize, ModelError> {
        let config = self.config_for(&self.shapes()?);
        let recorder = Recorder::default();
        let weights = Weights::new(&recorder, format, &Device::Cpu);
        (self.family.load)(&config, self.spec_of(&config)?, weights)?;
        Ok(recorder.bytes(format))
    }

    /// Reads every tensor and returns those that hold numbers which are not finite. `progress` is called with
    /// the number of bytes of each tensor that was read.
    ///
    /// # Errors
    /// If the weight files do not hold exactly the tensors that config.json asks for, or one cannot be
    /// read.
    pub fn not_finite(&self, progress: &dyn Fn(u64)) -> Result<Vec<NotFinite>, ModelError> {
        let Some(files) = self.files()? else {
            return Ok(Vec::new());
        };
        self.check_tensors(&files)?;
        files.with_progress(progress).not_finite()
    }

    /// Loads the network onto `device` with weights held as `format`.
    ///
    /// # Errors
    /// If the weight files do not hold exactly the tensors that config.json asks for, the device fails, or it does not
    /// run the kernels for weights held so.
    pub fn load(
        &self,
        format: impl Into<WeightFormat>,
        device: &Device,
    ) -> Result<Box<dyn Denoiser>, ModelError> {
        self.load_with_progress(format, device, &|_| {})
    }

    /// As [`Checkpoint::load`]; `progress` is called with the number of bytes of each tensor that was read,
    /// which are [`Checkpoint::stored_bytes`] in all.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load_with_progress(
        &self,
        format: impl Into<WeightFormat>,
        device: &Device,
        progress: &dyn Fn(u64),
    ) -> Result<Box<dyn Denoiser>, ModelError> {
        let format = format.into();
        format.check_kernels(device)?;
        let Some(files) = self.files()? else {
            let weights = Weights::new(&Dummy, format, device);
            return (self.family.load)(&self.config, self.spec()?, weights);
        };
        let config = self.check_tensors(&files)?;
        let files = files.with_progress(progress);
        let weights = Weights::new(&files, format, device);
        (self.family.load)(&config, self.spec_of(&config)?, weights)
    }

    /// The values of the tensors `wanted`, named with their shapes, in f32 and end to end.
    ///
    /// # Errors
    /// If the weight files do not hold exactly the tensors that config.json asks for, or not the wanted
    /// ones among them, or one cannot be read.
    pub fn values<'a>(
        &self,
        wanted: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<Vec<f32>, ModelError> {
        let files = self.files()?.ok_or_else(|| ModelError::Invalid {
            file: WEIGHTS.into(),
            reason: format!("{} has none; its weights are made up", self.name),
        })?;
        self.check_tensors(&files)?;
        let mut values = Vec::new();
        for (name, shape) in wanted {
            let tensor = files.tensor(name, shape, DType::F32, &Device::Cpu)?;
            values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(values)
    }

    fn files(&self) -> Result<Option<SafetensorsFiles<'static>>, ModelError> {
        let files = match &self.stored {
            Stored::Files(paths) => SafetensorsFiles::open(paths)?,
            Stored::Bytes(bytes) => SafetensorsFiles::of_bytes(bytes)?,
            Stored::Dummy { .. } => return Ok(None),
        };
        Ok(Some(files.without(self.family.unused)))
    }

    /// The config.json by which a network of the tensors `found` is built.
    fn config_for(&self, found: &Shapes) -> Value {
        let mut config = self.config.clone();
        // transformers 5 does not tie a head that the files hold; before, a tied head was not saved.
        if !self.is_dummy() && config["tie_word_embeddings"] == true && found.contains_key(HEAD) {
            config["tie_word_embeddings"] = false.into();
        }
        config
    }

    /// Checks that `files` hold exactly the tensors that config.json asks for, and returns the config.json
    /// to build the network by.
    fn check_tensors(&self, files: &SafetensorsFiles) -> Result<Value, ModelError> {
        let found = files.shapes();
        let config = self.config_for(&found);
        let invalid = |name: &str, reason: String| ModelError::Invalid {
            file: files.file_of(name).display().to_string(),
            reason,
        };
        let expected = (self.family.tensors)(&config)?;
        for (name, shape) in &expected {
            match found.get(name) {
                None => {
                    return Err(ModelError::Invalid {
                        file: self.weight_files(),
                        reason: format!("tensor {name} {shape:?} is missing"),
                    });
                }
                Some(given) if given != shape => {
                    let reason = format!(
                        "tensor {name} has shape {given:?}; config.json asks for {shape:?}"
                    );
                    return Err(invalid(name, reason));
                }
                Some(_) => {}
            }
        }
        if let Some((name, dtype)) = files.not_weights() {
            let reason = format!(
                "tensor {name} is of type {dtype}; allowed: F32, F16, BF16 and F64, since quantised weights are \
                 not supported"
            );
            return Err(invalid(name, reason));
        }
        match found.keys().find(|name| !expected.contains_key(*name)) {
            Some(name) => {
                let reason =
                    format!("tensor {name} is not part of the network that config.json describes");
                Err(invalid(name, reason))
            }
            None => Ok(config),
        }
    }

    /// The file that holds the weights, or the index of those that do.
    fn weight_files(&self) -> String {
        match &self.stored {
            Stored::Files(files) if files.len() > 1 => INDEX.into(),
            Stored::Files(files) if !files.is_empty() => files[0].display().to_string(),
            _ => WEIGHTS.into(),
        }
    }
}

/// An error about a field of config.json.
pub(super) fn config_error(reason: String) -> ModelError {
    ModelError::Invalid {
        file: CONFIG.into(),
        reason,
    }
}

pub(crate) fn parse(file: &str, json: &[u8]) -> Result<Value, ModelError> {
    serde_json::from_slice(json).map_err(|error| ModelError::Invalid {
        file: file.to_owned(),
        reason: format!("not valid JSON: {error}"),
    })
}
