//! The reduction on a CUDA device, by `kernels/categorical.cu`: one small copy there, one launch, and one small copy back.

use bytemuck::Zeroable;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::{DType, Layout, Storage, StorageRef, Tensor};
use half::{bf16, f16};

use super::layout::{self, Adjustment, Found, MOST_TOP, Row, Top};
use super::{Guidance, RowParams, RowSample, SamplingError};
use crate::canvas::TokenId;
use crate::kernels::cuda::{Uploaded, config, function};
use crate::kernels::packing::{Packing, Part};
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
    if logits.dim(0)? == 0 && params.is_empty() {
        return Ok(Vec::new());
    }
    let mut reduction = Reduction::new(logits, guidance, params)?;
    reduction.launch(logits)?;
    reduction.samples()
}

/// A reduction whose lists are on the device, with room there for what is found. [`super::reduce`] makes, launches and
/// reads one; apart these are for measurements of the device alone.
pub struct Reduction<'a> {
    device: CudaDevice,
    params: &'a [RowParams],
    guidance: Option<&'a Guidance>,
    vocab: usize,
    batch: layout::Batch,
    lists: Uploaded,
    parts: Parts,
    found: CudaSlice<Found>,
    top: CudaSlice<Top>,
    of_found: CudaSlice<f32>,
}

/// Where in the packing the lists of a batch are.
struct Parts {
    rows: Part<Row>,
    adjustments: Part<Adjustment>,
    of: Part<TokenId>,
    allowed: Part<u32>,
}

impl<'a> Reduction<'a> {
    /// Takes the lists of `params` to the device of `logits` `[rows, vocab]`, in one copy that the host does not wait for.
    ///
    /// # Errors
    /// If `logits` have no rows or not as many as there are parameters, or are not on a CUDA device, `guidance` is for
    /// others, or the device fails.
    pub fn new(
        logits: &Tensor,
        guidance: Option<&'a Guidance>,
        params: &'a [RowParams],
    ) -> candle_core::Result<Self> {
        let (rows, vocab) = logits.dims2()?;
        if rows == 0 || rows != params.len() {
            candle_core::bail!("{rows} rows of logits but parameters for {}", params.len());
        }
        let device = logits.device().as_cuda_device()?;
        let mut batch = layout::Batch::new(params, vocab);
        if let Some(guidance) = guidance {
            let (given, scales) = (&guidance.unconditional, guidance.scales.len());
            if given.dims() != logits.dims() || scales != rows {
                candle_core::bail!(
                    "logits {:?} cannot be led away from {:?} by {scales} scales",
                    logits.shape(),
                    given.shape()
                );
            }
            batch.guide(&guidance.scales);
        }
        let mut packing = Packing::new();
        let parts = Parts {
            rows: packing.push(&batch.rows),
            adjustments: packing.push(&batch.adjustments),
            of: packing.push(&batch.of),
            allowed: packing.push(&batch.allowed),
        };
        let lists = Uploaded::new(device, &packing)?;
        // SAFETY: the kernel writes every entry of `found`, and of the others what rows ask for, which alone
        // is read.
        let (found, top, of_found) = unsafe {
            (
                device.alloc(params.len())?,
                device.alloc(params.len() * MOST_TOP)?,
                device.alloc(batch.of.len().max(1))?,
            )
        };
        Ok(Self {
            device: device.clone(),
            params,
            guidance,
            vocab,
            batch,
            lists,
            parts,
            found,
            top,
            of_found,
        })
    }

    /// Bytes of the device that it takes beside the logits.
    pub fn device_bytes(&self) -> usize {
        let found = self.found.num_bytes() + self.top.num_bytes() + self.of_found.num_bytes();
        self.lists.bytes() + found
    }

    /// Reduces `logits`, those that the reduction is made of or others of their shape and device, without waiting for the
    /// device.
    ///
    /// # Errors
    /// If they are of another shape or of a type that the kernel is not built for, or the device fails.
    pub fn launch(&mut self, logits: &Tensor) -> candle_core::Result<()> {
        if logits.dims() != [self.params.len(), self.vocab] {
            candle_core::bail!(
                "logits {:?} are given to a reduction of [{}, {}]",
                logits.shape(),
                self.params.len(),
                self.vocab
            );
        }
        let conditional = by_rows(logits)?;
        let unconditional = match self.guidance {
            Some(guidance) => by_rows(&guidance.unconditional)?,
            None => conditional.clone(),
        };
        let logits = [&conditional, &unconditional];
        match conditional.dtype() {
            DType::F32 => self.run::<f32>("categorical_f32", logits),
            DType::BF16 => self.run::<bf16>("categorical_bf16", logits),
            DType::F16 => self.run::<f16>("categorical_f16", logits),
            other => candle_core::bail!("logits are {other:?}; allowed: f32, bf16, f16"),
        }
    }

    /// Launches `kernel` on the conditional and the unconditional logits, of which the latter are read for the rows of
    /// the batch that name one of theirs.
    fn run<T: CudaDType + DeviceRepr>(
        &mut self,
        kernel: &'static str,
        logits: [&Tensor; 2],
    ) -> candle_core::Result<()> {
        let guards = logits.map(Tensor::storage_and_layout);
        let [(conditional, stride), (unconditional, unconditional_stride)] =
            [slice::<T>(&guards[0])?, slice::<T>(&guards[1])?];
        let vocab = self.vocab as u32;
        let (lists, parts) = (&self.lists, &self.parts);
        let (rows, adjustments) = (lists.list(parts.rows)?, lists.list(parts.adjustments)?);
        let (of, allowed) = (lists.list(parts.of)?, lists.list(parts.allowed)?);
        let launch = Launch::rows(kernel, self.params.len(), ROW_THREADS);
        let function = function(&self.device, kernel)?;
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&conditional).arg(&stride);
        builder.arg(&unconditional).arg(&unconditional_stride);
        builder.arg(&vocab).arg(&rows).arg(&adjustments);
        builder.arg(&allowed).arg(&of);
        builder.arg(&mut self.found).arg(&mut self.top);
        builder.arg(&mut self.of_found);
        // SAFETY: the parameters of the kernel in their order; `rows` names nothing outside the lists and the
        // unconditional logits, which are as many as the conditional ones.
        unsafe { builder.launch(config(&launch)) }.w()?;
        Ok(())
    }

    /// What the last launch found, once the device is done with it.
    ///
    /// # Errors
    /// As [`super::reduce`].
    fn samples(self) -> candle_core::Result<Vec<Result<RowSample, SamplingError>>> {
        let Self { params, .. } = self;
        let staging = Staging::of(&self.device)?;
        let found = staging.read(&self.found.as_view())?;
        let (mut tops, mut ofs) = (Vec::new(), Vec::new());
        if params.iter().any(|params| params.logprobs.is_some()) {
            tops = staging.read(&self.top.as_view())?;
            ofs = staging.read(&self.of_found.as_view())?;
        }
        tops.resize(params.len() * MOST_TOP, Top::zeroed());
        Ok(self.batch.samples(params, &found, &tops, &ofs))
    }
}

/// `logits` `[rows, vocab]` with the numbers of a row side by side. Rows may be any distance apart.
fn by_rows(logits: &Tensor) -> candle_core::Result<Tensor> {
    match logits.stride() {
        [_, 1] => Ok(logits.clone()),
        _ => logits.contiguous(),
    }
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
