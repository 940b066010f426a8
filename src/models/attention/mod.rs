//! Attention over a ragged batch, with cached keys where a segment names them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod eager;
pub(crate) mod ragged;
mod splits;

use std::cell::OnceCell;

use candle_core::{DType, Result, Tensor};

use eager::EagerPlan;

use crate::floats::with_floats;
use crate::models::batch::Segment;
use crate::models::{KvPool, ModelError, RaggedBatch};

/// The shape of a layer's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads, a multiple of `key_value`.
    pub query: usize,
    /// Key/value heads.
    pub key_value: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    /// Query heads that share keys and values.
    pub fn group(self) -> usize {
        self.query / self.key_value.max(1)
    }
}

/// What a batch's rows attend to. A family calls [`Attention::attend`] once a layer and knows nothing
/// of segments and caches.
pub(crate) struct Attention<'a> {
    segments: &'a [Segment],
    pool: Option<&'a KvPool>,
    /// The same for every layer, as the next is.
    eager_plan: OnceCell<EagerPlan>,
    #[cfg(feature = "cuda")]
    kernel_plan: OnceCell<cuda::DevicePlan>,
}

impl<'a> Attention<'a> {
    /// Attention for `batch`, whose segments may name slots of `pool`.
    ///
    /// # Errors
    /// If a segment names slots, but there is no pool or it has no such slot.
    pub fn new(
        batch: &'a RaggedBatch,
        pool: Option<&'a KvPool>,
    ) -> std::result::Result<Self, ModelError> {
        let slots = pool.map_or(0, KvPool::slots);
        let named = batch
            .segments()
            .iter()
            .flat_map(|segment| segment.context.iter().chain(&segment.store));
        if let Some(slot) = named.max().filter(|slot| **slot as usize >= slots) {
            return Err(ModelError::Batch(format!(
                "the batch names slot {slot} of a key/value pool of {slots}"
            )));
        }
        Ok(Self::of(batch.segments(), pool))
    }

    /// Attention for other `segments` over the rows of a batch and the slots of the `pool` that [`Attention::new`] has
    /// checked: for layers that see less than its own say.
    pub fn of(segments: &'a [Segment], pool: Option<&'a KvPool>) -> Self {
        Self {
            segments,
            pool,
            eager_plan: OnceCell::new(),
            #[cfg(feature = "cuda")]
            kernel_plan: OnceCell::new(),
        }
    }

    /// Keeps the keys and values that segments ask to keep, then scaled dot-product attention of each row
    /// to its segment's cached slots and rows.
    ///
    /// `q` is `[rows, heads, head_dim]`, `k` and `v` are `[rows, kv_heads, head_dim]`, q and k already
    /// rotated; the result is `[rows, heads · head_dim]`.
    pub fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.attend_scaled(layer, 1.0 / (q.dim(2)? as f32).sqrt(), q, k, v)
    }

    /// As [`Attention::attend`], with products of queries and keys times `scale` in the place of 1 / √head_dim.
    pub fn attend_scaled(
        &self,
        layer: usize,
        scale: f32,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        if let Some(pool) = self.pool {
            for segment in self.segments.iter().filter(|s| !s.store.is_empty()) {
                let first = segment.rows.start + segment.store_from;
                let rows = |x: &Tensor| x.narrow(0, first, segment.store.len());
                pool.write(layer, &segment.store, &rows(k)?, &rows(v)?)?;
            }
        }
        #[cfg(feature = "cuda")]
        if cuda::is_for(q) {
            return self.attend_on_cuda(layer, scale, q, k, v);
        }
        if q.device().is_cpu() && q.dtype() == DType::F32 {
            self.attend_on_cpu(layer, scale, q, k, v)
        } else {
            let plan = made_once(&self.eager_plan, || {
                EagerPlan::new(self.segments, q.device())
            })?;
            plan.attend(self.pool, layer, scale, [q, k, v])
        }
    }

    #[cfg(feature = "cuda")]
    fn attend_on_cuda(
        &self,
        layer: usize,
        scale: f32,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let plan = made_once(&self.kernel_plan, || {
            cuda::DevicePlan::new(self.segments, q, k.dim(1)?)
        })?;
        plan.attend(self.pool.map(|pool| pool.layer(layer)), scale, [q, k, v])
    }

    fn attend_on_cpu(
        &self,
        layer: usize,
        scale: f32,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let (rows, query, dim) = q.dims3()?;
        let heads = Heads {
            query,
            key_value: k.dim(1)?,
            dim,
        };
        let attend = |cached: (&[f32], &[f32])| {
            with_floats([q, k, v], |[q, k, v]| {
                let layer = cpu::Layer {
                    heads,
                    scale,
                    q,
                    k,
                    v,
                    cached,
                };
                cpu::attend(self.segments, layer)
            })
        };
        let attended = match self.pool {
            Some(pool) => {
                let (keys, values) = pool.layer(layer);
                with_floats([keys, values], |[keys, values]| attend((keys, values)))??
            }
            None => attend((&[], &[]))?,
        };
        Tensor::from_vec(attended, (rows, query * dim), q.device())
    }
}

/// What `cell` holds, which `make` makes where it holds nothing.
fn made_once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(made) => Ok(made),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::embedded;

    /// Values in (−1, 1) without a pattern.
    fn values(seed: usize, shape: (usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2;
        let values = (0..count).map(|i| ((seed * 7919 + i * 104_729) as f32 * 0.618).sin());
        Tensor::from_iter(values, &Device::Cpu)
            .and_then(|values| values.reshape(shape))
            .unwrap()
    }

    #[test]
    fn composed_attention_reads_each_layers_cache_by_one_plan() {
        let checkpoint = embedded::checkpoint().unwrap();
        let spec = checkpoint.spec().unwrap();
        let pool = KvPool::new(&spec, 12, DType::F32, &Device::Cpu).unwrap();
        let slots: Vec<u32> = (0..12).collect();
        let cached = |seed| values(seed, (12, spec.kv_heads, spec.head_dim));
        for layer in [0, 1] {
            pool.write(layer, &slots, &cached(layer), &cached(7 + layer))
                .unwrap();
        }
        let mut batch = RaggedBatch::new();
        batch.push([0; 3]);
        batch.push([0; 3]);
        for (context, context_from) in [
            (vec![], vec![]),
            (vec![9, 2, 5], vec![]),
            (vec![1, 8, 4], vec![0, 1, 1, 3]),
        ] {
            let causal = (0..4).flat_map(|row| (0..4).map(move |other| other <= row));
            let segment = Segment {
                allowed: Some(causal.collect()),
                context,
                context_from,
                ..Segment::default()
            };
            batch.push_segment(&[0; 4], &[0, 1, 2, 3], segment);
        }
        let attention = Attention::new(&batch, Some(&pool)).unwrap();
        let plan = EagerPlan::new(batch.segments(), &Device::Cpu).unwrap();
        let q = values(20, (batch.rows(), 2 * spec.kv_heads, spec.head_dim));
        let [k, v] =
            [21, 22].map(|seed| values(seed, (batch.rows(), spec.kv_heads, spec.head_dim)));
        for layer in [0, 1] {
            let composed = plan.attend(Some(&pool), layer, 0.3, [&q, &k, &v]).unwrap();
            let expected = attention.attend_on_cpu(layer, 0.3, &q, &k, &v).unwrap();
            let difference = (composed - expected).and_then(|d| d.abs()?.max_all());
            let difference: f32 = difference.unwrap().to_scalar().unwrap();
            assert!(difference < 1e-5, "layer {layer}: {difference}");
        }
    }
}
