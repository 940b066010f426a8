//! Attention composed of tensor operations, for any device and number format.

use candle_core::{DType, Result, Tensor};

use crate::models::KvPool;
use crate::models::batch::Segment;

/// Scaled dot-product attention of each row to its segment's cached slots and rows. `q` is
/// `[rows, heads, head_dim]`, `k` and `v` are `[rows, kv_heads, head_dim]`; the result is
/// `[rows, heads · head_dim]`.
pub(super) fn attend(
    segments: &[Segment],
    pool: Option<&KvPool>,
    layer: usize,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let mut outputs = Vec::new();
    for group in segments.chunk_by(Segment::is_alike) {
        if group[0].rows.is_empty() {
            continue;
        }
        let (start, length) = (group[0].rows.start, group[0].rows.len());
        let rows = |x: &Tensor| x.narrow(0, start, group.len() * length);
        let (q, mut k, mut v) = (rows(q)?, rows(k)?, rows(v)?);
        let Segment {
            allowed, context, ..
        } = &group[0];
        if let Some(pool) = pool
            && !context.is_empty()
        {
            let (keys, values) = pool.read(layer, context)?;
            k = Tensor::cat(&[&keys, &k], 0)?;
            v = Tensor::cat(&[&values, &v], 0)?;
        }
        outputs.push(scaled_dot_product(
            &q,
            &k,
            &v,
            group.len(),
            allowed.as_deref(),
        )?);
    }
    match outputs.as_slice() {
        [] => q.flatten_from(1),
        [output] => Ok(output.clone()),
        _ => Tensor::cat(&outputs, 0),
    }
}

/// Attention within each of `count` sequences of one length: `q` is `[count · queries, heads,
/// head_dim]`, `k` and `v` are `[count · keys, kv_heads, head_dim]`. `allowed` `[queries, queries]`
/// says which of the last keys, those of the rows themselves, a query may attend to.
fn scaled_dot_product(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    count: usize,
    allowed: Option<&[bool]>,
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
    let q = (by_head(q, queries)? * (1.0 / (head_dim as f64).sqrt()))?;
    let k = for_each_query_head(&by_head(k, keys)?, groups)?;
    let v = for_each_query_head(&by_head(v, keys)?, groups)?;
    let mut scores = q.matmul(&k.transpose(2, 3)?)?.to_dtype(DType::F32)?;
    if let Some(allowed) = allowed {
        let context = keys - queries;
        let bias: Vec<f32> = allowed
            .chunks(queries)
            .flat_map(|row| {
                let own = row
                    .iter()
                    .map(|allowed| if *allowed { 0.0 } else { f32::MIN });
                std::iter::repeat_n(0.0, context).chain(own)
            })
            .collect();
        let bias = Tensor::from_vec(bias, (1, 1, queries, keys), scores.device())?;
        scores = scores.broadcast_add(&bias)?;
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
