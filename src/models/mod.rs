//! Model families: what a denoiser is, and how one is loaded from a checkpoint.
//!
//! A family is one file here, one line in [`registry`], and a golden test. The engine reads a
//! [`ModelSpec`]; it never asks which family it serves.

mod a2d;
mod architecture;
mod attention;
mod backbone;
pub mod batch;
pub mod checkpoint;
mod dream;
mod error;
mod fields;
pub mod kv;
mod layers;
pub mod llada;
mod llada2_moe;
mod llada_moe;
mod mask_token;
pub mod registry;
mod sdar;
mod spec;

use candle_core::{Device, Tensor};

pub use batch::{RaggedBatch, Segment};
pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use kv::KvPool;
pub use spec::{AttentionPattern, ModelSpec};

/// A network that predicts the clean token of every slot.
///
/// The final hidden states and the head are apart, so that only the rows whose logits are needed go
/// through the head: logits of `[canvas, vocab]` never exist.
pub trait Denoiser: Send {
    /// What the engine has to know of the model.
    fn spec(&self) -> &ModelSpec;

    /// Where the weights are.
    fn device(&self) -> &Device;

    /// The final hidden states of every row, `[rows, hidden]`. Segments read and keep their cached
    /// keys and values in `pool`.
    ///
    /// # Errors
    /// If the batch does not fit the model, or the device fails.
    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError>;

    /// Logits `[rows, vocab]` of final hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError>;
}
