//! The settings of a training run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cpu::bf16_available;
use super::error::TrainError;
use super::initial::Initial;
use super::layout::NetworkShape;
use super::tokenizer::MIN_VOCABULARY;
use crate::diffusion::Schedule;
use crate::models::ForwardProcess;

/// The longest window. Attention keeps `[layers, heads, context, context]` probabilities of each window
/// for the backward pass: 6 GB at this length for a small network.
const MAX_CONTEXT: usize = 8192;

/// The number format of the exported `model.safetensors`. Training itself is in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelDtype {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
}

/// The number format of the factors in matrix products. Weights and gradients are f32 either way, and so
/// are sums, norms, softmax and loss; on CUDA the results of bfloat16 products, which are summed in f32,
/// are bfloat16 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16, which processors with AVX512-BF16 multiply twice as fast, and GPUs faster still.
    Bf16,
}

impl Precision {
    /// Checks that this processor multiplies the format.
    ///
    /// # Errors
    /// [`TrainError::Setting`] when it does not.
    pub fn check(self) -> Result<(), TrainError> {
        if self == Precision::F32 || bf16_available() {
            return Ok(());
        }
        Err(TrainError::Setting {
            field: "precision",
            given: "bf16".into(),
            allowed: "f32 (this processor has no AVX512-BF16)".into(),
        })
    }
}

/// What a training step descends on. Validation is the NELBO with the log-linear schedule either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The integrand of the continuous-time NELBO over all tokens: for the absorbing process the
    /// cross-entropy on masked slots times −α′(t) / (1 − α(t)) (MDLM, arXiv:2406.07524, eq. 11), for the
    /// uniform one UDLM's (arXiv:2412.10193).
    #[default]
    Nelbo,
    /// The mean cross-entropy of the step's masked slots, all of the same weight (MaskGIT,
    /// arXiv:2202.04200, eq. 1). No bound of the likelihood, and for the absorbing process only.
    CrossEntropy,
}

/// What turns gradients into changes of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW (arXiv:1711.05101).
    #[default]
    AdamW,
    /// Muon for the matrices of blocks, scaled to AdamW's learning rate (arXiv:2502.16982), and AdamW for
    /// embedding, head and norms.
    Muon,
}

/// How the diffusion times of a step are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeSampling {
    /// One in each of equal strata, with a common shift (VDM, arXiv:2107.00630).
    #[default]
    LowDiscrepancy,
    /// Independent.
    Uniform,
}

/// Where a window of a text begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowStart {
    /// At any token.
    #[default]
    Anywhere,
    /// Where a sentence begins: at the beginning of a line, or after a full stop, question or exclamation mark.
    Sentence,
    /// Where a line begins.
    Paragraph,
}

/// Which slots of a window attend to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// All: the text is one stream, in which the end token tells documents apart.
    #[default]
    Stream,
    /// Those of one document: a window may hold several, none of which sees another.
    Documents,
}

/// A noise schedule as its text.
mod schedule_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Schedule;

    pub fn serialize<S: Serializer>(value: &Schedule, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Schedule, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }

    /// The schedule of a state that names none.
    pub fn log_linear() -> Schedule {
        Schedule::LogLinear
    }
}

/// Where the network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainDevice {
    /// The CPU.
    Cpu,
    /// A CUDA device, by its ordinal.
    Cuda(usize),
}

