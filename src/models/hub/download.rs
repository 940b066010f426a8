//! One file from the hub into the cache.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use ureq::http::StatusCode;

use super::error::of_disk;
use super::remote::{Description, LONGEST_WAIT, persist};
use super::{HubError, Progress, Repository};

/// How often to look whether another process is done with a file.
const POLL: Duration = Duration::from_millis(100);

/// Redirects that are followed to the bytes of a file.
const REDIRECTS: u32 = 10;

/// Sees to it that `file` of the commit is in its snapshot.
pub(super) fn fetch_file(
    repository: &Repository,
    file: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), HubError> {
    if repository.snapshot.join(file).exists() {
        return Ok(());
    }
    let mut furthest = 0;
    loop {
        let before = furthest;
        let done = persist(LONGEST_WAIT, || {
            try_fetch(repository, file, &mut |at| {
                furthest = furthest.max(at.received);
                progress(at);
            })
        });
        // A long download may break off any number of times, as long as it gets on.
        match done {
            Err(HubError::Interrupted { .. }) if furthest > before => {}
            done => return done,
        }
    }
}

fn try_fetch(
    repository: &Repository,
    file: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), HubError> {
    let url = repository.remote.url(&repository.commit, file);
    let description = repository.remote.describe(&url, file)?;
    let on_disk = |error| of_disk(error, &repository.hub.cache);
    let blobs = repository.folder.join("blobs");
    fs::create_dir_all(&blobs).map_err(on_disk)?;
    let named = |ending: &str| blobs.join(format!("{}{ending}", description.etag));
    let (blob, part) = (named(""), named(".part"));
    let mut at = Progress {
        file,
        received: 0,
        total: description.size,
    };
    // Until the end, so that no two write to one part.
    let lock = File::create(named(".lock")).map_err(on_disk)?;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                // Another process downloads the same, with which this one is done too.
                at.received = length(&part).unwrap_or(0).min(at.total);
                progress(at);
                sleep(POLL);
            }
            // Some network file systems have no locks; two processes that download there at once may fail.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => break,
            Err(TryLockError::Error(error)) => return Err(on_disk(error)),
        }
    }
    // It may be there: of another commit, or since another process has downloaded it.
    if length(&blob) != Some(description.size) {
        download(repository, &url, &description, &part, at, progress)?;
        fs::rename(&part, &blob).map_err(on_disk)?;
    }
    link(&blob, &repository.snapshot, file).map_err(on_disk)
}

/// Continues `part` until it is whole.
fn download(
    repository: &Repository,
    url: &str,
    description: &Description,
    part: &Path,
    mut at: Progress,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), HubError> {
    let on_disk = |error| of_disk(error, &repository.hub.cache);
    let options = File::options().create(true).append(true).open(part);
    let mut out = options.map_err(on_disk)?;
    at.received = out.metadata().map_err(on_disk)?.len();
    if at.received > at.total {
        out.set_len(0).map_err(on_disk)?;
        at.received = 0;
    }
    progress(at);
    if at.received == at.total {
        return Ok(());
    }
    let range = format!("bytes={}-", at.received);
    let answer = repository
        .remote
        .get(url, at.file, Some(&range), REDIRECTS)?;
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        // The whole file comes, whatever was asked for.
        out.set_len(0).map_err(on_disk)?;
        at.received = 0;
    }
    let file = at.file.to_owned();
    let interrupted = |reason| HubError::Interrupted { file, reason };
    let mut body = answer.into_body().into_reader();
    let mut bytes = vec![0; 1 << 16];
    while at.received < description.size {
        let left = usize::try_from(description.size - at.received).unwrap_or(usize::MAX);
        let most = bytes.len().min(left);
        match body.read(&mut bytes[..most]) {
            // The end of a connection is not the end of the file.
            Ok(0) => {
                let reason = format!("{} of {} bytes came", at.received, at.total);
                return Err(interrupted(reason));
            }
            Ok(read) => {
                out.write_all(&bytes[..read]).map_err(on_disk)?;
                at.received += read as u64;
                progress(at);
            }
            Err(error) => return Err(interrupted(error.to_string())),
        }
    }
    Ok(())
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
