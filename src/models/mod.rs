//! Model families: what a denoiser is, and how one is loaded from a checkpoint.
//!
//! A family is one file here, one line in [`registry`], and a golden test. The engine reads a
//! [`ModelSpec`]; it never asks which family it serves.

mod a2d;
mod architecture;
mod attention;
mod attention_pattern;
mod backbone;
pub mod batch;
mod bd3lm;
pub mod checkpoint;
mod diffusion_gemma;
mod dit;
mod dream;
pub mod embedded;
pub mod encoded_forward;
mod error;
mod fields;
mod generation_config;
mod illada;
pub mod kv;
mod layers;
pub mod llada;
mod llada2_moe;
mod llada_moe;
mod mdlm;
pub mod registry;
mod row_parts;
mod sdar;
mod sedd;
mod spec;
mod weights;

use candle_core::{DType, Device, Tensor};

pub(crate) use attention::{Attention, Heads, ragged};
pub use attention_pattern::AttentionPattern;
pub use batch::{RaggedBatch, RowInput, Segment};
pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use kv::KvPool;
pub(crate) use layers::{
    Activation, BlockWeight, MixtureOfExperts, RmsNorm, Rotary, RotaryRows, Router, add_bias,
    gated, grouped,
};
pub use spec::{Corruption, ForwardProcess, KvShape, ModelSpec, Parameterisation, SlidingWindow};
pub use weights::{NotFinite, Shapes, WeightFormat};

/// Rows that go through the head at once: bounds the memory that logits take.
pub const HEAD_ROWS: usize = 256;

/// A network that predicts the clean token of every slot, in the terms that
/// [`ModelSpec::parameterisation`] names.
///
/// The final hidden states and the head are apart, so that only the rows whose logits are needed go
/// through the head: logits of `[canvas, vocab]` never exist.
pub trait Denoiser: Send {
    /// What the engine has to know of the model.
    fn spec(&self) -> &ModelSpec;

    /// Where the weights are.
    fn device(&self) -> &Device;

    /// The number format of hidden states, keys and values.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// Whether the result of a row does not depend on the other rows of its batch. No promise unless a network
    /// makes it.
    fn is_batch_invariant(&self) -> bool {
        false
    }

    /// The final hidden states of every row, `[rows, hidden]`. Segments read and keep their cached
    /// keys and values in `pool`.
    ///
    /// # Errors
    /// If the batch does not fit the model, or the device fails.
    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError>;

    /// Logits `[rows, vocab]` of final hidden states `[rows, hidden]`: the network's last linear map,
    /// which under [`Parameterisation::LogScore`] is not yet its output. In f32, on a CUDA device perhaps in
    /// the network's half precision.
    ///
    /// # Errors
    /// If the device fails.
    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError>;

    /// The network's output `[rows, vocab]` of final hidden states `[rows, hidden]`, where `rows` says
    /// what each of them was computed from ([`RaggedBatch::row_inputs`]).
    ///
    /// That is [`Denoiser::head`] of every network whose output depends on a row's hidden state alone;
    /// a log-score depends on the row's token and noise level besides, and is in f32.
    ///
    /// # Errors
    /// If `rows` does not fit `hidden` or lacks what the network needs, or the device fails.
    fn head_rows(&self, hidden: &Tensor, rows: &[RowInput]) -> Result<Tensor, ModelError> {
        let _ = rows;
        self.head(hidden)
    }

    /// What the network is told of its last prediction, `[rows, hidden]`: of the `logits` `[rows, vocab]`, divided by
    /// the temperature, from which the tokens of the rows were drawn. It goes into the next step's
    /// [`Segment::self_conditioning`].
    ///
    /// # Errors
    /// If the network takes no such signal ([`ModelSpec::self_conditioned`]), or the device fails.
    fn self_conditioning(&self, logits: &Tensor) -> Result<Tensor, ModelError> {
        let _ = logits;
        Err(ModelError::Batch(
            "the network does not take its own predictions".into(),
        ))
    }
}
