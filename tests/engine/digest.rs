//! A model without weights whose every answer tells what its row saw.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use unmask::canvas::TokenId;
use unmask::decode::DecodePlan;
use unmask::models::{
    AttentionPattern, Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation,
    RaggedBatch,
};

/// The mask token: one above the others.
pub const MASK: TokenId = 128;

/// The most probable token of a row is the sum over the slots that it sees of a number made of their
/// token and position. Cached slots are looked up under the pool's slots, as the engine names them.
pub struct DigestModel {
    spec: ModelSpec,
    kept: Mutex<HashMap<u32, u64>>,
    forwards: AtomicUsize,
    fails: fn(usize) -> Option<Fault>,
}

/// How a forward fails.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It panics.
    Panic,
    /// It returns an error.
    Error,
}

impl DigestModel {
    /// A model denoising blocks of `block_length` slots, whose nth forward fails as `fails` says.
    pub fn new(block_length: usize, fails: fn(usize) -> Option<Fault>) -> Self {
        Self {
            spec: ModelSpec {
                family: "digest",
                parameters: 0,
                active_parameters: 0,
                hidden_size: 1,
                layers: 1,
                kv_heads: 1,
                head_dim: 1,
                other_layers: Default::default(),
                vocab_size: MASK as usize + 1,
                max_canvas: 96,
                sliding_window: None,
                corruption: Corruption::Absorbing { mask_token: MASK },
                parameterisation: Parameterisation::Logits,
                noise_conditioned: false,
                self_conditioned: false,
                noise_schedule: None,
                stop_tokens: Vec::new(),
                resize_tokens: None,
                attention: AttentionPattern::BlockCausal { block_length },
                logit_shift: 0,
                default_plan: DecodePlan {
                    block_length: Some(block_length),
                    ..DecodePlan::default()
                },
            },
            kept: Mutex::default(),
            forwards: AtomicUsize::new(0),
            fails,
        }
    }
}

fn digest(token: TokenId, position: u32) -> u64 {
    (u64::from(token) + 1) * (2 * u64::from(position) + 1)
}

impl Denoiser for DigestModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        match (self.fails)(self.forwards.fetch_add(1, Ordering::Relaxed)) {
            Some(Fault::Panic) => panic!("injected"),
            Some(Fault::Error) => return Err(ModelError::Batch("injected".into())),
            None => {}
        }
        let mut kept = self.kept.lock().unwrap_or_else(|error| error.into_inner());
        let digests: Vec<u64> = batch
            .tokens()
            .iter()
            .zip(batch.positions())
            .map(|(token, position)| digest(*token, *position))
            .collect();
        let mut seen = Vec::with_capacity(batch.rows());
        for segment in batch.segments() {
            let own = &digests[segment.rows.clone()];
            for (slot, digest) in segment.store.iter().zip(&own[segment.store_from..]) {
                kept.insert(*slot, *digest);
            }
            let context: u64 = segment.context.iter().map(|slot| kept[slot]).sum();
            for row in 0..own.len() {
                let allowed = |column: &usize| match &segment.allowed {
                    Some(allowed) => allowed[row * own.len() + column],
                    None => true,
                };
                let visible: u64 = (0..own.len())
                    .filter(allowed)
                    .map(|column| own[column])
                    .sum();
                seen.push(((context + visible) % u64::from(MASK)) as f32);
            }
        }
        let rows = seen.len();
        Ok(Tensor::from_vec(seen, (rows, 1), &Device::Cpu)?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let tokens = Tensor::arange(0u32, MASK + 1, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(hidden.broadcast_sub(&tokens.unsqueeze(0)?)?.abs()?.neg()?)
    }
}
