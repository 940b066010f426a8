//! Layers on a CUDA device by `kernels/layers.cu`, each `None` where candle's operations have to do it: on other
//! devices, and for types and shapes that the kernels are not built for.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, Result, Storage, Tensor};
use half::{bf16, f16};

use crate::kernels::cuda::{config, function};
use crate::kernels::{Launch, ROW_THREADS};
use crate::models::layers::{Activation, RmsNorm};

/// The widest head that the kernel rotates.
const WIDEST_HEAD: usize = 512;

/// A number that a kernel takes.
enum Number {
    U32(u32),
    U64(u64),
    F32(f32),
}

/// x + residual, and its norm.
pub(super) fn add_rms_norm(
    x: &Tensor,
    residual: &Tensor,
    norm: &RmsNorm,
) -> Result<Option<[Tensor; 2]>> {
    let Some(width) = x.dims().last().copied() else {
        return Ok(None);
    };
    let inputs = [x, residual, &norm.weight];
    if !are_for(&inputs) || residual.dims() != x.dims() || norm.weight.dims() != [width] {
        return Ok(None);
    }
    let names = ["add_rms_norm_f32", "add_rms_norm_bf16", "add_rms_norm_f16"];
    let rows = x.elem_count() / width;
    let launch = |name| Launch::rows(name, rows, ROW_THREADS);
    let numbers = [Number::U32(width as u32), Number::F32(norm.eps)];
    run(names.map(launch), &inputs, &numbers).map(Some)
}

/// `x` `[rows, heads, dim]`, each of whose heads is normed first if there is a norm, with the first 2 · half
/// dimensions of every head rotated by its row's angles, whose cosines and sines are `[rows, half]`, of the type of
/// `x` or, without a norm, in f32.
pub(super) fn rotated(
    x: &Tensor,
    norm: Option<&RmsNorm>,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Option<Tensor>> {
    let (&[rows, heads, dim], &[angles, half]) = (x.dims(), cos.dims()) else {
        return Ok(None);
    };
    let of_x: Vec<&Tensor> = [x]
        .into_iter()
        .chain(norm.map(|norm| &norm.weight))
        .collect();
    let angles_in_f32 = norm.is_none() && cos.dtype() == DType::F32;
    if !(are_for(&of_x) && are_for(&[cos, sin]))
        || !(angles_in_f32 || cos.dtype() == x.dtype())
        || norm.is_some_and(|norm| norm.weight.dims() != [dim])
        || sin.dims() != cos.dims()
        || angles != rows
        || 2 * half > dim
        || dim > WIDEST_HEAD
    {
        return Ok(None);
    }
    let mut numbers: Vec<Number> = [rows * heads, heads, dim, half]
        .map(|number| Number::U32(number as u32))
        .into();
    numbers.extend(norm.map(|norm| Number::F32(norm.eps)));
    let names = match norm {
        Some(_) => ["norm_rotate_f32", "norm_rotate_bf16", "norm_rotate_f16"],
        None if angles_in_f32 => ["rotate_f32", "rotate_by_f32_bf16", "rotate_by_f32_f16"],
        None => ["rotate_f32", "rotate_bf16", "rotate_f16"],
    };
    let inputs = [of_x, vec![cos, sin]].concat();
    let launch = |name| Launch::warps(name, rows * heads, ROW_THREADS);
    let [rotated] = run(names.map(launch), &inputs, &numbers)?;
    Ok(Some(rotated))
}

/// activation(gate) ⊙ up
pub(super) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let inputs = [gate, up];
    if !are_for(&inputs) || up.dims() != gate.dims() {
        return Ok(None);
    }
    let count = gate.elem_count();
    let launch = |name| Launch::numbers(name, count, ROW_THREADS);
    let names = ["gated_f32", "gated_bf16", "gated_f16"];
    let numbers = [Number::U64(count as u64), Number::U32(activation as u32)];
    let [gated] = run(names.map(launch), &inputs, &numbers)?;
    Ok(Some(gated))
}

