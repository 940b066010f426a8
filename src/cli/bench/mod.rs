//! `unmask bench`: what the served model and the server do on this machine.

mod client;
mod measure;
mod report;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Context;
use candle_core::DType;
use clap::Args;
use tokio::net::TcpListener;
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Checkpoint, WeightFormat};
use unmask::server::{self, AppState, Limits, ListenConfig};

use crate::cli::model::{ModelArgs, tokenizer};

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask bench
  unmask bench --steps 16 --concurrency 16 --json
  unmask bench --model config.json --load-format dummy --dtype q8_0 --gap 64";

/// Arguments of `unmask bench`.
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt of every completion
    #[arg(long, default_value = "Once upon a time there was")]
    prompt: String,
    /// Tokens a completion
    #[arg(long, value_name = "N", default_value_t = 32)]
    gap: usize,
    /// Denoise steps a completion [default: one a token]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Completions of each sequential measurement
    #[arg(long, value_name = "N", default_value = "30")]
    requests: NonZeroUsize,
    /// Completions at a time in the concurrent measurement
    #[arg(long, value_name = "N", default_value = "64")]
    concurrency: NonZeroUsize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is measured with: every measurement sends the same completion with another seed.
struct Setup {
    engine: Arc<Engine>,
    prompt: String,
    prompt_ids: Vec<u32>,
    gap: usize,
    steps: Option<usize>,
    requests: usize,
    concurrency: usize,
    /// Weights that every row is multiplied by: all but the embedding and the head.
    body_parameters: usize,
}

/// Runs `unmask bench`.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.checkpoint()?;
    let tokenizer = tokenizer(&checkpoint)?;
    let config = EngineConfig {
        max_sequences: args.concurrency.get(),
        max_queue: args.concurrency.get(),
        ..EngineConfig::default()
    };
    let device = args.model.device.resolve()?;
    let format = args.model.dtype.resolve(&device);
    let is_f32_on_cpu = device.is_cpu() && format == WeightFormat::from(DType::F32);
    let weight_bytes = checkpoint.weight_bytes(format)?;
    let engine = Arc::new(args.model.engine(&checkpoint, config)?);
    let setup = Setup {
        engine: engine.clone(),
        prompt_ids: tokenizer.encode(&args.prompt)?,
        prompt: args.prompt,
        gap: args.gap,
        steps: args.steps,
        requests: args.requests.get(),
        concurrency: args.concurrency.get(),
        body_parameters: body_parameters(&checkpoint)?,
    };
    let state = AppState::new(engine, tokenizer, checkpoint.name(), Limits::default());
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let address = runtime.block_on(listen(state))?;
    let report = report::Report {
        model: checkpoint.name().to_owned(),
        gap: setup.gap,
        floor: is_f32_on_cpu.then(|| measure::floor(&setup)).transpose()?,
        engine: measure::engine(&setup)?,
        http: runtime.block_on(measure::http(&setup, address))?,
        concurrent: runtime.block_on(measure::concurrent(&setup, address))?,
        memory: measure::memory(weight_bytes),
    };
    runtime.shutdown_background();
    report.print(args.json)
}

/// All weights but those of the embedding and the head, which are one tensor if they are tied.
fn body_parameters(checkpoint: &Checkpoint) -> anyhow::Result<usize> {
    let spec = checkpoint.spec()?;
    let table = [spec.vocab_size, spec.hidden_size];
    let shapes = checkpoint.shapes()?;
    let body = shapes.values().filter(|shape| **shape != table);
    Ok(body.map(|shape| shape.iter().product::<usize>()).sum())
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
