//! Models from the Hugging Face hub, in the cache that all of its clients share.
//!
//! Where things are, on the hub and in the cache, and what a revision is, comes from the crate hf-hub. The files themselves
//! are fetched here: its downloads take no time-out and so wait for a silent hub without end, begin anew where the cache has
//! the same contents of another commit, take paths from the hub's headers as they are, and check no SHA-256.

mod digest;
mod download;
mod error;
mod id;
mod remote;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::models::Checkpoint;
use crate::models::checkpoint::{self, CONFIG, GENERATION_CONFIG, INDEX, TOKENIZER, WEIGHTS};
use crate::text::special_tokens::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use crate::text::vocabulary::{ADDED_TOKENS, MERGES, VOCAB};

use download::Wanted;
pub use error::HubError;
pub use id::RepositoryId;
use remote::{LONGEST_WAIT, Remote, persist};

/// The revision that is used when none is named.
pub const DEFAULT_REVISION: &str = "main";

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How long the hub may be silent, where nothing else is said.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// Files that are fetched where a repository has them, besides the weights.
const SMALL_FILES: [&str; 7] = [
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    "chat_template.jinja",
];

/// Files that are fetched where a repository has no tokenizer.json.
const VOCABULARY: [&str; 2] = [VOCAB, MERGES];

/// How far the download of a file is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes that are there.
    pub received: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The hub and the cache beside it.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    is_offline: bool,
    patience: Duration,
}

impl Hub {
    /// The public hub, without a token, with the cache in a directory.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: DEFAULT_ENDPOINT.into(),
            token: None,
            is_offline: false,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// The hub that the environment names, as Hugging Face's own clients read it: `HF_ENDPOINT`,
    /// `HF_TOKEN` or the token that was stored by logging in, `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT`
    /// ([`with_patience`](Self::with_patience), in seconds), and `HF_HUB_CACHE`, `HF_HOME` or
    /// `XDG_CACHE_HOME` for the cache, `~/.cache/huggingface/hub` by default.
    ///
    /// # Errors
    /// If there is no directory for the cache, the token that was stored cannot be read, or the seconds are
    /// none.
    pub fn from_env() -> Result<Self, HubError> {
        let home = directory("HF_HOME")
            .or_else(|| Some(directory("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(env::home_dir()?.join(".cache/huggingface")));
        let cache = directory("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let token = match (variable("HF_TOKEN"), &home) {
            (None, Some(home)) => stored_token(home)?,
            (token, _) => token,
        };
        Ok(Self {
            cache: cache.ok_or(HubError::NoCacheDirectory)?,
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()),
            token: token.and_then(|token| written(&token)),
            is_offline: variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            patience: match variable("HF_HUB_DOWNLOAD_TIMEOUT") {
                Some(value) => seconds(&value).ok_or(HubError::Patience { given: value })?,
                None => DEFAULT_PATIENCE,
            },
        })
    }

    /// The same with another hub's address.
    pub fn with_endpoint(self, endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            ..self
        }
    }

    /// The same with a token; an empty one is none.
    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self {
            token: written(&token.into()),
            ..self
        }
    }

    /// The same, where an attempt ends once the hub has been silent for so long, 30 seconds by default; above
    /// zero.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same with the cache alone.
    pub fn offline(self) -> Self {
        Self {
            is_offline: true,
            ..self
        }
    }

    /// The directory of a model in the cache, with all files that a checkpoint needs: those that are not
    /// there yet are downloaded from the commit that `revision` (a branch, a tag or a commit) names now.
    ///
    /// A commit that was fetched before is had without asking the hub. Where the hub does not answer, or the cache
    /// cannot be written, the commit that `revision` named last is, if it is in the cache as a whole; a warning
    /// says so.
    ///
    /// A download that broke off is continued where it was; one of the same file by another process is
    /// waited for. Where the hub names a file by its SHA-256, as it does with weights, what was downloaded is held
    /// to it; what differs is removed.
    ///
    /// # Errors
    /// If the model cannot be had whole, or the hub says that there is no such model or that it is not for this
    /// token; what was downloaded stays.
    pub fn fetch(
        &self,
        repository: &RepositoryId,
        revision: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        check_revision(revision)?;
        let in_cache = self.cached(repository, revision);
        if self.is_offline {
            return Ok(in_cache?.snapshot);
        }
        let Ok(cached) = in_cache else {
            return self.fetch_latest(repository, revision, LONGEST_WAIT, progress);
        };
        let is_whole = self.named(repository, revision).as_deref() == Some(revision);
        if cached.commit == revision && is_whole {
            return Ok(cached.snapshot);
        }
        match self.fetch_latest(repository, revision, Duration::ZERO, progress) {
            Err(error) if error.is_circumstance() => {
                tracing::warn!(
                    model = %repository,
                    revision,
                    commit = cached.commit,
                    reason = %error,
                    "the revision is taken from the cache, as it was when the hub was asked last"
                );
                Ok(cached.snapshot)
            }
            Err(answer @ (HubError::NotFound { .. } | HubError::Denied { .. })) => {
                Err(HubError::RefusedButCached {
                    answer: Box::new(answer),
                    commit: cached.commit,
                })
            }
            done => done,
        }
    }

