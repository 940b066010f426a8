//! `unmask bench device`: what a device can do, and how near to it the reduction over the vocabulary comes.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use serde::Serialize;
use unmask::kernels::device_name;
use unmask::sampling::{self, RowParams};

#[cfg(feature = "cuda")]
use super::device_time;
use super::machine::{copy_rate, large_products, matrix_rate, synchronised};
use super::{STDOUT, write_report};
use crate::cli::all_succeeded;
use crate::cli::model::DeviceChoice;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask bench device
  unmask bench device --device cuda --rows 256 --vocab 126464 --json device.json";

/// Arguments of `unmask bench device`.
#[derive(Args)]
pub struct DeviceArgs {
    /// Where to measure
    #[arg(long, value_enum, default_value_t)]
    device: DeviceChoice,
    /// Rows of logits that are reduced at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rows: u32,
    /// Tokens of the vocabulary
    #[arg(long, value_name = "N", default_value_t = 126_464, value_parser = clap::value_parser!(u32).range(1..=262_144))]
    vocab: u32,
    /// Times that each figure is taken; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tries: u32,
    /// Write the figures as JSON; without FILE, or with -, print them in the place of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    json: Option<PathBuf>,
}

/// The most logits: as f32 they take 2 GiB.
const MAX_LOGITS: usize = 1 << 29;
/// Bytes of the logits that a GPU reduces in turn: far more than a cache holds, so that no row is in it when it is read.
const LOGIT_BYTES: usize = 1 << 28;
/// Operations in a row whose launches are timed.
const LAUNCHES: usize = 512;

/// What was measured.
#[derive(Serialize)]
struct Report {
    unmask_version: &'static str,
    device: &'static str,
    /// Bytes read and written a second, in 10⁹.
    copy_gb_per_second: f64,
    products: Vec<Product>,
    /// One after the other of operations on one number: what a launch costs where the device has nothing to do.
    launch_microseconds: f64,
    rows: usize,
    vocab: usize,
    reductions: Vec<Reduction>,
}

/// Products of square matrices.
#[derive(Serialize)]
struct Product {
    dtype: &'static str,
    size: usize,
    tflops: f64,
}

/// The reduction of `[rows, vocab]` logits to a sample a row.
#[derive(Serialize)]
struct Reduction {
    sampling: &'static str,
    dtype: &'static str,
    /// One read of the logits at the copy rate; not on a CPU, whose copies are of one thread.
    floor_milliseconds: Option<f64>,
    /// All of it, as the engine asks for it: what goes to the device, the kernel, the wait, and what comes back.
    #[serde(flatten)]
    call: Timed,
    /// The kernel by itself; `None` on a CPU, which has none.
    kernel: Option<Timed>,
    /// Bytes of a GPU that it takes beside the logits; `None` on a CPU.
    device_bytes: Option<usize>,
}

/// How long the logits take.
#[derive(Serialize)]
struct Timed {
    milliseconds: f64,
    /// Bytes of the logits a second, in 10⁹.
    gb_per_second: f64,
    /// The floor over the time; `None` without a floor.
    share_of_copy_rate: Option<f64>,
}

