//! Attention on a CUDA device by `kernels/ragged_attention.cu`.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::ragged::{self, QueryTile, RaggedPlan, RaggedSegment};
use crate::kernels::cuda::{Uploaded, config, function};
use crate::kernels::packing::{Packing, Part};
use crate::models::batch::Segment;

/// The most rows of a segment for which the kernel is used. It multiplies on ordinary cores: for more rows,
/// products on tensor cores are faster than what they cost in copies and launches.
const MOST_ROWS: usize = 64;

// SAFETY: plain numbers, laid out as the kernel's structs.
unsafe impl DeviceRepr for RaggedSegment {}
// SAFETY: as above.
unsafe impl DeviceRepr for QueryTile {}

/// Whether the kernel is used for `segments` and heads like those of `q` `[rows, heads, head_dim]`.
pub(super) fn is_for(segments: &[Segment], q: &Tensor) -> bool {
    q.device().is_cuda()
        && matches!(q.dims(), [_, _, dim] if ragged::kernels(*dim).is_some())
        && matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F16)
        && segments
            .iter()
            .all(|segment| segment.rows.len() <= MOST_ROWS && segment.context_from.is_empty())
}

/// A plan on the device, uploaded once a forward.
pub(super) struct DevicePlan {
    lists: Uploaded,
    segments: Part<RaggedSegment>,
    tiles: Part<QueryTile>,
    context: Part<u32>,
    visible: Part<u32>,
    allowed: Part<u32>,
}

impl DevicePlan {
    /// For heads of width `dim`, of which `group` share keys and values.
    pub fn new(segments: &[Segment], dim: usize, group: usize, device: &Device) -> Result<Self> {
        let plan = RaggedPlan::new(segments, dim, group);
        let mut packing = Packing::new();
        Ok(Self {
            segments: packing.push(&plan.segments),
            tiles: packing.push(&plan.tiles),
            context: packing.push(&plan.context),
            visible: packing.push(&plan.visible),
            allowed: packing.push(&plan.allowed),
            lists: Uploaded::new(device.as_cuda_device()?, &packing)?,
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
        match ragged::kernels(dim) {
            Some(kernels) => self.typed(tensors, kernels),
            None => candle_core::bail!("there is no kernel for heads of width {dim}"),
        }
    }
}

impl RaggedAttention<'_> {
    /// `kernels` are those for f32, bf16 and f16.
    fn typed(
        &self,
        tensors: [(&CudaStorage, &Layout); 3],
        [of_f32, of_bf16, of_f16]: [&'static str; 3],
    ) -> Result<(CudaStorage, Shape)> {
        match tensors[0].0.dtype() {
            DType::F32 => self.launch::<f32>(of_f32, tensors),
            DType::BF16 => self.launch::<bf16>(of_bf16, tensors),
            DType::F16 => self.launch::<f16>(of_f16, tensors),
            other => candle_core::bail!("attention of {other:?}; allowed: f32, bf16, f16"),
        }
    }

    fn launch<T: CudaDType + DeviceRepr>(
        &self,
        kernel: &'static str,
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
        // SAFETY: the kernel writes every row, each of which is in one segment.
        let mut out = unsafe { device.alloc::<T>(rows * heads * dim)? };
        let plan = self.plan;
        let launch = ragged::launch(kernel, plan.tiles.len(), kv_heads);
        let (head_count, kv_head_count) = (heads as u32, kv_heads as u32);
        let scale = self.scale;
        let (segments, tiles) = (
            plan.lists.list(plan.segments)?,
            plan.lists.list(plan.tiles)?,
        );
        let [context, visible, allowed] =
            [plan.context, plan.visible, plan.allowed].map(|words| plan.lists.list(words));
        let (context, visible, allowed) = (context?, visible?, allowed?);
        let function = function(device, kernel)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&q).arg(&k).arg(&v).arg(&keys).arg(&values);
        builder.arg(&segments).arg(&tiles);
        builder.arg(&context).arg(&visible);
        builder.arg(&allowed).arg(&head_count).arg(&kv_head_count);
        builder.arg(&scale).arg(&mut out);
        // SAFETY: the parameters of the kernel in their order; the plan names rows of the batch and slots of
        // the pool, which `Attention::new` has checked.
        unsafe { builder.launch(config(&launch)) }.w()?;
        let shape = Shape::from((rows, heads * dim));
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), shape))
    }
}
