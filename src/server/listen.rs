//! Listening: connections, their limits, and how a server ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::{Extension, Router};
use futures::future::{Either, pending, select};
use futures::stream::{Stream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::stall::StallGuard;

/// How long accepting pauses when the system has no sockets left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How often the log tells at most that all connections are taken.
const FULL_PAUSE: Duration = Duration::from_secs(60);

/// Bounds on connections, and on how long a server takes to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenConfig {
    /// Most connections at a time; more wait until one closes.
    pub connections: usize,
    /// Largest head of a request, in bytes; a larger one is answered with status 431.
    pub head_bytes: usize,
    /// How long a client may take to send a head, and how long a connection may be idle.
    pub head_timeout: Duration,
    /// The age from which on a connection makes way while all are taken: at once if it has no request, or after its
    /// answer.
    pub full_age: Duration,
    /// How long a client may leave an answer unread before its connection is closed.
    pub stall_timeout: Duration,
    /// How long requests that run have to finish once the server ends; then they are answered with status 503.
    pub drain: Duration,
    /// How long their clients then have to take that answer.
    pub last_answers: Duration,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            connections: 16_384,
            head_bytes: 64 << 10,
            head_timeout: Duration::from_secs(60),
            full_age: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            last_answers: Duration::from_secs(2),
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every request that had begun was answered.
    Drained,
    /// The time to drain was over while requests still ran, which were given up.
    DeadlinePassed,
    /// Draining was cut short, and requests that still ran were given up.
    CutShort,
}

/// Serves `router` until `shutdown` yields, then takes no new connections and gives the requests that run
/// at most `config.drain` to finish, or until `shutdown` yields again. Requests that outlive it are
/// answered with status 503, a stream with an error as its last frame; clients that do not take that within
/// [`ListenConfig::last_answers`] are cut off. A listener that fails to accept, as it does while the system has no
/// sockets left, is tried again.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Stream<Item = ()> + Send,
    config: ListenConfig,
) -> Ending {
    let mut shutdown = std::pin::pin!(shutdown.chain(futures::stream::pending()));
    let (drain, draining) = watch::channel(false);
    let mut places = Places::new(config.connections);
    let (give_up, given_up) = watch::channel(false);
    let router = router
        .layer(Extension(places.open.clone()))
        .layer(Extension(DrainEnd(given_up)));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = shutdown.next() => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &mut places) => {
                let (stream, place) = accepted;
                let connection = Connection {
                    router: router.clone(),
                    config,
                    draining: draining.clone(),
                    full: places.full.subscribe(),
                    _place: place,
                };
                connections.spawn(connection.serve(stream));
            }
        }
    }
    drop(listener);
    tracing::info!(
        seconds = config.drain.as_secs(),
        connections = connections.len(),
        "draining"
    );
    // A receiver is held here, so that this cannot fail.
    let _ = drain.send(true);
    let ending = tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => Ending::Drained,
        () = tokio::time::sleep(config.drain) => Ending::DeadlinePassed,
        _ = shutdown.next() => Ending::CutShort,
    };
    if ending != Ending::Drained {
        // The router holds a receiver, so that this cannot fail.
        let _ = give_up.send(true);
        let answered = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(config.last_answers, answered)
            .await
            .is_err()
        {
            tracing::debug!(connections = connections.len(), "cutting off");
        }
    }
    // What still ran has ended, and told so, when this returns.
    connections.shutdown().await;
    ending
}

/// When a server that ends gives up the requests that still run, among the extensions of every request.
#[derive(Debug, Clone)]
pub(super) struct DrainEnd(watch::Receiver<bool>);

impl DrainEnd {
    /// Waits until then; without end on a server that is gone.
    pub async fn reached(mut self) {
        if self.0.wait_for(|given_up| *given_up).await.is_err() {
            pending().await
        }
    }
}

/// How many connections are open.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenConnections(Arc<AtomicUsize>);

impl OpenConnections {
    /// Their number now.
    pub fn number(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The places for connections.
struct Places {
    limit: usize,
    free: Arc<Semaphore>,
    open: OpenConnections,
    /// Whether all are taken.
    full: watch::Sender<bool>,
    /// When the log told so last.
    told: Option<Instant>,
}

/// A connection's place.
struct Place {
    open: OpenConnections,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self {
            limit,
            free: Arc::new(Semaphore::new(limit)),
            open: OpenConnections::default(),
            full: watch::Sender::new(false),
            told: None,
        }
    }

    /// Waits until a place is free, and takes it.
    async fn take(&mut self) -> OwnedSemaphorePermit {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            self.set_full(false);
            return permit;
        }
        self.set_full(true);
        if self.told.is_none_or(|told| told.elapsed() >= FULL_PAUSE) {
            self.told = Some(Instant::now());
            tracing::warn!(
                connections = self.limit,
                "as many connections are open as may be (--max-connections); more wait, and old idle ones are closed"
            );
        }
        match self.free.clone().acquire_owned().await {
            Ok(permit) => {
                self.set_full(false);
                permit
            }
            // The semaphore is never closed.
            Err(_) => pending().await,
        }
    }

    fn set_full(&self, is_full: bool) {
        self.full
            .send_if_modified(|full| std::mem::replace(full, is_full) != is_full);
    }

    fn of(&self, permit: OwnedSemaphorePermit) -> Place {
        self.open.0.fetch_add(1, Ordering::Relaxed);
        Place {
            open: self.open.clone(),
            _permit: permit,
        }
    }
}

/// The next connection, once there is a place for one.
async fn accept(listener: &TcpListener, places: &mut Places) -> (TcpStream, Place) {
    let permit = places.take().await;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, places.of(permit)),
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                // Too many open files, most likely: some will be closed.
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the fault is that of the connection that would have been accepted.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

struct Connection {
    router: Router,
    config: ListenConfig,
    draining: watch::Receiver<bool>,
    full: watch::Receiver<bool>,
    _place: Place,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // Frames of a stream are small: they must not wait for one another.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let io = TokioIo::new(StallGuard::new(stream, self.config.stall_timeout));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.head_timeout)
            .max_header_size(self.config.head_bytes)
            .max_buf_size(self.config.head_bytes.max(MIN_BUFFER))
            .serve_connection(io, TowerToHyperService::new(self.router.clone()));
        let served = std::pin::pin!(served);
        let age = self.config.full_age;
        let (mut draining, mut full) = (self.draining, self.full);
        let told_to_end = std::pin::pin!(async {
            let drains = async { draining.wait_for(|draining| *draining).await.is_ok() };
            let makes_way = async {
                tokio::time::sleep(age).await;
                full.wait_for(|full| *full).await.is_ok()
            };
            tokio::select! {
                true = drains => {}
                true = makes_way => {}
                else => pending::<()>().await,
            }
        });
        let ended = match select(served, told_to_end).await {
            Either::Left((ended, _)) => ended,
            Either::Right((_, mut served)) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// The smallest buffer that hyper takes.
const MIN_BUFFER: usize = 8192;
