//! Which model a subcommand runs, where, and in which number format.

use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::hub::{self, Hub, Progress, RepositoryId};
use unmask::models::{Checkpoint, Denoiser, embedded};
use unmask::text::{ChatFiles, ChatTemplate, HfTokenizer};

/// Options that choose a model.
#[derive(Args)]
pub struct ModelArgs {
    /// Checkpoint in Hugging Face's layout, which must not change while it is loaded, or a model on the
    /// Hugging Face hub, which is downloaded once [default: the embedded model]
    #[arg(long, value_name = "DIR|OWNER/NAME")]
    pub model: Option<PathBuf>,
    /// Branch, tag or commit of a model on the hub [default: main]
    #[arg(long, value_name = "REVISION", requires = "model")]
    pub model_revision: Option<String>,
    /// Where to run
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,
    /// Number format of the weights; `auto` is f32 on a CPU and bf16 on a GPU
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeChoice,
}

/// Values of `--device`.
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum DeviceChoice {
    /// A GPU where this build and the machine have one, else the CPU.
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
    /// bfloat16.
    Bf16,
    /// 16-bit floating point.
    F16,
}

impl ModelArgs {
    /// Opens the checkpoint without loading its weights.
    pub fn checkpoint(&self) -> anyhow::Result<Checkpoint> {
        let Some(model) = &self.model else {
            return Ok(embedded::checkpoint()?);
        };
        if let Some(repository) = on_hub(model) {
            let revision = self
                .model_revision
                .as_deref()
                .unwrap_or(hub::DEFAULT_REVISION);
            let directory = Hub::from_env()?
                .fetch(&repository, revision, &mut download_bars())
                .with_context(|| {
                    format!("there is no directory {repository}, and the model cannot be had from the hub")
                })?;
            let checkpoint = Checkpoint::open(&directory)
                .with_context(|| format!("cannot open the model {repository}"))?;
            return Ok(checkpoint.with_name(repository.to_string()));
        }
        if let Some(revision) = &self.model_revision {
            anyhow::bail!(
                "--model-revision {revision} is of a model on the hub, and --model {} names a directory",
                model.display()
            );
        }
        Checkpoint::open(model)
            .with_context(|| format!("cannot open the model in {}", model.display()))
    }

    /// Loads the network of `checkpoint`.
    pub fn load(&self, checkpoint: &Checkpoint) -> anyhow::Result<Box<dyn Denoiser>> {
        let device = self.device.resolve()?;
        let model = checkpoint
            .load(self.dtype.resolve(&device), &device)
            .with_context(|| format!("cannot load the model {}", checkpoint.name()))?;
        Ok(model)
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

/// Draws a bar for each file that is downloaded, where standard error is a terminal.
fn download_bars() -> impl FnMut(Progress) {
    let style = ProgressStyle::with_template(
        "{msg:32} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    );
    // The template is known to be right.
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut bar = ProgressBar::hidden();
    move |progress| {
        if bar.message() != progress.file {
            bar.abandon();
            bar = ProgressBar::new(progress.total)
                .with_style(style.clone())
                .with_message(progress.file.to_owned());
        }
        bar.set_position(progress.received);
    }
}

/// The tokenizer of `checkpoint`.
pub fn tokenizer(checkpoint: &Checkpoint) -> anyhow::Result<HfTokenizer> {
    Ok(HfTokenizer::from_bytes(checkpoint.tokenizer_json()?)?)
}

/// The chat template of `checkpoint`, if it has one.
pub fn chat_template(checkpoint: &Checkpoint) -> anyhow::Result<Option<ChatTemplate>> {
    let files = ChatFiles::read(|name| checkpoint.file(name))?;
    Ok(ChatTemplate::from_files(&files)?)
}

impl DeviceChoice {
    /// The device.
    pub fn resolve(self) -> anyhow::Result<Device> {
        Ok(match self {
            Self::Auto if cfg!(feature = "cuda") => Device::new_cuda(0).unwrap_or_else(|error| {
                tracing::warn!(%error, "no usable CUDA device; running on the CPU");
                Device::Cpu
            }),
            Self::Auto => Device::Cpu,
            Self::Cpu => Device::Cpu,
            Self::Cuda => Device::new_cuda(0).context(
                "--device cuda: no usable CUDA device, or a build without the feature `cuda`",
            )?,
        })
    }
}

impl DtypeChoice {
    /// The number format on `device`.
    pub fn resolve(self, device: &Device) -> DType {
        match self {
            Self::Auto if device.is_cpu() => DType::F32,
            Self::Auto | Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }
}
