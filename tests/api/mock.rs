//! A model that says what a script tells it, at a pace that a test sets.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use candle_core::{Device, Tensor};
use unmask::canvas::TokenId;
use unmask::decode::{BlockOrigin, DecodePlan, EarlyStop, ResizeTokens, preset};
use unmask::diffusion::Schedule;
use unmask::models::{
    AttentionPattern, Checkpoint, Corruption, Denoiser, KvPool, ModelError, ModelSpec,
    Parameterisation, RaggedBatch, SlidingWindow,
};

use crate::support::golden;

/// Ends a completion.
pub const STOP: TokenId = 256;
/// The mask token.
pub const MASK: TokenId = 257;
/// A special token of no further meaning.
pub const SPECIAL: TokenId = 258;
/// A token that makes every step fail that it is part of. It is never predicted.
pub const POISON: TokenId = 259;
/// Longest canvas.
pub const CONTEXT: usize = 256;
/// Bytes and special tokens.
pub const VOCABULARY: usize = 260;

/// What the model predicts for a slot; `None` is a uniform distribution.
type Script = Box<dyn Fn(usize) -> Option<TokenId> + Send>;

/// A model without weights.
pub struct Mock {
    spec: ModelSpec,
    script: Script,
    gate: Option<Mutex<Receiver<()>>>,
}

impl Mock {
    /// Predicts what `script` says for each slot.
    pub fn scripted(script: impl Fn(usize) -> Option<TokenId> + Send + 'static) -> Self {
        let spec = Checkpoint::open(&golden("llada")).unwrap().spec().unwrap();
        Self {
            spec: ModelSpec {
                vocab_size: VOCABULARY,
                max_canvas: CONTEXT,
                sliding_window: None,
                corruption: Corruption::Absorbing { mask_token: MASK },
                parameterisation: Parameterisation::Logits,
                noise_conditioned: false,
                noise_schedule: None,
                stop_tokens: vec![STOP],
                resize_tokens: None,
                ..spec
            },
            script: Box::new(script),
            gate: None,
        }
    }

    /// Predicts every token alike.
    pub fn uniform() -> Self {
        Self::scripted(|_| None)
    }

    /// Predicts `tokens` from slot `start` on, and 'x' elsewhere.
    pub fn saying(start: usize, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        let tokens: Vec<TokenId> = tokens.into_iter().collect();
        Self::scripted(move |slot| {
            let token = slot.checked_sub(start).and_then(|at| tokens.get(at));
            Some(token.copied().unwrap_or(TokenId::from(b'x')))
        })
    }

    /// Makes `token` another stop token.
    pub fn ending_at(mut self, token: TokenId) -> Self {
        self.spec.stop_tokens.push(token);
        self
    }

    /// Makes the model denoise blocks of so many slots, counted from the start of the canvas.
    pub fn in_blocks_of(mut self, block_length: usize) -> Self {
        self.spec.attention = AttentionPattern::BlockCausal { block_length };
        self.by_default(DecodePlan {
            block_length: Some(block_length),
            block_origin: BlockOrigin::Canvas,
            early_stop: EarlyStop::AfterBlock,
            ..DecodePlan::default()
        })
    }

    /// Makes canvases longer than the context slide, up to `max_canvas` slots.
    pub fn sliding(mut self, max_canvas: usize) -> Self {
        self.spec.sliding_window = Some(SlidingWindow {
            slots: self.spec.max_canvas,
            max_canvas,
        });
        self
    }

    /// Makes it a model of the uniform process, without a mask token. The poisonous token is no part of its
    /// vocabulary.
    pub fn of_the_uniform_process(mut self) -> Self {
        self.spec.corruption = Corruption::Uniform;
        self.spec.vocab_size = POISON as usize;
        let preset = preset::by_name("uniform-ancestral").unwrap();
        self.by_default(preset.plan().clone())
    }

    /// Makes it a model of the uniform process that denoises whole blocks of so many slots after an encoder.
    pub fn encoding_for_blocks_of(self, block_length: usize) -> Self {
        let mut model = self.of_the_uniform_process();
        model.spec.attention = AttentionPattern::EncodedBlocks { block_length };
        let preset = preset::by_name("diffusion-gemma").unwrap();
        model.by_default(DecodePlan {
            block_length: Some(block_length),
            ..preset.plan().clone()
        })
    }

    /// Makes it a model that is told the noise level of the canvas.
    pub fn told_the_noise_level(mut self) -> Self {
        self.spec.noise_conditioned = true;
        self.spec.noise_schedule = Some(Schedule::LogLinear);
        let preset = preset::by_name("mdlm-ancestral").unwrap();
        self.by_default(preset.plan().clone())
    }

    /// Makes it a model that expands the slots of special tokens and removes those of stop tokens.
    pub fn resizing(mut self) -> Self {
        self.spec.resize_tokens = Some(ResizeTokens {
            expand: SPECIAL,
            delete: STOP,
        });
        let preset = preset::by_name("dreamon").unwrap();
        self.by_default(preset.plan().clone())
    }

    /// Sets the default plan.
    pub fn by_default(mut self, plan: DecodePlan) -> Self {
        self.spec.default_plan = plan;
        self
    }

    /// As [`Mock::saying`], for the bytes of a text.
    pub fn saying_text(start: usize, text: &str) -> Self {
        Self::saying(start, text.bytes().map(TokenId::from))
    }

    /// Takes a step only when the gate lets it.
    pub fn gated(mut self) -> (Self, Gate) {
        let (permits, gate) = channel();
        self.gate = Some(Mutex::new(gate));
        (self, Gate { permits })
    }
}

/// Lets a model take steps; dropping it lets the model run freely.
pub struct Gate {
    permits: Sender<()>,
}

impl Gate {
    /// Lets the model take so many more steps.
    pub fn allow(&self, steps: usize) {
        for _ in 0..steps {
            self.permits.send(()).unwrap();
        }
    }
}

impl Denoiser for Mock {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn is_batch_invariant(&self) -> bool {
        true
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    /// A row is the predicted token and its logit, which differs by slot, so that slots are committed
    /// in a scattered order.
    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        if let Some(gate) = &self.gate {
            // An error says that the gate is gone, and the way free.
            let _ = gate.lock().unwrap().recv();
        }
        if batch.tokens().contains(&POISON) {
            return Err(ModelError::Batch("poisoned".into()));
        }
        let rows: Vec<f32> = batch
            .positions()
            .iter()
            .flat_map(|&position| match (self.script)(position as usize) {
                Some(token) => [token as f32, 20.0 + (position * 7919 % 13) as f32 / 13.0],
                None => [0.0, 0.0],
            })
            .collect();
        Ok(Tensor::from_vec(rows, (batch.rows(), 2), &Device::Cpu)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let rows = hidden.to_vec2::<f32>()?;
        let mut logits = vec![0.0; rows.len() * VOCABULARY];
        for (row, prediction) in logits.chunks_mut(VOCABULARY).zip(&rows) {
            row[prediction[0] as usize] = prediction[1];
            row[POISON as usize] = -1e9;
        }
        Ok(Tensor::from_vec(
            logits,
            (rows.len(), VOCABULARY),
            &Device::Cpu,
        )?)
    }
}
