//! Which model a subcommand runs, where, and in which number format.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use unmask::decode::Revision;
use unmask::engine::{Engine, EngineConfig};
use unmask::hub::{self, Hub, Progress, RepositoryId};
use unmask::kernels::cuda_device;
use unmask::models::{Checkpoint, Denoiser, WeightFormat, embedded};
use unmask::text::{ByteTokenizer, Tokenizer};

/// Options that choose a model.
#[derive(Args)]
pub struct ModelArgs {
    /// Checkpoint in Hugging Face's layout, which must not change while it is loaded, or a model on the
    /// Hugging Face hub, which is downloaded once [default: the embedded model]
    #[arg(long, value_name = "DIR|OWNER/NAME")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub revision: Option<String>,
    /// Where to run
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,
    /// Number format of the weights; `auto` is f32 on a CPU and bf16 on a GPU
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeChoice,
    /// Where the weights come from; with `dummy`, --model may be a config.json alone
    #[arg(long, value_enum, default_value_t)]
    pub load_format: LoadFormat,
}

/// Values of `--load-format`.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// The checkpoint's safetensors files.
    #[default]
    Auto,
    /// Random weights of the shapes that config.json asks for, the same every time; texts are bytes
    /// where there is no tokenizer.json.
    Dummy,
}

/// Values of `--device`.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum DeviceChoice {
    /// A GPU where this build and the machine have one, else the CPU. A build for CUDA starts only where a driver is
    /// installed.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// Values of `--dtype`.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum DtypeChoice {
    /// By device.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// bfloat16; on a CPU linear layers and embeddings, the rest f32.
    Bf16,
    /// 16-bit floating point; on a CPU likewise.
    F16,
    /// 8-bit linear layers (GGUF's Q8_0), the rest f32.
    #[value(name = "q8_0")]
    Q8_0,
}

impl ModelArgs {
    /// Opens the checkpoint without loading its weights.
    pub fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        if let Some(model) = &self.model
            && self.load_format == LoadFormat::Auto
            && let Some(repository) = on_hub(model)
        {
            return self.hub_checkpoint(&repository);
        }
        if let Some(revision) = &self.revision {
            let hint = match revision.parse::<Revision>() {
                Ok(_) => "; what may happen to a committed slot is --revise",
                Err(_) => "",
            };
            anyhow::bail!(
                "--revision {revision} is of a model on the hub, and --model does not name one{hint}"
            );
        }
        match (&self.model, self.load_format) {
            (Some(path), LoadFormat::Dummy) => Checkpoint::open_dummy(path)
                .with_context(|| format!("cannot use the config.json of {}", path.display())),
            (Some(path), LoadFormat::Auto) if !path.is_dir() => anyhow::bail!(
                "--model {}: {}; give the directory of a checkpoint, or OWNER/NAME of a model on the hub",
                path.display(),
                match path.exists() {
                    true => "it is a file",
                    false => "there is no such directory",
                }
            ),
            (Some(directory), LoadFormat::Auto) => Checkpoint::open(directory)
                .with_context(|| format!("cannot open the model in {}", directory.display())),
            (None, LoadFormat::Auto) => Ok(embedded::checkpoint()?),
            (None, LoadFormat::Dummy) => {
                anyhow::bail!("--load-format dummy: --model has to name a config.json")
            }
        }
    }

    /// Opens a model on the hub, downloading what is not in the cache yet.
    fn hub_checkpoint(&self, repository: &RepositoryId) -> anyhow::Result<Checkpoint> {
        let revision = self.revision.as_deref();
        let revision = revision.unwrap_or(hub::DEFAULT_REVISION);
        let directory = Hub::from_env()?
            .fetch(repository, revision, &mut show_downloads())
            .with_context(|| {
                format!(
                    "there is no directory {repository}, and the model cannot be had from the hub"
                )
            })?;
        let checkpoint = Checkpoint::open(&directory)
            .with_context(|| format!("cannot open the model {repository}"))?;
        Ok(checkpoint.with_name(repository.to_string()))
    }

    /// Loads the network of `checkpoint`.
    pub fn load(&self, checkpoint: &Checkpoint) -> anyhow::Result<Box<dyn Denoiser>> {
        if checkpoint.spec()?.never_stops() {
            tracing::warn!(
                "{} has no stop token, at which its default plan would stop: texts fill their gaps; \
                 `eos_token_id` in config.json names one",
                checkpoint.name()
            );
        }
        let device = self.device.resolve()?;
        let format = self.dtype.resolve(&device);
        let context = || format!("cannot load the model {}", checkpoint.name());
        let total = checkpoint.stored_bytes().with_context(context)?;
        with_byte_progress("loading", total, |progress| {
            checkpoint.load_with_progress(format, &device, progress)
        })?
        .with_context(context)
    }

    /// Loads the network of `checkpoint` and starts an engine on it.
    pub fn engine(&self, checkpoint: &Checkpoint, config: EngineConfig) -> anyhow::Result<Engine> {
        Ok(Engine::start(self.load(checkpoint)?, config)?)
    }
}

