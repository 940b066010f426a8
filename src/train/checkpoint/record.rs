//! How a model came about, for people who find it later.

use std::path::Path;

use serde::Serialize;

use super::super::config::TrainConfig;
use super::super::error::TrainError;
use super::write_atomically;

/// What `training.json` says of the model beside it.
#[derive(Debug, Clone, Serialize)]
pub struct Record<'a> {
    /// The version of `unmask` that trained it.
    pub unmask_version: &'static str,
    /// Steps after which these weights were taken.
    pub step: u64,
    /// Tokens seen in them.
    pub tokens: u64,
    /// Seconds of training, validations included, over all resumptions.
    pub seconds: f64,
    /// Tokens of the training text, or of all pairs.
    pub train_tokens: usize,
    /// Hash of the encoded texts of training and validation: the same for the same texts and tokenizer.
    pub data_fingerprint: String,
    /// The validation of these weights, NELBO in nats a token.
    pub valid_nats_per_token: f64,
    /// The same in bits a Unicode character.
    pub valid_bits_per_character: f64,
    /// Every setting of the run, the last ones if it was resumed with others.
    pub settings: &'a TrainConfig,
}

/// Writes `training.json`.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_record(out: &Path, record: &Record) -> Result<(), TrainError> {
    let path = out.join("training.json");
    let json = serde_json::to_string_pretty(record)
        .map_err(|error| TrainError::io("write", &path)(error.into()))?;
    write_atomically(&path, (json + "\n").as_bytes())
}
