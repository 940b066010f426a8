//! Attention on a CUDA device by `kernels/ragged_attention.cu`, `kernels/long_attention.cu` and
//! `kernels/attention_merge.cu`.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::Heads;
use super::ragged::{self, MergeTile, QueryTile, RaggedPlan, RaggedSegment};
use crate::kernels::cuda::{Uploaded, config, function};
use crate::kernels::packing::{Packing, Part};
use crate::models::batch::Segment;

// SAFETY: plain numbers, laid out as the kernel's structs.
unsafe impl DeviceRepr for RaggedSegment {}
// SAFETY: as above.
unsafe impl DeviceRepr for QueryTile {}
// SAFETY: as above.
unsafe impl DeviceRepr for MergeTile {}

/// Whether the kernels are built for heads like those of `q` `[rows, heads, head_dim]`.
pub(super) fn is_for(q: &Tensor) -> bool {
    q.device().is_cuda()
        && matches!(q.dims(), [_, _, dim] if ragged::kernels(*dim).is_some())
        && matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// From how many queries of a segment and key/value head on products of heads of width `dim` are those of tensor cores.
/// Never in f32, of which they would keep 11 bits.
fn least_long_queries(dtype: DType, dim: usize) -> usize {
    match dtype {
        DType::BF16 | DType::F16 if ragged::long_kernels(dim).is_some() => {
            ragged::LEAST_LONG_QUERIES
        }
        _ => usize::MAX,
    }
}

/// A plan on the device, uploaded once a forward.
pub(super) struct DevicePlan {
    lists: Uploaded,
    segments: Part<RaggedSegment>,
    tiles: Part<QueryTile>,
    long_tiles: Part<QueryTile>,
    merge_tiles: Part<MergeTile>,
    /// Numbers that partial results take.
    partial_numbers: usize,
    context: Part<u32>,
    first_seen: Part<u32>,
    visible: Part<u32>,
    allowed: Part<u32>,
}

impl DevicePlan {
    /// For heads like those of `q` `[rows, heads, head_dim]`, and `kv_heads` of keys and values.
    pub fn new(segments: &[Segment], q: &Tensor, kv_heads: usize) -> Result<Self> {
        let (_, query, dim) = q.dims3()?;
        let heads = Heads {
            query,
            key_value: kv_heads,
            dim,
        };
        let plan = RaggedPlan::new(segments, heads, least_long_queries(q.dtype(), dim));
        let device = q.device().as_cuda_device()?;
        // So that the driver has compiled its module when the first segment has so many keys that they are cut.
        let [merge_kernel, ..] = ragged::MERGE_KERNELS;
        function(device, merge_kernel)?;
        let mut packing = Packing::new();
        Ok(Self {
            segments: packing.push(&plan.segments),
            tiles: packing.push(&plan.tiles),
            long_tiles: packing.push(&plan.long_tiles),
            merge_tiles: packing.push(&plan.merge_tiles),
            partial_numbers: plan.partial_numbers(heads),
            context: packing.push(&plan.context),
            first_seen: packing.push(&plan.first_seen),
            visible: packing.push(&plan.visible),
            allowed: packing.push(&plan.allowed),
            lists: Uploaded::new(device, &packing)?,
        })
    }

    /// Attention, of products times `scale`, of `q` `[rows, heads, head_dim]` to `k` and `v` `[rows, kv_heads,
    /// head_dim]` and to the keys and values of the pool; `[rows, heads · head_dim]`.
    pub fn attend(
        &self,
        pool: Option<(&Tensor, &Tensor)>,
        scale: f32,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let attention = RaggedAttention {
            plan: self,
            pool,
            scale,
        };
        let (k, v) = (aligned(k)?, aligned(v)?);
        aligned(q)?.apply_op3_no_bwd(&k, &v, &attention)
    }
}

/// An address for kernels that do not use it.
const NOWHERE: u64 = 0;

/// The bytes that the kernel loads at once.
const LOADED_BYTES: usize = 16;

/// `x` contiguous and from an address on that the kernel can load from. All but views from within a head are, since
/// allocations and heads are multiples of what is loaded.
fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let offset = x.layout().start_offset() * x.dtype().size_in_bytes();
    match offset % LOADED_BYTES {
        0 => Ok(x),
        _ => x.force_contiguous(),
    }
}

struct RaggedAttention<'a> {
    plan: &'a DevicePlan,
    pool: Option<(&'a Tensor, &'a Tensor)>,
    scale: f32,
}

impl CustomOp3 for RaggedAttention<'_> {
    fn name(&self) -> &'static str {
        "ragged_attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("ragged_attention runs on CUDA devices")
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let tensors = [(q, q_layout), (k, k_layout), (v, v_layout)];
        let dim = q_layout.dims()[2];
        let Some([of_f32, of_bf16, of_f16]) = ragged::kernels(dim) else {
            candle_core::bail!("there is no kernel for heads of width {dim}")
        };
        let [long_of_bf16, long_of_f16] = match ragged::long_kernels(dim) {
            Some(kernels) => kernels.map(Some),
            None => [None, None],
        };
        let [merge_f32, merge_bf16, merge_f16] = ragged::MERGE_KERNELS;
        match q.dtype() {
            DType::F32 => self.launch::<f32>((of_f32, None, merge_f32), tensors),
            DType::BF16 => self.launch::<bf16>((of_bf16, long_of_bf16, merge_bf16), tensors),
            DType::F16 => self.launch::<f16>((of_f16, long_of_f16, merge_f16), tensors),
            other => candle_core::bail!("attention of {other:?}; allowed: f32, bf16, f16"),
        }
    }
}