/// The repository that `--model` names, unless there is such a file or directory.
fn on_hub(model: &Path) -> Option<RepositoryId> {
    RepositoryId::parse(model.to_str()?).filter(|_| !model.exists())
}

/// Draws a bar for each file that is downloaded, or tells the log now and then where standard error is no
/// terminal.
fn show_downloads() -> impl FnMut(Progress) {
    let style = ProgressStyle::with_template(
        "{msg:32} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    );
    // The template is known to be right.
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut bar = ProgressBar::hidden();
    let is_terminal = std::io::stderr().is_terminal();
    let mut told = Told::new(Instant::now());
    move |Progress {
              file,
              received,
              total,
          }| {
        if !is_terminal {
            if told.is_due(Instant::now()) {
                tracing::info!(file, received, total, "downloading");
            }
            return;
        }
        if bar.message() != file {
            if !bar.is_finished() {
                bar.abandon();
            }
            bar = ProgressBar::new(total)
                .with_style(style.clone())
                .with_message(file.to_owned());
        }
        if !bar.is_finished() {
            bar.set_position(received);
            if received == total {
                // What is logged next begins a line.
                bar.abandon();
            }
        }
    }
}

/// When the log was told of a download last.
struct Told(Instant);

impl Told {
    const EVERY: Duration = Duration::from_secs(30);

    /// Nothing is due for a while.
    fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Whether it is time for the next line, which is then taken as told.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now.saturating_duration_since(self.0) >= Self::EVERY;
        if is_due {
            self.0 = now;
        }
        is_due
    }
}

/// The tokenizer of `checkpoint`; one of bytes where weights are made up and there is none.
pub fn tokenizer(checkpoint: &Checkpoint) -> anyhow::Result<Arc<dyn Tokenizer>> {
    if !checkpoint.is_dummy() && checkpoint.tokenizer_files()?.is_empty() {
        // Its error says whose tokenizer would do.
        checkpoint.tokenizer_json()?;
    }
    tokenizer_or_bytes(checkpoint)
}

/// The tokenizer of `checkpoint` for what reads or shows text only if `has_text`: without, a checkpoint needs none, and
/// bytes stand in for it.
pub fn tokenizer_for(
    checkpoint: &Checkpoint,
    has_text: bool,
) -> anyhow::Result<Arc<dyn Tokenizer>> {
    if has_text {
        tokenizer(checkpoint)
    } else {
        tokenizer_or_bytes(checkpoint)
    }
}

fn tokenizer_or_bytes(checkpoint: &Checkpoint) -> anyhow::Result<Arc<dyn Tokenizer>> {
    let tokenizer = checkpoint.tokenizer()?;
    // A checkpoint of which one subcommand says that its files are broken is broken for all.
    checkpoint.chat_template()?;
    Ok(match tokenizer {
        Some(tokenizer) => Arc::new(tokenizer),
        None => Arc::new(ByteTokenizer::default()),
    })
}

/// Runs `work` with a progress bar of `total` bytes on standard error, if that is a terminal.
pub fn with_byte_progress<T>(
    message: &'static str,
    total: u64,
    work: impl FnOnce(&dyn Fn(u64)) -> T,
) -> anyhow::Result<T> {
    if total == 0 || !std::io::stderr().is_terminal() {
        return Ok(work(&|_| {}));
    }
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta:>4}",
    )?;
    let bar = ProgressBar::new(total)
        .with_style(style)
        .with_message(message);
    let result = work(&|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(result)
}

impl DeviceChoice {
    /// The device.
    pub fn resolve(self) -> anyhow::Result<Device> {
        Ok(match self {
            Self::Auto if cfg!(feature = "cuda") => cuda_device(0).unwrap_or_else(|error| {
                tracing::warn!(%error, "no usable CUDA device; running on the CPU");
                Device::Cpu
            }),
            Self::Auto => Device::Cpu,
            Self::Cpu => Device::Cpu,
            Self::Cuda if !cfg!(feature = "cuda") => anyhow::bail!(
                "--device cuda: this build is for CPUs only; build it with `--features cuda`, or leave --device out"
            ),
            Self::Cuda => cuda_device(0).context(
                "--device cuda: there is no usable CUDA device; `nvidia-smi` should show one",
            )?,
        })
    }
}

impl DtypeChoice {
    /// The number format on `device`.
    pub fn resolve(self, device: &Device) -> WeightFormat {
        match self {
            Self::Auto if device.is_cpu() => DType::F32.into(),
            Self::Auto | Self::Bf16 => DType::BF16.into(),
            Self::F32 => DType::F32.into(),
            Self::F16 => DType::F16.into(),
            Self::Q8_0 => WeightFormat::Q8_0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_of_a_download_every_half_minute() {
        let start = Instant::now();
        let mut told = Told::new(start);
        let is_due: Vec<bool> = [0, 29, 30, 31, 59, 61, 90, 91]
            .map(|seconds| told.is_due(start + Duration::from_secs(seconds)))
            .to_vec();
        assert_eq!(
            is_due,
            [false, false, true, false, false, true, false, true]
        );
    }
}
