//! Errors of loading and running a model.

use std::path::PathBuf;

use crate::text::{ChatTemplateError, TextError};

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the checkpoint cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the checkpoint does not hold what it should.
    #[error("{file}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The tokenizer.json, or the files that stand for one, cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    /// The files of a chat template cannot be used.
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    /// No family of this architecture is known.
    #[error(
        "config.json: architecture {architecture:?} (model_type {model_type:?}) is not known; known: {known}"
    )]
    UnknownArchitecture {
        /// `architectures[0]`, empty if absent.
        architecture: String,
        /// `model_type`, empty if absent.
        model_type: String,
        /// The known architectures.
        known: String,
    },
    /// The kernels for quantised weights do not run on the device.
    #[error(
        "this build's kernels for {format} do not run on this card: a product of {rows} rows gives {got} for {wanted}. They \
         are machine code for one compute capability (CUDA_COMPUTE_CAP at the build) and run on cards with the same number \
         before the point and no smaller one after it, from 90 on on no other card; build for this one, or take another --dtype"
    )]
    QuantizedKernels {
        /// The format of the weights, as `--dtype` takes it.
        format: &'static str,
        /// Rows of a product that is wrong.
        rows: usize,
        /// What the device gave.
        got: f32,
        /// What it is.
        wanted: f32,
    },
    /// A batch that does not fit the model.
    #[error("{0}")]
    Batch(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Whether the device had not enough memory.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Tensor(error) = self else {
            return false;
        };
        #[cfg(feature = "cuda")]
        if let Some(lacked) = device_lacked_memory(error) {
            return lacked;
        }
        // What else fails to allocate says so as text alone.
        let text = error.to_string().to_lowercase();
        let signs = [
            "out of memory",
            "out_of_memory",
            "cublas_status_alloc_failed",
        ];
        signs.iter().any(|sign| text.contains(sign))
    }
}

/// Whether it was memory that the driver or cuBLAS lacked; `None` if neither of them failed.
#[cfg(feature = "cuda")]
fn device_lacked_memory(error: &candle_core::Error) -> Option<bool> {
    use candle_core::Error;
    use candle_core::cuda_backend::CudaError;
    use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
    use candle_core::cuda_backend::cudarc::driver::sys::CUresult;

    match error {
        Error::Cuda(error) => match error.downcast_ref::<CudaError>()? {
            CudaError::Cuda(error) | CudaError::Load { cuda: error, .. } => {
                Some(error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY)
            }
            CudaError::Cublas(error) => Some(error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED),
            _ => None,
        },
        Error::Context { inner, .. }
        | Error::WithPath { inner, .. }
        | Error::WithBacktrace { inner, .. } => device_lacked_memory(inner),
        Error::WrappedContext { wrapped, .. } => device_lacked_memory(wrapped.downcast_ref()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_device_lacks_is_told_from_other_failures() {
        let failed = |text: &str| {
            let error = candle_core::Error::Cuda(text.to_owned().into());
            [
                error.bt(),
                candle_core::Error::wrap(text.to_owned()).context("at a step"),
            ]
        };
        for text in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            for error in failed(text) {
                assert!(ModelError::from(error).is_out_of_memory(), "{text}");
            }
        }
        for error in failed("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)") {
            assert!(!ModelError::from(error).is_out_of_memory());
        }
        assert!(!ModelError::Batch("out of memory".into()).is_out_of_memory());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn what_the_driver_and_cublas_report_is_read_by_its_code() {
        use candle_core::cuda_backend::WrapErr;
        use candle_core::cuda_backend::cudarc::cublas::result::CublasError;
        use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
        use candle_core::cuda_backend::cudarc::driver::DriverError;
        use candle_core::cuda_backend::cudarc::driver::sys::CUresult;

        let driver = |code| Err::<(), _>(DriverError(code)).w().unwrap_err();
        let cublas = |code| Err::<(), _>(CublasError(code)).w().unwrap_err();
        let lacked = |error: candle_core::Error| device_lacked_memory(&error.context("at a step"));
        assert_eq!(
            lacked(driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY)),
            Some(true)
        );
        assert_eq!(
            lacked(driver(CUresult::CUDA_ERROR_INVALID_VALUE)),
            Some(false)
        );
        let failed = cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
        assert_eq!(lacked(cublas(failed)), Some(true));
    }
}
