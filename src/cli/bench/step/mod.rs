//! `unmask bench` by itself: a denoise step, completions one after the other and at the same time, memory.

mod idle;
mod measure;
mod report;

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Context;
use candle_core::DType;
use clap::Args;
use unmask::engine::{Engine, EngineConfig};
use unmask::kernels;
use unmask::server::{AppState, Limits};

use super::client::Target;
use super::listen;
use super::machine::Products;
use crate::cli::model::{ModelArgs, tokenizer};

/// Arguments of `unmask bench` without a subcommand.
#[derive(Args)]
pub struct StepArgs {
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
    products: Products,
    /// Number format of keys and values.
    kv_dtype: DType,
}

/// Runs `unmask bench`.
pub fn run(args: StepArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.checkpoint()?;
    let tokenizer = tokenizer(&checkpoint)?;
    let config = EngineConfig {
        max_sequences: args.concurrency.get(),
        max_queue: args.concurrency.get(),
        ..EngineConfig::default()
    };
    let device = args.model.device.resolve()?;
    let format = args.model.dtype.resolve(&device);
    let weight_bytes = checkpoint.weight_bytes(format)?;
    let held_before = kernels::used_memory(&device)?;
    let model = args.model.load(&checkpoint)?;
    let prompt_ids = tokenizer.encode_prompt(&args.prompt)?;
    let kv_dtype = model.dtype();
    let busy = idle::busy(&*model, &prompt_ids, args.gap, args.requests.get())?;
    // What was measured with is no part of what the engine takes.
    kernels::release_unused(&device)?;
    let engine = Arc::new(Engine::start(model, config)?);
    let setup = Setup {
        engine: engine.clone(),
        prompt_ids,
        prompt: args.prompt,
        gap: args.gap,
        steps: args.steps,
        requests: args.requests.get(),
        concurrency: args.concurrency.get(),
        products: Products::of(&checkpoint)?,
        kv_dtype,
    };
    let state = AppState::new(engine, tokenizer, checkpoint.name(), Limits::default());
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let target = Target::local(runtime.block_on(listen(state))?);
    let floor = measure::floor(&setup, &device, format)?;
    kernels::release_unused(&device)?;
    let steps = idle::FirstSteps::record(&setup);
    let engine = measure::engine(&setup)?;
    let idle = busy.map(|busy| steps.idle(busy));
    let http = runtime.block_on(measure::http(&setup, &target))?;
    if device.is_cuda() {
        // A GPU loads the kernels for a batch of this size at the first one.
        runtime.block_on(measure::concurrent(&setup, &target))?;
    }
    let report = report::Report {
        model: checkpoint.name().to_owned(),
        gap: setup.gap,
        floor,
        engine,
        idle,
        http,
        concurrent: runtime.block_on(measure::concurrent(&setup, &target))?,
        memory: measure::memory(weight_bytes),
        device_memory: measure::device_memory(&setup, &device, held_before)?,
    };
    runtime.shutdown_background();
    report.print(args.json)
}
