//! The mixture of experts on a CUDA device by `kernels/experts.cu`: the host chooses nothing and waits for nothing.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Storage, Tensor};
use half::{bf16, f16};

use super::grouped::{self, ExpertTile};
use super::{Activation, GatedMlp, Router};
use crate::kernels::cuda::{config, function};

/// Rows an expert, on average, up to which the kernels are used. They multiply on ordinary cores: for more rows,
/// products on tensor cores are faster than what it costs to wait for the device and to launch each expert's products.
const MOST_ROWS_OF_EXPERT: usize = 32;

/// The most experts of a mixture, as the kernels have it.
const MOST_EXPERTS: usize = 512;

/// Numbers that a lane reads at once: what widths must be multiples of.
const LANE_NUMBERS: usize = 8;

/// What a row's address, in bytes, must be a multiple of.
const ALIGNMENT: u64 = 16;

// SAFETY: plain numbers, laid out as the kernels' struct.
unsafe impl DeviceRepr for ExpertTile {}

/// Experts whose weights kernels find by themselves.
pub(super) struct DeviceExperts {
    router: Router,
    /// `[experts]`, zeros if the router has none.
    bias: CudaSlice<f32>,
    /// `[experts]`, ones if the router has none.
    scales: CudaSlice<f32>,
    activation: Activation,
    /// Addresses `[experts, 3]` of gate, up and down.
    table: CudaSlice<u64>,
    /// What the addresses point to.
    weights: Vec<[Tensor; 3]>,
    dtype: DType,
    per_row: usize,
    hidden: usize,
    intermediate: usize,
}

/// Which experts each row goes to, on the device.
struct Routed {
    /// `[rows, per_row]`
    chosen: CudaSlice<u32>,
    weights: CudaSlice<f32>,
}

/// Rows by expert, on the device.
struct Grouped {
    /// Entries row · per_row + rank.
    order: CudaSlice<u32>,
    tiles: CudaSlice<ExpertTile>,
    tile_count: usize,
}

