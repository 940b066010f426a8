//! The diffusion transformer that SEDD, MDLM and BD3-LM share: embedding, blocks and untied head.

mod config;
mod shape;

use candle_core::{DType, Device, Module, Tensor};

pub(super) use config::DitConfig;
pub(super) use shape::{DitShape, FieldNames, NoiseInput};

use crate::models::attention::Attention;
use crate::models::layers::{
    Conditioning, DitBlock, Embedding, FinalNorm, Linear, NoiseEmbedding, Rotary,
};
use crate::models::weights::Weights;
use crate::models::{Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

/// α(1) of the log-linear schedule (`LogLinearNoise` of the official noise_schedule.py:
/// α(t) = 1 − (1 − 10⁻³) t).
pub(super) const LOG_LINEAR_EPS: f64 = 1e-3;

/// The tokenizer of the published models, none of which brings one along.
pub(super) const GPT2: &str = "openai-community/gpt2";

/// A diffusion transformer.
pub(super) struct Dit {
    spec: ModelSpec,
    device: Device,
    batch_invariant: bool,
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
    pub fn new(spec: ModelSpec, shape: &DitShape, weights: Weights) -> Result<Self, ModelError> {
        let (hidden, cond_dim) = (shape.hidden, shape.noise.cond_dim());
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
            spec,
            device: weights.device().clone(),
            batch_invariant: weights.are_batch_invariant(),
            noise: shape.noise,
            embedding: Embedding::load([shape.vocab, hidden], "vocab_embed.embedding", &weights)?,
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
}

impl Denoiser for Dit {
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
        self.embedding.dtype()
    }

    /// What goes into the output layer's linear map: the last states, normed and modulated.
    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        batch.check(&self.spec)?;
        let attention = Attention::new(batch, pool)?;
        let rows = batch.row_tensors(&self.device)?;
        let conditioning = self.conditioning(batch)?;
        let mut x = self.embedding.forward(&rows.tokens)?;
        let rotary = self.rotary.rows_at(batch.positions(), &rows.positions)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, layer, &rotary, &attention, conditioning.as_ref())?;
        }
        Ok(self.norm.forward(&x, conditioning.as_ref())?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.logits(hidden)?)
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
