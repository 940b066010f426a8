//! The embedded model on a device.

use candle_core::{DType, Device, Tensor};

use super::random::Random;
use crate::canvas::TokenId;
use crate::models::{Denoiser, ModelError, RaggedBatch, WeightFormat, embedded};

/// Largest difference of a logit in f32 from the CPU's, and of canvases alone from those in a batch.
const TOLERANCE: f32 = 1e-3;

/// The formats that are compared with f32 on the CPU, by their largest difference of a logit: of those that round two to
/// three times what rounding after every operation makes of them.
const FORMATS: [(WeightFormat, f32); 4] = [
    (WeightFormat::Float(DType::F32), TOLERANCE),
    (WeightFormat::Float(DType::BF16), 0.5),
    (WeightFormat::Float(DType::F16), 0.07),
    (WeightFormat::Q8_0, 0.9),
];

/// Why a check of the model failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelFailure {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Logits differ.
    #[error("in {format} logits differ by {difference}, at most {allowed} is allowed")]
    Differs {
        /// The format of the weights.
        format: &'static str,
        /// Largest difference.
        difference: f32,
        /// What is allowed.
        allowed: f32,
    },
}

/// Logits of the embedded model on `device`, in every format that it takes, against those of f32 on the CPU.
///
/// # Errors
/// If they differ by more than is stated for the format, or the device fails.
pub fn equals_the_cpu(device: &Device) -> Result<String, ModelFailure> {
    let canvases = canvases()?;
    let truth = logits(&*load(DType::F32, &Device::Cpu)?, &canvases)?;
    let mut seen = Vec::new();
    for (format, allowed) in FORMATS {
        let model = match load(format, device) {
            // Such a card serves the other formats.
            Err(ModelError::QuantizedKernels { .. }) => {
                seen.push(format!("{} is refused", format.name()));
                continue;
            }
            model => model?,
        };
        let difference = difference(format, &logits(&*model, &canvases)?, &truth, allowed)?;
        seen.push(format!("{} {difference:.1e}", format.name()));
    }
    Ok(format!("largest difference {}", seen.join(", ")))
}

/// Logits of canvases alone against those of the same canvases in one batch, in f32 on `device`.
///
/// # Errors
/// If they differ where the model promises that they do not, or elsewhere by more than 10⁻³, or the device fails.
pub fn is_the_same_in_any_batch(device: &Device) -> Result<String, ModelFailure> {
    let canvases = canvases()?;
    let model = load(DType::F32, device)?;
    let together = logits(&*model, &canvases)?;
    let alone = canvases
        .iter()
        .map(|canvas| logits(&*model, std::slice::from_ref(canvas)))
        .collect::<Result<Vec<_>, _>>()?;
    let allowed = match model.is_batch_invariant() {
        true => 0.0,
        false => TOLERANCE,
    };
    let format = DType::F32.into();
    let difference = difference(format, &Tensor::cat(&alone, 0)?, &together, allowed)?;
    Ok(format!("largest difference {difference:.1e}"))
}

fn load(format: impl Into<WeightFormat>, device: &Device) -> Result<Box<dyn Denoiser>, ModelError> {
    embedded::checkpoint()?.load(format, device)
}

/// Canvases of several lengths, a third of whose slots are masked.
fn canvases() -> Result<Vec<Vec<TokenId>>, ModelError> {
    let spec = embedded::checkpoint()?.spec()?;
    let mask = spec.mask_token();
    let mut random = Random::new(40);
    let mut token = || match mask {
        Some(mask) if random.chance(0.33) => mask,
        _ => random.below(spec.vocab_size) as TokenId,
    };
    let lengths = [5, 40, 17];
    Ok(lengths
        .map(|length| (0..length).map(|_| token()).collect())
        .into())
}

/// Of all rows, in f32 on the CPU.
fn logits(model: &dyn Denoiser, canvases: &[Vec<TokenId>]) -> Result<Tensor, ModelFailure> {
    let mut batch = RaggedBatch::new();
    for canvas in canvases {
        batch.push(canvas.iter().copied());
    }
    let logits = model.head(&model.hidden(&batch, None)?)?;
    Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
}

fn difference(
    format: WeightFormat,
    a: &Tensor,
    b: &Tensor,
    allowed: f32,
) -> Result<f32, ModelFailure> {
    let differences = (a - b)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
    // NaN is larger than any number.
    let difference = differences
        .into_iter()
        .max_by(f32::total_cmp)
        .unwrap_or(0.0);
    match difference <= allowed {
        true => Ok(difference),
        false => Err(ModelFailure::Differs {
            format: format.name(),
            difference,
            allowed,
        }),
    }
}
