//! `unmask selftest`.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use candle_core::Device;
use clap::{Args, ValueEnum};
use unmask::kernels::Machine;
use unmask::selftest::goldens::{self, Goldens};
use unmask::selftest::{CHECKS, DEVICE_CHECKS, Extent, engine, memory, model};

use crate::cli::model::DeviceChoice;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask selftest
  unmask selftest --device cuda --goldens tests/goldens --soak 60";

/// Arguments of `unmask selftest`.
#[derive(Args)]
pub struct SelftestArgs {
    /// What to test
    #[arg(long, value_enum, default_value_t)]
    device: DeviceChoice,
    /// Check the model families too, against the golden checkpoints in this folder: `tests/goldens` of the source, or
    /// `goldens` beside the binary in what `scripts/gpu-bundle` packs
    #[arg(long, value_name = "DIR")]
    goldens: Option<PathBuf>,
    /// What to check [default: all of it]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    parts: Vec<Part>,
    /// Check the kernels over fewer shapes and draws, as a device that is emulated needs it
    #[arg(long)]
    quick: bool,
    /// Repeat the checks until so many minutes have passed, at most 10080 (a week)
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(..=LONGEST_SOAK))]
    soak: Option<u64>,
}

/// Values of `--parts`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Every kernel against its twin.
    Kernels,
    /// What the server launches from tensors, and training steps.
    Device,
    /// The embedded model, and the engine with it.
    Engine,
    /// The golden checkpoints.
    Families,
}

/// A week, in minutes.
const LONGEST_SOAK: u64 = 7 * 24 * 60;

/// Why a check of a CUDA device is not run.
const NO_DEVICE: &str = "no CUDA device";

/// What became of the checks so far.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    not_run: usize,
    /// Of those not run, the checks of kernels.
    kernels_not_run: usize,
}

/// What a check saw, why it failed, or why it was not run.
enum Outcome {
    Ran(Result<String, String>),
    NotRun(&'static str),
}

impl Outcome {
    fn of(result: Result<String, impl ToString>) -> Self {
        Self::Ran(result.map_err(|error| error.to_string()))
    }
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
    let goldens = args.goldens.as_deref().map(Goldens::open).transpose()?;
    let has = |part| args.parts.is_empty() || args.parts.contains(&part);
    let extent = match args.quick {
        true => Extent::Small,
        false => Extent::Full,
    };
    let begun = Instant::now();
    let soak = Duration::from_secs(60 * args.soak.unwrap_or(0));
    let mut tally = Tally::default();
    loop {
        if has(Part::Kernels) {
            kernels(&mut out, machine.as_deref_mut(), extent, &mut tally)?;
        }
        if has(Part::Device) {
            launches(&mut out, &device, &mut tally)?;
        }
        if has(Part::Engine) {
            server(&mut out, &device, &mut tally)?;
        }
        if has(Part::Families) {
            families(&mut out, goldens.as_ref(), &device, &mut tally)?;
        }
        if begun.elapsed() >= soak || tally.failed > 0 {
            break;
        }
    }
    let Tally {
        passed,
        failed,
        not_run,
        kernels_not_run,
    } = tally;
    writeln!(out, "{passed} passed, {failed} failed, {not_run} not run")?;
    if kernels_not_run > 0 {
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

/// Runs every check of a kernel.
fn kernels(
    out: &mut impl Write,
    mut machine: Option<&mut (dyn Machine + 'static)>,
    extent: Extent,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    for check in CHECKS {
        let outcome = match machine.as_deref_mut() {
            Some(machine) => Outcome::of((check.run)(machine, extent)),
            None => {
                tally.kernels_not_run += 1;
                Outcome::NotRun(NO_DEVICE)
            }
        };
        report(out, check.name, outcome, tally)?;
    }
    Ok(())
}

/// Runs what is launched on a device.
fn launches(out: &mut impl Write, device: &Device, tally: &mut Tally) -> anyhow::Result<()> {
    for check in DEVICE_CHECKS {
        let outcome = match device.is_cpu() {
            true => Outcome::NotRun(NO_DEVICE),
            false => Outcome::of((check.run)(device)),
        };
        report(out, check.name, outcome, tally)?;
    }
    Ok(())
}

/// Runs the embedded model on a device, and the engine with it.
fn server(out: &mut impl Write, device: &Device, tally: &mut Tally) -> anyhow::Result<()> {
    let on_device = !device.is_cpu();
    let of_device = |run: &dyn Fn() -> Outcome| match on_device {
        true => run(),
        false => Outcome::NotRun(NO_DEVICE),
    };
    let equal = Outcome::of(model::equals_the_cpu(device));
    let name = "model: logits in every format equal those of the CPU in f32";
    report(out, name, equal, tally)?;
    let same = Outcome::of(model::is_the_same_in_any_batch(device));
    let name = "model: a canvas's logits are the same in any batch";
    report(out, name, same, tally)?;

    let drawn = of_device(&|| Outcome::of(engine::draws_by_its_logits(device)));
    let name = "engine: draws from the model's logits equal those of the CPU";
    report(out, name, drawn, tally)?;
    let kept = Outcome::of(engine::keeps_its_promises(device));
    report(out, "engine: answers keep their promises", kept, tally)?;
    let equal = of_device(&|| Outcome::of(engine::answers_as_the_cpu(device)));
    report(out, "engine: answers equal those of the CPU", equal, tally)?;
    let survived = match on_device {
        true => Outcome::of(memory::is_survived(device)),
        false => {
            Outcome::NotRun("it is of a device's memory: a CPU is not asked for more than it has")
        }
    };
    report(out, "engine: goes on without memory", survived, tally)
}

/// Runs every family's goldens, if there are any.
fn families(
    out: &mut impl Write,
    goldens: Option<&Goldens>,
    device: &Device,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let Some(goldens) = goldens else {
        let reason = "give --goldens DIR, with tests/goldens of the source or a copy of it";
        return report(out, "families", Outcome::NotRun(reason), tally);
    };
    for golden in &goldens.goldens {
        let name = golden.name();
        let logits = Outcome::of(goldens::logits(golden, device));
        report(
            out,
            &format!("golden {name}: logits equal the official ones"),
            logits,
            tally,
        )?;
        let runs = match goldens::runs(golden, device).transpose() {
            Some(runs) => Outcome::of(runs),
            None => Outcome::NotRun("the draws of its runs are replayed by the tests alone"),
        };
        report(
            out,
            &format!("golden {name}: canvases equal the official ones"),
            runs,
            tally,
        )?;
    }
    if !goldens.others.is_empty() {
        writeln!(out, "without a checkpoint: {}", goldens.others.join(", "))?;
    }
    Ok(())
}

fn report(
    out: &mut impl Write,
    name: &str,
    outcome: Outcome,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let (word, count, seen) = match outcome {
        Outcome::Ran(Ok(seen)) => ("passed", &mut tally.passed, seen),
        Outcome::Ran(Err(error)) => ("FAILED", &mut tally.failed, error),
        Outcome::NotRun(reason) => ("not run", &mut tally.not_run, reason.into()),
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
