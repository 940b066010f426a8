//! Which model a subcommand runs, where, and in which number format.

use std::path::PathBuf;

use anyhow::Context;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use unmask::engine::{Engine, EngineConfig};
use unmask::models::{Checkpoint, Denoiser, embedded};
use unmask::text::{ChatFiles, ChatTemplate, HfTokenizer};

/// Options that choose a model.
#[derive(Args)]
pub struct ModelArgs {
    /// Checkpoint in Hugging Face's layout; must not change while it is loaded [default: the embedded
    /// model]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
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
        match &self.model {
            Some(directory) => Checkpoint::open(directory)
                .with_context(|| format!("cannot open the model in {}", directory.display())),
            None => Ok(embedded::checkpoint()?),
        }
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
