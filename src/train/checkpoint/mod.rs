//! What a run leaves on disk: a Hugging Face directory with the best model, and the state to
//! resume from. Every file is written beside its place, flushed, and renamed, so that a run killed
//! at any moment leaves each file whole: the old one or the new one.

mod model;
mod record;
mod state;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::error::TrainError;
pub use model::{config_json, write_model, write_model_files, write_tokenizer};
pub use record::{Record, write_record};
pub use state::{Progress, State, load_config, load_state, save_state, state_path};

/// Writes a file atomically.
///
/// # Errors
/// When the directory cannot be written; the old file, if any, is then intact.
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
    write().map_err(|error| {
        // What did not fit must not go on filling the disk.
        fs::remove_file(&partial).ok();
        TrainError::io("write", path)(error)
    })
}

/// Little-endian bytes.
fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A safetensors file of (name, type, shape, bytes).
fn serialize<'a>(
    tensors: impl Iterator<Item = (String, Dtype, Vec<usize>, &'a [u8])>,
    metadata: HashMap<String, String>,
    path: &Path,
) -> Result<Vec<u8>, TrainError> {
    let invalid = |error: safetensors::SafeTensorError| TrainError::Io {
        action: "serialize",
        path: path.to_path_buf(),
        reason: std::io::Error::other(error),
    };
    let views: Vec<(String, TensorView)> = tensors
        .map(|(name, kind, shape, bytes)| Ok((name, TensorView::new(kind, shape, bytes)?)))
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    safetensors::serialize(views, Some(metadata)).map_err(invalid)
}
