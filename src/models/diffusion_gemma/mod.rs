//! DiffusionGemma: one set of weights that is a causal encoder of what is finished, and a decoder of the block that is
//! denoised.
//!
//! `DiffusionGemmaForBlockDiffusion` of transformers (`modeling_diffusion_gemma.py`), the text part. The encoder reads
//! the prompt and every finished block and leaves keys and values; the decoder reads those and a block of random
//! tokens, of which each slot sees the whole. The two differ in the scale of each layer's output, and in that the
//! decoder is told what it predicted in the step before. The vision tower that released files hold is passed over.

mod config;
mod generation_config;
mod layer;
mod self_conditioning;
mod sight;

use candle_core::{DType, Device, Module, Tensor};

use config::{Config, LayerKind};
use layer::Layer;
use self_conditioning::SelfConditioning;

use crate::decode::preset;
use crate::models::architecture::parameters;
use crate::models::attention::Attention;
use crate::models::layers::{Embedding, Linear, RmsNorm, Rotary};
use crate::models::registry::Family;
use crate::models::weights::{Recorder, Shapes, WeightFormat, Weights};
use crate::models::{Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

/// The registry's line.
pub(super) const FAMILY: Family = Family {
    name: "diffusion_gemma",
    architectures: &["DiffusionGemmaForBlockDiffusion"],
    model_types: &["diffusion_gemma"],
    inputs: &[
        "attention_mask",
        "decoder_input_ids",
        "self_conditioning_logits",
        "self_conditioning_mask",
    ],
    spec: |config| {
        let config = Config::from_json(config)?;
        let weights = parameters(&tensors(&config)?, Some(config.experts));
        Ok(config.spec(FAMILY.name, weights, preset::diffusion_gemma()))
    },
    tensors: |config| tensors(&Config::from_json(config)?),
    unused: &["model.encoder.vision_tower.", "model.encoder.embed_vision."],
    generation_config: generation_config::take_over,
    ends_texts: true,
    expand_token: None,
    tokenizer: None,
    load: |config, spec, weights| {
        let config = Config::from_json(config)?;
        Ok(Box::new(DiffusionGemma::load(config, spec, &weights)?))
    },
};

/// Name and shape of every tensor that the network reads.
fn tensors(config: &Config) -> Result<Shapes, ModelError> {
    let recorder = Recorder::default();
    let format = WeightFormat::Float(DType::F32);
    Parts::load(config, &Weights::new(&recorder, format, &Device::Cpu))?;
    Ok(recorder.shapes())
}

/// The network.
struct DiffusionGemma {
    spec: ModelSpec,
    device: Device,
    batch_invariant: bool,
    window: usize,
    softcap: f64,
    sliding_rotary: Rotary,
    full_rotary: Rotary,
    parts: Parts,
}

/// Its weights.
struct Parts {
    embedding: Embedding,
    head: Linear,
    self_conditioning: SelfConditioning,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl Parts {
    fn load(config: &Config, weights: &Weights) -> candle_core::Result<Self> {
        let model = weights.pp("model");
        let (decoder, encoder) = (
            model.pp("decoder"),
            model.pp("encoder").pp("language_model"),
        );
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = Embedding::load([vocab, hidden], "embed_tokens.weight", &decoder)?;
        Ok(Self {
            head: embedding.tied_head(weights)?,
            embedding,
            self_conditioning: SelfConditioning::load(config, decoder.pp("self_conditioning"))?,
            layers: (0..config.layers.len())
                .map(|index| Layer::load(config, index, &decoder, &encoder))
                .collect::<candle_core::Result<_>>()?,
            norm: RmsNorm::load(hidden, config.norm_eps, decoder.pp("norm"))?,
        })
    }
}

impl DiffusionGemma {
    fn load(config: Config, spec: ModelSpec, weights: &Weights) -> Result<Self, ModelError> {
        let (dtype, device) = (weights.dtype(), weights.device());
        let rotary = |kind| {
            let frequencies = config.frequencies(kind);
            Rotary::from_frequencies(frequencies, config.max_positions, dtype, device)
        };
        Ok(Self {
            device: device.clone(),
            batch_invariant: weights.are_batch_invariant(),
            window: config.window,
            softcap: config.softcap,
            sliding_rotary: rotary(LayerKind::Sliding)?,
            full_rotary: rotary(LayerKind::Full)?,
            parts: Parts::load(&config, weights)?,
            spec,
        })
    }

    /// Embeddings times √hidden `[tokens, hidden]` (`DiffusionGemmaTextScaledWordEmbedding`).
    fn scaled(&self, embeddings: Tensor) -> candle_core::Result<Tensor> {
        embeddings * (self.spec.hidden_size as f64).sqrt()
    }
}

impl Denoiser for DiffusionGemma {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn dtype(&self) -> DType {
        self.parts.embedding.dtype()
    }

    fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        batch.check(&self.spec)?;
        let full = Attention::new(batch, pool)?;
        let segments = sight::within_window(batch.segments(), batch.positions(), self.window);
        let sliding = Attention::of(&segments, pool);
        let rows = batch.row_tensors(&self.device)?;
        let sliding_rows = self
            .sliding_rotary
            .rows_at(batch.positions(), &rows.positions)?;
        let full_rows = self
            .full_rotary
            .rows_at(batch.positions(), &rows.positions)?;
        let encodes: Vec<bool> = batch
            .segments()
            .iter()
            .flat_map(|segment| std::iter::repeat_n(segment.encodes, segment.rows.len()))
            .collect();
        let embedded = self.scaled(self.parts.embedding.forward(&rows.tokens)?)?;
        let mut x = self
            .parts
            .self_conditioning
            .forward(&embedded, batch.segments())?;
        for (index, layer) in self.parts.layers.iter().enumerate() {
            let (rows, attention) = match layer.kind {
                LayerKind::Sliding => (&sliding_rows, &sliding),
                LayerKind::Full => (&full_rows, &full),
            };
            x = layer.forward(&x, index, rows, attention, &encodes)?;
        }
        Ok(self.parts.norm.forward(&x)?)
    }

    /// Logits capped to ± c by c tanh(x / c).
    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let logits = self.parts.head.logits(hidden)?;
        Ok(((logits / self.softcap)?.tanh()? * self.softcap)?)
    }

    /// The mean of the embeddings under the soft-max of the logits.
    fn self_conditioning(&self, logits: &Tensor) -> Result<Tensor, ModelError> {
        let probabilities = candle_nn::ops::softmax_last_dim(&logits.to_dtype(DType::F32)?)?;
        Ok(self.scaled(self.parts.embedding.means(&probabilities)?)?)
    }
}
