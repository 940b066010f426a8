//! The diffusion transformer that SEDD, MDLM and BD3-LM share: embedding, blocks and untied head.

mod config;
mod shape;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Embedding;

pub(super) use config::DitConfig;
pub(super) use shape::{DitShape, FieldNames, NoiseInput};

use crate::models::attention::Attention;
use crate::models::layers::{Conditioning, DitBlock, FinalNorm, Linear, NoiseEmbedding, Rotary};
use crate::models::weights::Weights;
use crate::models::{KvPool, ModelError, ModelSpec, RaggedBatch};

/// A diffusion transformer.
pub(super) struct Dit {
    device: Device,
    noise: NoiseInput,
    embedding: Embedding,
    noise_embedding: Option<NoiseEmbedding>,
    rotary: Rotary,
    blocks: Vec<DitBlock>,
    norm: FinalNorm,
    head: Linear,
}

impl Dit {
    /// Builds the network from its weights, in the type and on the device of `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or of the wrong shape, or the device fails.
    pub fn new(shape: &DitShape, weights: Weights) -> Result<Self, ModelError> {
        let (hidden, cond_dim) = (shape.hidden, shape.noise.cond_dim());
        let embedding = weights.get((shape.vocab, hidden), "vocab_embed.embedding")?;
        let noise_embedding = cond_dim
            .map(|cond_dim| NoiseEmbedding::new(cond_dim, weights.pp("sigma_map")))
            .transpose()?;
        let blocks = (0..shape.blocks)
            .map(|i| DitBlock::new(hidden, shape.heads, cond_dim, weights.pp("blocks").pp(i)))
            .collect::<candle_core::Result<_>>()?;
        // The official code rotates by the stored frequencies, whatever they are.
        let frequencies: Vec<f64> = weights
            .get_as(shape.head_dim() / 2, "rotary_emb.inv_freq", DType::F64)?
            .to_vec1()?;
        let output = weights.pp("output_layer");
        Ok(Self {
            device: weights.device().clone(),
            noise: shape.noise,
            embedding: Embedding::new(embedding, hidden),
            noise_embedding,
            rotary: Rotary::from_frequencies(
                frequencies,
                shape.length,
                weights.dtype(),
                weights.device(),
            )?,
            blocks,
            norm: FinalNorm::new(hidden, cond_dim, output.clone())?,
            head: output.pp("linear").linear(hidden, shape.vocab, true)?,
        })
    }

    /// Whether the result of a row does not depend on the other rows of its batch: not of quantised layers,
    /// whose products of few rows sum in another order.
    pub fn is_batch_invariant(&self) -> bool {
        self.device.is_cpu() && !self.head.is_quantized()
    }

    /// The number format of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding.embeddings().dtype()
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What goes into the head, `[rows, hidden]`: the final hidden states, normed and modulated.
    ///
    /// # Errors
    /// If the batch does not fit the model of `spec`, a segment lacks a σ that the network takes, or
    /// the device fails.
    pub fn hidden(
        &self,
        spec: &ModelSpec,
        batch: &RaggedBatch,
        pool: Option<&KvPool>,
    ) -> Result<Tensor, ModelError> {
        batch.check(spec)?;
        let attention = Attention::new(batch, pool)?;
        let tokens = Tensor::from_slice(batch.tokens(), batch.rows(), &self.device)?;
        let conditioning = self.conditioning(batch)?;
        let mut x = self.embedding.forward(&tokens)?;
        let rotary = self.rotary.rows(batch.positions())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, layer, &rotary, &attention, conditioning.as_ref())?;
        }
        Ok(self.norm.forward(&x, conditioning.as_ref())?)
    }

    fn conditioning(&self, batch: &RaggedBatch) -> Result<Option<Conditioning>, ModelError> {
        let Some(embedding) = &self.noise_embedding else {
            return Ok(None);
        };
        let mut sigmas = Vec::with_capacity(batch.rows());
        for (index, segment) in batch.segments().iter().enumerate() {
            let sigma = match self.noise {
                NoiseInput::Given { .. } => check_sigma(index, segment.sigma)?,
                NoiseInput::Zero { .. } | NoiseInput::Absent => 0.0,
            };
            sigmas.resize(segment.rows.end, sigma);
        }
        Ok(Some(embedding.condition(&sigmas, &self.device)?))
    }

    /// The output layer's linear map, `[rows, hidden]` → `[rows, vocab]`, in f32.
    ///
    /// # Errors
    /// If the device fails.
    pub fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.forward(hidden)?.to_dtype(DType::F32)?)
    }
}

fn check_sigma(segment: usize, sigma: Option<f32>) -> Result<f32, ModelError> {
    let sigma = sigma.ok_or_else(|| {
        ModelError::Batch(format!(
            "segment {segment} has no sigma; the network is conditioned on the noise level"
        ))
    })?;
    if sigma.is_finite() && sigma >= 0.0 {
        return Ok(sigma);
    }
    Err(ModelError::Batch(format!(
        "sigma of segment {segment} is {sigma}; it must be finite and at least 0"
    )))
}
