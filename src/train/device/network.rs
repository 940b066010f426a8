//! The network on a device: its loss, and the gradient of it.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::rms_norm;

use super::arrangement::{Arrangement, BlockParameters, Parameters, Place};
use super::block::{Block, BlockTrace};
use super::gradient::Gradient;
use super::inputs::Inputs;
use super::{derivatives, losses};
use crate::models::Rotary;
use crate::train::batch::Batch;
use crate::train::config::Precision;
use crate::train::layout::NetworkShape;

/// The network, without its weights.
///
/// In bfloat16 the factors of the linear layers and of attention and their products are bfloat16, forward and
/// backward; the residual stream, norms, rotations, softmax, loss and the gradients that are handed out are f32.
pub struct DeviceNetwork {
    shape: NetworkShape,
    device: Device,
    /// The type of products.
    dtype: DType,
    rotary: Rotary,
}

impl DeviceNetwork {
    /// A network with products in a precision.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(shape: &NetworkShape, device: &Device, precision: Precision) -> Result<Self> {
        let (head_dim, theta) = (shape.head_dim(), shape.rope_theta);
        Ok(Self {
            rotary: Rotary::new(head_dim, theta, shape.context, DType::F32, device)?,
            shape: shape.clone(),
            device: device.clone(),
            dtype: match precision {
                Precision::F32 => DType::F32,
                Precision::Bf16 => DType::BF16,
            },
        })
    }

    /// The type of products.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Copies what the network needs of a batch with scored slots to the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn inputs(&self, batch: &Batch, with_backward: bool) -> Result<Inputs> {
        Inputs::new(
            batch,
            &self.shape,
            &self.rotary,
            with_backward,
            &self.device,
        )
    }

    /// The parameters as [`loss`](Self::loss) takes them, from the numbers of each group in f32: the embedding and
    /// the norms in f32, matrices in the type of products.
    ///
    /// # Errors
    /// When the device fails.
    pub fn parameters(
        &self,
        arrangement: &Arrangement,
        groups: &[Tensor],
    ) -> Result<Parameters<Tensor>> {
        let factors = groups.iter().map(|group| group.to_dtype(self.dtype));
        let factors: Vec<Tensor> = factors.collect::<Result<_>>()?;
        let part = |groups: &[Tensor], place: &Place| {
            groups[place.group]
                .narrow(0, place.range.start, place.range.len())?
                .reshape(place.shape.as_slice())
        };
        let exact = |place: &Place| part(groups, place);
        let factor = |place: &Place| part(&factors, place);
        let places = &arrangement.parameters;
        let block = |block: &BlockParameters<Place>| {
            Ok(BlockParameters {
                attn_norm: exact(&block.attn_norm)?,
                query_key: factor(&block.query_key)?,
                value: factor(&block.value)?,
                attn_out: factor(&block.attn_out)?,
                ff_norm: exact(&block.ff_norm)?,
                gate: factor(&block.gate)?,
                up: factor(&block.up)?,
                ff_out: factor(&block.ff_out)?,
            })
        };
        Ok(Parameters {
            embedding: exact(&places.embedding)?,
            blocks: places.blocks.iter().map(block).collect::<Result<_>>()?,
            final_norm: exact(&places.final_norm)?,
            head: factor(&places.head)?,
        })
    }

    /// The loss of a batch, a number in f32 on the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn loss(&self, weights: &Parameters<Tensor>, inputs: &Inputs) -> Result<Tensor> {
        let mut x = weights.embedding.index_select(&inputs.tokens, 0)?;
        for layer in 0..self.shape.layers {
            (x, _) = self.block(weights, inputs, layer).forward(x)?;
        }
        losses::loss(&self.logits(weights, &self.normed(weights, &x)?)?, inputs)
    }

    /// The same, and its gradient.
    ///
    /// # Errors
    /// When the device fails, or `inputs` are for a loss alone.
    pub fn loss_and_gradient(
        &self,
        weights: &Parameters<Tensor>,
        inputs: &Inputs,
        arrangement: &Arrangement,
    ) -> Result<(Tensor, Gradient)> {
        let Some(backward) = &inputs.backward else {
            candle_core::bail!("these inputs are without what the backward pass needs");
        };
        let mut x = weights.embedding.index_select(&inputs.tokens, 0)?;
        let mut traces: Vec<BlockTrace> = Vec::with_capacity(self.shape.layers);
        for layer in 0..self.shape.layers {
            let (out, trace) = self.block(weights, inputs, layer).forward(x)?;
            traces.push(trace);
            x = out;
        }
        let normed = self.normed(weights, &x)?;
        let (loss, d_logits) = {
            let logits = self.logits(weights, &normed)?;
            losses::loss_and_gradient(&logits, inputs)?
        };

        let gradient = Gradient::zeros(arrangement, &self.device)?;
        let places = &arrangement.parameters;
        let d_logits = d_logits.to_dtype(self.dtype)?;
        let d_head = d_logits.t()?.matmul(&normed)?;
        let d_normed = d_logits.matmul(&weights.head)?.to_dtype(DType::F32)?;
        drop(d_logits);
        let eps = self.shape.norm_eps;
        let (mut d_x, d_norm) = derivatives::rms_norm(&x, &weights.final_norm, &d_normed, eps)?;
        gradient.set(&places.final_norm, &d_norm)?;
        while let Some(trace) = traces.pop() {
            let layer = traces.len();
            let block = self.block(weights, inputs, layer);
            d_x = block.backward(trace, d_x, backward, &gradient, &places.blocks[layer])?;
        }
        let d_embedding = backward.row_sums.sum(&d_x)?;
        if self.shape.tied {
            let both = (d_embedding + d_head.to_dtype(DType::F32)?)?;
            gradient.set(&places.embedding, &both)?;
        } else {
            gradient.set(&places.embedding, &d_embedding)?;
            gradient.set(&places.head, &d_head)?;
        }
        Ok((loss, gradient))
    }

    fn block<'a>(
        &'a self,
        weights: &'a Parameters<Tensor>,
        inputs: &'a Inputs,
        layer: usize,
    ) -> Block<'a> {
        Block {
            shape: &self.shape,
            weights: &weights.blocks[layer],
            inputs,
            is_last: layer + 1 == self.shape.layers,
            dtype: self.dtype,
        }
    }

    /// The norm of the last residual stream, `[scored, D]`.
    fn normed(&self, weights: &Parameters<Tensor>, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &weights.final_norm, self.shape.norm_eps as f32)?.to_dtype(self.dtype)
    }

    /// `[scored, V]`, in f32.
    fn logits(&self, weights: &Parameters<Tensor>, normed: &Tensor) -> Result<Tensor> {
        normed.matmul(&weights.head.t()?)?.to_dtype(DType::F32)
    }
}
