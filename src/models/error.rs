//! Errors of loading and running a model.

use std::path::PathBuf;

use crate::text::TextError;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the checkpoint cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the checkpoint does not hold what it should.
    #[error("{file}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The files that stand for a tokenizer.json cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    /// No family of this architecture is known.
    #[error(
        "config.json: architecture {architecture:?} (model_type {model_type:?}) is not known; known: {known}"
    )]
    UnknownArchitecture {
        /// `architectures[0]`, empty if absent.
        architecture: String,
        /// `model_type`, empty if absent.
        model_type: String,
        /// The known architectures.
        known: String,
    },
    /// A batch that does not fit the model.
    #[error("{0}")]
    Batch(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Whether the device had not enough memory.
    pub fn is_out_of_memory(&self) -> bool {
        // candle passes on what the driver or the allocator says, as text.
        let said = |text: String| {
            let text = text.to_lowercase();
            let signs = [
                "out of memory",
                "out_of_memory",
                "cublas_status_alloc_failed",
            ];
            signs.iter().any(|sign| text.contains(sign))
        };
        matches!(self, Self::Tensor(error) if said(error.to_string()))
    }
}