/// `x` `[.., width]` + `bias` `[width]`
pub(super) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Option<Tensor>> {
    let Some(width) = x.dims().last().copied() else {
        return Ok(None);
    };
    let inputs = [x, bias];
    if !are_for(&inputs) || bias.dims() != [width] {
        return Ok(None);
    }
    let names = ["add_bias_f32", "add_bias_bf16", "add_bias_f16"];
    let launch = |name| Launch::rows(name, x.elem_count() / width, ROW_THREADS);
    let [sum] = run(names.map(launch), &inputs, &[Number::U32(width as u32)])?;
    Ok(Some(sum))
}

/// Whether they are on a CUDA device, of one type that the kernels are built for, and none is empty.
fn are_for(inputs: &[&Tensor]) -> bool {
    let dtype = inputs[0].dtype();
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
        && inputs
            .iter()
            .all(|x| x.device().is_cuda() && x.dtype() == dtype && x.elem_count() > 0)
}

/// Runs the one of `launches`, for f32, bf16 and f16, that is of the first input's type. The kernel takes the inputs,
/// the numbers, and N outputs of the shape of the first input.
fn run<const N: usize>(
    [of_f32, of_bf16, of_f16]: [Launch; 3],
    inputs: &[&Tensor],
    numbers: &[Number],
) -> Result<[Tensor; N]> {
    match inputs[0].dtype() {
        DType::F32 => typed::<f32, N>(&of_f32, inputs, numbers),
        DType::BF16 => typed::<bf16, N>(&of_bf16, inputs, numbers),
        DType::F16 => typed::<f16, N>(&of_f16, inputs, numbers),
        other => candle_core::bail!("layers of {other:?}; allowed: f32, bf16, f16"),
    }
}

/// The numbers of a contiguous tensor.
enum Slice<'a> {
    F32(CudaView<'a, f32>),
    Bf16(CudaView<'a, bf16>),
    F16(CudaView<'a, f16>),
}

impl<'a> Slice<'a> {
    fn new(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let first = layout.start_offset();
        let range = first..first + layout.shape().elem_count();
        Ok(match storage.dtype() {
            DType::F32 => Self::F32(storage.as_cuda_slice()?.slice(range)),
            DType::BF16 => Self::Bf16(storage.as_cuda_slice()?.slice(range)),
            DType::F16 => Self::F16(storage.as_cuda_slice()?.slice(range)),
            other => candle_core::bail!("a layer is given {other:?}; allowed: f32, bf16, f16"),
        })
    }
}

fn typed<T: CudaDType + DeviceRepr, const N: usize>(
    launch: &Launch,
    inputs: &[&Tensor],
    numbers: &[Number],
) -> Result<[Tensor; N]> {
    let shape = inputs[0].shape();
    let device = inputs[0].device().as_cuda_device()?;
    let inputs: Vec<Tensor> = (inputs.iter().map(|x| x.contiguous())).collect::<Result<_>>()?;
    let guards: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let slices = guards.iter().map(|(storage, layout)| match &**storage {
        Storage::Cuda(storage) => Slice::new(storage, layout),
        _ => candle_core::bail!("{} was given a tensor of another device", launch.kernel),
    });
    let slices = slices.collect::<Result<Vec<_>>>()?;
    let mut outputs = Vec::with_capacity(N);
    for _ in 0..N {
        // SAFETY: the kernel writes every number of its outputs.
        outputs.push(unsafe { device.alloc::<T>(shape.elem_count())? });
    }
    let function = function(device, launch.kernel)?;
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for slice in &slices {
        match slice {
            Slice::F32(slice) => builder.arg(slice),
            Slice::Bf16(slice) => builder.arg(slice),
            Slice::F16(slice) => builder.arg(slice),
        };
    }
    for number in numbers {
        match number {
            Number::U32(number) => builder.arg(number),
            Number::U64(number) => builder.arg(number),
            Number::F32(number) => builder.arg(number),
        };
    }
    for output in &mut outputs {
        builder.arg(output);
    }
    // SAFETY: the parameters of the kernel in their order, of the shapes that the callers have checked.
    unsafe { builder.launch(config(launch)) }.w()?;
    let outputs = outputs.into_iter().map(|output| {
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(output, device.clone()));
        Tensor::from_storage(storage, shape.clone(), BackpropOp::none(), false)
    });
    let outputs: Vec<Tensor> = outputs.collect();
    outputs
        .try_into()
        .map_err(|_| candle_core::Error::Msg("as many outputs as asked for".into()))
}
