//! One file from the hub into the cache.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use ureq::http::StatusCode;

use super::digest::Sha256;
use super::error::of_disk;
use super::remote::{Description, LONGEST_WAIT, persist};
use super::{HubError, Progress, Repository};

/// How often to look whether another process is done with a file.
const POLL: Duration = Duration::from_millis(100);

/// Endings of what is not there as a whole, and of what only one process holds.
const PART: &str = ".part";
const LOCK: &str = ".lock";

/// Redirects that are followed to the bytes of a file.
const REDIRECTS: u32 = 10;

/// A file of the commit that is not in its snapshot.
pub(super) struct Wanted<'a> {
    repository: &'a Repository<'a>,
    file: &'a str,
    url: String,
    description: Description,
}

impl<'a> Wanted<'a> {
    /// Asks for what there is to know of `file`, unless it is in the snapshot.
    pub fn of(repository: &'a Repository, file: &'a str) -> Result<Option<Self>, HubError> {
        if repository.snapshot.join(file).exists() {
            return Ok(None);
        }
        let url = repository.remote.url(&repository.commit, file);
        let description = persist(LONGEST_WAIT, || repository.remote.describe(&url, file))?;
        Ok(Some(Self {
            repository,
            file,
            url,
            description,
        }))
    }

    /// Bytes that are not in the cache yet.
    pub fn missing(&self) -> u64 {
        if length(&self.path("")) == Some(self.description.size) {
            return 0;
        }
        let there = length(&self.path(PART)).unwrap_or(0);
        self.description.size.saturating_sub(there)
    }

    /// Sees to it that the file is in the snapshot.
    pub fn fetch(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), HubError> {
        let mut furthest = 0;
        let mut digest = self.description.sha256().map(|_| Sha256::new());
        loop {
            let before = furthest;
            let done = persist(LONGEST_WAIT, || {
                self.try_fetch(&mut digest, &mut |at| {
                    furthest = furthest.max(at.received);
                    progress(at);
                })
            });
            match done {
                // A long download may break off any number of times, as long as it gets on.
                Err(error @ HubError::Interrupted { .. }) if furthest > before => {
                    tracing::warn!(reason = %error, received = furthest, "going on, since more of it came");
                }
                done => return done,
            }
        }
    }

