//! The files of a checkpoint directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::special_tokens::SpecialTokens;
use super::stop_tokens::{EOS_TOKEN_ID, token_ids};
use super::{CONFIG, EXPAND_TOKEN_ID, GENERATION_CONFIG, INDEX, WEIGHTS, parse};
use crate::canvas::TokenId;
use crate::models::ModelError;
use crate::models::registry::family_of;

/// What a checkpoint directory says of the model.
pub(super) struct Configs {
    /// The config.json, with the tokenizer's mask token and expand token where it names none itself.
    pub config: Value,
    /// The generation_config.json, if it is there.
    pub generation_config: Option<Value>,
    /// The tokenizer's end of a text, where neither of them names one.
    pub end_of_text: Option<TokenId>,
}

impl Configs {
    /// Of a config.json alone.
    pub fn of(config: Value) -> Self {
        Self {
            config,
            generation_config: None,
            end_of_text: None,
        }
    }
}

/// A checkpoint directory.
pub(super) struct Folder<'a>(pub &'a Path);

impl Folder<'_> {
    /// The directory's name.
    pub fn name(&self) -> String {
        let path = self.0.canonicalize().unwrap_or_else(|_| self.0.to_owned());
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The contents of a file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let path = self.0.join(name);
        std::fs::read(&path).map_err(|source| ModelError::Io { path, source })
    }

    /// The contents of a file, if it is there.
    pub fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
        match self.read(name) {
            Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// The JSON in a file, if it is there.
    pub fn json(&self, name: &str) -> Result<Option<Value>, ModelError> {
        let json = self.read_if_there(name)?;
        json.map(|json| parse(name, &json)).transpose()
    }

    /// The config.json and the generation_config.json, with what they leave to the tokenizer's files.
    pub fn configs(&self) -> Result<Configs, ModelError> {
        let mut configs = Configs {
            generation_config: self.json(GENERATION_CONFIG)?,
            ..Configs::of(parse(CONFIG, &self.read(CONFIG)?)?)
        };
        let config = &configs.config;
        let names_no_mask = config.is_object() && config["mask_token_id"].is_null();
        let generation_config = configs.generation_config.as_ref();
        let names_no_end = config["eos_token_id"].is_null()
            && generation_config.is_none_or(|config| config["eos_token_id"].is_null());
        let expand_token = family_of(config)
            .ok()
            .and_then(|family| family.expand_token)
            .filter(|_| {
                config[EXPAND_TOKEN_ID].is_null()
                    && generation_config.is_none_or(|config| config[EXPAND_TOKEN_ID].is_null())
            });
        if names_no_mask || names_no_end || expand_token.is_some() {
            let tokens = SpecialTokens::read(|name| self.read_if_there(name))?;
            if names_no_end {
                configs.end_of_text = tokens.end_of_text()?;
            }
            if names_no_mask && let Some(mask_token) = tokens.mask_token()? {
                configs.config["mask_token_id"] = mask_token.into();
            }
            if let Some(name) = expand_token
                && let Some(expand) = tokens.id(name)?
            {
                configs.config[EXPAND_TOKEN_ID] = expand.into();
                if configs.config[EOS_TOKEN_ID].is_null() {
                    complete_delete_token(&mut configs, tokens.end_of_text()?)?;
                }
            }
        }
        Ok(configs)
    }

    /// The weight files: those of the index where there is one.
    pub fn weights(&self) -> Result<Vec<PathBuf>, ModelError> {
        let files = match self.json(INDEX)? {
            Some(index) => shards(&index)?,
            None => {
                self.check_pickles()?;
                BTreeSet::from([WEIGHTS.to_owned()])
            }
        };
        Ok(files.iter().map(|file| self.0.join(file)).collect())
    }

    /// Says what to do where the weights are there as pickle files alone.
    fn check_pickles(&self) -> Result<(), ModelError> {
        let exists = |name: &&str| self.0.join(name).exists();
        match PICKLES.iter().find(|name| exists(name)) {
            Some(pickle) if !exists(&WEIGHTS) => Err(ModelError::Invalid {
                file: WEIGHTS.into(),
                reason: format!(
                    "it is missing, and {pickle} is a pickle file, which is never opened; store the weights as safetensors"
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// Makes the end of a text the token that removes its slot where config.json names neither: that of generation_config.json,
/// or else that of the tokenizer.
///
/// # Errors
/// If generation_config.json names what is no token.
fn complete_delete_token(
    configs: &mut Configs,
    end_of_text: Option<TokenId>,
) -> Result<(), ModelError> {
    let ends = match &configs.generation_config {
        Some(config) => token_ids(GENERATION_CONFIG, &config[EOS_TOKEN_ID])?,
        None => Vec::new(),
    };
    let delete = &mut configs.config["delete_token_id"];
    if delete.is_null()
        && let Some(end) = ends.first().copied().or(end_of_text)
    {
        *delete = end.into();
    }
    Ok(())
}

/// Names that weights have as pickle files.
const PICKLES: [&str; 4] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "model.ckpt",
];

/// The files that an index names. A name with a directory in it could lead out of the checkpoint.
pub(crate) fn shards(index: &Value) -> Result<BTreeSet<String>, ModelError> {
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
