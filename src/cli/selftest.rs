//! `unmask selftest`.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::bail;
use candle_core::Device;
use clap::Args;
use unmask::kernels::Machine;
use unmask::selftest::{CHECKS, DEVICE_CHECKS, Extent, model};

use crate::cli::model::DeviceChoice;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask selftest
  unmask selftest --device cuda --soak 60";

/// Arguments of `unmask selftest`.
#[derive(Args)]
pub struct SelftestArgs {
    /// What to test
    #[arg(long, value_enum, default_value_t)]
    device: DeviceChoice,
    /// Repeat the checks until so many minutes have passed, at most 10080 (a week)
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(..=LONGEST_SOAK))]
    soak: Option<u64>,
}

/// A week, in minutes.
const LONGEST_SOAK: u64 = 7 * 24 * 60;

/// What became of the checks so far.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    not_run: usize,
}

/// Runs `unmask selftest`.
pub fn run(args: SelftestArgs) -> anyhow::Result<()> {
    let device = args.device.resolve()?;
    let mut machine = machine(&device);
    let mut out = std::io::stdout().lock();
    match &machine {
        Some(machine) => writeln!(out, "device: {}", machine.name())?,
        None => writeln!(out, "device: the CPU")?,
    }
    let begun = Instant::now();
    let soak = Duration::from_secs(60 * args.soak.unwrap_or(0));
    let mut tally = Tally::default();
    loop {
        round(&mut out, &device, machine.as_deref_mut(), &mut tally)?;
        if begun.elapsed() >= soak || tally.failed > 0 {
            break;
        }
    }
    let Tally {
        passed,
        failed,
        not_run,
    } = tally;
    writeln!(out, "{passed} passed, {failed} failed, {not_run} not run")?;
    if not_run > 0 {
        writeln!(
            out,
            "Kernels are for a CUDA device. `cargo test --test kernels` runs them on a CPU, built by its compiler."
        )?;
    }
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

/// Runs every check once.
fn round(
    out: &mut impl Write,
    device: &Device,
    mut machine: Option<&mut (dyn Machine + 'static)>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    for check in CHECKS {
        let result = machine
            .as_deref_mut()
            .map(|machine| (check.run)(machine, Extent::Full).map_err(|e| e.to_string()));
        report(out, check.name, result, tally)?;
    }
    let on_device = !device.is_cpu();
    for check in DEVICE_CHECKS {
        let result = on_device.then(|| (check.run)(device).map_err(|e| e.to_string()));
        report(out, check.name, result, tally)?;
    }
    let equal = on_device.then(|| model::equals_the_cpu(device).map_err(|e| e.to_string()));
    report(out, "model: logits equal those of the CPU", equal, tally)?;
    let same = model::is_the_same_in_any_batch(device).map_err(|e| e.to_string());
    let name = "model: a canvas's logits are the same in any batch";
    report(out, name, Some(same), tally)
}

fn report(
    out: &mut impl Write,
    name: &str,
    result: Option<Result<String, String>>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let (word, count, seen) = match result {
        Some(Ok(seen)) => ("passed", &mut tally.passed, seen),
        Some(Err(error)) => ("FAILED", &mut tally.failed, error),
        None => ("not run", &mut tally.not_run, "no CUDA device".into()),
    };
    *count += 1;
    writeln!(out, "{word:<8} {name}: {seen}")?;
    Ok(())
}

#[cfg(feature = "cuda")]
fn machine(device: &Device) -> Option<Box<dyn Machine>> {
    match device {
        Device::Cuda(device) => Some(Box::new(unmask::kernels::cuda::CudaMachine::new(
            device.clone(),
        ))),
        _ => None,
    }
}

#[cfg(not(feature = "cuda"))]
fn machine(_: &Device) -> Option<Box<dyn Machine>> {
    None
}
