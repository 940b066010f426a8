//! The network composed from candle's differentiable operations: the reference.

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::{log_softmax, silu, softmax};

use super::{Network, UniformSlots, plug_in_divergences};
use crate::train::batch::Batch;
use crate::train::error::TrainError;
use crate::train::layout::{Layout, NetworkShape};

/// Added to the score of a slot of another text: e to this power is 0 in f32 beside any other score.
const UNSEEN: f32 = -1e30;

/// The network composed from candle operations, in f32 on any device, with the gradient that candle derives.
///
/// It says what the networks that training uses must equal, and is not made to be fast: weights go to the device
/// and gradients come back at every call, and candle's backward pass fills and adds a tensor for every use of
/// every intermediate. On CUDA it would also wait for the lookups' gradients, which candle adds row after row.
pub struct ComposedNetwork {
    shape: NetworkShape,
    layout: Layout,
    device: Device,
    variables: Vec<Var>,
    rotary: (Tensor, Tensor),
}

impl ComposedNetwork {
    /// A network on a device.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(shape: &NetworkShape, device: &Device) -> Result<Self, TrainError> {
        let layout = Layout::new(shape);
        let variables = layout
            .parameters
            .iter()
            .map(|parameter| Var::zeros(parameter.shape.as_slice(), DType::F32, device))
            .collect::<Result<_, _>>()?;
        let half = shape.head_dim() / 2;
        let angles: Vec<f64> = (0..shape.context * half)
            .map(|i| (i / half) as f64 / shape.rope_theta.powf((i % half) as f64 / half as f64))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&angle| f(angle) as f32).collect();
            Tensor::from_vec(values, (shape.context, half), device)
        };
        let rotary = (table(f64::cos)?, table(f64::sin)?);
        Ok(Self {
            shape: shape.clone(),
            layout,
            device: device.clone(),
            variables,
            rotary,
        })
    }

    fn upload(&self, weights: &[f32]) -> Result<(), TrainError> {
        for (variable, parameter) in self.variables.iter().zip(&self.layout.parameters) {
            let values = &weights[parameter.range.clone()];
            variable.set(&Tensor::from_slice(
                values,
                parameter.shape.as_slice(),
                &self.device,
            )?)?;
        }
        Ok(())
    }

    /// The variables of block `layer`, in the layout's order.
    fn block(&self, layer: usize) -> &[Var] {
        &self.variables[1 + 9 * layer..1 + 9 * (layer + 1)]
    }

    fn norm(&self, x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
        let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + self.shape.norm_eps)?;
        x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(w)
    }

    /// `x · wᵀ`
    fn linear(&self, x: &Tensor, w: &Var) -> candle_core::Result<Tensor> {
        x.matmul(&w.t()?)
    }

    /// `[B, H, L, head_dim]`, rotated.
    fn rotate(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let half = self.shape.head_dim() / 2;
        let (cos, sin) = &self.rotary;
        let low = x.narrow(D::Minus1, 0, half)?;
        let high = x.narrow(D::Minus1, half, half)?;
        Tensor::cat(
            &[
                (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?,
                (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?,
            ],
            D::Minus1,
        )
    }

    /// What is added to attention scores, `[windows, 1, L, L]`; `None` where every slot sees its whole
    /// window.
    fn attention_bias(&self, batch: &Batch) -> candle_core::Result<Option<Tensor>> {
        let (windows, l) = (batch.windows(), batch.context);
        if batch.starts.len() == windows {
            return Ok(None);
        }
        let mut bias = vec![UNSEEN; windows * l * l];
        for text in batch.texts() {
            let first = text.start % l;
            for slot in text.clone() {
                bias[slot * l + first..slot * l + first + text.len()].fill(0.0);
            }
        }
        Tensor::from_vec(bias, (windows, 1, l, l), &self.device).map(Some)
    }

    fn forward(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let (windows, l, d) = (batch.windows(), batch.context, self.shape.hidden);
        let (heads, head_dim) = (self.shape.heads, self.shape.head_dim());
        let slots = windows * l;
        let bias = self.attention_bias(batch)?;
        let scored = self.indices(&batch.scored)?;
        let mut x = self.variables[0].index_select(&self.indices(&batch.noisy)?, 0)?;
        for layer in 0..self.shape.layers {
            let [
                attn_norm,
                q,
                k,
                v,
                attn_out,
                ff_norm,
                ff_proj,
                up_proj,
                ff_out,
            ] = self.block(layer)
            else {
                unreachable!("a block has nine parameters")
            };
            let normed = self.norm(&x, attn_norm)?;
            let split = |w: &Var| {
                self.linear(&normed, w)?
                    .reshape((windows, l, heads, head_dim))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let (q, k, v) = (
                self.rotate(&split(q)?)?,
                self.rotate(&split(k)?)?,
                split(v)?,
            );
            let mut scores = (q.matmul(&k.t()?)? * (1.0 / (head_dim as f64).sqrt()))?;
            if let Some(bias) = &bias {
                scores = scores.broadcast_add(bias)?;
            }
            let attended = softmax(&scores, D::Minus1)?.matmul(&v)?;
            let mut attended = attended.transpose(1, 2)?.reshape((slots, d))?;
            if layer + 1 == self.shape.layers {
                attended = attended.index_select(&scored, 0)?;
                x = x.index_select(&scored, 0)?;
            }
            x = (x + self.linear(&attended, attn_out)?)?;
            let normed = self.norm(&x, ff_norm)?;
            let gated =
                (silu(&self.linear(&normed, ff_proj)?)? * self.linear(&normed, up_proj)?)?;
            x = (x + self.linear(&gated, ff_out)?)?;
        }
        let x = self.norm(&x, &self.variables[1 + 9 * self.shape.layers])?;
        let head = if self.shape.tied {
            &self.variables[0]
        } else {
            &self.variables[self.variables.len() - 1]
        };
        let logits = self.linear(&x, head)?;
        let losses = self.losses(&log_softmax(&logits, D::Minus1)?, batch)?;
        let weights = batch
            .scored
            .iter()
            .map(|&slot| batch.weights[slot as usize / l] / batch.tokens() as f32);
        (losses * self.column(weights)?)?.sum_all()
    }

    fn indices(&self, values: &[u32]) -> candle_core::Result<Tensor> {
        Tensor::from_slice(values, values.len(), &self.device)
    }

    /// `[rows, 1]`.
    fn column(&self, values: impl Iterator<Item = f32>) -> candle_core::Result<Tensor> {
        let values: Vec<f32> = values.collect();
        let rows = values.len();
        Tensor::from_vec(values, (rows, 1), &self.device)
    }

    /// The loss of each scored slot, `[scored, 1]`, from its log-probabilities `[scored, V]`.
    fn losses(&self, log_probabilities: &Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
        let clean = batch.scored.iter().map(|&slot| batch.clean[slot as usize]);
        let clean = self.indices(&clean.collect::<Vec<_>>())?.unsqueeze(1)?;
        let clean = log_probabilities.gather(&clean, 1)?;
        match UniformSlots::of(batch, &self.device)? {
            Some(slots) => plug_in_divergences(log_probabilities, &clean, &slots),
            None => clean.neg(),
        }
    }
}

impl Network for ComposedNetwork {
    fn loss(&mut self, weights: &[f32], batch: &Batch) -> Result<f64, TrainError> {
        if batch.scored.is_empty() {
            return Ok(0.0);
        }
        self.upload(weights)?;
        Ok(f64::from(self.forward(batch)?.to_scalar::<f32>()?))
    }

    fn loss_and_gradient(
        &mut self,
        weights: &[f32],
        batch: &Batch,
        gradient: &mut [f32],
    ) -> Result<f64, TrainError> {
        if batch.scored.is_empty() {
            return Ok(0.0);
        }
        self.upload(weights)?;
        let loss = self.forward(batch)?;
        let gradients = loss.backward()?;
        for (variable, parameter) in self.variables.iter().zip(&self.layout.parameters) {
            if let Some(values) = gradients.get(variable) {
                let values = values.flatten_all()?.to_vec1::<f32>()?;
                for (sum, value) in gradient[parameter.range.clone()].iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}
