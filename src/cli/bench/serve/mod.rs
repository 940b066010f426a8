//! `unmask bench serve`: a server under load.

mod idle;
mod load;
mod plot;
mod probe;
mod quantiles;
mod report;
mod requests;
mod stream;
mod tally;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use candle_core::DType;
use clap::Args;
use serde_json::{Map, Value, json};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::WeightFormat;
use unmask::server::{AppState, Limits};

use self::idle::Idle;
use self::load::{Extent, Generator, Load};
use self::probe::Probe;
use self::report::{EngineShare, Level, Report};
use self::requests::{Lengths, Requests};
use super::client::{Client, Target};
use super::machine::{Products, cpu_rate};
use super::{STDOUT, listen, write_report};
use crate::cli::all_succeeded;
use crate::cli::model::{ModelArgs, tokenizer};

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  unmask bench serve --concurrency 1,8,32,128 --json load.json --plot load.svg
  unmask bench serve --rate 2,4,8 --gap-tokens 32,64,128 --duration 60
  unmask bench serve --concurrency 500 --hang-ups 0.2 --idle 1000 --gap-tokens 8 --duration 120
  unmask bench serve --url http://127.0.0.1:8080 --requests bodies.jsonl --requests-count 500

Prompts are token ids of random words; lengths and arrivals follow --seed. Every request is answered as a stream.
A load lasts until the last of its requests is answered. The exit status is 1 if none was answered under any load.";

/// The most requests that an open loop may wait for.
const MAX_IN_FLIGHT: usize = 1 << 16;

/// Arguments of `unmask bench serve`.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A server that runs already [default: one in this process, on a free port]
    #[arg(
        long,
        conflicts_with_all = ["model", "revision", "device", "dtype", "load_format", "max_sequences", "step_rows"]
    )]
    url: Option<String>,
    /// The API key that the server at --url asks for [default: the variable UNMASK_API_KEY]
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,
    /// Most sequences denoised at a time by the server in this process
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_sequences, value_parser = at_least_one)]
    max_sequences: usize,
    /// Rows after which it adds no more canvases to a step [default: 512 on a CPU]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    step_rows: Option<usize>,
    /// Closed loops of so many clients, each of which sends a request when its last is answered
    /// [default without --rate: 1,8,32,128]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clients)]
    concurrency: Vec<usize>,
    /// Open loops of Poisson arrivals at so many requests a second
    #[arg(long, value_name = "R,R,…", value_delimiter = ',', value_parser = rate)]
    rate: Vec<f64>,
    /// Tokens of the prompts: a length, a list such as 32,64,128, or a range such as 16..128
    #[arg(long, value_name = "LENGTHS", default_value = "16..64")]
    prompt_tokens: Lengths,
    /// Tokens of the completions, likewise
    #[arg(long, value_name = "LENGTHS", default_value = "32,64")]
    gap_tokens: Lengths,
    /// The `diffusion` object of every request, such as '{"steps": 16}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    diffusion: Option<Map<String, Value>>,
    /// Bodies of requests to /v1/completions, one a line, sent in their order and again from the beginning
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["prompt_tokens", "gap_tokens", "diffusion"])]
    requests: Option<PathBuf>,
    /// Seconds in which a load sends requests
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    duration: Duration,
    /// Requests of a load, in the place of --duration
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    requests_count: Option<u64>,
    /// Requests before each load that do not count
    #[arg(long, value_name = "N", default_value_t = 8)]
    warm_up: u64,
    /// The first of every N requests asks for frames of the canvas, which tell when the first slot is
    /// committed; 0 is none
    #[arg(long, value_name = "N", default_value_t = 8)]
    frames_every: u64,
    /// Share of requests whose clients hang up within a second, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    hang_ups: f64,
    /// Connections that are open meanwhile and on which nothing is sent
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: usize,
    /// Requests that an open loop waits for; arrivals beyond are counted and not sent
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=MAX_IN_FLIGHT as i64))]
    max_in_flight: u32,
    /// Seed of prompts, lengths and arrivals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the report as JSON; without FILE, or with -, print it in the place of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    json: Option<PathBuf>,
    /// Draw tokens a second and latency by load
    #[arg(long, value_name = "FILE.svg", value_parser = svg_file)]
    plot: Option<PathBuf>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("allowed: a whole number of at least 1".into()),
    }
}

