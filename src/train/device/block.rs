//! A block of the network, forward and backward.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};

use super::arrangement::{BlockParameters, Place};
use super::derivatives;
use super::gradient::Gradient;
use super::inputs::{BackwardInputs, Inputs};
use crate::models::{Activation, gated};
use crate::train::layout::NetworkShape;

/// A block, and the batch that goes through it.
pub struct Block<'a> {
    /// The network's shape.
    pub shape: &'a NetworkShape,
    /// Norms in f32, matrices in the type of products.
    pub weights: &'a BlockParameters<Tensor>,
    /// The batch.
    pub inputs: &'a Inputs,
    /// Whether what follows attention is for scored slots alone.
    pub is_last: bool,
    /// The type of products.
    pub dtype: DType,
}

/// What the backward pass needs of the forward one. Rows are slots, or in the last block, from `attended` on, the
/// scored slots; the residual stream is f32, all else of the type of products.
pub struct BlockTrace {
    /// The residual stream, `[slots, D]`.
    x: Tensor,
    /// Its norm.
    normed: Tensor,
    /// Queries and keys, rotated and scaled, `[2, windows, H, L, head_dim]`.
    query_key: Tensor,
    /// `[windows, H, L, head_dim]`
    value: Tensor,
    /// `[windows, H, L, L]`
    probabilities: Tensor,
    /// `[rows, D]`
    attended: Tensor,
    /// The residual stream after attention, `[rows, D]`.
    middle: Tensor,
    /// Its norm.
    middle_normed: Tensor,
    /// `[rows, F]`
    gate: Tensor,
    /// `[rows, F]`
    up: Tensor,
    /// silu(gate) ⊙ up.
    gated: Tensor,
}

