//! `unmask serve`.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use unmask::engine::EngineConfig;
use unmask::server::{self, AppState, Ending, Limits};

use super::model::{ModelArgs, tokenizer};

/// Arguments of `unmask serve`.
#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
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
    /// Seconds that running requests have to finish after SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// How log lines are written to standard error; RUST_LOG sets which are
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("allowed: a whole number of at least 1".into()),
    }
}

/// Runs `unmask serve`.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    start_logging(args.log_format)?;
    let state = load(&args)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let ending = runtime.block_on(listen(&args, state))?;
    if ending == Ending::DeadlinePassed {
        tracing::warn!(
            seconds = args.drain_seconds,
            "requests still ran at the end of --drain-seconds; they are dropped"
        );
    }
    runtime.shutdown_background();
    Ok(())
}

fn load(args: &ServeArgs) -> anyhow::Result<AppState> {
    let checkpoint = args.model.checkpoint()?;
    let tokenizer = tokenizer(&checkpoint)?;
    let spec = checkpoint.spec()?;
    tracing::info!(
        model = checkpoint.name(),
        family = spec.family,
        parameters = spec.parameters,
        "loading"
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
    let limits = Limits::default();
    let limits = Limits {
        // All sequences of a request are queued at once.
        sequences: limits.sequences.min(args.max_queue),
        ..limits
    };
    Ok(AppState::new(
        Arc::new(engine),
        tokenizer,
        checkpoint.name(),
        limits,
    ))
}

async fn listen(args: &ServeArgs, state: AppState) -> anyhow::Result<Ending> {
    let shutdown = termination()?;
    let listener = TcpListener::bind((args.host, args.port))
        .await
        .with_context(|| format!("cannot listen on {} port {}", args.host, args.port))?;
    println!("listening on http://{}", listener.local_addr()?);
    let drain = Duration::from_secs(args.drain_seconds);
    Ok(server::serve(listener, server::router(state), shutdown, drain).await?)
}

/// Resolves at the first SIGTERM or SIGINT.
#[cfg(unix)]
fn termination() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Resolves at the first Ctrl-C.
#[cfg(not(unix))]
fn termination() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    Ok(async {
        // Without a handler there is no orderly end, and the server runs until it is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

fn start_logging(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives)
            .with_context(|| format!("RUST_LOG is {directives:?}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