/// Every setting of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Training text: UTF-8, plain or zstd, documents separated by a line `<|doc|>`. Empty where the run
    /// trains on pairs.
    pub data: Vec<PathBuf>,
    /// Pairs of prompt and answer, whose answers are trained on, in the place of `data`: UTF-8, plain or
    /// zstd, one JSON object a line.
    #[serde(default)]
    pub pairs: Option<PathBuf>,
    /// Whether answers that do not fit the window are cut off, instead of being refused.
    #[serde(default)]
    pub truncate_pairs: bool,
    /// Whether a document that is longer than a window is refused, instead of being cut.
    #[serde(default)]
    pub refuse_long_documents: bool,
    /// Validation text, or pairs, in the same form.
    pub valid: PathBuf,
    /// The output directory.
    pub out: PathBuf,
    /// A checkpoint in the LLaDA architecture whose weights and tokenizer the run starts from, instead of
    /// random weights and a tokenizer trained on the text.
    #[serde(default)]
    pub init: Option<PathBuf>,
    /// A tokenizer to use instead of training one.
    pub tokenizer: Option<PathBuf>,
    /// Size of the vocabulary, special tokens included; the given tokenizer's size when `None` and
    /// one is given.
    pub vocab_size: Option<usize>,
    /// Window length in tokens.
    pub context: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the gated MLP; 8/3 of `hidden`, rounded up to a multiple of 64, when `None`.
    pub mlp_hidden: Option<usize>,
    /// Whether the head is the transposed embedding.
    pub tie_head: bool,
    /// Windows a pass; a step sees `batch * grad_accumulation` windows.
    pub batch: usize,
    /// Passes a step.
    pub grad_accumulation: usize,
    /// The forward process that the network learns to reverse.
    #[serde(default)]
    pub process: ForwardProcess,
    /// Whether documents of one window see each other.
    #[serde(default)]
    pub packing: Packing,
    /// Where windows of training begin; those of validation lie end to end.
    #[serde(default)]
    pub window_start: WindowStart,
    /// The share of windows in which runs of slots are noised together, and not each slot by itself. The
    /// probability that a slot is noised is the same.
    #[serde(default)]
    pub span_share: f64,
    /// What a step descends on.
    #[serde(default)]
    pub objective: Objective,
    /// How the diffusion times of a step are drawn.
    #[serde(default)]
    pub time_sampling: TimeSampling,
    /// The noise schedule of training.
    #[serde(with = "schedule_text", default = "schedule_text::log_linear")]
    pub schedule: Schedule,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Optimiser steps.
    pub steps: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of linear warm-up; a twentieth of `steps` when `None`.
    pub warmup: Option<u64>,
    /// Final learning rate as a fraction of the peak.
    pub min_lr_ratio: f64,
    /// Decoupled weight decay of the matrices (not of norms and embedding).
    pub weight_decay: f64,
    /// Largest global gradient norm; larger gradients are scaled down to it.
    pub clip: f64,
    /// Decay of the exponential moving average of the weights; 0 turns it off.
    pub ema: f64,
    /// Seed of the initial weights and of all draws.
    pub seed: u64,
    /// Steps between validations.
    pub valid_every: u64,
    /// Fixed windows of a validation (fewer when the text is short).
    pub valid_windows: usize,
    /// Steps between saves of the resumable state.
    pub save_every: u64,
    /// Number format of the exported model.
    pub dtype: ModelDtype,
    /// Where the network runs.
    pub device: TrainDevice,
    /// Precision of matrix products; when `None`, that of the run that is resumed, else bfloat16 on a CPU
    /// that multiplies it, else f32.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// Continue the run in `out`.
    #[serde(skip)]
    pub resume: bool,
    /// When resuming: let `steps`, `lr`, `warmup` and `min_lr_ratio` differ from the saved run's, and
    /// follow the learning rate that they give from the resumed step on.
    #[serde(skip)]
    pub new_lr_schedule: bool,
}

impl TrainConfig {
    /// The default settings for given files: a model of 6.9 million parameters.
    pub fn new(data: Vec<PathBuf>, valid: PathBuf, out: PathBuf) -> Self {
        Self {
            data,
            pairs: None,
            truncate_pairs: false,
            refuse_long_documents: false,
            valid,
            out,
            init: None,
            tokenizer: None,
            vocab_size: None,
            context: 128,
            layers: 6,
            hidden: 256,
            heads: 4,
            mlp_hidden: None,
            tie_head: false,
            batch: 32,
            grad_accumulation: 1,
            process: ForwardProcess::default(),
            packing: Packing::default(),
            window_start: WindowStart::default(),
            span_share: 0.0,
            objective: Objective::default(),
            time_sampling: TimeSampling::default(),
            schedule: Schedule::LogLinear,
            optimizer: OptimizerKind::default(),
            steps: 4000,
            lr: 2e-3,
            warmup: None,
            min_lr_ratio: 0.05,
            weight_decay: 0.1,
            clip: 1.0,
            ema: 0.999,
            seed: 0,
            valid_every: 250,
            valid_windows: 256,
            save_every: 250,
            dtype: ModelDtype::F32,
            device: TrainDevice::Cpu,
            precision: None,
            resume: false,
            new_lr_schedule: false,
        }
    }

    /// The same settings for the network and the process of a checkpoint to start from.
    pub fn starting_from(self, initial: &Initial) -> Self {
        let shape = initial.shape();
        Self {
            process: initial.process(),
            context: shape.context,
            layers: shape.layers,
            hidden: shape.hidden,
            heads: shape.heads,
            mlp_hidden: Some(shape.mlp),
            tie_head: shape.tied,
            ..self
        }
    }

    /// The size of the vocabulary to train.
    pub fn vocab_size_or_default(&self) -> usize {
        self.vocab_size.unwrap_or(4096)
    }

