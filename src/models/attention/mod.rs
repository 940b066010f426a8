//! Attention over a ragged batch, with cached keys where a segment names them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod eager;
pub(crate) mod ragged;

use candle_core::{DType, Result, Tensor};

use cpu::Heads;

use crate::floats::with_floats;
use crate::models::batch::Segment;
use crate::models::{KvPool, ModelError, RaggedBatch};

/// What a batch's rows attend to. A family calls [`Attention::attend`] once a layer and knows nothing
/// of segments and caches.
pub(super) struct Attention<'a> {
    segments: &'a [Segment],
    pool: Option<&'a KvPool>,
    /// The same for every layer.
    #[cfg(feature = "cuda")]
    plan: std::cell::OnceCell<cuda::DevicePlan>,
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
        Ok(Self {
            segments: batch.segments(),
            pool,
            #[cfg(feature = "cuda")]
            plan: std::cell::OnceCell::new(),
        })
    }

    /// Keeps the keys and values that segments ask to keep, then scaled dot-product attention of each row
    /// to its segment's cached slots and rows.
    ///
    /// `q` is `[rows, heads, head_dim]`, `k` and `v` are `[rows, kv_heads, head_dim]`, q and k already
    /// rotated; the result is `[rows, heads · head_dim]`.
    pub fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if let Some(pool) = self.pool {
            for segment in self.segments.iter().filter(|s| !s.store.is_empty()) {
                let first = segment.rows.start + segment.store_from;
                let rows = |x: &Tensor| x.narrow(0, first, segment.store.len());
                pool.write(layer, &segment.store, &rows(k)?, &rows(v)?)?;
            }
        }
        #[cfg(feature = "cuda")]
        if cuda::is_for(self.segments, q) {
            return self.attend_on_cuda(layer, q, k, v);
        }
        if q.device().is_cpu() && q.dtype() == DType::F32 {
            self.attend_on_cpu(layer, q, k, v)
        } else {
            eager::attend(self.segments, self.pool, layer, q, k, v)
        }
    }

    #[cfg(feature = "cuda")]
    fn attend_on_cuda(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let plan = match self.plan.get() {
            Some(plan) => plan,
            None => {
                let plan = cuda::DevicePlan::new(self.segments, q.dim(2)?, q.device())?;
                self.plan.get_or_init(|| plan)
            }
        };
        plan.attend(self.pool.map(|pool| pool.layer(layer)), q, k, v)
    }

    fn attend_on_cpu(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
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
