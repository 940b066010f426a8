//! The reduction on a CUDA device, by `kernels/categorical.cu`: one small copy there, one launch, and one small copy back.

use bytemuck::Zeroable;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{DType, Layout, Storage, StorageRef, Tensor};
use half::{bf16, f16};

use super::layout::{self, Adjustment, Found, MOST_TOP, Row, Top};
use super::{Guidance, RowParams, RowSample, SamplingError};
use crate::kernels::cuda::{Uploaded, config, function};
use crate::kernels::packing::Packing;
use crate::kernels::staging::Staging;
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
    guidance: Option<&Guidance>,
    params: &[RowParams],
) -> Result<Vec<Result<RowSample, SamplingError>>, candle_core::Error> {
    let (rows, vocab) = logits.dims2()?;
    if rows != params.len() {
        candle_core::bail!("{rows} rows of logits but parameters for {}", params.len());
    }
    if rows == 0 {
        return Ok(Vec::new());
    }
    let mut batch = layout::Batch::new(params, vocab);
    let conditional = by_rows(logits)?;
    let unconditional = match guidance {
        Some(guidance) => {
            let (given, scales) = (&guidance.unconditional, guidance.scales.len());
            if given.dims() != logits.dims() || scales != rows {
                candle_core::bail!(
                    "logits {:?} cannot be led away from {:?} by {scales} scales",
                    logits.shape(),
                    given.shape()
                );
            }
            batch.guide(&guidance.scales);
            by_rows(given)?
        }
        None => conditional.clone(),
    };
    let logits = [&conditional, &unconditional];
    match conditional.dtype() {
        DType::F32 => run::<f32>("categorical_f32", logits, &batch, params),
        DType::BF16 => run::<bf16>("categorical_bf16", logits, &batch, params),
        DType::F16 => run::<f16>("categorical_f16", logits, &batch, params),
        other => candle_core::bail!("logits are {other:?}; allowed: f32, bf16, f16"),
    }
}

/// `logits` `[rows, vocab]` with the numbers of a row side by side. Rows may be any distance apart.
fn by_rows(logits: &Tensor) -> candle_core::Result<Tensor> {
    match logits.stride() {
        [_, 1] => Ok(logits.clone()),
        _ => logits.contiguous(),
    }
}

/// Launches `kernel` on the conditional and the unconditional logits, of which the latter are read for the rows of
/// `batch` that name one of theirs.
fn run<T: CudaDType + DeviceRepr>(
    kernel: &'static str,
    logits: [&Tensor; 2],
    batch: &layout::Batch,
    params: &[RowParams],
) -> candle_core::Result<Vec<Result<RowSample, SamplingError>>> {
    let vocab = logits[0].dim(1)? as u32;
    let device = logits[0].device().as_cuda_device()?;
    let guards = logits.map(Tensor::storage_and_layout);
    let [(conditional, stride), (unconditional, unconditional_stride)] =
        [slice::<T>(&guards[0])?, slice::<T>(&guards[1])?];
    let mut packing = Packing::new();
    let rows = packing.push(&batch.rows);
    let adjustments = packing.push(&batch.adjustments);
    let of = packing.push(&batch.of);
    let allowed = packing.push(&batch.allowed);
    let lists = Uploaded::new(device, &packing)?;
    let (rows, adjustments) = (lists.list(rows)?, lists.list(adjustments)?);
    let (of, allowed) = (lists.list(of)?, lists.list(allowed)?);
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
    builder.arg(&conditional).arg(&stride);
    builder.arg(&unconditional).arg(&unconditional_stride);
    builder.arg(&vocab).arg(&rows).arg(&adjustments);
    builder.arg(&allowed).arg(&of);
    builder.arg(&mut found).arg(&mut top).arg(&mut of_found);
    // SAFETY: the parameters of the kernel in their order; `rows` names nothing outside the lists and the
    // unconditional logits, which are as many as the conditional ones.
    unsafe { builder.launch(config(&launch)) }.w()?;
    let staging = Staging::of(device)?;
    let found = staging.read(&found.as_view())?;
    let (mut tops, mut ofs) = (Vec::new(), Vec::new());
    if params.iter().any(|params| params.logprobs.is_some()) {
        tops = staging.read(&top.as_view())?;
        ofs = staging.read(&of_found.as_view())?;
    }
    tops.resize(params.len() * MOST_TOP, Top::zeroed());
    Ok(batch.samples(params, &found, &tops, &ofs))
}

/// The first number of rows of logits and all after it, and how far the rows are apart.
fn slice<'a, T: CudaDType + DeviceRepr>(
    (storage, layout): &'a (StorageRef<'_>, &Layout),
) -> candle_core::Result<(CudaView<'a, T>, u64)> {
    match &**storage {
        Storage::Cuda(storage) => Ok((
            storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..),
            layout.stride()[0] as u64,
        )),
        _ => candle_core::bail!("the reduction on CUDA was given a tensor of another device"),
    }
}
