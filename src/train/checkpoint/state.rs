//! The resumable state: one safetensors file with all buffers, and the settings and numbers of the
//! run as JSON in its metadata.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::{bytes_of, serialize, write_atomically};
use crate::train::config::TrainConfig;
use crate::train::error::TrainError;
use crate::train::layout::{Layout, NetworkShape};
use crate::train::learner::Buffers;
use crate::train::optimizer::Moments;

/// The version of the state's format.
const VERSION: u32 = 1;

/// Where a run's state lies in its output directory.
pub fn state_path(out: &Path) -> PathBuf {
    out.join("state").join("state.safetensors")
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
    /// What the optimiser remembers.
    pub moments: Moments,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    config: TrainConfig,
    shape: NetworkShape,
    progress: Progress,
    checksum: u64,
}

/// A hash of all buffers, in the order of [`BUFFERS`], to tell a damaged file.
fn checksum(buffers: [&[f32]; 4]) -> u64 {
    buffers
        .into_iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |hash, value| {
            (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

const BUFFERS: [&str; 4] = ["weights", "average", "adam_first", "adam_second"];

/// Writes the state of a run.
///
/// # Errors
/// When the directory cannot be written.
pub fn save_state(
    path: &Path,
    config: &TrainConfig,
    shape: &NetworkShape,
    progress: &Progress,
    buffers: &Buffers,
) -> Result<(), TrainError> {
    let buffers: [&[f32]; 4] = [
        &buffers.weights,
        &buffers.average,
        &buffers.first,
        &buffers.second,
    ];
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
        reason: error.into(),
    })?;
    let layout = Layout::new(shape);
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

/// The bytes of a state.
fn read(path: &Path) -> Result<Vec<u8>, TrainError> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(TrainError::NothingToResume {
                path: path.to_path_buf(),
            })
        }
        other => other.map_err(TrainError::io("read", path)),
    }
}

/// What the file at `path`, whose bytes are given, holds beside its tensors.
fn header(bytes: &[u8], path: &Path) -> Result<Header, TrainError> {
    let corrupt = |reason: String| TrainError::CorruptState {
        path: path.to_path_buf(),
        reason,
    };
    let (_, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| corrupt(error.to_string()))?;
    let header = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get("unmask_train"));
    let header = header.ok_or_else(|| corrupt("it has no unmask_train entry".into()))?;
    let header: Header =
        serde_json::from_str(header).map_err(|error| corrupt(error.to_string()))?;
    match header.version {
        VERSION => Ok(header),
        other => Err(corrupt(format!(
            "its format is version {other}, not {VERSION}"
        ))),
    }
}

/// The settings of the run whose state is saved at `path`.
///
/// # Errors
/// As [`load_state`], but tensors are not looked at.
pub fn load_config(path: &Path) -> Result<TrainConfig, TrainError> {
    Ok(header(&read(path)?, path)?.config)
}

/// Reads the state of a run.
///
/// # Errors
/// [`TrainError::NothingToResume`] when there is none, [`TrainError::CorruptState`] when it is
/// damaged or of another version.
pub fn load_state(path: &Path) -> Result<State, TrainError> {
    let bytes = read(path)?;
    let header = header(&bytes, path)?;
    let corrupt = |reason: String| TrainError::CorruptState {
        path: path.to_path_buf(),
        reason,
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| corrupt(error.to_string()))?;
    let asked = header.config.shape(header.shape.vocab);
    let expected = match header.config.init {
        // These two are the checkpoint's, which no setting tells.
        Some(_) => NetworkShape {
            rope_theta: header.shape.rope_theta,
            norm_eps: header.shape.norm_eps,
            ..asked
        },
        None => asked,
    };
    if header.shape != expected {
        return Err(corrupt("its network is not the one of its settings".into()));
    }
    if header.shape.layers > bytes.len() {
        return Err(corrupt("its network is larger than the file".into()));
    }
    let layout = Layout::new(&header.shape);
    let buffer = |name: &str| -> Result<Vec<f32>, TrainError> {
        let mut values = Vec::new();
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
    let state = State {
        weights: weights?,
        average: average?,
        moments: Moments {
            first: first?,
            second: second?,
        },
        config: header.config,
        shape: header.shape,
        progress: header.progress,
    };
    let buffers: [&[f32]; 4] = [
        &state.weights,
        &state.average,
        &state.moments.first,
        &state.moments.second,
    ];
    if checksum(buffers) != header.checksum {
        return Err(corrupt("its checksum does not match".into()));
    }
    Ok(state)
}
