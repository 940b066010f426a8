//! The pool of cached keys and values.

use candle_core::{DType, Device, Result, Tensor};

use crate::models::{KvShape, ModelSpec};

/// Keys (already rotated) and values of slots that are not recomputed, for every layer.
///
/// The pool's memory is taken once. Who uses which of its slots is the caller's business: a segment
/// of a batch names the slots that it reads and writes.
#[derive(Debug)]
pub struct KvPool {
    layers: Vec<KvLayer>,
    slots: usize,
}

#[derive(Debug)]
struct KvLayer {
    /// `[slots, kv_heads, head_dim]`, which may differ between layers.
    keys: Tensor,
    values: Tensor,
}

impl KvPool {
    /// A pool of `slots` slots for a model.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn new(spec: &ModelSpec, slots: usize, dtype: DType, device: &Device) -> Result<Self> {
        let layers = (0..spec.layers)
            .map(|layer| {
                let KvShape { heads, head_dim } = spec.kv_shape(layer);
                let shape = (slots, heads, head_dim);
                Ok(KvLayer {
                    keys: Tensor::zeros(shape, dtype, device)?,
                    values: Tensor::zeros(shape, dtype, device)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { layers, slots })
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// All keys and values of `layer`, each `[slots, kv_heads, head_dim]`.
    pub(super) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        (&self.layers[layer].keys, &self.layers[layer].values)
    }

    /// Keys and values of `slots` `[count]`, u32, in `layer`, each `[count, kv_heads, head_dim]`.
    pub(super) fn read(&self, layer: usize, slots: &Tensor) -> Result<(Tensor, Tensor)> {
        let layer = &self.layers[layer];
        Ok((
            layer.keys.index_select(slots, 0)?,
            layer.values.index_select(slots, 0)?,
        ))
    }

    /// Keeps `keys` and `values` `[rows, kv_heads, head_dim]` in `slots` of `layer`, a row a slot.
    pub(crate) fn write(
        &self,
        layer: usize,
        slots: &[u32],
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<()> {
        let layer = &self.layers[layer];
        let mut row = 0;
        for run in slots.chunk_by(|a, b| a + 1 == *b) {
            let keep = |pool: &Tensor, rows: &Tensor| {
                let rows = rows.narrow(0, row, run.len())?.contiguous()?;
                pool.slice_set(&rows, 0, run[0] as usize)
            };
            keep(&layer.keys, keys)?;
            keep(&layer.values, values)?;
            row += run.len();
        }
        Ok(())
    }
}
