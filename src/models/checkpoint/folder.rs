//! The files of a checkpoint directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::mask_token::mask_token;
use super::{INDEX, WEIGHTS, parse};
use crate::models::ModelError;

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

    /// The config.json, with the mask token that the tokenizer's files name where it names none itself.
    pub fn config(&self, name: &str) -> Result<Value, ModelError> {
        let mut config = parse(name, &self.read(name)?)?;
        if config.is_object()
            && config["mask_token_id"].is_null()
            && let Some(mask_token) = mask_token(|name| self.read_if_there(name))?
        {
            config["mask_token_id"] = mask_token.into();
        }
        Ok(config)
    }

    /// The weight files: those of the index where there is one.
    pub fn weights(&self) -> Result<Vec<PathBuf>, ModelError> {
        let files = match self.json(INDEX)? {
            Some(index) => shards(&index)?,
            None => BTreeSet::from([WEIGHTS.to_owned()]),
        };
        Ok(files.iter().map(|file| self.0.join(file)).collect())
    }
}

/// The files that an index names. A name with a directory in it could lead out of the checkpoint.
pub(in crate::models) fn shards(index: &Value) -> Result<BTreeSet<String>, ModelError> {
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
