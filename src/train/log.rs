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
        /// NELBO of its batch, nats per token.
        loss: f64,
        /// Learning rate.
        lr: f64,
        /// Gradient norm before clipping.
        grad_norm: f64,
        /// Tokens seen since the start.
        tokens: u64,
        /// Tokens a second, of this step.
        tokens_per_second: f64,
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

/// Reads a log. A line that does not parse, such as one cut off by a kill, ends it.
///
/// # Errors
/// When the file cannot be read; a missing file is an empty log.
pub fn read(path: &Path) -> Result<Vec<LogLine>, TrainError> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(TrainError::io("read", path))?,
    };
    Ok(text
        .lines()
        .map_while(|line| serde_json::from_str(line).ok())
        .collect())
}

/// A log open for appending.
pub struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    lines: Vec<LogLine>,
}

impl Log {
    /// Opens the log of a run that stands at `step`; later lines, of steps that will be repeated,
    /// are dropped.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let mut lines = if step == 0 { Vec::new() } else { read(path)? };
        lines.retain(|line| line.step() <= step);
        let mut text = Vec::new();
        for line in &lines {
            append(&mut text, line).map_err(TrainError::io("write", path))?;
        }
        write_atomically(path, &text)?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(TrainError::io("open", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
            lines,
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