    /// Fetches the commit that `revision` names on the hub, which is asked for it again after at most
    /// `longest_wait`.
    fn fetch_latest(
        &self,
        repository: &RepositoryId,
        revision: &str,
        longest_wait: Duration,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        tracing::info!(model = %repository, revision, hub = self.endpoint, "asking the hub");
        let remote = Remote::new(self, repository, revision)?;
        let info = persist(longest_wait, || remote.info())?;
        if !is_commit(&info.sha) {
            return Err(remote.strange(format!("{:?} is no commit", info.sha)));
        }
        let in_cache = self.in_cache(repository, &info.sha);
        // All files come from one commit, whatever is pushed meanwhile.
        let commit = Repository {
            hub: self,
            id: repository,
            revision,
            snapshot: in_cache.pointer_path(&info.sha),
            in_cache,
            commit: info.sha,
            files: info
                .siblings
                .into_iter()
                .map(|file| file.rfilename)
                .collect(),
            remote,
            lacks_locks: Cell::new(false),
        };
        commit.fetch(progress)?;
        commit.name();
        Ok(commit.snapshot)
    }

    /// A model that is in the cache as a whole.
    fn cached(&self, repository: &RepositoryId, revision: &str) -> Result<Cached, HubError> {
        let missing = |file: &str| HubError::NotCached {
            repository: repository.to_string(),
            revision: revision.to_owned(),
            cache: self.cache.clone(),
            file: file.to_owned(),
        };
        let in_cache = self.in_cache(repository, revision);
        let commit = match is_commit(revision) {
            true => Some(revision.to_owned()),
            false => self.named(repository, revision),
        };
        let commit = commit.ok_or_else(|| missing(CONFIG))?;
        let snapshot = in_cache.pointer_path(&commit);
        let mut needed = BTreeSet::from([CONFIG.to_owned()]);
        match snapshot.join(INDEX).exists() {
            true => needed.extend(shards(&snapshot)?),
            false => _ = needed.insert(WEIGHTS.to_owned()),
        }
        match needed.iter().find(|file| !snapshot.join(file).exists()) {
            Some(file) => Err(missing(file)),
            None => Ok(Cached { commit, snapshot }),
        }
    }

    /// A revision of a repository in the cache: `blobs/ETAG`, `snapshots/COMMIT/FILE`, which is a link to a blob, and
    /// `refs/REVISION`, which names a commit.
    fn in_cache(&self, repository: &RepositoryId, revision: &str) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(model(repository, revision))
    }

    /// Where a repository is in the cache.
    fn folder(&self, repository: &Repo) -> PathBuf {
        self.cache.join(repository.folder_name())
    }

    /// The commit that a revision stood for when it was fetched.
    fn named(&self, repository: &RepositoryId, revision: &str) -> Option<String> {
        let revision = model(repository, revision);
        let name = self
            .folder(&revision)
            .join("refs")
            .join(revision.revision());
        // By hand it may have been written with a line end, which hf-hub would take for a part of the commit.
        let commit = fs::read_to_string(name).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }
}

/// A revision of a repository.
fn model(repository: &RepositoryId, revision: &str) -> Repo {
    Repo::with_revision(repository.to_string(), RepoType::Model, revision.to_owned())
}

/// A commit that is in the cache as a whole.
struct Cached {
    commit: String,
    /// Where its files are.
    snapshot: PathBuf,
}

/// One commit of a repository.
struct Repository<'a> {
    hub: &'a Hub,
    id: &'a RepositoryId,
    /// What the commit was asked for by.
    revision: &'a str,
    commit: String,
    /// The commit in the cache.
    in_cache: CacheRepo,
    /// Where the commit's files go.
    snapshot: PathBuf,
    /// The files that it has.
    files: BTreeSet<String>,
    remote: Remote<'a>,
    /// Whether it was said that the cache has no locks.
    lacks_locks: Cell<bool>,
}

