//! Attention of a batch of short and long segments as a network asks for it, on a device against the same on the CPU.

use candle_core::{DType, Device, Tensor};

use super::Failure;
use super::element::ELEMENTS;
use super::random::Random;
use crate::models::{Attention, KvPool, RaggedBatch, Segment, embedded};

/// Heads, of which two share keys and values.
const HEADS: usize = 4;

/// Slots of the pool.
const SLOTS: usize = 600;

/// By type, of results of about ±1 of scores of about ±1: where a device has no kernel, scores are rounded too.
const TOLERANCES: [f32; 3] = [2e-5, 2e-2, 3e-3];

/// Results of every type, which differ from those of the CPU in f32 by what rounding makes. On a CUDA device those of a
/// segment are the same by itself.
pub(super) fn segments(device: &Device) -> Result<String, Failure> {
    let mut random = Random::new(72);
    let mut seen = Vec::new();
    for dim in [64, 128] {
        let mut spec = embedded::checkpoint()?.spec()?;
        (spec.layers, spec.kv_heads, spec.head_dim) = (1, HEADS / 2, dim);
        let batch = batch();
        for (element, tolerance) in ELEMENTS.into_iter().zip(TOLERANCES) {
            let dtype = element.dtype();
            let mut tensor = |rows: usize, heads: usize| {
                let numbers: Vec<f32> = (0..rows * heads * dim).map(|_| random.normal()).collect();
                let numbers = element.round(&numbers);
                Tensor::from_vec(numbers, (rows, heads, dim), &Device::Cpu)
            };
            let rows = batch.rows();
            let [q, k, v] = [HEADS, HEADS / 2, HEADS / 2].map(|heads| tensor(rows, heads));
            let qkv = [q?, k?, v?];
            let kept = [tensor(SLOTS, HEADS / 2)?, tensor(SLOTS, HEADS / 2)?];
            let attend =
                |batch: &RaggedBatch, of_rows: [&Tensor; 3], dtype: DType, device: &Device| {
                    let there = |x: &Tensor| x.to_device(device)?.to_dtype(dtype);
                    let pool = KvPool::new(&spec, SLOTS, dtype, device)?;
                    let slots: Vec<u32> = (0..SLOTS as u32).collect();
                    pool.write(0, &slots, &there(&kept[0])?, &there(&kept[1])?)?;
                    let [q, k, v] = of_rows.map(there);
                    let attention = Attention::new(batch, Some(&pool))?;
                    let out = attention.attend(0, &q?, &k?, &v?)?;
                    let out = out.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
                    Ok::<_, Failure>(out)
                };
            let all = qkv.each_ref();
            let found = attend(&batch, all, dtype, device)?;
            let wanted = attend(&batch, all, DType::F32, &Device::Cpu)?;
            let difference = (&found - &wanted)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
            // NaN is larger than any number.
            let largest = difference.into_iter().max_by(f32::total_cmp);
            let largest = largest.unwrap_or(f32::NAN);
            seen.push(format!("{element:?} of {dim} {largest:.1e}"));
            if largest.is_nan() || largest > tolerance {
                return Err(Failure::Differs(format!(
                    "{element:?}, heads of {dim}: results differ by {largest:.1e}, at most {tolerance:.0e} is allowed"
                )));
            }
            if !device.is_cuda() {
                continue;
            }
            for segment in batch.segments() {
                let (first, count) = (segment.rows.start, segment.rows.len());
                let mut alone = RaggedBatch::new();
                let positions: Vec<u32> = (0..count as u32).collect();
                alone.push_segment(&vec![0; count], &positions, segment.clone());
                let of_rows = all.map(|x| x.narrow(0, first, count));
                let [q, k, v] = of_rows;
                let by_itself = attend(&alone, [&q?, &k?, &v?], dtype, device)?;
                let together = found.narrow(0, first, count)?;
                if by_itself.flatten_all()?.to_vec1::<f32>()?
                    != together.flatten_all()?.to_vec1::<f32>()?
                {
                    return Err(Failure::Differs(format!(
                        "{element:?}, heads of {dim}: rows {:?} depend on the others of the batch",
                        segment.rows
                    )));
                }
            }
        }
    }
    Ok(format!("largest difference {}", seen.join(", ")))
}

/// Segments of few rows and of many, with and without cached slots, of which some have keys enough to be cut into splits; their
/// rows see all or up to themselves.
fn batch() -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for (rows, cached, is_causal) in [
        (5, 9, false),
        (70, 0, false),
        (3, 0, true),
        (33, 40, true),
        (31, 20, false),
        (4, 600, false),
        (40, 550, true),
    ] {
        let positions: Vec<u32> = (0..rows as u32).collect();
        let segment = Segment {
            allowed: is_causal.then(|| (0..rows * rows).map(|i| i % rows <= i / rows).collect()),
            context: (0..cached as u32).rev().collect(),
            context_from: match is_causal && cached > 0 {
                true => (0..rows).map(|row| row.min(cached)).collect(),
                false => Vec::new(),
            },
            ..Segment::default()
        };
        batch.push_segment(&vec![0; rows], &positions, segment);
    }
    batch
}