    fn try_fetch(
        &self,
        digest: &mut Option<Sha256>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let on_disk = |error| of_disk(error, &self.repository.hub.cache);
        let (blob, part) = (self.path(""), self.path(PART));
        if let Some(blobs) = blob.parent() {
            fs::create_dir_all(blobs).map_err(on_disk)?;
        }
        let mut at = Progress {
            file: self.file,
            received: 0,
            total: self.description.size,
        };
        // Until the end, so that no two write to one part.
        let lock = File::create(self.path(LOCK)).map_err(on_disk)?;
        let mut waits = false;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if !waits {
                        tracing::info!(file = self.file, "another process downloads it; waiting");
                        waits = true;
                    }
                    // With its download this one is done too.
                    at.received = length(&part).unwrap_or(0).min(at.total);
                    progress(at);
                    sleep(POLL);
                }
                // Some network file systems have none.
                Err(TryLockError::Error(error)) if is_without_locks(&error) => {
                    if !self.repository.lacks_locks.replace(true) {
                        tracing::warn!(
                            cache = %self.repository.hub.cache.display(),
                            "the cache's file system has no locks; let one process at a time download there"
                        );
                    }
                    break;
                }
                Err(TryLockError::Error(error)) => return Err(on_disk(error)),
            }
        }
        // It may be there: of another commit, or since another process has downloaded it.
        if length(&blob) != Some(self.description.size) {
            self.download(&part, at, digest, progress)?;
            fs::rename(&part, &blob).map_err(on_disk)?;
        }
        link(&blob, &self.repository.snapshot, self.file).map_err(on_disk)
    }

    /// Continues `part` until it is whole, and checks it.
    fn download(
        &self,
        part: &Path,
        mut at: Progress,
        digest: &mut Option<Sha256>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let on_disk = |error| of_disk(error, &self.repository.hub.cache);
        let options = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(part);
        let mut out = options.map_err(on_disk)?;
        at.received = out.metadata().map_err(on_disk)?.len();
        if at.received > at.total {
            out.set_len(0).map_err(on_disk)?;
            at.received = 0;
        }
        progress(at);
        if let Some(digest) = digest {
            if at.received > 0 {
                tracing::info!(
                    file = self.file,
                    bytes = at.received,
                    "checking what is there"
                );
            }
            digest.catch_up(&mut out, at.received).map_err(on_disk)?;
        }
        if at.received < at.total {
            self.receive(&mut out, at, digest, progress)?;
        }
        // What has the name of the contents is whole, even after a loss of power.
        out.sync_all().map_err(on_disk)?;
        drop(out);
        let (Some(expected), Some(digest)) = (self.description.sha256(), digest) else {
            return Ok(());
        };
        let found = digest.hex();
        if found == expected {
            return Ok(());
        }
        fs::remove_file(part).map_err(on_disk)?;
        Err(HubError::Damaged {
            file: self.file.to_owned(),
            expected: expected.to_owned(),
            found,
        })
    }

    /// Appends to `out` what is missing.
    fn receive(
        &self,
        out: &mut File,
        mut at: Progress,
        digest: &mut Option<Sha256>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), HubError> {
        let on_disk = |error| of_disk(error, &self.repository.hub.cache);
        let range = format!("bytes={}-", at.received);
        let answer = self
            .repository
            .remote
            .get(&self.url, at.file, Some(&range), REDIRECTS)?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            // The whole file comes, whatever was asked for.
            out.set_len(0).map_err(on_disk)?;
            at.received = 0;
            *digest = digest.as_ref().map(|_| Sha256::new());
        }
        let file = at.file.to_owned();
        let interrupted = |reason| HubError::Interrupted { file, reason };
        let mut body = answer.into_body().into_reader();
        let mut bytes = vec![0; 1 << 16];
        while at.received < at.total {
            let left = usize::try_from(at.total - at.received).unwrap_or(usize::MAX);
            let most = bytes.len().min(left);
            match body.read(&mut bytes[..most]) {
                // The end of a connection is not the end of the file.
                Ok(0) => {
                    let reason = format!("{} of {} bytes came", at.received, at.total);
                    return Err(interrupted(reason));
                }
                Ok(read) => {
                    out.write_all(&bytes[..read]).map_err(on_disk)?;
                    if let Some(digest) = digest {
                        digest.update(&bytes[..read]);
                    }
                    at.received += read as u64;
                    progress(at);
                }
                Err(error) => return Err(interrupted(error.to_string())),
            }
        }
        Ok(())
    }

    /// The name of the file's contents in the cache, and with an ending what belongs to it.
    fn path(&self, ending: &str) -> PathBuf {
        let name = format!("{}{ending}", self.description.etag);
        self.repository.in_cache.blob_path(&name)
    }
}

/// Whether locking failed because the file system has no locks.
fn is_without_locks(error: &io::Error) -> bool {
    // What NFS answers where no lock daemon runs has no kind of its own.
    #[cfg(unix)]
    let of_nfs = error.raw_os_error() == Some(rustix::io::Errno::NOLCK.raw_os_error());
    #[cfg(not(unix))]
    let of_nfs = false;
    of_nfs || error.kind() == ErrorKind::Unsupported
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.len())
}

/// Makes `file` of a snapshot a name of `blob`.
fn link(blob: &Path, snapshot: &Path, file: &str) -> std::io::Result<()> {
    fs::create_dir_all(snapshot)?;
    let name = snapshot.join(file);
    if name.exists() {
        return Ok(());
    }
    if name.is_symlink() {
        // It led to a file that is gone.
        fs::remove_file(&name)?;
    }
    #[cfg(unix)]
    {
        let blob = blob.file_name().unwrap_or_default();
        // From snapshots/COMMIT/ to blobs/.
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), name)
    }
    #[cfg(not(unix))]
    fs::hard_link(blob, name)
}