impl DeviceExperts {
    /// `None` if the experts are not on a CUDA device, are quantised, differ in their activations, or have a type or
    /// shape that the kernels are not built for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(router: &Router, experts: &[GatedMlp], per_row: usize) -> Result<Option<Self>> {
        let weights: Option<Vec<_>> = experts.iter().map(GatedMlp::float_weights).collect();
        let Some(weights) = weights else {
            return Ok(None);
        };
        let (Some([first, ..]), Some(activation)) =
            (weights.first(), experts.first().map(GatedMlp::activation))
        else {
            return Ok(None);
        };
        let (intermediate, hidden) = first.dims2()?;
        let dtype = first.dtype();
        let is_for = |weight: &Tensor, shape: [usize; 2]| {
            weight.device().is_cuda()
                && weight.dtype() == dtype
                && weight.dims() == shape
                && weight.is_contiguous()
        };
        if !weights.iter().all(|[gate, up, down]| {
            is_for(gate, [intermediate, hidden])
                && is_for(up, [intermediate, hidden])
                && is_for(down, [hidden, intermediate])
        }) || experts.iter().any(|other| other.activation() != activation)
            || !chooses(router, experts.len(), per_row)
            || !hidden.is_multiple_of(LANE_NUMBERS)
            || !intermediate.is_multiple_of(LANE_NUMBERS)
        {
            return Ok(None);
        }
        let addresses = weights.iter().flatten().map(|weight| match dtype {
            DType::F32 => address::<f32>(weight).map(Some),
            DType::BF16 => address::<bf16>(weight).map(Some),
            DType::F16 => address::<f16>(weight).map(Some),
            _ => Ok(None),
        });
        let addresses: Option<Vec<u64>> = addresses.collect::<Result<_>>()?;
        let Some(addresses) = addresses.filter(|all| all.iter().all(|at| at % ALIGNMENT == 0))
        else {
            return Ok(None);
        };
        let device = first.device().as_cuda_device()?;
        let (bias, scales) = match router {
            Router::Softmax { bias, scales, .. } => (bias.clone(), scales.clone()),
            Router::GroupedSigmoid { bias, .. } => (Some(bias.clone()), None),
        };
        let all = |number: f32| vec![number; experts.len()];
        Ok(Some(Self {
            router: router.clone(),
            bias: device.clone_htod(&bias.unwrap_or_else(|| all(0.0)))?,
            scales: device.clone_htod(&scales.unwrap_or_else(|| all(1.0)))?,
            activation,
            table: device.clone_htod(&addresses)?,
            weights: weights
                .into_iter()
                .map(|own| own.map(Tensor::clone))
                .collect(),
            dtype,
            per_row,
            hidden,
            intermediate,
        }))
    }

    /// What the experts make of `x` `[rows, hidden]` by the router's `logits` `[rows, experts]`; `None` where products
    /// on tensor cores are faster.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, x: &Tensor, logits: &Tensor) -> Result<Option<Tensor>> {
        let entries = x.dim(0)? * self.per_row;
        if x.dtype() != self.dtype || entries > MOST_ROWS_OF_EXPERT * self.weights.len() {
            return Ok(None);
        }
        match self.dtype {
            DType::F32 => self.typed::<f32>(x, logits, 0).map(Some),
            DType::BF16 => self.typed::<bf16>(x, logits, 1).map(Some),
            DType::F16 => self.typed::<f16>(x, logits, 2).map(Some),
            _ => Ok(None),
        }
    }

    /// `element` is the place of the type among the kernels' names.
    fn typed<T: CudaDType + DeviceRepr>(
        &self,
        x: &Tensor,
        logits: &Tensor,
        element: usize,
    ) -> Result<Tensor> {
        let device = x.device().as_cuda_device()?;
        let routed = self.route(logits)?;
        let entries = x.dim(0)? * self.per_row;
        let grouped = self.group(device, &routed.chosen, entries)?;
        let activations = self.gate_up::<T>(x, &grouped, element)?;
        let outputs = self.down(device, &activations, &grouped, entries, element)?;
        self.sum::<T>(device, &outputs, &routed.weights, entries, element)
    }

    fn route(&self, logits: &Tensor) -> Result<Routed> {
        let (rows, experts) = logits.dims2()?;
        let device = logits.device().as_cuda_device()?;
        let logits = logits.contiguous()?;
        let (storage, layout) = logits.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("the router's logits are on another device");
        };
        let slice = storage.as_cuda_slice::<f32>()?;
        let slice = slice.slice(layout.start_offset()..layout.start_offset() + rows * experts);
        let entries = rows * self.per_row;
        // SAFETY: the kernel writes every number of both.
        let mut chosen = unsafe { device.alloc::<u32>(entries)? };
        // SAFETY: as above.
        let mut weights = unsafe { device.alloc::<f32>(entries)? };
        let launch = grouped::route(&self.router, rows, experts);
        let (stride, count, per_row) = (experts as u64, experts as u32, self.per_row as u32);
        let function = function(device, launch.kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&slice).arg(&stride).arg(&self.bias);
        builder.arg(&count).arg(&per_row);
        let (softmax, groups);
        match &self.router {
            Router::Softmax { normalized, .. } => {
                softmax = u32::from(*normalized);
                builder.arg(&softmax).arg(&self.scales);
            }
            Router::GroupedSigmoid {
                groups: count,
                kept_groups,
                scale,
                ..
            } => {
                groups = (*count as u32, *kept_groups as u32);
                builder.arg(&groups.0).arg(&groups.1).arg(scale);
            }
        }
        builder.arg(&mut chosen).arg(&mut weights);
        // SAFETY: the parameters of the kernel in their order; `chooses` has seen the router and its sizes.
        unsafe { builder.launch(config(&launch)) }.w()?;
        Ok(Routed { chosen, weights })
    }

    fn group(
        &self,
        device: &CudaDevice,
        chosen: &CudaSlice<u32>,
        entries: usize,
    ) -> Result<Grouped> {
        let experts = self.weights.len();
        let tile_count = grouped::most_tiles(entries, experts);
        // SAFETY: the kernel writes every place of both.
        let mut order = unsafe { device.alloc::<u32>(entries)? };
        // SAFETY: as above.
        let mut tiles = unsafe { device.alloc::<ExpertTile>(tile_count)? };
        let launch = grouped::group(experts);
        let numbers = [entries, experts, tile_count].map(|number| number as u32);
        let function = function(device, launch.kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(chosen);
        numbers.iter().for_each(|number| {
            builder.arg(number);
        });
        builder.arg(&mut order).arg(&mut tiles);
        // SAFETY: the parameters of the kernel in their order; the router chooses among `experts`.
        unsafe { builder.launch(config(&launch)) }.w()?;
        Ok(Grouped {
            order,
            tiles,
            tile_count,
        })
    }

    /// `[entries, intermediate]`, in the order by expert.
    fn gate_up<T: CudaDType + DeviceRepr>(
        &self,
        x: &Tensor,
        grouped: &Grouped,
        element: usize,
    ) -> Result<CudaSlice<T>> {
        let device = x.device().as_cuda_device()?;
        let mut x = x.contiguous()?;
        if !address::<T>(&x)?.is_multiple_of(ALIGNMENT) {
            x = x.force_contiguous()?;
        }
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("the mixture's input is on another device");
        };
        let slice = storage.as_cuda_slice::<T>()?;
        let count = layout.shape().elem_count();
        let slice = slice.slice(layout.start_offset()..layout.start_offset() + count);
        let entries = x.dim(0)? * self.per_row;
        // SAFETY: the kernel writes the activations of every tile's rows, which are all entries.
        let mut activations = unsafe { device.alloc::<T>(entries * self.intermediate)? };
        let kernel = grouped::GATE_UP[element];
        let launch = grouped::gate_up(kernel, grouped.tile_count, self.intermediate);
        let numbers = [
            self.per_row as u32,
            self.hidden as u32,
            self.intermediate as u32,
            self.activation as u32,
        ];
        let function = function(device, launch.kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&slice).arg(&self.table);
        builder.arg(&grouped.tiles).arg(&grouped.order);
        numbers.iter().for_each(|number| {
            builder.arg(number);
        });
        builder.arg(&mut activations);
        // SAFETY: the parameters of the kernel in their order; the table has the addresses of weights of this type and
        // these widths, which `self` keeps, and all rows begin at multiples of 16 bytes.
        unsafe { builder.launch(config(&launch)) }.w()?;
        Ok(activations)
    }

    /// `[entries, hidden]`, in the order of entries.
    fn down<T: DeviceRepr>(
        &self,
        device: &CudaDevice,
        activations: &CudaSlice<T>,
        grouped: &Grouped,
        entries: usize,
        element: usize,
    ) -> Result<CudaSlice<f32>> {
        // SAFETY: the kernel writes the outputs of every tile's rows, which are all entries.
        let mut outputs = unsafe { device.alloc::<f32>(entries * self.hidden)? };
        let launch = grouped::down(grouped::DOWN[element], grouped.tile_count, self.hidden);
        let numbers = [self.hidden, self.intermediate].map(|number| number as u32);
        let function = function(device, launch.kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(activations).arg(&self.table);
        builder.arg(&grouped.tiles).arg(&grouped.order);
        builder.arg(&numbers[0]).arg(&numbers[1]).arg(&mut outputs);
        // SAFETY: as for the activations.
        unsafe { builder.launch(config(&launch)) }.w()?;
        Ok(outputs)
    }

    /// `[rows, hidden]`
    fn sum<T: CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        outputs: &CudaSlice<f32>,
        weights: &CudaSlice<f32>,
        entries: usize,
        element: usize,
    ) -> Result<Tensor> {
        let rows = entries / self.per_row;
        // SAFETY: the kernel writes every number.
        let mut sum = unsafe { device.alloc::<T>(rows * self.hidden)? };
        let launch = grouped::sum(grouped::SUM[element], rows, self.hidden);
        let numbers = [self.per_row, self.hidden].map(|number| number as u32);
        let function = function(device, launch.kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(outputs).arg(weights);
        builder.arg(&numbers[0]).arg(&numbers[1]).arg(&mut sum);
        // SAFETY: the parameters of the kernel in their order, with as many outputs and weights as entries.
        unsafe { builder.launch(config(&launch)) }.w()?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(sum, device.clone()));
        let shape = (rows, self.hidden);
        Ok(Tensor::from_storage(
            storage,
            shape,
            BackpropOp::none(),
            false,
        ))
    }
}

/// Whether there is a kernel for the choice of `per_row` of `experts` by `router`.
fn chooses(router: &Router, experts: usize, per_row: usize) -> bool {
    let in_groups = match router {
        Router::Softmax { .. } => true,
        Router::GroupedSigmoid { groups, .. } => *groups > 0 && experts.is_multiple_of(*groups),
    };
    in_groups && (1..=MOST_EXPERTS).contains(&experts) && (1..=experts).contains(&per_row)
}

/// Where a tensor's first number is on its device.
fn address<T: CudaDType + DeviceRepr>(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("a tensor of a CUDA device is asked for");
    };
    let stream = storage.device.cuda_stream();
    let (start, _read) = storage.as_cuda_slice::<T>()?.device_ptr(&stream);
    Ok(start + (layout.start_offset() * size_of::<T>()) as u64)
}
