//! The reduction on a CUDA device, by `kernels/categorical.cu`: one launch, and one small copy back.

use bytemuck::Zeroable;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::{DType, Storage, Tensor};
use half::{bf16, f16};

use super::layout::{self, Adjustment, Found, MOST_TOP, Row, Top};
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
    let launch = Launcher {
        device: &storage.device,
        start: layout.start_offset(),
        stride: layout.stride()[0] as u64,
        vocab: vocab as u32,
    };
    match storage.dtype() {
        DType::F32 => launch.run::<f32>("categorical_f32", storage, params),
        DType::BF16 => launch.run::<bf16>("categorical_bf16", storage, params),
        DType::F16 => launch.run::<f16>("categorical_f16", storage, params),
        other => candle_core::bail!("logits are {other:?}; allowed: f32, bf16, f16"),
    }
}

struct Launcher<'a> {
    device: &'a CudaDevice,
    start: usize,
    stride: u64,
    vocab: u32,
}

impl Launcher<'_> {
    fn run<T: CudaDType + DeviceRepr>(
        &self,
        kernel: &'static str,
        storage: &CudaStorage,
        params: &[RowParams],
    ) -> candle_core::Result<Vec<Result<RowSample, SamplingError>>> {
        let device = self.device;
        let logits = storage.as_cuda_slice::<T>()?.slice(self.start..);
        let batch = layout::Batch::new(params, self.vocab as usize);
        let rows = device.clone_htod(&batch.rows)?;
        let adjustments = upload(device, &batch.adjustments)?;
        let of = upload(device, &batch.of)?;
        let allowed = upload(device, &batch.allowed)?;
        // SAFETY: the kernel writes every entry of `found`, and of the others what rows ask for, which alone
        // is read.
        let (mut found, mut top, mut of_found) = unsafe {
            (
                device.alloc::<Found>(params.len())?,
                device.alloc::<Top>(params.len() * MOST_TOP)?,
                device.alloc::<f32>(batch.of.len().max(1))?,
            )
        };
        let launch = Launch::rows(kernel, params.len(), ROW_THREADS);
        let function = function(device, kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&logits).arg(&self.stride);
        // Guidance is applied before; no row names one of these.
        builder.arg(&logits).arg(&self.stride);
        builder.arg(&self.vocab).arg(&rows).arg(&adjustments);
        builder.arg(&allowed).arg(&of);
        builder.arg(&mut found).arg(&mut top).arg(&mut of_found);
        // SAFETY: the parameters of the kernel in their order; `rows` names nothing outside the lists.
        unsafe { builder.launch(config(&launch)) }.map_err(candle_core::Error::wrap)?;
        let found = device.clone_dtoh(&found)?;
        let (mut tops, mut ofs) = (Vec::new(), Vec::new());
        if params.iter().any(|params| params.logprobs.is_some()) {
            tops = device.clone_dtoh(&top)?;
            ofs = device.clone_dtoh(&of_found)?;
        }
        tops.resize(params.len() * MOST_TOP, Top::zeroed());
        Ok(batch.samples(params, &found, &tops, &ofs))
    }
}

/// A list without entries is never read, but has to be somewhere.
fn upload<T: DeviceRepr + Zeroable + 'static>(
    device: &CudaDevice,
    list: &[T],
) -> candle_core::Result<CudaSlice<T>> {
    match list.is_empty() {
        true => device.clone_htod(&[T::zeroed()]),
        false => device.clone_htod(list),
    }
}
