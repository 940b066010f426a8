//! Golden checkpoints on a device: what the official code made of small networks with random weights, logits and
//! the canvas after every step of its samplers, against what is computed here.
//!
//! A folder of goldens has a folder for each of them, with a checkpoint (`config.json`, `model.safetensors`, ...),
//! `forward.safetensors` (inputs and logits, as `<case>.<field>`), `generate.json` (runs of samplers) and, where
//! a sampler's random numbers were recorded, `sampler.safetensors`.

mod cases;
mod difference;
pub mod encoded;
pub mod folder;
mod follow;
pub mod forward;
mod inputs;
pub mod plans;
pub mod replay;
pub mod runs;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use crate::canvas::CanvasError;
use crate::decode::PlanError;
use crate::engine::{StartError, SubmitError};
use crate::models::{Denoiser, ModelError};
use cases::FamilyCases;
use difference::Difference;
use folder::Golden;

/// Largest difference of a logit from the official one, in f32.
pub const TOLERANCE: f32 = 1e-3;

/// What the official forwards were given, and what they gave.
const FORWARD: &str = "forward.safetensors";

/// Why a golden does not hold, or was not checked.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what a golden's should.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A family of which it is not known what its goldens hold.
    #[error(
        "nothing is known of the goldens of the family {family}: src/selftest/goldens/cases.rs has to say what its \
         forward.safetensors and generate.json hold"
    )]
    UnknownFamily {
        /// The family.
        family: &'static str,
    },
    /// The checkpoint cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// No engine was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A recorded run's plan is none here.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A recorded canvas is none here.
    #[error(transparent)]
    Canvas(#[from] CanvasError),
    /// The engine refused a canvas.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Something is not as the official code has it.
    #[error("{0}")]
    Differs(String),
}

/// The goldens in a folder: every folder in it that is a checkpoint.
pub struct Goldens {
    /// In the order of their names.
    pub goldens: Vec<Golden>,
    /// Names of the folders without any of a golden's files, which hold something else.
    pub others: Vec<String>,
}

impl Goldens {
    /// Lists those of `directory`.
    ///
    /// # Errors
    /// If it cannot be read, or holds no golden.
    pub fn open(directory: &Path) -> Result<Self, GoldenError> {
        let failed = |source| GoldenError::Io {
            path: directory.to_owned(),
            source,
        };
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
        folders.sort();
        let folders = folders.iter().map(|path| Golden::new(path));
        let (goldens, others): (Vec<_>, Vec<_>) = folders.partition(Golden::is_there);
        if goldens.is_empty() {
            return Err(GoldenError::Invalid {
                path: directory.to_owned(),
                reason:
                    "it holds no folder of a golden checkpoint; tests/goldens of the source does"
                        .into(),
            });
        }
        let others = others.iter().map(Golden::name).collect();
        Ok(Self { goldens, others })
    }
}

/// Logits of all recorded forwards on `device`, in every format that it takes, against the official ones; what was seen, in words.
///
/// # Errors
/// If a logit differs by more than [`TOLERANCE`] in f32, or those of a case in another format by more, in the root mean
/// square and relative to the logits, than is stated for the family; if the golden cannot be used; or if it holds a case
/// of which nothing is known.
pub fn logits(golden: &Golden, device: &Device) -> Result<String, GoldenError> {
    let (model, cases) = load(golden, DType::F32, device)?;
    let official = golden.tensors(FORWARD)?;
    cases.check_complete(golden, &official)?;
    let most = |model: &dyn Denoiser| {
        let mut most = Difference::default();
        for case in cases.forwards {
            for compared in case.compute(model, &official)? {
                most = most.max(compared.difference()?);
            }
        }
        Ok::<_, GoldenError>(most)
    };
    let exact = most(&*model)?.largest;
    let mut holds = exact <= TOLERANCE;
    let mut seen = format!(
        "{} cases, f32 differs by {exact:.1e} of at most {TOLERANCE:.0e}; in the root mean square",
        cases.forwards.len()
    );
    for (format, allowed) in cases.rounded.formats() {
        let model = match golden.load(format, device) {
            // Such a card serves the other formats.
            Err(GoldenError::Model(ModelError::QuantizedKernels { .. })) => {
                let _ = write!(seen, " {} is refused,", format.name());
                continue;
            }
            model => model?,
        };
        let relative = most(&*model)?.relative;
        holds &= relative <= allowed;
        let (relative, allowed) = (100.0 * relative, 100.0 * allowed);
        let _ = write!(
            seen,
            " {} by {relative:.2} % of at most {allowed:.1} %,",
            format.name()
        );
    }
    seen.pop();
    match holds {
        true => Ok(seen),
        false => Err(GoldenError::Differs(seen)),
    }
}

/// Recorded runs of official samplers, followed canvas by canvas on `device` in f32; what was seen, in words. `None` of
/// a family whose runs the tests alone follow.
///
/// # Errors
/// If a canvas is another than the recorded one, or the golden cannot be used.
pub fn runs(golden: &Golden, device: &Device) -> Result<Option<String>, GoldenError> {
    let (_, cases) = load(golden, DType::F32, device)?;
    let followed = cases.follow(golden, device)?;
    Ok((!followed.is_empty()).then(|| followed.join(", ")))
}

fn load(
    golden: &Golden,
    dtype: DType,
    device: &Device,
) -> Result<(Box<dyn Denoiser>, &'static FamilyCases), GoldenError> {
    let model = golden.load(dtype, device)?;
    let cases = FamilyCases::of(model.spec().family)?;
    Ok((model, cases))
}
