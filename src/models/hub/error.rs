//! What can go wrong between the hub and the cache.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::models::ModelError;

/// Why a model cannot be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// There is no place for the cache.
    #[error("there is no home directory for the cache of the hub; set HF_HOME to a directory")]
    NoCacheDirectory,
    /// A time to wait for the hub that is none.
    #[error("HF_HUB_DOWNLOAD_TIMEOUT is {given:?}; allowed: a number of seconds above 0")]
    Patience {
        /// What it is.
        given: String,
    },
    /// A revision that is none.
    #[error("the revision is {given:?}; allowed: the name of a branch or a tag, or a commit")]
    Revision {
        /// The revision.
        given: String,
    },
    /// No such repository or revision.
    #[error("{endpoint} has no model {repository} with a revision {revision:?}")]
    NotFound {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
    },
    /// The hub wants another token, or hides that there is no such repository.
    #[error(
        "{endpoint} does not let {} have {repository} (status {status}): it does not exist, or it is private, \
         or its terms must be accepted on its page first{}",
        if *has_token { "this token" } else { "anyone without a token" },
        if *has_token { "" } else { "; set HF_TOKEN to a token that may read it" }
    )]
    Denied {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// The hub does not answer the question.
    #[error("{endpoint} answers with status {status} for {file} of {repository}; try again later")]
    Status {
        /// The hub.
        endpoint: String,
        /// The repository.
        repository: String,
        /// What was asked for.
        file: String,
        /// The status.
        status: u16,
        /// How long the hub asks to wait.
        retry_after: Option<Duration>,
    },
    /// The hub's answer cannot be read.
    #[error("{endpoint} does not answer as the Hugging Face hub does: {reason}")]
    Answer {
        /// The hub.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no way to the hub.
    #[error(
        "{endpoint} cannot be reached: {reason}; with HF_HUB_OFFLINE=1 a model that is in the cache is used without it"
    )]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// What the system said.
        reason: String,
    },
    /// A download broke off again and again.
    #[error("the download of {file} breaks off: {reason}; the next attempt continues it")]
    Interrupted {
        /// The file.
        file: String,
        /// What the last attempt ended with.
        reason: String,
    },
    /// A file that a model needs is not in the repository.
    #[error("{repository} at revision {revision:?} has no {file}: {reason}")]
    NoSuchFile {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
        /// Why it is needed.
        reason: String,
    },
    /// Without the hub, the cache does not have the model as a whole.
    #[error(
        "the cache in {} does not have {file} of {repository} at revision {revision:?}, and HF_HUB_OFFLINE keeps it \
         from being downloaded",
        cache.display()
    )]
    NotCached {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
        /// The first file that is missing.
        file: String,
    },
    /// The disk is full.
    #[error(
        "there is no space left for the cache in {}; free some, or set HF_HOME to a directory elsewhere",
        cache.display()
    )]
    DiskFull {
        /// The cache.
        cache: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Disk {
        /// The cache, or a file of it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A downloaded file does not hold what it should.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// An error of the file system.
pub(super) fn of_disk(source: io::Error, path: &Path) -> HubError {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => HubError::DiskFull {
            cache: path.to_owned(),
        },
        _ => HubError::Disk {
            path: path.to_owned(),
            source,
        },
    }
}
