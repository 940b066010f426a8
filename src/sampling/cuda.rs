//! The reduction on a CUDA device, by `kernels/categorical.cu`: one launch, and one small copy back.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::{DType, Storage, Tensor};
use half::{bf16, f16};

use super::layout::{Adjustment, Found, Row, Top};
use super::{RowParams, RowSample, SamplingError};
use crate::kernels::cuda::{config, function};
use crate::kernels::{Launch, ROW_THREADS};

// SAFETY: plain numbers, laid out as the kernel's structs.
unsafe impl DeviceRepr for Row {}
// SAFETY: as above.
unsafe impl DeviceRepr for Adjustment {}
// SAFETY: as above.
unsafe impl DeviceRepr for Found {}
// SAFETY: as above.
unsafe impl DeviceRepr for Top {}

pub(super) fn reduce(
    logits: &Tensor,
    params: &[RowParams],
) -> Result<Vec<Result<RowSample, SamplingError>>, candle_core::Error> {
    let (rows, vocab) = logits.dims2()?;
    if rows != params.len() {
        candle_core::bail!("{rows} rows of logits but parameters for {}", params.len());
    }
    if rows == 0 {
        return Ok(Vec::new());
    }
    // Rows may be any distance apart, the numbers of a row may not.
    let logits = match logits.stride() {
        [_, 1] => logits.clone(),
        _ => logits.contiguous()?,
    };
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("the reduction on CUDA was given a tensor of another device");
    };
    let batch = Batch {
        device: &storage.device,
        start: layout.start_offset(),
        stride: layout.stride()[0] as u64,
        vocab: vocab as u32,
    };
    let found = match storage.dtype() {
        DType::F32 => batch.launch::<f32>("categorical_f32", storage, params),
        DType::BF16 => batch.launch::<bf16>("categorical_bf16", storage, params),
        DType::F16 => batch.launch::<f16>("categorical_f16", storage, params),
        other => candle_core::bail!("logits are {other:?}; allowed: f32, bf16, f16"),
    }?;
    let samples = found.iter().zip(params);
    Ok(samples
        .map(|(found, params)| found.sample(params))
        .collect())
}

struct Batch<'a> {
    device: &'a CudaDevice,
    start: usize,
    stride: u64,
    vocab: u32,
}

impl Batch<'_> {
    fn launch<T: CudaDType + DeviceRepr>(
        &self,
        kernel: &'static str,
        storage: &CudaStorage,
        params: &[RowParams],
    ) -> candle_core::Result<Vec<Found>> {
        let device = self.device;
        let logits = storage.as_cuda_slice::<T>()?.slice(self.start..);
        let rows: Vec<Row> = params.iter().map(Row::new).collect();
        let rows = device.clone_htod(&rows)?;
        // Lists of which no row has an entry.
        let adjustments: CudaSlice<u8> = device.alloc_zeros(1)?;
        // SAFETY: the kernel writes every entry before it is read.
        let mut found = unsafe { device.alloc::<Found>(params.len())? };
        let function = function(device, kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&logits).arg(&self.stride);
        builder.arg(&logits).arg(&self.stride).arg(&self.vocab);
        builder.arg(&rows).arg(&adjustments);
        builder.arg(&adjustments).arg(&adjustments);
        builder.arg(&mut found);
        builder.arg(&adjustments).arg(&adjustments);
        let launch = Launch::rows(kernel, params.len(), ROW_THREADS);
        // SAFETY: the parameters of the kernel in their order; `rows` names nothing outside `logits`.
        unsafe { builder.launch(config(&launch)) }.map_err(candle_core::Error::wrap)?;
        device.clone_dtoh(&found)
    }
}
