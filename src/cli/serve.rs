//! `unmask serve`.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::http::HeaderValue;
use axum::http::uri::Authority;
use futures::future::{Either, select};
use futures::stream::{Stream, StreamExt};
use tokio::net::TcpSocket;
use unmask::engine::{Engine, EngineConfig};
use unmask::server::{self, Access, ApiKeys, AppState, Ending, Limits, ListenConfig};

use super::logging::{self, LogFormat};
use super::model::{ModelArgs, tokenizer};
use super::open_files;
use super::signals::{self, Signal};
use super::traces::{self, TracesArgs};

/// Connections that the system holds until they are accepted.
const BACKLOG: u32 = 1024;

/// Files that are open beside connections, and some to spare.
const OTHER_FILES: usize = 64;

/// How long a step that nobody waits for may take once all requests are answered.
const LAST_STEP: Duration = Duration::from_secs(5);

/// The port where nothing else is said.
pub const DEFAULT_PORT: u16 = 8080;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask serve
  unmask serve --model GSAI-ML/LLaDA-8B-Instruct --device cuda --host 0.0.0.0 --api-key app:secret
  unmask serve --model ./my-model --port 9000 --max-queue 64 --request-timeout 60 --log-format json";

/// Arguments of `unmask serve`.
#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "UNMASK_PORT", default_value_t = DEFAULT_PORT, value_parser = port)]
    port: u16,
    /// Most sequences denoised at a time
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_sequences, value_parser = at_least_one)]
    max_sequences: usize,
    /// Most rows a denoise step: slots of all its canvases, with guidance twice as many
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_rows, value_parser = at_least_one)]
    max_rows: usize,
    /// Rows after which no more canvases are added to a step, so that short ones do not wait for long
    /// ones [default: 512 on a CPU, --max-rows elsewhere]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    step_rows: Option<usize>,
    /// Memory for cached keys and values, in MiB; 0 caches nothing
    #[arg(long, value_name = "MIB", default_value_t = EngineConfig::default().kv_memory >> 20)]
    kv_memory: usize,
    /// Most sequences that wait; more are answered with status 429
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_queue, value_parser = at_least_one)]
    max_queue: usize,
    /// Most requests answered at a time, streams included; more are answered with status 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests, value_parser = at_least_one)]
    max_requests: usize,
    /// Most of them with one API key [default: --max-requests]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_requests_per_key: Option<usize>,
    /// Most connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = ListenConfig::default().connections, value_parser = at_least_one)]
    max_connections: usize,
    /// Largest body of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body_bytes, value_parser = at_least_one)]
    max_body_bytes: usize,
    /// Seconds that answering a request may take; then it fails with status 504 [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    request_timeout: Option<Duration>,
    /// An API key, as KEY or NAME:KEY; may be given several times. With any, every request must carry one;
    /// only /health, /ready, the playground (/, /playground.css, /playground.js), /docs and /openapi.json stay open.
    /// Where it is given, UNMASK_API_KEYS is not read
    #[arg(
        long,
        value_name = "KEY",
        env = API_KEYS,
        hide_env_values = true,
        value_delimiter = ','
    )]
    api_key: Vec<String>,
    /// Leave /metrics open too where API keys are asked for
    #[arg(long)]
    open_metrics: bool,
    /// An origin whose web pages may use the server (CORS), as https://app.example or http://localhost:3000, * for all;
    /// may be given several times
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    cors_origin: Vec<HeaderValue>,
    /// Seconds that running requests have to finish after SIGTERM or SIGINT; then, or at a second one, they are answered
    /// with status 503
    #[arg(long, value_name = "SECONDS", default_value_t = ListenConfig::default().drain.as_secs())]
    drain_seconds: u64,
    /// How log lines are written to standard error; RUST_LOG sets which are
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(flatten)]
    traces: TracesArgs,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("allowed: a whole number of at least 1".into()),
    }
}

/// A port. The message names both places that it may come from, since it is not known here which it was.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "allowed: a whole number from 0 to 65535, as --port or UNMASK_PORT".into())
}