fn clients(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(clients) if (1..=4096).contains(&clients) => Ok(clients),
        _ => Err("allowed: whole numbers from 1 to 4096".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.trim().parse() {
        Ok(rate) if (1e-3..=1e5).contains(&rate) => Ok(rate),
        _ => Err("allowed: requests a second from 0.001 to 100000".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("allowed: a number from 0 to 1".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (1e-3..=1e6).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("allowed: seconds from 0.001 to 1000000".into()),
    }
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

fn svg_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().is_some_and(|extension| extension == "svg") {
        true => Ok(path),
        false => Err("allowed: a file that ends in .svg".into()),
    }
}

/// The server that is measured.
struct Measured {
    /// The model's name, or the URL.
    name: String,
    target: Target,
    /// Its engine, if it is in this process.
    engine: Option<Arc<Engine>>,
    /// What a step's matrix products take, and the rate at which this machine does them.
    products: Option<(Products, f64)>,
}

/// Runs `unmask bench serve`.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let (report, failure) = runtime.block_on(measure(&args))?;
    runtime.shutdown_background();
    // Minutes of measurement must survive whatever fails after them: what was measured is told, each file is
    // tried, and what failed is told at the end.
    let mut failed = write_report(args.json.as_deref(), &report, &report.table());
    if let Some(path) = &args.plot {
        let written = plot::svg(&report).and_then(|plot| Ok(std::fs::write(path, plot)?));
        let written = written.with_context(|| format!("--plot {}", path.display()));
        failed.extend(written.err());
    }
    failed.extend(failure);
    failed.extend(report.check_answered().err());
    all_succeeded(failed)
}

/// Measures load by load; what was measured until one failed is returned with why.
async fn measure(args: &ServeArgs) -> anyhow::Result<(Report, Option<anyhow::Error>)> {
    let listed = args.requests.as_deref().map(Requests::read).transpose()?;
    let key = match &args.api_key {
        Some(key) => Some(key.clone()),
        None => std::env::var("UNMASK_API_KEY")
            .ok()
            .filter(|key| !key.is_empty()),
    };
    let measured = match &args.url {
        Some(url) => Measured {
            name: url.clone(),
            target: Target::parse(url, key.as_deref())?,
            engine: None,
            products: None,
        },
        None => serve(args).await?,
    };
    let requests = match listed {
        Some(requests) => requests,
        None => drawn(args, &measured).await?,
    };
    let generator = Generator {
        target: measured.target.clone(),
        requests: Arc::new(requests),
        frames_every: args.frames_every,
        hang_ups: args.hang_ups,
        seed: args.seed,
        max_in_flight: args.max_in_flight as usize,
    };
    let closed = match (args.concurrency.as_slice(), args.rate.is_empty()) {
        ([], true) => &[1, 8, 32, 128],
        (given, _) => given,
    };
    let closed = closed.iter().map(|clients| Load::Closed(*clients));
    let loads = closed.chain(args.rate.iter().map(|rate| Load::Open(*rate)));
    let extent = match args.requests_count {
        Some(requests) => Extent::Requests(requests),
        None => Extent::Duration(args.duration),
    };
    let _idle = Idle::open(&measured.target, args.idle).await?;
    let mut report = Report {
        of: measured.name.clone(),
        seed: args.seed,
        matrix_gflops: measured.products.as_ref().map(|(_, rate)| rate / 1e9),
        levels: Vec::new(),
    };
    for (index, load) in loads.enumerate() {
        // No load repeats the requests of another, which may have been kept.
        let first = (index as u64) << 32;
        let measuring = async {
            warm_up(&generator, args.warm_up, load, first + (1 << 31)).await?;
            level(&measured, &generator, load, extent, first).await
        };
        match measuring.await {
            Ok(level) => report.levels.push(level),
            Err(error) if report.levels.is_empty() => return Err(error),
            Err(error) => return Ok((report, Some(error.context(load.to_string())))),
        }
    }
    Ok((report, None))
}

/// Measures one load with the requests from number `first` on.
async fn level(
    measured: &Measured,
    generator: &Generator,
    load: Load,
    extent: Extent,
    first: u64,
) -> anyhow::Result<Level> {
    let status = || measured.engine.as_ref().map(|engine| engine.status());
    let before = status();
    let probe = Probe::of(measured.target.clone());
    let tally = generator.run(load, extent, first).await;
    let health = tokio::task::spawn_blocking(|| probe.end()).await?;
    let engine = before.zip(status()).map(|(before, after)| {
        EngineShare::between(&before, &after, tally.seconds, |rows, scored| {
            let (products, rate) = measured.products.as_ref()?;
            Some(products.operations(rows, scored) / rate)
        })
    });
    Ok(Level::of(load, &tally, &health, engine))
}

/// Sends requests that do not count, as many at a time as `load` does.
async fn warm_up(generator: &Generator, count: u64, load: Load, first: u64) -> anyhow::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let clients = match load {
        Load::Closed(clients) => clients,
        Load::Open(_) => 8,
    };
    let load = Load::Closed(clients.min(count as usize));
    let patient = Generator {
        hang_ups: 0.0,
        ..generator.clone()
    };
    let tally = patient.run(load, Extent::Requests(count), first).await;
    if tally.answered == 0
        && let Some((kind, errors)) = tally.errors.iter().next()
    {
        anyhow::bail!(
            "no request of the warm-up was answered: {kind}: {}",
            errors.first
        );
    }
    Ok(())
}

/// Serves a model in this process.
async fn serve(args: &ServeArgs) -> anyhow::Result<Measured> {
    let checkpoint = args.model.checkpoint()?;
    let tokenizer = tokenizer(&checkpoint)?;
    let context = checkpoint.spec()?.max_canvas;
    if args.requests.is_none() {
        let (prompt, gap) = (args.prompt_tokens.most(), args.gap_tokens.most());
        ensure!(
            prompt + gap <= context,
            "--prompt-tokens up to {prompt} and --gap-tokens up to {gap} do not fit the model's context of \
             {context} slots"
        );
    }
    let config = EngineConfig {
        max_sequences: args.max_sequences,
        step_rows: args.step_rows,
        ..EngineConfig::default()
    };
    let device = args.model.device.resolve()?;
    let format = args.model.dtype.resolve(&device);
    let is_f32_on_cpu = device.is_cpu() && format == WeightFormat::from(DType::F32);
    let products = match is_f32_on_cpu {
        true => Some((Products::of(&checkpoint)?, cpu_rate()?)),
        false => None,
    };
    let engine = Arc::new(args.model.engine(&checkpoint, config)?);
    let name = checkpoint.name().to_owned();
    let state = AppState::new(engine.clone(), tokenizer, &*name, Limits::default());
    Ok(Measured {
        name,
        target: Target::local(listen(state).await?),
        engine: Some(engine),
        products,
    })
}

/// Requests whose prompts are made of what the server's tokenizer makes of random words.
async fn drawn(args: &ServeArgs, measured: &Measured) -> anyhow::Result<Requests> {
    let mut client = Client::connect(&measured.target).await?;
    let content = requests::text(args.seed);
    let (answer, _) = client
        .ask("/tokenize", &json!({"content": content}))
        .await?;
    let tokens = answer["tokens"].as_array().map(Vec::as_slice);
    let tokens: Option<Vec<u64>> = tokens
        .unwrap_or_default()
        .iter()
        .map(Value::as_u64)
        .collect();
    let tokens = tokens.filter(|tokens| !tokens.is_empty());
    Ok(Requests::Drawn {
        tokens: tokens.context("the server's tokenizer makes no tokens of words")?,
        prompt: args.prompt_tokens.clone(),
        gap: args.gap_tokens.clone(),
        diffusion: args.diffusion.clone(),
        seed: args.seed,
    })
}
