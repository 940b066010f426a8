//! A model whose answers are known.

use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use unmask::canvas::TokenId;
use unmask::models::{Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch};

use crate::support::mock::{MASK, MockModel};

/// Always knows the text, with the given logit for its tokens against 0 for all others, as long as the row
/// is the one that the shift says. Every batch that it is given is kept.
pub struct Oracle {
    pub spec: ModelSpec,
    pub text: Vec<TokenId>,
    logit: f32,
    pub seen: Arc<Mutex<Vec<RaggedBatch>>>,
}

impl Oracle {
    pub fn new(text: &[u8], logit: f32, logit_shift: usize) -> Self {
        let spec = MockModel::new().spec().clone();
        Self {
            spec: ModelSpec {
                logit_shift,
                ..spec
            },
            text: text.iter().map(|byte| TokenId::from(*byte)).collect(),
            logit,
            seen: Arc::default(),
        }
    }
}

impl Denoiser for Oracle {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        self.seen.lock().unwrap().push(batch.clone());
        let positions = batch.positions();
        Ok(Tensor::from_slice(
            positions,
            (positions.len(), 1),
            &Device::Cpu,
        )?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let rows: Vec<u32> = hidden.flatten_all()?.to_vec1()?;
        let vocab = self.spec.vocab_size;
        let mut logits = vec![0.0f32; rows.len() * vocab];
        for (row, position) in rows.iter().enumerate() {
            // The mask token is always the most probable, and is never to be predicted.
            logits[row * vocab + MASK as usize] = self.logit + 1.0;
            if let Some(token) = self.text.get(*position as usize + self.spec.logit_shift) {
                logits[row * vocab + *token as usize] = self.logit;
            }
        }
        Ok(Tensor::from_vec(logits, (rows.len(), vocab), &Device::Cpu)?)
    }
}
