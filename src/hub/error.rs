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
    /// The hub has no such model, or not for this token, but the cache does.
    #[error(
        "{answer}; commit {commit} of it is in the cache, and HF_HUB_OFFLINE=1 takes it from there without asking"
    )]
    RefusedButCached {
        /// [`NotFound`](Self::NotFound) or [`Denied`](Self::Denied).
        answer: Box<HubError>,
        /// The commit that is whole in the cache.
        commit: String,
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
        "{endpoint} cannot be reached: {reason}; look at the network, HF_ENDPOINT and HTTPS_PROXY"
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
    /// What was downloaded is not what the hub has.
    #[error(
        "what was downloaded of {file} has the SHA-256 {found}, where the hub says {expected}; it was removed: start \
         again to download it anew, and if that differs too, look at the disk, at proxies and at HF_ENDPOINT"
    )]
    Damaged {
        /// The file.
        file: String,
        /// The SHA-256 that the hub says.
        expected: String,
        /// That of the bytes that came.
        found: String,
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
    /// This user may not write to the cache.
    #[error(
        "the cache in {} cannot be written ({reason}); let this user write there, or set HF_HUB_CACHE to a directory \
         elsewhere",
        cache.display()
    )]
    NotWritable {
        /// The cache.
        cache: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {}: {reason}", path.display())]
    Disk {
        /// The cache, or a file of it.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A downloaded file does not hold what it should.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl HubError {
    /// Whether another attempt may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Interrupted { .. } | Self::Unreachable { .. } => true,
            Self::Status { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether it tells of the way to the hub or of the disk, and nothing of the model: what the cache has of it
    /// is as good as before.
    pub(super) fn is_circumstance(&self) -> bool {
        match self {
            Self::Status { .. }
            | Self::Answer { .. }
            | Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::DiskFull { .. }
            | Self::NotWritable { .. }
            | Self::Disk { .. } => true,
            Self::NoCacheDirectory
            | Self::Patience { .. }
            | Self::Revision { .. }
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::RefusedButCached { .. }
            | Self::Damaged { .. }
            | Self::NoSuchFile { .. }
            | Self::NotCached { .. }
            | Self::Model(_) => false,
        }
    }
}

/// What is said where the cache cannot be written.
pub(super) fn of_disk(reason: io::Error, cache: &Path) -> HubError {
    let cache = cache.to_owned();
    match reason.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => HubError::DiskFull { cache },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            HubError::NotWritable { cache, reason }
        }
        _ => HubError::Disk {
            path: cache,
            reason,
        },
    }
}