/// The origins that may be given: as browsers send them, since they are compared letter by letter.
const ORIGINS: &str = "* or one origin as browsers send it, such as https://app.example or http://localhost:3000: scheme \
                       and host in small letters, a port unless it is the scheme's own, no path and no slash at the end";

/// One of [`ORIGINS`].
fn origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin = || {
        let (scheme, authority) = text.split_once("://")?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
        let authority: Authority = authority.parse().ok()?;
        let host = authority.host();
        let own_port = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let has_port = authority.as_str() != host;
        let port = authority.port_u16();
        let is_authority = !host.is_empty()
            && !host.contains(|c: char| c.is_ascii_uppercase() || "*,;".contains(c))
            && !authority.as_str().contains('@')
            && has_port == port.is_some()
            && (port.is_none() || port != own_port);
        (is_scheme && is_authority).then_some(())
    };
    let value = HeaderValue::from_str(text).ok();
    value
        .filter(|_| text == "*" || is_origin().is_some())
        .ok_or_else(|| format!("allowed: {ORIGINS}"))
}

/// A number of seconds above 0.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "allowed: a number of seconds above 0".into())
}

/// Runs `unmask serve`.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let _log = logging::start(args.log_format)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    // Before anything takes long: the first process of a container has no other way to be ended by a signal.
    let signals = {
        let _within = runtime.enter();
        signals::termination().context("cannot wait for signals")?
    };
    let ended = runtime.block_on(serve(Arc::new(args), signals));
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve(
    args: Arc<ServeArgs>,
    signals: impl Stream<Item = Signal> + Send,
) -> anyhow::Result<()> {
    let mut signals = pin!(signals);
    let access = access(&args)?;
    // A port at which another server listens should not be found out after minutes of loading.
    let socket = bind(SocketAddr::new(args.host, args.port))?;
    #[cfg(feature = "otel")]
    let traces = traces::start(&args.traces)?;
    #[cfg(not(feature = "otel"))]
    traces::refuse(&args.traces)?;
    let loading = {
        let args = args.clone();
        tokio::task::spawn_blocking(move || load(&args))
    };
    let state = match select(signals.next(), loading).await {
        Either::Left((signal, _)) => {
            let signal = signal.map(|signal| signal.name);
            tracing::info!(signal, "ended before the model was loaded");
            return Ok(());
        }
        Either::Right((loaded, _)) => loaded.context("the model cannot be loaded")??,
    };
    let state = state.with_access(access);
    #[cfg(feature = "otel")]
    let state = state.with_traces(traces.clone());
    let ended = listen(&args, socket, state, signals.map(|_| ())).await;
    // However it ended, what led there is in them.
    #[cfg(feature = "otel")]
    traces::end(traces);
    match ended? {
        Ending::Drained => {}
        Ending::DeadlinePassed => tracing::warn!(
            seconds = args.drain_seconds,
            "requests still ran at the end of --drain-seconds, and were given up"
        ),
        Ending::CutShort => {
            tracing::warn!("a second signal; requests that still ran were given up")
        }
    }
    Ok(())
}

/// The variable whose keys are those of `--api-key` where that is not given.
const API_KEYS: &str = "UNMASK_API_KEYS";

fn access(args: &ServeArgs) -> anyhow::Result<Access> {
    let of_environment = std::env::var(API_KEYS).unwrap_or_default();
    if !of_environment.is_empty() && !of_environment.split(',').eq(&args.api_key) {
        tracing::warn!("--api-key is given: the keys of {API_KEYS} are not taken");
    }
    let keys = ApiKeys::new(args.api_key.iter().map(String::as_str))
        .context("--api-key or UNMASK_API_KEYS")?;
    if keys.is_empty() && !args.host.is_loopback() {
        tracing::warn!(
            host = %args.host,
            "whoever reaches this address can use the server: it asks for no --api-key"
        );
    }
    if !keys.is_empty() {
        let names: Vec<&str> = keys.names().map(AsRef::as_ref).collect();
        tracing::info!(names = names.join(","), "asking for API keys");
    }
    Ok(Access {
        keys,
        open_metrics: args.open_metrics,
        origins: args.cors_origin.clone(),
    })
}

