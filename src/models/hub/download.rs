//! One file from the hub into the cache.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::error::{of_api, of_disk};
use super::{HubError, Progress, Repository};

/// How often a download is tried that breaks off.
const ATTEMPTS: u32 = 4;

/// How long to wait before the second attempt; before each later one twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Sees to it that `file` of the commit is in its snapshot.
pub(super) fn fetch_file(
    repository: &Repository,
    file: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), HubError> {
    if repository.snapshot.join(file).exists() {
        return Ok(());
    }
    let mut attempt = 1;
    loop {
        match try_fetch(repository, file, progress) {
            Err(HubError::Interrupted { .. } | HubError::Unreachable { .. })
                if attempt < ATTEMPTS =>
            {
                sleep(FIRST_WAIT * 2u32.pow(attempt - 1));
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn try_fetch(
    repository: &Repository,
    file: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), HubError> {
    let (hub, remote) = (repository.hub, &repository.remote);
    let failed = |error| of_api(error, hub, repository.id, repository.revision, file);
    let on_disk = |error| of_disk(error, &hub.cache);
    let metadata = repository.api.metadata(&remote.url(file)).map_err(failed)?;
    let size = metadata.size() as u64;
    let blob = repository.cache.blob_path(metadata.etag());
    let snapshot = repository.snapshot.join(file);
    if snapshot.is_symlink() {
        // It led to a file that is gone.
        fs::remove_file(&snapshot).map_err(on_disk)?;
    }
    if length(&blob) == Some(size) {
        // Another commit has the same file.
        fs::create_dir_all(&repository.snapshot).map_err(on_disk)?;
        return link(&blob, &snapshot).map_err(on_disk);
    }
    // The library asks for what comes after the part that is there, of which there must be something.
    let part = blob.with_extension("part");
    if length(&part).is_some_and(|length| length >= size) {
        fs::remove_file(&part).map_err(on_disk)?;
    }
    let report = Report {
        progress: Progress {
            file,
            received: 0,
            total: size,
        },
        sink: progress,
    };
    remote
        .download_with_progress(file, report)
        .map_err(failed)?;
    // The library takes the end of a connection for the end of the file.
    match length(&blob) {
        Some(length) if length == size => Ok(()),
        length => {
            for path in [&snapshot, &blob] {
                fs::remove_file(path).map_err(on_disk)?;
            }
            Err(HubError::Interrupted {
                file: file.to_owned(),
                reason: format!("{} of {size} bytes came", length.unwrap_or(0)),
            })
        }
    }
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.len())
}

/// Makes `snapshot` a name of `blob`, as the library does after a download.
#[cfg(unix)]
fn link(blob: &Path, snapshot: &Path) -> std::io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    // From snapshots/COMMIT/ to blobs/.
    std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot)
}

#[cfg(not(unix))]
fn link(blob: &Path, snapshot: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, snapshot)
}

/// Passes the library's reports on.
struct Report<'a> {
    progress: Progress<'a>,
    sink: &'a mut dyn FnMut(Progress),
}

impl hf_hub::api::Progress for Report<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.progress.total = size as u64;
        self.progress.received = 0;
        (self.sink)(self.progress);
    }

    fn update(&mut self, size: usize) {
        self.progress.received += size as u64;
        (self.sink)(self.progress);
    }

    fn finish(&mut self) {}
}
