//! Connections on which nothing happens.

use anyhow::{Context, ensure};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cli::bench::client::Target;
use crate::cli::open_files;

/// Files that are open beside idle connections: the load's own connections, most of all.
const OTHER_FILES: u64 = 8192;

/// Idle connections; they are closed when this is dropped.
pub struct Idle {
    _connections: JoinSet<()>,
}

impl Idle {
    /// Opens so many, and opens those again that the server closes.
    ///
    /// # Errors
    /// If they cannot be opened.
    pub async fn open(target: &Target, count: usize) -> anyhow::Result<Self> {
        let mut connections = JoinSet::new();
        let limit = open_files::raise_limit().context("--idle: the limit on open files")?;
        ensure!(
            count as u64 + OTHER_FILES.min(limit / 4) <= limit,
            "--idle {count}: this process may open {limit} files; raise it (ulimit -n)"
        );
        for opened in 0..count {
            let mut stream = TcpStream::connect(target.authority())
                .await
                .with_context(|| format!("--idle {count}: after {opened} connections"))?;
            let target = target.clone();
            connections.spawn(async move {
                loop {
                    // The server has nothing to say: what can be read is that it closes.
                    let _ = stream.readable().await;
                    match TcpStream::connect(target.authority()).await {
                        Ok(again) => stream = again,
                        Err(_) => return,
                    }
                }
            });
        }
        Ok(Self {
            _connections: connections,
        })
    }
}
