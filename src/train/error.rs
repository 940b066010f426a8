//! What can go wrong in training, said so that a person knows what to do.

use std::path::PathBuf;

use crate::text::documents::DocumentsError;
use crate::text::pairs::PairsError;

/// An error of `unmask train`.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting is outside its range.
    #[error("{field} is {given}; allowed: {allowed}")]
    Setting {
        /// The setting, as on the command line without dashes.
        field: &'static str,
        /// The value that was given.
        given: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {reason}", path.display())]
    Io {
        /// What was tried: "read", "write", "create" …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason. Not named `source`: what prints the causes of an error would say it twice.
        reason: std::io::Error,
    },
    /// A data file cannot be read as documents.
    #[error(transparent)]
    Documents(#[from] DocumentsError),
    /// A file of pairs, or a line of it, cannot be used.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// The text is shorter than one window.
    #[error(
        "the {which} text is {tokens} tokens long, shorter than one window of {context}; \
         give more text or a smaller --context"
    )]
    CorpusTooShort {
        /// "training" or "validation".
        which: &'static str,
        /// Its length in tokens.
        tokens: usize,
        /// The length of a window in tokens.
        context: usize,
    },
    /// The vocabulary cannot hold all bytes and the special tokens.
    #[error(
        "vocab-size is {given}; at least {minimum} are needed: 256 bytes and {specials} special tokens"
    )]
    VocabularyTooSmall {
        /// The size that was asked for.
        given: usize,
        /// The smallest size that works.
        minimum: usize,
        /// The number of special tokens.
        specials: usize,
    },
    /// The text has too few distinct pairs to learn a vocabulary of that size.
    #[error(
        "vocab-size is {requested}, but the text yields {reached} tokens only; use --vocab-size {reached} or more text"
    )]
    VocabularyTooLarge {
        /// The size that was asked for.
        requested: usize,
        /// The size that the text yields.
        reached: usize,
    },
    /// The ids of a given tokenizer are not 0, 1, …, one for each token.
    #[error(
        "tokenizer: {} has {tokens} tokens with ids up to {largest_id}; \
         their ids must be 0 to {}, each used once",
        path.display(),
        tokens.saturating_sub(1)
    )]
    TokenizerIds {
        /// The file.
        path: PathBuf,
        /// Its tokens, special ones included.
        tokens: usize,
        /// The largest id.
        largest_id: u32,
    },
    /// A given tokenizer cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The checkpoint that a run was to start from cannot be used.
    #[error("init: cannot start from {}: {reason}", path.display())]
    Init {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The output directory already holds a run.
    #[error("{} already holds a training run; pass --resume to continue it, or another --out", path.display())]
    RunExists {
        /// The output directory.
        path: PathBuf,
    },
    /// Another run writes to the output directory.
    #[error(
        "a run is training in {} at this moment: wait for its end or end it, or pass another --out",
        path.display()
    )]
    RunIsActive {
        /// The output directory.
        path: PathBuf,
    },
    /// The output directory holds a model that is not of a run.
    #[error(
        "{} exists, but its directory holds no training run: a run would overwrite the model there; \
         pass another --out",
        file.display()
    )]
    ModelExists {
        /// The file that would be overwritten.
        file: PathBuf,
    },
    /// There is nothing to resume.
    #[error("{} holds no training state to resume; start without --resume", path.display())]
    NothingToResume {
        /// The file that is missing.
        path: PathBuf,
    },
    /// The saved run differs from what was asked for.
    #[error(
        "cannot resume: {field} was {saved} when the run was saved and is {given} now; \
         repeat the saved value, {}start a new run with another --out",
        new_schedule(field)
    )]
    ResumeMismatch {
        /// The setting that differs.
        field: String,
        /// The saved value.
        saved: String,
        /// The value given now.
        given: String,
    },
    /// The settings cannot be written as a state holds them.
    #[error("the settings cannot be written as JSON, as a saved run holds them: {0}")]
    UnwritableSettings(serde_json::Error),
    /// The saved state or the log is damaged.
    #[error("{} is damaged: {reason}", path.display())]
    CorruptState {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The loss or the gradient is no longer a number.
    #[error(
        "training diverged at step {step}: {}; \
         the last checkpoint is intact: lower --lr or lengthen --warmup",
        losses(*loss, *grad_norm)
    )]
    Diverged {
        /// The step.
        step: u64,
        /// The loss of its batch, or of the validation after it, in nats per token.
        loss: f64,
        /// The global norm of its gradient; `None` for a validation.
        grad_norm: Option<f64>,
    },
    /// A number that the mathematics does not allow.
    #[error(transparent)]
    Diffusion(#[from] crate::diffusion::Error),
    /// The tensor library failed.
    #[error("tensor library: {0}")]
    Candle(#[from] candle_core::Error),
    /// The plot of the loss could not be drawn.
    #[error("cannot draw the loss curve: {0}")]
    Plot(String),
}

fn losses(loss: f64, grad_norm: Option<f64>) -> String {
    match grad_norm {
        Some(grad_norm) => format!("loss {loss}, gradient norm {grad_norm}"),
        None => format!("validation loss {loss}"),
    }
}

impl TrainError {
    /// For `map_err` on file operations.
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |reason| TrainError::Io {
            action,
            path,
            reason,
        }
    }
}

/// What helps where a setting of the learning rate's schedule differs.
fn new_schedule(field: &str) -> &'static str {
    match field {
        "steps" | "lr" | "warmup" | "min-lr-ratio" => {
            "go on with the new one by --new-lr-schedule, or "
        }
        _ => "or ",
    }
}