impl RaggedAttention<'_> {
    /// Launches `kernel` for the segments of few queries, `long_kernel` for the others, and `merge_kernel` where keys are cut.
    fn launch<T: CudaDType + DeviceRepr>(
        &self,
        (kernel, long_kernel, merge_kernel): (&'static str, Option<&'static str>, &'static str),
        tensors: [(&CudaStorage, &Layout); 3],
    ) -> Result<(CudaStorage, Shape)> {
        let device: &CudaDevice = &tensors[0].0.device;
        let (rows, heads, dim) = tensors[0].1.shape().dims3()?;
        let kv_heads = tensors[1].1.dims()[1];
        let [q, k, v] = tensors.map(|(storage, layout)| {
            let slice = storage.as_cuda_slice::<T>()?;
            Ok::<_, candle_core::Error>(slice.slice(layout.start_offset()..))
        });
        let (q, k, v) = (q?, k?, v?);
        let guards = self
            .pool
            .map(|(keys, values)| (keys.storage_and_layout(), values.storage_and_layout()));
        // Without a pool no segment names one of its slots.
        let (keys, values) = match &guards {
            None => (k.slice(..), v.slice(..)),
            Some(((keys, _), (values, _))) => match (&**keys, &**values) {
                (Storage::Cuda(keys), Storage::Cuda(values)) => (
                    keys.as_cuda_slice::<T>()?.slice(..),
                    values.as_cuda_slice::<T>()?.slice(..),
                ),
                _ => candle_core::bail!("the pool of keys and values is on another device"),
            },
        };
        // SAFETY: the kernels write every row, each of which is in one segment, which one of them takes.
        let mut out = unsafe { device.alloc::<T>(rows * heads * dim)? };
        let plan = self.plan;
        // SAFETY: of each query of a segment whose keys are cut the kernels write a partial result over every split, before
        // these are merged.
        let mut partials = match plan.partial_numbers {
            0 => None,
            numbers => Some(unsafe { device.alloc::<f32>(numbers)? }),
        };
        let (head_count, kv_head_count) = (heads as u32, kv_heads as u32);
        let scale = self.scale;
        let segments = plan.lists.list(plan.segments)?;
        let words = [plan.context, plan.first_seen, plan.visible, plan.allowed];
        let [context, first_seen, visible, allowed] = words.map(|words| plan.lists.list(words));
        let (context, first_seen) = (context?, first_seen?);
        let (visible, allowed) = (visible?, allowed?);
        let of_few = ragged::launch(kernel, plan.tiles.len(), kv_heads);
        let of_many = long_kernel
            .map(|kernel| ragged::long_launch(kernel, dim, plan.long_tiles.len(), kv_heads));
        let stream = device.cuda_stream();
        for (launch, tiles) in [(Some(of_few), plan.tiles), (of_many, plan.long_tiles)] {
            if tiles.is_empty() {
                continue;
            }
            let Some(launch) = launch else {
                candle_core::bail!("{kernel} is for few queries, and there is none for many")
            };
            let tiles = plan.lists.list(tiles)?;
            let function = function(device, launch.kernel)?;
            let mut builder = stream.launch_builder(&function);
            builder.arg(&q).arg(&k).arg(&v).arg(&keys).arg(&values);
            builder.arg(&segments).arg(&tiles);
            builder.arg(&context).arg(&first_seen);
            builder.arg(&visible).arg(&allowed);
            builder.arg(&head_count).arg(&kv_head_count);
            builder.arg(&scale).arg(&mut out);
            match &mut partials {
                Some(partials) => builder.arg(partials),
                None => builder.arg(&NOWHERE),
            };
            // SAFETY: the parameters of both kernels in their order; the plan names rows of the batch and slots of
            // the pool, which `Attention::new` has checked, and places of partial results where there are any.
            unsafe { builder.launch(config(&launch)) }.w()?;
        }
        if let Some(partials) = &partials {
            let tiles = plan.lists.list(plan.merge_tiles)?;
            let launch = ragged::merge_launch(merge_kernel, dim, tiles.len(), kv_heads);
            let function = function(device, launch.kernel)?;
            let width = dim as u32;
            let mut builder = stream.launch_builder(&function);
            builder.arg(partials).arg(&segments).arg(&tiles);
            builder.arg(&head_count).arg(&kv_head_count).arg(&width);
            builder.arg(&mut out);
            // SAFETY: the parameters of the kernel in their order; the plan names rows of the batch and partial results.
            unsafe { builder.launch(config(&launch)) }.w()?;
        }
        let shape = Shape::from((rows, heads * dim));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}
