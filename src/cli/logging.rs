//! The log of a server on standard error. Whoever reads it may have gone, stand still, or keep it on a disk that is full:
//! nothing but one thread of its own ever waits for it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The most bytes of lines that wait to be written; a line beyond them is dropped, and counted.
const MAX_WAITING: usize = 4 << 20;

/// How long the end of a process waits for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How log lines are written.
#[derive(Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// A log that has begun. When this is dropped, the lines so far are written, unless that takes too long.
pub struct Log(Lines);

/// Begins the log, of what `RUST_LOG` says, or else from INFO on. Panics are entered in it too.
///
/// # Errors
/// If `RUST_LOG` cannot be understood, or no thread can be started.
pub fn start(format: LogFormat) -> anyhow::Result<Log> {
    let filter = filter()?;
    let lines = Lines::to(io::stderr()).context("cannot start the thread of the log")?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(console::colors_enabled_stderr())
        // It would tell of them on standard error, and panic where that fails.
        .log_internal_errors(false)
        .with_writer(lines.clone());
    match format {
        LogFormat::Text => logs.init(),
        // The line's own span says it all.
        LogFormat::Json => logs.json().with_span_list(false).init(),
    }
    // The usual hook waits for standard error.
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let backtrace = Backtrace::capture();
        let is_captured = backtrace.status() == BacktraceStatus::Captured;
        tracing::error!(
            thread = std::thread::current().name(),
            place = panic.location().map(tracing::field::display),
            panic = message,
            backtrace = is_captured.then(|| tracing::field::display(&backtrace)),
            "a thread panicked"
        );
    }));
    Ok(Log(lines))
}

fn filter() -> anyhow::Result<EnvFilter> {
    let given = std::env::var_os("RUST_LOG").unwrap_or_default();
    let directives = given
        .to_str()
        .with_context(|| format!("RUST_LOG is {given:?}; allowed: UTF-8"))?;
    match directives.trim() {
        "" => Ok(EnvFilter::new("info")),
        directives => {
            EnvFilter::try_new(directives).with_context(|| format!("RUST_LOG is {directives:?}"))
        }
    }
}

enum Message {
    Line(Vec<u8>),
    /// To be answered when all lines before it have been written.
    Flush(Sender<()>),
}

/// Takes lines in, which a thread writes.
#[derive(Clone)]
struct Lines {
    queue: Sender<Message>,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count {
    /// Bytes of lines that wait.
    waiting: AtomicUsize,
    /// Lines that were not written, and of which the log does not tell yet.
    dropped: AtomicU64,
}

impl Lines {
    /// Lines that are written to `log`.
    fn to(log: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = channel();
        let count = Arc::new(Count::default());
        let counted = count.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_out(&lines, log, &counted))?;
        Ok(Self { queue, count })
    }

    /// Waits until the lines so far are written, for `most` at most.
    fn flush(&self, most: Duration) {
        let (done, is_done) = channel();
        if self.queue.send(Message::Flush(done)).is_ok() {
            // A log that is not written by then is not worth waiting for.
            let _ = is_done.recv_timeout(most);
        }
    }
}

fn write_out(lines: &Receiver<Message>, mut log: impl Write, count: &Count) {
    for message in lines {
        let line = match message {
            Message::Line(line) => line,
            Message::Flush(done) => {
                // Nobody may wait for it any more.
                let _ = done.send(());
                continue;
            }
        };
        let written = log.write_all(&line);
        let waiting = count.waiting.fetch_sub(line.len(), Ordering::Relaxed) - line.len();
        if written.is_err() {
            count.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        // What is told follows a line that was written, once no other waits: neither a log that stays full nor one
        // that is read too slowly is told again and again.
        if waiting > 0 {
            continue;
        }
        let dropped = count.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(lines = dropped, "log lines could not be written");
        }
    }
}

impl Write for &Lines {
    /// Takes a line in, or drops and counts it; never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Count { waiting, dropped } = &*self.count;
        let before = waiting.fetch_add(line.len(), Ordering::Relaxed);
        let has_room = before.saturating_add(line.len()) <= MAX_WAITING;
        if !has_room || self.queue.send(Message::Line(line.to_vec())).is_err() {
            waiting.fetch_sub(line.len(), Ordering::Relaxed);
            dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// How the next write ends.
    type Turn = io::Result<()>;

    /// A log that fails, or waits, as a test has it.
    struct Disk {
        turn: Receiver<Turn>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.turn.recv().unwrap()?;
            self.written.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn disk() -> (Lines, Sender<Turn>, Arc<Mutex<Vec<u8>>>) {
        let (allow, turn) = channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let lines = Lines::to(Disk {
            turn,
            written: written.clone(),
        });
        (lines.unwrap(), allow, written)
    }

    #[test]
    fn a_log_that_stands_still_costs_bounded_memory_and_lines_beyond_it_are_dropped() {
        let (lines, allow, written) = disk();
        let line = vec![b'a'; 1 << 20];
        for _ in 0..10 {
            (&lines).write_all(&line).unwrap();
        }
        let waiting = lines.count.waiting.load(Ordering::Relaxed);
        assert_eq!(waiting, MAX_WAITING);
        assert_eq!(lines.count.dropped.load(Ordering::Relaxed), 6);
        for _ in 0..4 {
            allow.send(Ok(())).unwrap();
        }
        lines.flush(Duration::from_secs(600));
        assert_eq!(written.lock().unwrap().len(), MAX_WAITING);
        assert_eq!(lines.count.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(lines.count.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted_and_later_ones_are_written() {
        let (lines, allow, written) = disk();
        for (line, result) in [
            ("a", Err(io::ErrorKind::StorageFull.into())),
            ("b", Err(io::ErrorKind::StorageFull.into())),
        ] {
            allow.send(result).unwrap();
            (&lines).write_all(line.as_bytes()).unwrap();
        }
        lines.flush(Duration::from_secs(600));
        assert_eq!(lines.count.dropped.load(Ordering::Relaxed), 2);
        allow.send(Ok(())).unwrap();
        (&lines).write_all(b"c").unwrap();
        lines.flush(Duration::from_secs(600));
        assert_eq!(*written.lock().unwrap(), b"c");
    }
}
