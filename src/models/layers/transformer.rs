//! The pre-norm transformer: embedding, blocks, norm, head.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::with_tracing::{Embedding, Linear, RmsNorm};

use crate::models::attention::Attention;
use crate::models::layers::{Block, Rotary, linear};
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
    rotary: Rotary,
    network: Network,
}

/// The head's layer, hidden → vocab: `weights` if it has its own, else the transposed embedding.
pub(in crate::models) fn head(
    embedding: &Embedding,
    weights: Option<VarBuilder>,
) -> candle_core::Result<Linear> {
    let (vocab, hidden) = embedding.embeddings().dims2()?;
    match weights {
        Some(weights) => linear(hidden, vocab, false, weights),
        None => Ok(Linear::from_weights(embedding.embeddings().clone(), None)),
    }
}

impl Transformer {
    /// From its parts; `rotary` is of the weights' type.
    pub fn new(spec: ModelSpec, device: Device, rotary: Rotary, network: Network) -> Self {
        Self {
            spec,
            device,
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

    fn dtype(&self) -> DType {
        self.network.embedding.embeddings().dtype()
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        batch.check(&self.spec)?;
        let attention = Attention::new(batch, pool)?;
        let tokens = Tensor::from_slice(batch.tokens(), batch.rows(), &self.device)?;
        let mut x = self.network.embedding.forward(&tokens)?;
        let rotary = self.rotary.rows(batch.positions())?;
        for (layer, block) in self.network.blocks.iter().enumerate() {
            x = block.forward(&x, layer, &rotary, &attention)?;
        }
        Ok(self.network.norm.forward(&x)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.network.head.forward(hidden)?.to_dtype(DType::F32)?)
    }
}
