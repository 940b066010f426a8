//! The pre-norm transformer: embedding, blocks, norm, head.

use candle_core::{DType, Device, Module, Tensor};

use crate::models::attention::Attention;
use crate::models::layers::{Block, Embedding, Linear, RmsNorm, Rotary};
use crate::models::weights::Weights;
use crate::models::{Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

/// The weights of a transformer.
pub(in crate::models) struct Network {
    /// `[vocab, hidden]`.
    pub embedding: Embedding,
    /// In the order of computation.
    pub blocks: Vec<Block>,
    /// After the last block.
    pub norm: RmsNorm,
    /// hidden → vocab.
    pub head: Linear,
}

/// A transformer that predicts every slot's token from rotary positions alone.
pub(in crate::models) struct Transformer {
    spec: ModelSpec,
    device: Device,
    batch_invariant: bool,
    rotary: Rotary,
    network: Network,
}

/// The embedding `[vocab, hidden]` called `name`, and the head's layer, hidden → vocab: `head` if the model
/// has its own, else the transposed embedding.
pub(in crate::models) fn embedding_and_head(
    [vocab, hidden]: [usize; 2],
    weights: &Weights,
    name: &str,
    head: Option<Weights>,
) -> candle_core::Result<(Embedding, Linear)> {
    let embedding = Embedding::load([vocab, hidden], name, weights)?;
    let head = match head {
        Some(head) => head.linear(hidden, vocab, false)?,
        None => embedding.tied_head(weights)?,
    };
    Ok((embedding, head))
}

impl Transformer {
    /// From its parts, on the device of `weights`; `rotary` is of their type.
    pub fn new(spec: ModelSpec, weights: &Weights, rotary: Rotary, network: Network) -> Self {
        Self {
            spec,
            device: weights.device().clone(),
            batch_invariant: weights.are_batch_invariant(),
            rotary,
            network,
        }
    }
}

impl Denoiser for Transformer {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    fn dtype(&self) -> DType {
        self.network.embedding.dtype()
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        batch.check(&self.spec)?;
        let attention = Attention::new(batch, pool)?;
        let rows = batch.row_tensors(&self.device)?;
        let mut x = self.network.embedding.forward(&rows.tokens)?;
        let rotary = self.rotary.rows_at(batch.positions(), &rows.positions)?;
        for (layer, block) in self.network.blocks.iter().enumerate() {
            x = block.forward(&x, layer, &rotary, &attention)?;
        }
        Ok(self.network.norm.forward(&x)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.network.head.logits(hidden)?)
    }
}