    /// Steps of linear warm-up.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup.unwrap_or(self.steps / 20)
    }

    /// The network's shape for a vocabulary of `vocab` tokens.
    pub fn shape(&self, vocab: usize) -> NetworkShape {
        NetworkShape {
            vocab,
            context: self.context,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            mlp: self
                .mlp_hidden
                .unwrap_or_else(|| (self.hidden * 8).div_ceil(3).next_multiple_of(64)),
            tied: self.tie_head,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first setting that is out of range;
    /// [`TrainError::VocabularyTooSmall`] when the vocabulary cannot hold the bytes.
    pub fn check(&self) -> Result<(), TrainError> {
        fn range<T: PartialOrd + std::fmt::Display>(
            field: &'static str,
            value: T,
            low: T,
            high: T,
        ) -> Result<(), TrainError> {
            if value >= low && value <= high {
                return Ok(());
            }
            Err(TrainError::Setting {
                field,
                given: value.to_string(),
                allowed: format!("{low} to {high}"),
            })
        }
        let setting = |field, given: &str, allowed: &str| {
            Err(TrainError::Setting {
                field,
                given: given.into(),
                allowed: allowed.into(),
            })
        };
        match (self.data.is_empty(), &self.pairs) {
            (true, None) => return setting("data", "empty", "one file or more, or pairs"),
            (false, Some(_)) => return setting("pairs", "given", "data or pairs, not both"),
            _ => {}
        }
        if self.pairs.is_some() && self.packing == Packing::Documents {
            let allowed = "stream (with pairs, each of which has a window of its own)";
            return setting("packing", "documents", allowed);
        }
        if self.pairs.is_some() && self.window_start != WindowStart::Anywhere {
            let allowed = "anywhere (with pairs, each of which begins a window)";
            return setting("window-start", "a sentence or paragraph", allowed);
        }
        // Without a time whose loss counts nothing would be learnt, and nobody told.
        let counts = |thousandths: i32| {
            let weight = self.schedule.weight(f64::from(thousandths) / 1000.0);
            weight.is_finite() && weight > 0.0
        };
        if !(1..1000).any(counts) {
            let allowed = "a schedule along which slots are masked, such as log-linear";
            return setting("schedule", &self.schedule.to_string(), allowed);
        }
        range("span-share", self.span_share, 0.0, 1.0)?;
        if self.process == ForwardProcess::Uniform && self.span_share > 0.0 {
            // A slot's random token comes from the number by which it is noised.
            let allowed = "0 (with the process uniform, whose slots are noised each by itself)";
            return setting("span-share", &self.span_share.to_string(), allowed);
        }
        if self.pairs.is_none() && self.truncate_pairs {
            return setting("truncate-pairs", "true", "false (without pairs)");
        }
        if self.pairs.is_some() && self.refuse_long_documents {
            return setting("refuse-long-documents", "true", "false (with pairs)");
        }
        if let Some(given) = self.vocab_size {
            if given < MIN_VOCABULARY {
                return Err(TrainError::VocabularyTooSmall {
                    given,
                    minimum: MIN_VOCABULARY,
                    specials: MIN_VOCABULARY - 256,
                });
            }
            range("vocab-size", given, MIN_VOCABULARY, 1 << 20)?;
        }
        range("context", self.context, 2, MAX_CONTEXT)?;
        range("layers", self.layers, 1, 1024)?;
        range("hidden", self.hidden, 2, 65_536)?;
        range("heads", self.heads, 1, self.hidden)?;
        if !self.hidden.is_multiple_of(2 * self.heads) {
            return Err(TrainError::Setting {
                field: "heads",
                given: format!("{} (with hidden {})", self.heads, self.hidden),
                allowed: "a number of heads that splits hidden into even parts".into(),
            });
        }
        if let Some(mlp) = self.mlp_hidden {
            range("mlp-hidden", mlp, 1, 1 << 20)?;
        }
        range("batch", self.batch, 1, 1 << 20)?;
        range("grad-accumulation", self.grad_accumulation, 1, 1 << 20)?;
        // Slots of a step are numbered with 32 bits.
        let windows = self.batch as u128 * self.grad_accumulation as u128;
        if windows * self.context as u128 > u128::from(u32::MAX) {
            return Err(TrainError::Setting {
                field: "batch",
                given: format!(
                    "{} (with grad-accumulation {} and context {})",
                    self.batch, self.grad_accumulation, self.context
                ),
                allowed: format!("at most {} tokens a step", u32::MAX),
            });
        }
        if self.process == ForwardProcess::Uniform && self.objective == Objective::CrossEntropy {
            let allowed = "nelbo (with the process uniform, where no slot is masked)";
            return setting("objective", "cross-entropy", allowed);
        }
        range("steps", self.steps, 1, 1 << 40)?;
        range("lr", self.lr, 1e-12, 10.0)?;
        range("warmup", self.warmup_steps(), 0, self.steps)?;
        range("min-lr-ratio", self.min_lr_ratio, 0.0, 1.0)?;
        range("weight-decay", self.weight_decay, 0.0, 10.0)?;
        range("clip", self.clip, 1e-9, 1e9)?;
        range("ema", self.ema, 0.0, 0.999_999_9)?;
        if let TrainDevice::Cuda(ordinal) = self.device
            && !candle_core::utils::cuda_is_available()
        {
            return Err(TrainError::Setting {
                field: "device",
                given: format!("cuda:{ordinal}"),
                allowed: "cpu (this build has no CUDA)".into(),
            });
        }
        if let (Some(precision), TrainDevice::Cpu) = (self.precision, self.device) {
            precision.check()?;
        }
        range("valid-every", self.valid_every, 1, 1 << 40)?;
        range("valid-windows", self.valid_windows, 1, 1 << 24)?;
        range("save-every", self.save_every, 1, 1 << 40)?;
        Ok(())
    }
}
