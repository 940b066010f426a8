//! `unmask bench`: what the served model, the engine and the server do on this machine.

mod client;
mod device;
#[cfg(feature = "cuda")]
mod device_time;
mod engine;
mod machine;
mod serve;
mod step;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::net::TcpListener;
use unmask::server::{self, AppState, ListenConfig};

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask bench
  unmask bench --steps 16 --concurrency 16 --json
  unmask bench --model config.json --load-format dummy --dtype q8_0 --gap 64";

/// Arguments of `unmask bench`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    step: step::StepArgs,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure a server under load: closed loops of so many clients, or arrivals at a rate.
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<serve::ServeArgs>),
    /// Measure what the device can do, and how near to it the reduction over the vocabulary comes.
    #[command(after_help = device::EXAMPLES)]
    Device(device::DeviceArgs),
    /// Measure what the engine promises, as ratios of two sides that take turns.
    #[command(after_help = engine::EXAMPLES)]
    Engine(engine::EngineArgs),
}

/// Runs `unmask bench`.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.command {
        None => step::run(args.step),
        Some(BenchCommand::Serve(args)) => serve::run(*args),
        Some(BenchCommand::Engine(args)) => engine::run(args),
        Some(BenchCommand::Device(args)) => device::run(args),
    }
}

/// Value of `--json` that means standard output.
const STDOUT: &str = "-";

/// Prints `table` and writes the report as JSON to `json`; [`STDOUT`] prints the JSON in the table's place. Neither
/// keeps the other from being tried: what failed is returned.
fn write_report(json: Option<&Path>, report: &impl Serialize, table: &str) -> Vec<anyhow::Error> {
    let text = || anyhow::Ok(serde_json::to_string_pretty(report)? + "\n");
    let print = |text: &str| anyhow::Ok(std::io::stdout().lock().write_all(text.as_bytes())?);
    let failed = match json {
        Some(path) if path == Path::new(STDOUT) => {
            [text().and_then(|text| print(&text)).err(), None]
        }
        Some(path) => {
            let printed = print(table);
            let write = |text| std::fs::write(path, text).map_err(Into::into);
            let written = text().and_then(write);
            // As text: a pipe whose reader has gone is an error here, where for the table it is an end.
            let written = written.map_err(|error| anyhow!("--json {}: {error:#}", path.display()));
            [printed.err(), written.err()]
        }
        None => [print(table).err(), None],
    };
    failed.into_iter().flatten().collect()
}

/// Serves on a free port of the loopback interface until the process ends.
async fn listen(state: AppState) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(server::serve(
        listener,
        server::router(state),
        futures::stream::pending(),
        ListenConfig::default(),
    ));
    Ok(address)
}
