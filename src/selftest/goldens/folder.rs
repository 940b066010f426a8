//! The folder of a golden checkpoint, and the tensors in its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;

use super::GoldenError;
use crate::canvas::TokenId;
use crate::models::{Checkpoint, Denoiser, WeightFormat};

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// Files of which a golden has at least one.
const FILES: [&str; 4] = [
    "config.json",
    "model.safetensors",
    "forward.safetensors",
    "generate.json",
];

/// The folder of a golden checkpoint.
#[derive(Debug, Clone)]
pub struct Golden(PathBuf);

impl Golden {
    /// The golden in `directory`, of which nothing is read yet.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// The folder's name.
    pub fn name(&self) -> String {
        let name = self.0.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The path of one of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Whether the folder has any of a golden's files.
    pub(super) fn is_there(&self) -> bool {
        FILES.iter().any(|file| self.path(file).exists())
    }

    /// The network, with weights held as `format` on `device`.
    ///
    /// # Errors
    /// If the folder is no checkpoint of a known family, or the device fails.
    pub fn load(
        &self,
        format: impl Into<WeightFormat>,
        device: &Device,
    ) -> std::result::Result<Box<dyn Denoiser>, GoldenError> {
        Ok(Checkpoint::open(&self.0)?.load(format, device)?)
    }

    /// The tensors of a safetensors file, on the CPU.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn tensors(&self, file: &str) -> std::result::Result<Tensors, GoldenError> {
        let path = self.path(file);
        candle_core::safetensors::load(&path, &Device::Cpu).map_err(|error| GoldenError::Invalid {
            path,
            reason: error.to_string(),
        })
    }

    /// The runs that `generate.json` holds, a list or under `cases`.
    ///
    /// # Errors
    /// If the file cannot be read or holds no list.
    pub fn runs(&self) -> std::result::Result<Vec<Value>, GoldenError> {
        let path = self.path("generate.json");
        let bytes = std::fs::read(&path).map_err(|source| GoldenError::Io {
            path: path.clone(),
            source,
        })?;
        let runs = match serde_json::from_slice(&bytes) {
            Ok(Value::Array(runs)) => Ok(runs),
            Ok(Value::Object(mut object)) => match object.remove("cases") {
                Some(Value::Array(runs)) => Ok(runs),
                _ => Err("it has no list `cases`".into()),
            },
            Ok(_) => Err("it holds no list of runs".into()),
            Err(error) => Err(error.to_string()),
        };
        runs.map_err(|reason| GoldenError::Invalid { path, reason })
    }

    /// The run called `name`.
    ///
    /// # Errors
    /// As [`Golden::runs`], or if there is none.
    pub fn run(&self, name: &str) -> std::result::Result<Value, GoldenError> {
        let found = self.runs()?.into_iter().find(|run| run["name"] == name);
        found.ok_or_else(|| GoldenError::Invalid {
            path: self.path("generate.json"),
            reason: format!("it has no run {name}"),
        })
    }
}

/// The tensor of this name.
///
/// # Errors
/// If there is none.
pub fn tensor<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    match tensors.get(name) {
        Some(tensor) => Ok(tensor),
        None => candle_core::bail!("the golden has no tensor {name}"),
    }
}

/// A whole number among the tensors.
///
/// # Errors
/// If it is not there, or no scalar of 64 bits.
pub fn scalar(tensors: &Tensors, name: &str) -> Result<usize> {
    Ok(tensor(tensors, name)?.to_scalar::<i64>()? as usize)
}

/// Token ids or positions, flattened.
///
/// # Errors
/// If they are not whole numbers of 64 bits.
pub fn integers(tensor: &Tensor) -> Result<Vec<u32>> {
    let integers: Vec<i64> = tensor.flatten_all()?.to_vec1()?;
    Ok(integers.into_iter().map(|integer| integer as u32).collect())
}

/// The sequences of `[B, L]` token ids.
///
/// # Errors
/// As [`integers`], or if there are no rows.
pub fn sequences(ids: &Tensor) -> Result<Vec<Vec<TokenId>>> {
    let (_, length) = ids.dims2()?;
    let rows = integers(ids)?;
    Ok(rows.chunks(length.max(1)).map(<[_]>::to_vec).collect())
}

/// Zeros and ones, flattened.
///
/// # Errors
/// If they cannot be read as bytes.
pub fn bits(tensor: &Tensor) -> Result<Vec<bool>> {
    let bits: Vec<u8> = tensor.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?;
    Ok(bits.into_iter().map(|bit| bit != 0).collect())
}

/// Numbers in f32, flattened.
///
/// # Errors
/// If they are of another type.
pub fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// For each row of a padding mask `[B, L]`: every slot may attend to those that are valid.
///
/// # Errors
/// As [`bits`].
pub fn valid_keys(mask: &Tensor) -> Result<Vec<Option<Vec<bool>>>> {
    let length = mask.dim(1)?;
    let rows = bits(mask)?;
    let rows = rows.chunks(length.max(1));
    Ok(rows.map(|row| Some(row.repeat(length))).collect())
}

/// For each row of a padding mask `[B, L]`: valid slots may attend to valid slots, others to none.
///
/// # Errors
/// As [`bits`].
pub fn valid_pairs(mask: &Tensor) -> Result<Vec<Option<Vec<bool>>>> {
    let pairs = |row: &[bool]| {
        let pairs = row.iter().flat_map(|i| row.iter().map(move |j| *i && *j));
        Some(pairs.collect())
    };
    let length = mask.dim(1)?.max(1);
    Ok(bits(mask)?.chunks(length).map(pairs).collect())
}
