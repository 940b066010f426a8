//! Attention composed of tensor operations, for any device and number format.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels::transfer;
use crate::models::KvPool;
use crate::models::batch::Segment;

/// What the rows of a batch attend to, on the device: uploaded once a forward, and read by every layer.
pub(super) struct EagerPlan {
    groups: Vec<Group>,
}

/// Segments of one length that attend alike, one after the other.
struct Group {
    /// All of their rows.
    rows: Range<usize>,
    /// How many they are.
    count: usize,
    /// Slots of the pool that the rows attend to, u32; only a segment that is alone in its group has any.
    context: Option<Tensor>,
    /// What is added to scores, −∞ but for rounding where a row may not attend, f32 `[1, 1, queries, keys]`.
    bias: Option<Tensor>,
}

impl EagerPlan {
    pub fn new(segments: &[Segment], device: &Device) -> Result<Self> {
        let groups = segments
            .chunk_by(Segment::is_alike)
            .filter(|group| !group[0].rows.is_empty())
            .map(|group| Group::new(&group[0], group.len(), device));
        Ok(Self {
            groups: groups.collect::<Result<_>>()?,
        })
    }

    /// Dot-product attention, of products times `scale`, of each row to its segment's cached slots and rows. `q` is
    /// `[rows, heads, head_dim]`, `k` and `v` are `[rows, kv_heads, head_dim]`; the result is
    /// `[rows, heads · head_dim]`.
    pub fn attend(
        &self,
        pool: Option<&KvPool>,
        layer: usize,
        scale: f32,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let mut outputs = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let rows = |x: &Tensor| x.narrow(0, group.rows.start, group.rows.len());
            let (q, mut k, mut v) = (rows(q)?, rows(k)?, rows(v)?);
            if let Some((pool, context)) = pool.zip(group.context.as_ref()) {
                let (keys, values) = pool.read(layer, context)?;
                k = Tensor::cat(&[&keys, &k], 0)?;
                v = Tensor::cat(&[&values, &v], 0)?;
            }
            let bias = group.bias.as_ref();
            outputs.push(scaled_dot_product([&q, &k, &v], scale, group.count, bias)?);
        }
        match outputs.as_slice() {
            [] => q.flatten_from(1),
            [output] => Ok(output.clone()),
            _ => Tensor::cat(&outputs, 0),
        }
    }
}

impl Group {
    /// Of `count` segments like `first`.
    fn new(first: &Segment, count: usize, device: &Device) -> Result<Self> {
        let (start, queries) = (first.rows.start, first.rows.len());
        let slots = first.context.as_slice();
        let context = match slots.is_empty() {
            true => None,
            false => Some(transfer::to_device(slots, slots.len(), device)?),
        };
        let sees_all = first.allowed.is_none() && first.context_from.is_empty();
        let bias = (!sees_all).then(|| {
            let rows = (0..queries).flat_map(|row| {
                let from = first.context_from.get(row).copied().unwrap_or(0);
                let context = (0..slots.len()).map(move |slot| slot >= from);
                let own = (0..queries).map(move |other| {
                    let allowed = first.allowed.as_deref();
                    allowed.is_none_or(|allowed| allowed[row * queries + other])
                });
                context.chain(own)
            });
            let bias = rows.map(|allowed| if allowed { 0.0 } else { f32::MIN });
            let shape = (1, 1, queries, slots.len() + queries);
            transfer::to_device(&bias.collect::<Vec<f32>>(), shape, device)
        });
        Ok(Self {
            rows: start..start + count * queries,
            count,
            context,
            bias: bias.transpose()?,
        })
    }
}

/// Attention within each of `count` sequences of one length: `q` is `[count · queries, heads,
/// head_dim]`, `k` and `v` are `[count · keys, kv_heads, head_dim]`; `bias` `[1, 1, queries, keys]` is
/// added to the scores, which are products times `scale`.
fn scaled_dot_product(
    [q, k, v]: [&Tensor; 3],
    scale: f32,
    count: usize,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (rows, heads, head_dim) = q.dims3()?;
    let groups = heads / k.dim(1)?;
    let (queries, keys) = (rows / count, k.dim(0)? / count);
    // [count · length, heads, head_dim] → [count, heads, length, head_dim]
    let by_head = |x: &Tensor, length: usize| {
        x.reshape((count, length, x.dim(1)?, head_dim))?
            .transpose(1, 2)?
            .contiguous()
    };
    let q = (by_head(q, queries)? * f64::from(scale))?;
    let k = for_each_query_head(&by_head(k, keys)?, groups)?;
    let v = for_each_query_head(&by_head(v, keys)?, groups)?;
    let mut scores = q.matmul(&k.transpose(2, 3)?)?.to_dtype(DType::F32)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
    weights
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((rows, heads * head_dim))
}

/// `[count, kv_heads, keys, head_dim]` → `[count, kv_heads · groups, keys, head_dim]`: each key/value head
/// for all query heads that read it.
fn for_each_query_head(x: &Tensor, groups: usize) -> Result<Tensor> {
    let (count, heads, keys, dim) = x.dims4()?;
    if groups == 1 {
        return Ok(x.clone());
    }
    x.unsqueeze(2)?
        .expand((count, heads, groups, keys, dim))?
        .reshape((count, heads * groups, keys, dim))
}
