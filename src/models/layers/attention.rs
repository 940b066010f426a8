//! Attention over a ragged batch.

use candle_core::{D, DType, Result, Tensor};
use candle_transformers::utils::repeat_kv;

use crate::models::batch::Segment;

/// Scaled dot-product attention of each row to the rows of its segment.
///
/// `q` is `[rows, heads, head_dim]`, `k` and `v` are `[rows, kv_heads, head_dim]`; the result is
/// `[rows, heads · head_dim]`. Neighbouring segments of one length are computed as one product.
pub(in crate::models) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &[Segment],
) -> Result<Tensor> {
    let (_, heads, head_dim) = q.dims3()?;
    let groups = heads / k.dim(1)?;
    let mut outputs = Vec::new();
    let same_shape = |a: &Segment, b: &Segment| {
        a.rows.len() == b.rows.len() && a.allowed.is_none() && b.allowed.is_none()
    };
    for group in segments.chunk_by(same_shape) {
        let (start, length) = (group[0].rows.start, group[0].rows.len());
        if length == 0 {
            continue;
        }
        let count = group.len();
        // [rows, heads, head_dim] → [count, heads, length, head_dim]
        let by_head = |x: &Tensor| {
            x.narrow(0, start, count * length)?
                .reshape((count, length, x.dim(1)?, head_dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let q = (by_head(q)? * (1.0 / (head_dim as f64).sqrt()))?;
        let k = repeat_kv(by_head(k)?, groups)?;
        let v = repeat_kv(by_head(v)?, groups)?;
        let mut scores = q.matmul(&k.transpose(2, 3)?)?.to_dtype(DType::F32)?;
        if let Some(allowed) = &group[0].allowed {
            let bias: Vec<f32> = allowed
                .iter()
                .map(|allowed| if *allowed { 0.0 } else { f32::MIN })
                .collect();
            let bias = Tensor::from_vec(bias, (1, 1, length, length), scores.device())?;
            scores = scores.broadcast_add(&bias)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        let output = weights
            .matmul(&v)?
            .transpose(1, 2)?
            .reshape((count * length, heads * head_dim))?;
        outputs.push(output);
    }
    match outputs.as_slice() {
        [] => q.flatten_from(D::Minus2),
        [output] => Ok(output.clone()),
        _ => Tensor::cat(&outputs, 0),
    }
}