impl Block<'_> {
    /// The residual stream behind the block, `[rows, D]`, of the one before it, `[slots, D]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, x: Tensor) -> Result<(Tensor, BlockTrace)> {
        let (shape, weights, inputs) = (self.shape, self.weights, self.inputs);
        let (heads, head_dim) = (shape.heads, shape.head_dim());
        let slots = inputs.windows * inputs.context;

        let normed = self.norm(&x, &weights.attn_norm)?;
        let query_key =
            normed
                .matmul(&weights.query_key.t()?)?
                .reshape((slots, 2 * heads, head_dim))?;
        let query_key = inputs
            .rotary
            .apply(&query_key)?
            .reshape((inputs.windows, inputs.context, 2, heads, head_dim))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?;
        let value = self.heads_first(&normed.matmul(&weights.value.t()?)?)?;
        let scores = query_key.get(0)?.matmul(&query_key.get(1)?.t()?)?;
        let scores = scores.to_dtype(DType::F32)?;
        let scores = match &inputs.bias {
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        let probabilities = self.factor(&softmax_last_dim(&scores)?)?;
        drop(scores);
        let attended = self.slots_first(&probabilities.matmul(&value)?)?;
        let (attended, residual) = match self.is_last {
            true => (
                attended.index_select(&inputs.scored, 0)?,
                x.index_select(&inputs.scored, 0)?,
            ),
            false => (attended, x.clone()),
        };
        let middle = self.add(&residual, &attended.matmul(&weights.attn_out.t()?)?)?;

        let middle_normed = self.norm(&middle, &weights.ff_norm)?;
        let gate = middle_normed.matmul(&weights.gate.t()?)?;
        let up = middle_normed.matmul(&weights.up.t()?)?;
        let gated = gated(Activation::Silu, &gate, &up)?;
        let out = self.add(&middle, &gated.matmul(&weights.ff_out.t()?)?)?;
        let trace = BlockTrace {
            x,
            normed,
            query_key,
            value,
            probabilities,
            attended,
            middle,
            middle_normed,
            gate,
            up,
            gated,
        };
        Ok((out, trace))
    }

    /// The gradient `[slots, D]` of the residual stream before the block, from the one behind it, `[rows, D]`. Those
    /// of the weights go into `gradient`, to `places`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        trace: BlockTrace,
        d_out: Tensor,
        backward: &BackwardInputs,
        gradient: &Gradient,
        places: &BlockParameters<Place>,
    ) -> Result<Tensor> {
        let (shape, weights, inputs) = (self.shape, self.weights, self.inputs);
        let (heads, head_dim) = (shape.heads, shape.head_dim());
        let (slots, eps) = (inputs.windows * inputs.context, shape.norm_eps);

        let dy = self.factor(&d_out)?;
        gradient.set(&places.ff_out, &dy.t()?.matmul(&trace.gated)?)?;
        let d_gated = dy.matmul(&weights.ff_out)?;
        let (d_gate, d_up) = derivatives::silu_times(&trace.gate, &trace.up, &d_gated)?;
        gradient.set(&places.gate, &d_gate.t()?.matmul(&trace.middle_normed)?)?;
        gradient.set(&places.up, &d_up.t()?.matmul(&trace.middle_normed)?)?;
        let d_normed = (d_gate.matmul(&weights.gate)? + d_up.matmul(&weights.up)?)?;
        let d_normed = d_normed.to_dtype(DType::F32)?;
        let (d_middle, d_norm) =
            derivatives::rms_norm(&trace.middle, &weights.ff_norm, &d_normed, eps)?;
        gradient.set(&places.ff_norm, &d_norm)?;
        let d_middle = (d_out + d_middle)?;

        let dy = self.factor(&d_middle)?;
        gradient.set(&places.attn_out, &dy.t()?.matmul(&trace.attended)?)?;
        let d_attended = dy.matmul(&weights.attn_out)?;
        // Of each slot and head, the product of the probabilities with their gradient: that of what was attended to
        // with its own, which is shorter (Dao et al., arXiv:2205.14135, appendix B.2).
        let along = (&d_attended * &trace.attended)?
            .to_dtype(DType::F32)?
            .reshape(((), heads, head_dim))?
            .sum(2)?;
        let (d_attended, along, d_residual) = match self.is_last {
            true => (
                d_attended.index_select(&backward.places, 0)?,
                along.index_select(&backward.places, 0)?,
                d_middle.index_select(&backward.places, 0)?,
            ),
            false => (d_attended, along, d_middle),
        };
        let along = along
            .reshape((inputs.windows, inputs.context, heads, 1))?
            .transpose(1, 2)?;
        let d_attended = self.heads_first(&d_attended)?;
        let d_value = self.slots_first(&trace.probabilities.t()?.matmul(&d_attended)?)?;
        let d_probabilities = d_attended.matmul(&trace.value.t()?)?;
        let d_scores = derivatives::softmax(&trace.probabilities, &d_probabilities, &along)?;
        let (query, key) = (trace.query_key.get(0)?, trace.query_key.get(1)?);
        let d_query_key =
            Tensor::stack(&[d_scores.matmul(&key)?, d_scores.t()?.matmul(&query)?], 0)?
                .permute((1, 3, 0, 2, 4))?
                .reshape((slots, 2 * heads, head_dim))?;
        let d_query_key = backward
            .rotary
            .apply(&d_query_key)?
            .reshape((slots, 2 * shape.hidden))?;
        gradient.set(&places.query_key, &d_query_key.t()?.matmul(&trace.normed)?)?;
        gradient.set(&places.value, &d_value.t()?.matmul(&trace.normed)?)?;
        let d_normed =
            (d_query_key.matmul(&weights.query_key)? + d_value.matmul(&weights.value)?)?;
        let d_normed = d_normed.to_dtype(DType::F32)?;
        let (d_x, d_norm) = derivatives::rms_norm(&trace.x, &weights.attn_norm, &d_normed, eps)?;
        gradient.set(&places.attn_norm, &d_norm)?;
        d_residual + d_x
    }

    /// A factor of products.
    fn factor(&self, x: &Tensor) -> Result<Tensor> {
        x.to_dtype(self.dtype)
    }

    fn norm(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        self.factor(&rms_norm(x, w, self.shape.norm_eps as f32)?)
    }

    /// The residual stream with a product added.
    fn add(&self, x: &Tensor, product: &Tensor) -> Result<Tensor> {
        x + product.to_dtype(DType::F32)?
    }

    /// `[windows, H, L, head_dim]` of `[slots, D]`.
    fn heads_first(&self, x: &Tensor) -> Result<Tensor> {
        let (heads, head_dim) = (self.shape.heads, self.shape.head_dim());
        x.reshape((self.inputs.windows, self.inputs.context, heads, head_dim))?
            .transpose(1, 2)?
            .contiguous()
    }

    /// `[slots, D]` of `[windows, H, L, head_dim]`.
    fn slots_first(&self, x: &Tensor) -> Result<Tensor> {
        x.transpose(1, 2)?.reshape(((), self.shape.hidden))
    }
}