impl Repository<'_> {
    fn fetch(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), HubError> {
        if !self.files.contains(CONFIG) {
            return Err(self.without(CONFIG, "it is no model of transformers"));
        }
        let is_sharded = self.files.contains(INDEX);
        if !is_sharded && !self.files.contains(WEIGHTS) {
            let reason =
                "weights are read from safetensors files only; pickle files are never opened";
            return Err(self.without(WEIGHTS, reason));
        }
        let vocabulary = match self.files.contains(TOKENIZER) {
            true => [].as_slice(),
            false => &VOCABULARY,
        };
        let small = SMALL_FILES.iter().chain(vocabulary);
        for file in small.filter(|file| self.files.contains(**file)) {
            self.fetch_file(file, progress)?;
        }
        // The weights may be hundreds of gigabytes.
        Checkpoint::open(&self.snapshot)?.check()?;
        if !is_sharded {
            return self.fetch_weights(&BTreeSet::from([WEIGHTS.to_owned()]), progress);
        }
        self.fetch_file(INDEX, progress)?;
        let shards = shards(&self.snapshot)?;
        match shards.difference(&self.files).next() {
            Some(shard) => Err(self.without(shard, &format!("{INDEX} names it"))),
            None => self.fetch_weights(&shards, progress),
        }
    }

    fn fetch_file(&self, file: &str, progress: &mut dyn FnMut(Progress)) -> Result<(), HubError> {
        match Wanted::of(self, file)? {
            Some(wanted) => wanted.fetch(progress),
            None => Ok(()),
        }
    }

    fn fetch_weights(
        &self,
        files: &BTreeSet<String>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let mut wanted = Vec::new();
        for file in files {
            wanted.extend(Wanted::of(self, file)?);
        }
        let missing: Vec<u64> = wanted.iter().map(Wanted::missing).collect();
        let bytes: u64 = missing.iter().sum();
        let files = missing.iter().filter(|missing| **missing > 0).count();
        if files > 0 {
            tracing::info!(
                model = %self.id,
                commit = self.commit,
                files,
                bytes,
                cache = %self.hub.cache.display(),
                "downloading the weights"
            );
        }
        let start = Instant::now();
        for wanted in &wanted {
            wanted.fetch(progress)?;
        }
        if files > 0 {
            let seconds = (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
            tracing::info!(model = %self.id, files, bytes, seconds, "downloaded the weights");
        }
        Ok(())
    }

    /// Writes the names by which the commit is found without the hub: its revision, and its own hash, which says
    /// that no file is missing. Other clients write no hash, and may have left files out.
    fn name(&self) {
        if let Err(error) = self.write_name(self.revision)
            && self.revision != self.commit
        {
            tracing::warn!(
                model = %self.id,
                revision = self.revision,
                commit = self.commit,
                %error,
                "the cache cannot be told which commit the revision is; without the hub it will not be found by it"
            );
        }
        if let Err(error) = self.write_name(&self.commit) {
            tracing::debug!(model = %self.id, commit = self.commit, %error, "the hub will be asked again");
        }
    }

    fn write_name(&self, revision: &str) -> std::io::Result<()> {
        match self.hub.named(self.id, revision).as_ref() == Some(&self.commit) {
            true => Ok(()),
            false => self
                .hub
                .in_cache(self.id, revision)
                .create_ref(&self.commit),
        }
    }

    fn without(&self, file: &str, reason: &str) -> HubError {
        HubError::NoSuchFile {
            repository: self.id.to_string(),
            revision: self.revision.to_owned(),
            file: file.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// The weight files that the index of a snapshot names.
fn shards(snapshot: &Path) -> Result<BTreeSet<String>, HubError> {
    let path = snapshot.join(INDEX);
    let json = fs::read(&path).map_err(|reason| HubError::Disk { path, reason })?;
    Ok(checkpoint::shards(&checkpoint::parse(INDEX, &json)?)?)
}

/// A revision becomes part of paths.
fn check_revision(revision: &str) -> Result<(), HubError> {
    let is_plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        !part.trim_matches('.').is_empty() && part.chars().all(allowed)
    };
    match revision.split('/').all(is_plain) {
        true => Ok(()),
        false => Err(HubError::Revision {
            given: revision.to_owned(),
        }),
    }
}

/// Whether a revision is a whole commit hash.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The token that was stored by logging in, if one was.
fn stored_token(home: &Path) -> Result<Option<String>, HubError> {
    let path = home.join("token");
    match fs::read_to_string(&path) {
        Ok(token) => Ok(Some(token)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(HubError::Disk { path, reason }),
    }
}

/// A token without the blanks around it, if anything is left.
fn written(token: &str) -> Option<String> {
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn directory(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// A time above zero.
fn seconds(value: &str) -> Option<Duration> {
    let seconds = value.trim().parse().ok()?;
    let time = Duration::try_from_secs_f64(seconds).ok()?;
    (!time.is_zero()).then_some(time)
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}