/// Runs `unmask bench device`.
pub fn run(args: DeviceArgs) -> anyhow::Result<()> {
    let (rows, vocab) = (args.rows as usize, args.vocab as usize);
    ensure!(
        rows * vocab <= MAX_LOGITS,
        "--rows {rows} of --vocab {vocab} are {} logits; allowed: {MAX_LOGITS} at most",
        rows * vocab
    );
    let device = args.device.resolve()?;
    let tries = args.tries as usize;
    let on_cpu = device.is_cpu();
    let copy = copy_rate(&device, tries).context("cannot measure copies")?;
    let shape = large_products(&device);
    let dtypes: &[DType] = match on_cpu {
        true => &[DType::F32],
        false => &[DType::F32, DType::BF16, DType::F16],
    };
    let products = dtypes
        .iter()
        .map(|dtype| {
            Ok(Product {
                dtype: dtype.as_str(),
                size: shape[0],
                tflops: matrix_rate(&device, *dtype, shape, tries)? / 1e12,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let report = Report {
        unmask_version: env!("CARGO_PKG_VERSION"),
        device: device_name(&device),
        copy_gb_per_second: copy / 1e9,
        products,
        launch_microseconds: launch(&device, tries)? * 1e6,
        rows,
        vocab,
        reductions: reductions(&args, &device, copy)?,
    };
    all_succeeded(write_report(
        args.json.as_deref(),
        &report,
        &report.to_string(),
    ))
}

/// Seconds that one of many small operations takes, each of which waits for the one before.
fn launch(device: &Device, tries: usize) -> anyhow::Result<f64> {
    let one = Tensor::ones(1, DType::F32, device)?;
    let seconds = synchronised(device, tries, || {
        let mut sum = one.clone();
        for _ in 0..LAUNCHES {
            sum = (sum + &one)?;
        }
        Ok(())
    })?;
    Ok(seconds / LAUNCHES as f64)
}

/// The reduction of logits of the type that networks give on the device, as requests ask for it.
fn reductions(args: &DeviceArgs, device: &Device, copy: f64) -> anyhow::Result<Vec<Reduction>> {
    let (rows, vocab) = (args.rows as usize, args.vocab as usize);
    let dtype = match device.is_cpu() {
        true => DType::F32,
        false => DType::BF16,
    };
    let bytes = rows * vocab * dtype.size_in_bytes();
    let count = match device.is_cpu() {
        true => 1,
        false => LOGIT_BYTES.div_ceil(bytes),
    };
    let all = Tensor::randn(0.0f32, 3.0, (count * rows, vocab), device)?.to_dtype(dtype)?;
    let mut turns = 0;
    let mut logits = || {
        turns += 1;
        all.narrow(0, turns % count * rows, rows)
    };
    let floor = (!device.is_cpu()).then_some(bytes as f64 / copy);
    let timed = |seconds: f64| Timed {
        milliseconds: seconds * 1e3,
        gb_per_second: bytes as f64 / seconds / 1e9,
        share_of_copy_rate: floor.map(|floor| floor / seconds),
    };
    let plain = RowParams {
        excluded: 0,
        seed: 1,
        ..RowParams::default()
    };
    let drawn = RowParams {
        temperature: 1.0,
        ..plain.clone()
    };
    let kinds = [
        ("greedy", plain),
        ("temperature 1", drawn.clone()),
        (
            "temperature 1, top-p 0.95",
            RowParams {
                top_p: Some(0.95),
                ..drawn.clone()
            },
        ),
        (
            "temperature 1, top-k 50",
            RowParams {
                top_k: Some(50),
                ..drawn
            },
        ),
    ];
    kinds
        .into_iter()
        .map(|(sampling, params)| {
            let params: Vec<RowParams> = (0..rows)
                .map(|slot| RowParams {
                    slot,
                    ..params.clone()
                })
                .collect();
            let seconds = synchronised(device, args.tries as usize, || {
                let samples = sampling::reduce(&logits()?, None, &params)?;
                for sample in samples {
                    sample?;
                }
                Ok(())
            })?;
            let on_device = match device {
                #[cfg(feature = "cuda")]
                Device::Cuda(_) => {
                    let tries = args.tries as usize;
                    Some(device_time::of_reduction(tries, &params, &mut logits)?)
                }
                _ => None,
            };
            Ok(Reduction {
                sampling,
                dtype: dtype.as_str(),
                floor_milliseconds: floor.map(|floor| floor * 1e3),
                call: timed(seconds),
                kernel: on_device.map(|(seconds, _)| timed(seconds)),
                device_bytes: on_device.map(|(_, bytes)| bytes),
            })
        })
        .collect()
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9.3}   {:8.1} GB/s",
            self.milliseconds, self.gb_per_second
        )?;
        match self.share_of_copy_rate {
            Some(share) => write!(f, ", {:.0} % of the copy rate", share * 100.0),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        writeln!(out, "device                    {}", self.device)?;
        writeln!(
            out,
            "copies, GB/s              {:9.1}   (read and written)",
            self.copy_gb_per_second
        )?;
        for product in &self.products {
            writeln!(
                out,
                "products, {:<4} TFLOP/s    {:9.3}   ({size} × {size})",
                product.dtype,
                product.tflops,
                size = product.size
            )?;
        }
        writeln!(
            out,
            "a launch, µs              {:9.3}",
            self.launch_microseconds
        )?;
        writeln!(
            out,
            "\nreduction of [{}, {}] logits, ms",
            self.rows, self.vocab
        )?;
        for reduction in &self.reductions {
            let floor = reduction.floor_milliseconds;
            let floor = floor.map_or(String::new(), |floor| format!("   floor {floor:.3}"));
            let (call, dtype) = (&reduction.call, reduction.dtype);
            writeln!(out, "  {:<28}{call}   ({dtype}){floor}", reduction.sampling)?;
            if let Some(kernel) = &reduction.kernel {
                writeln!(out, "    {:<26}{kernel}", "its kernel")?;
            }
        }
        f.write_str(&out)
    }
}