fn load(args: &ServeArgs) -> anyhow::Result<AppState> {
    let checkpoint = args.model.checkpoint()?;
    let tokenizer = tokenizer(&checkpoint)?;
    let chat_template = checkpoint.chat_template()?;
    let spec = checkpoint.spec()?;
    tracing::info!(
        model = checkpoint.name(),
        family = spec.family,
        parameters = spec.parameters,
        "loading"
    );
    // A checkpoint's files may have changed them.
    let drawn = &spec.default_plan.sampling;
    tracing::info!(
        temperature = %drawn.temperature,
        top_k = drawn.top_k,
        top_p = drawn.top_p.map(display),
        min_p = drawn.min_p.map(display),
        "how tokens are drawn unless a request says otherwise"
    );
    let config = EngineConfig {
        max_sequences: args.max_sequences,
        max_rows: args.max_rows,
        step_rows: args.step_rows,
        kv_memory: args.kv_memory.saturating_mul(1 << 20),
        max_queue: args.max_queue,
        ..EngineConfig::default()
    };
    let engine = args.model.engine(&checkpoint, config)?;
    let limits = Limits {
        requests: args.max_requests,
        requests_per_key: args.max_requests_per_key.unwrap_or(args.max_requests),
        body_bytes: args.max_body_bytes,
        request_timeout: args.request_timeout,
        ..Limits::default()
    };
    Ok(
        AppState::new(Arc::new(engine), tokenizer, checkpoint.name(), limits)
            .with_chat_template(chat_template),
    )
}

/// Every connection is an open file, and the usual soft limit of 1,024 is there for programs that use `select`.
fn allow_open_files(connections: usize) {
    match open_files::raise_limit() {
        Ok(limit) if limit < connections.saturating_add(OTHER_FILES) as u64 => tracing::warn!(
            limit,
            connections,
            "this process may open too few files for --max-connections; raise it (ulimit -n, LimitNOFILE)"
        ),
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit on open files"),
    }
}

/// A socket with an address, at which nothing is answered until it listens.
fn bind(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let bound = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // As TcpListener::bind has it, so that a server can start again at once.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        std::io::Result::Ok(socket)
    };
    bound().with_context(|| cannot_listen(address))
}

fn cannot_listen(address: SocketAddr) -> String {
    format!(
        "cannot listen on {} port {}; choose another --port or --host",
        address.ip(),
        address.port()
    )
}

async fn listen(
    args: &ServeArgs,
    socket: TcpSocket,
    state: AppState,
    signals: impl Stream<Item = ()> + Send,
) -> anyhow::Result<Ending> {
    allow_open_files(args.max_connections);
    let engine = state.engine.clone();
    let mut signals = pin!(signals);
    let listener = socket
        .listen(BACKLOG)
        .with_context(|| cannot_listen(SocketAddr::new(args.host, args.port)))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening");
    if let Err(error) = writeln!(std::io::stdout(), "listening on http://{address}") {
        tracing::warn!(%error, "cannot write the address to standard output");
    }
    let config = ListenConfig {
        connections: args.max_connections,
        drain: Duration::from_secs(args.drain_seconds),
        ..ListenConfig::default()
    };
    let router = server::router(state);
    let stopped = engine.clone();
    let stopped = futures::stream::once(async move { stopped.stopped().await });
    let shutdown = futures::stream::select(signals.as_mut(), stopped);
    let ending = server::serve(listener, router, shutdown, config).await;
    if !engine.is_running() {
        bail!("the engine has stopped; the log says why");
    }
    end(&engine, ending, signals).await;
    Ok(ending)
}

/// Ends the engine. Where all requests were answered it may take its last step to the end; but a step that does not end
/// is not waited for.
async fn end(engine: &Engine, ending: Ending, mut signals: impl Stream<Item = ()> + Unpin) {
    engine.close();
    if ending == Ending::Drained {
        tokio::select! {
            () = engine.stopped() => return,
            () = tokio::time::sleep(LAST_STEP) => {}
            _ = signals.next() => {}
        }
        tracing::warn!("a denoise step that nobody waits for does not end; it is left");
    }
    engine.abandon();
}
