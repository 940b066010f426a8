//! Asks for `/health` while a load is on, as a supervisor does: each time over a connection of its own.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::quantiles::Histogram;
use crate::cli::bench::client::Target;

/// Time between the beginnings of two probes.
const INTERVAL: Duration = Duration::from_millis(100);
/// A probe that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the probes came to.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// From connecting to the last byte, in milliseconds.
    pub times: Histogram,
    /// Those that did not end in status 200.
    pub failures: u64,
}

/// Probes in a thread of their own, so that the load's clients do not delay what is measured.
pub struct Probe {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Health>,
}

impl Probe {
    /// Begins.
    pub fn of(target: Target) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let flag = ends.clone();
        let thread = std::thread::spawn(move || {
            let mut health = Health::default();
            loop {
                let begun = Instant::now();
                match ask(&target) {
                    Ok(true) => health.times.record(begun.elapsed().as_secs_f64() * 1e3),
                    Ok(false) | Err(_) => health.failures += 1,
                }
                if flag.load(Ordering::Relaxed) {
                    return health;
                }
                std::thread::sleep(INTERVAL.saturating_sub(begun.elapsed()));
            }
        });
        Self { ends, thread }
    }

    /// Ends.
    pub fn end(self) -> Health {
        self.ends.store(true, Ordering::Relaxed);
        // A thread that panicked has measured nothing.
        self.thread.join().unwrap_or_default()
    }
}

/// Whether the server says that it is healthy.
fn ask(target: &Target) -> io::Result<bool> {
    let mut stream = TcpStream::connect(target.authority())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {}/health HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        target.prefix(),
        target.authority()
    )?;
    let mut answer = Vec::new();
    stream.take(1 << 16).read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
