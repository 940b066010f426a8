//! The embedding of tokens.

use candle_core::{DType, Module, Result, Tensor};

use crate::models::layers::{Linear, product};
use crate::models::weights::Weights;

/// A token's embedding: a row of a table.
#[derive(Debug, Clone)]
pub(in crate::models) struct Embedding {
    /// `[vocab, hidden]`, in the type that it is held in.
    table: Tensor,
    /// That of hidden states.
    dtype: DType,
}

impl Embedding {
    /// From the tensor `name` `[vocab, hidden]` of `weights`.
    pub fn load(shape: [usize; 2], name: &str, weights: &Weights) -> Result<Self> {
        Ok(Self {
            table: weights.table(shape, name)?,
            dtype: weights.dtype(),
        })
    }

    /// The head of a network whose head is tied to it, hidden → vocab.
    pub fn tied_head(&self, weights: &Weights) -> Result<Linear> {
        weights.tied_linear(&self.table)
    }

    /// The number format of embeddings.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The means `[rows, hidden]` of all embeddings under `probabilities` `[rows, vocab]`.
    pub fn means(&self, probabilities: &Tensor) -> Result<Tensor> {
        product(&probabilities.to_dtype(self.dtype)?, &self.table.t()?)
    }
}

impl Module for Embedding {
    /// `[rows]` → `[rows, hidden]`.
    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.table.index_select(tokens, 0)?.to_dtype(self.dtype)
    }
}
