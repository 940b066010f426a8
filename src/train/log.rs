//! `log.jsonl`: one line a step, one line a validation.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::write_atomically;
use super::error::TrainError;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogLine {
    /// A training step.
    Step {
        /// The step, from 1.
        step: u64,
        /// The objective on its batch: nats per token, or per masked token for the plain cross-entropy.
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// Gradient norm before clipping.
        grad_norm: f64,
        /// Tokens seen since the start.
        tokens: u64,
        /// Tokens a second, of this step.
        tokens_per_second: f64,
        /// Floating-point operations a second of its matrix products; not in logs of earlier versions.
        #[serde(default)]
        operations_per_second: Option<f64>,
        /// The share of the machine's measured rate that this is; not in logs of earlier versions.
        #[serde(default)]
        product_rate_share: Option<f64>,
        /// Seconds of training since the start.
        seconds: f64,
    },
    /// A validation.
    Validation {
        /// Steps done.
        step: u64,
        /// NELBO of the averaged weights, nats per token.
        valid_nats_per_token: f64,
        /// The same in bits per character.
        valid_bits_per_character: f64,
        /// Whether it is the lowest so far.
        best: bool,
        /// Seconds of training since the start.
        seconds: f64,
    },
}

impl LogLine {
    /// The step of the line.
    pub fn step(&self) -> u64 {
        match *self {
            LogLine::Step { step, .. } | LogLine::Validation { step, .. } => step,
        }
    }
}

/// Reads a log: each line's text and meaning. A last line without its end was cut off by a kill or a
/// full disk, and is dropped.
fn read(path: &Path) -> Result<Vec<(String, LogLine)>, TrainError> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(TrainError::io("read", path))?,
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(index, line): (usize, &str)| {
        let parsed = serde_json::from_str(line).map_err(|error| TrainError::CorruptState {
            path: path.to_path_buf(),
            reason: format!("line {}: {error}; correct the line or delete it", index + 1),
        })?;
        Ok((line.to_owned(), parsed))
    };
    whole.lines().enumerate().map(parse).collect()
}

/// A log open for appending.
pub struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    lines: Vec<LogLine>,
}

impl Log {
    /// Opens the log of a run and keeps its lines up to step `last`; later ones, of steps that will be
    /// repeated, are dropped, and all lines when it is `None`.
    ///
    /// # Errors
    /// When the file cannot be read or written; [`TrainError::CorruptState`] names the first line that
    /// is not one of a log.
    pub fn open(path: &Path, last: Option<u64>) -> Result<Self, TrainError> {
        let kept = match last {
            None => Vec::new(),
            Some(last) => {
                let mut lines = read(path)?;
                lines.retain(|(_, line)| line.step() <= last);
                lines
            }
        };
        // Kept as they are: numbers that are read and written again may change in the last digit.
        let text: String = kept.iter().flat_map(|(text, _)| [text, "\n"]).collect();
        write_atomically(path, text.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(TrainError::io("open", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
            lines: kept.into_iter().map(|(_, line)| line).collect(),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, line: LogLine) -> Result<(), TrainError> {
        append(&mut self.file, &line)
            .and_then(|()| self.file.flush())
            .map_err(TrainError::io("write", &self.path))?;
        self.lines.push(line);
        Ok(())
    }

    /// All lines.
    pub fn lines(&self) -> &[LogLine] {
        &self.lines
    }
}

fn append(writer: &mut impl Write, line: &LogLine) -> std::io::Result<()> {
    serde_json::to_writer(&mut *writer, line)?;
    writer.write_all(b"\n")
}
