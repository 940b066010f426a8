//! `unmask bench engine`: what the engine promises, each as a figure of one run.

mod fairness;
mod figure;
mod setup;
mod step_cost;
mod throughput;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{anyhow, bail, ensure};
use candle_core::DType;
use clap::{Args, ValueEnum};
use unmask::models::WeightFormat;

use self::figure::Report;
use self::setup::Setup;
use super::{STDOUT, write_report};
use crate::cli::all_succeeded;
use crate::cli::model::ModelArgs;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  unmask bench engine --only batch,ragged --json engine.json
  unmask bench engine --model benches/configs/a2d-120m.json --load-format dummy --only overhead,head
  unmask bench engine --model benches/configs/llada-6m-long.json --load-format dummy --only cache,company

Both sides of a ratio are warmed up, then take turns; the figure is the median of the rounds. Bars and floors are
those of two CPU cores and f32. The exit status is 1 if a figure is not held to its bar.";

/// Arguments of `unmask bench engine`.
#[derive(Args)]
pub struct EngineArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What to measure [default: everything]
    #[arg(long, value_enum, value_name = "FIGURE,…", value_delimiter = ',')]
    only: Vec<Promise>,
    /// Rounds, in each of which both sides of a ratio take their turn
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// Write the figures as JSON; without FILE, or with -, print them in the place of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Promise {
    /// Tokens a second of 32 canvases of 64 slots at a time, over those of one at a time.
    Batch,
    /// Tokens a second of canvases of 32 to 512 slots, over those of as many rows in canvases of one length.
    Ragged,
    /// The part of a step that is not spent in the model.
    Overhead,
    /// What a step on a canvas of 512 slots costs without a cache, over one with the dual cache and blocks of
    /// 32.
    Cache,
    /// What the head costs on all rows, over what it costs on the scored rows.
    Head,
    /// Steps of a request for 32 tokens next to one for 2,000, over those of one alone.
    Company,
}

/// Runs `unmask bench engine`.
pub fn run(args: EngineArgs) -> anyhow::Result<()> {
    let device = args.model.device.resolve()?;
    let format = args.model.dtype.resolve(&device);
    let WeightFormat::Float(dtype) = format else {
        bail!(
            "bench engine sets figures against the rate of products, and 8-bit ones have another; give --dtype f32"
        );
    };
    ensure!(
        dtype == DType::F32 || !device.is_cpu(),
        "bench engine sets figures against the rate of products, which on a CPU is that of f32; give --dtype f32"
    );
    let checkpoint = args.model.checkpoint()?;
    let model = args.model.load(&checkpoint)?;
    let promises = match args.only.as_slice() {
        [] => Promise::value_variants(),
        only => only,
    };
    let rounds = args.rounds.get();
    // The head is measured without an engine, which would own the model.
    let head = promises
        .contains(&Promise::Head)
        .then(|| step_cost::head(&*model, rounds))
        .transpose()?;
    let setup = Setup::new(&checkpoint, model, (device, dtype), rounds)?;
    let mut figures = Vec::new();
    for promise in promises {
        figures.push(match promise {
            Promise::Batch => throughput::batch(&setup)?,
            Promise::Ragged => throughput::ragged(&setup)?,
            Promise::Overhead => step_cost::overhead(&setup)?,
            Promise::Cache => step_cost::cache(&setup)?,
            Promise::Head => match &head {
                Some(figure) => figure.clone(),
                None => continue,
            },
            Promise::Company => fairness::company(&setup)?,
        });
    }
    let report = Report {
        model: checkpoint.name().to_owned(),
        parameters: setup.engine.spec().parameters,
        rounds,
        matrix_gflops: setup.rate / 1e9,
        figures,
    };
    let mut failed = write_report(args.json.as_deref(), &report, &report.table());
    let missed = report.figures.iter();
    let missed = missed.filter(|figure| figure.holds == Some(false));
    let missed: Vec<&str> = missed.map(|figure| figure.name).collect();
    if !missed.is_empty() {
        failed.push(anyhow!("not held to its bar: {}", missed.join(", ")));
    }
    all_succeeded(failed)
}

/// The median; 0 if there is none.
fn median(mut values: Vec<f64>) -> f64 {
    quantile(&mut values, 0.5)
}

/// The value at `share` of the sorted values; 0 if there is none.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = share * values.len().saturating_sub(1) as f64;
    values.get(index.round() as usize).copied().unwrap_or(0.0)
}
