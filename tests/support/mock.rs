//! A model without weights whose every forward a test can watch and hold back.

use std::panic::panic_any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use candle_core::{DType, Device, Tensor};
use unmask::canvas::TokenId;
use unmask::decode::DecodePlan;
use unmask::models::{
    AttentionPattern, Corruption, Denoiser, KvPool, ModelError, ModelSpec, Parameterisation,
    RaggedBatch,
};

/// The mask token: one above the bytes.
pub const MASK: TokenId = 256;

/// A hidden state is its row's token; the head is uniform over the bytes.
pub struct MockModel {
    spec: ModelSpec,
    gate: Option<Gate>,
    fail_on: Option<TokenId>,
    die_on: Option<TokenId>,
    /// The call of its spec by the engine that panics, and how many came before.
    faulty_call: Option<usize>,
    calls: AtomicUsize,
    is_damaged: bool,
    room: usize,
}

/// What a panic leaves behind that panics again wherever it is put away, so often.
struct Bomb(usize);

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some(left) = self.0.checked_sub(1) {
            panic_any(Self(left));
        }
    }
}

struct Gate {
    entered: Sender<Vec<usize>>,
    open: Receiver<()>,
}

/// The test's side of a gated model.
pub struct Forwards {
    entered: Receiver<Vec<usize>>,
    open: Sender<()>,
}

impl Forwards {
    /// Waits until the model is in a forward; the lengths of the batch's segments.
    pub fn entered(&self) -> Vec<usize> {
        self.entered
            .recv_timeout(std::time::Duration::from_secs(60))
            .expect("a forward")
    }

    /// Lets the forward return.
    pub fn release(&self) {
        self.open.send(()).expect("a running engine");
    }
}

impl MockModel {
    /// A model that answers at once.
    pub fn new() -> Self {
        Self {
            spec: ModelSpec {
                family: "mock",
                parameters: 0,
                active_parameters: 0,
                hidden_size: 1,
                layers: 0,
                kv_heads: 1,
                head_dim: 1,
                other_layers: Default::default(),
                vocab_size: 257,
                max_canvas: 64,
                sliding_window: None,
                corruption: Corruption::Absorbing { mask_token: MASK },
                parameterisation: Parameterisation::Logits,
                noise_conditioned: false,
                self_conditioned: false,
                noise_schedule: None,
                stop_tokens: Vec::new(),
                resize_tokens: None,
                attention: AttentionPattern::Bidirectional,
                logit_shift: 0,
                default_plan: DecodePlan::default(),
            },
            gate: None,
            fail_on: None,
            die_on: None,
            faulty_call: None,
            calls: AtomicUsize::new(0),
            is_damaged: false,
            room: usize::MAX,
        }
    }

    /// A model whose every forward waits to be released.
    pub fn gated() -> (Self, Forwards) {
        let (entered, entered_by_test) = channel();
        let (open_by_test, open) = channel();
        let model = Self {
            gate: Some(Gate { entered, open }),
            ..Self::new()
        };
        let forwards = Forwards {
            entered: entered_by_test,
            open: open_by_test,
        };
        (model, forwards)
    }

    /// Is out of memory in a forward of more than `rows` rows.
    pub fn with_room_for(mut self, rows: usize) -> Self {
        self.room = rows;
        self
    }

    /// Panics in a forward that holds `token`.
    pub fn panicking_on(mut self, token: TokenId) -> Self {
        self.fail_on = Some(token);
        self
    }

    /// Panics in a forward that holds `token`, and again when that panic is handled: nothing can go on after it.
    pub fn dying_on(mut self, token: TokenId) -> Self {
        self.die_on = Some(token);
        self
    }

    /// Panics at one call of its spec by the engine's thread, before which there are so many others.
    pub fn panicking_at_call(mut self, call: usize) -> Self {
        self.faulty_call = Some(call);
        self
    }

    /// Predicts NaN.
    pub fn damaged(mut self) -> Self {
        self.is_damaged = true;
        self
    }
}

impl Denoiser for MockModel {
    fn spec(&self) -> &ModelSpec {
        if self.faulty_call.is_some() && std::thread::current().name() == Some("unmask-engine") {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            assert_ne!(Some(call), self.faulty_call, "the spec was asked for");
        }
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hidden(&self, batch: &RaggedBatch, _: Option<&KvPool>) -> Result<Tensor, ModelError> {
        if let Some(gate) = &self.gate {
            let lengths = batch.segments().iter().map(|s| s.rows.len()).collect();
            // A test that is over no longer listens.
            let _ = gate.entered.send(lengths);
            let _ = gate.open.recv();
        }
        if let Some(token) = self.fail_on {
            assert!(!batch.tokens().contains(&token), "token {token} was met");
        }
        if self
            .die_on
            .is_some_and(|token| batch.tokens().contains(&token))
        {
            panic_any(Bomb(2));
        }
        if batch.rows() > self.room {
            return Err(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into()).into());
        }
        Ok(Tensor::from_slice(
            batch.tokens(),
            (batch.rows(), 1),
            &Device::Cpu,
        )?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let shape = (hidden.dim(0)?, self.spec.vocab_size);
        Ok(match self.is_damaged {
            true => Tensor::full(f32::NAN, shape, &Device::Cpu)?,
            false => Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
        })
    }
}
