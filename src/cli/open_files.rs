//! How many files this process may open.

use std::io;

/// Raises the soft limit to the hard one, as Go's runtime does; the limit then, `u64::MAX` without one.
///
/// # Errors
/// If the system refuses.
#[cfg(unix)]
pub fn raise_limit() -> io::Result<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// There is none.
///
/// # Errors
/// Never.
#[cfg(not(unix))]
pub fn raise_limit() -> io::Result<u64> {
    Ok(u64::MAX)
}
