//! The network composed from candle's differentiable operations.

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::{log_softmax, silu, softmax};

use super::Network;
use crate::train::batch::Batch;
use crate::train::config::Precision;
use crate::train::error::TrainError;
use crate::train::layout::{Layout, NetworkShape};
use crate::train::throughput;

/// Added to the score of a slot of another text: e to this power is 0 in f32 beside any other score.
const UNSEEN: f32 = -1e30;

/// The network composed from candle operations, on any device.
///
/// Weights go to the device and gradients come back at every call: 8 bytes a parameter, little
/// beside the computation for the model sizes that are trained here.
pub struct ComposedNetwork {
    shape: NetworkShape,
    layout: Layout,
    device: Device,
    /// The type of matrix products, their factors and their results.
    dtype: DType,
    variables: Vec<Var>,
    rotary: (Tensor, Tensor),
}

impl ComposedNetwork {
    /// A network on a device, in f32.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(shape: &NetworkShape, device: &Device) -> Result<Self, TrainError> {
        Self::with_precision(shape, device, Precision::F32)
    }

    /// A network on a device with matrix products in a precision. In bfloat16 these are the linear layers
    /// and attention, forward and backward; the master weights, the residual stream, norms, softmax, loss
    /// and the gradients that are handed out are f32.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn with_precision(
        shape: &NetworkShape,
        device: &Device,
        precision: Precision,
    ) -> Result<Self, TrainError> {
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
            dtype: match precision {
                Precision::F32 => DType::F32,
                Precision::Bf16 => DType::BF16,
            },
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

    /// `x` in the type of products.
    fn factor(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.to_dtype(self.dtype)
    }

    /// `x · wᵀ`, of a factor `x`.
    fn linear(&self, x: &Tensor, w: &Var) -> candle_core::Result<Tensor> {
        x.matmul(&self.factor(w)?.t()?)
    }

    /// `[B, H, L, head_dim]`, rotated.
    fn rotate(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        let half = self.shape.head_dim() / 2;
        let (cos, sin) = &self.rotary;
        let low = x.narrow(D::Minus1, 0, half)?;
        let high = x.narrow(D::Minus1, half, half)?;
        self.factor(&Tensor::cat(
            &[
                (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?,
                (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?,
            ],
            D::Minus1,
        )?)
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
        let f32 = |x: Tensor| x.to_dtype(DType::F32);
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
            let normed = self.factor(&self.norm(&x, attn_norm)?)?;
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
            let mut scores = (f32(q.matmul(&k.t()?)?)? * (1.0 / (head_dim as f64).sqrt()))?;
            if let Some(bias) = &bias {
                scores = scores.broadcast_add(bias)?;
            }
            let attended = self.factor(&softmax(&scores, D::Minus1)?)?.matmul(&v)?;
            let mut attended = attended.transpose(1, 2)?.reshape((slots, d))?;
            if layer + 1 == self.shape.layers {
                attended = attended.index_select(&scored, 0)?;
                x = x.index_select(&scored, 0)?;
            }
            x = (x + f32(self.linear(&attended, attn_out)?)?)?;
            let normed = self.factor(&self.norm(&x, ff_norm)?)?;
            let gated =
                (silu(&self.linear(&normed, ff_proj)?)? * self.linear(&normed, up_proj)?)?;
            x = (x + f32(self.linear(&gated, ff_out)?)?)?;
        }
        let x = self.norm(&x, &self.variables[1 + 9 * self.shape.layers])?;
        let head = if self.shape.tied {
            &self.variables[0]
        } else {
            &self.variables[self.variables.len() - 1]
        };
        let logits = f32(self.linear(&self.factor(&x)?, head)?)?;
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
        let at = |tokens: &[u32]| -> candle_core::Result<Tensor> {
            let tokens: Vec<u32> = batch.scored.iter().map(|&s| tokens[s as usize]).collect();
            log_probabilities.gather(&self.indices(&tokens)?.unsqueeze(1)?, 1)
        };
        let clean = at(&batch.clean)?;
        if batch.signal.is_empty() {
            return clean.neg();
        }
        self.plug_in_divergences(log_probabilities, &clean, &at(&batch.noisy)?, batch)
    }

    /// [`plug_in_divergence`](crate::diffusion::elbo::plug_in_divergence) of each scored slot, in its terms;
    /// `clean` and `seen` are the log-probabilities of x_0 and x_t.
    fn plug_in_divergences(
        &self,
        log_probabilities: &Tensor,
        clean: &Tensor,
        seen: &Tensor,
        batch: &Batch,
    ) -> candle_core::Result<Tensor> {
        let states = self.shape.vocab as f64;
        let signal = |slot: &u32| batch.signal[*slot as usize / batch.context];
        let w = self.column(batch.scored.iter().map(signal))?;
        let certain = |slot: &u32| {
            let w = f64::from(signal(slot));
            ((1.0 + w) * w.ln_1p() - w) as f32
        };
        let certain = self.column(batch.scored.iter().map(certain))?;
        let noised = |slot: &u32| batch.clean[*slot as usize] != batch.noisy[*slot as usize];
        let noised = self.column(batch.scored.iter().map(|slot| f32::from(noised(slot))))?;
        let ln_1p = |y: &Tensor| (y + 1.0)?.log();
        let phi = |y: &Tensor| y - ln_1p(y)?;

        let sum = phi(&log_probabilities.exp()?.broadcast_mul(&w)?)?.sum_keepdim(1)?;
        let p_seen = seen.exp()?;
        let y_seen = (&p_seen * &w)?;
        let y_clean = (clean.exp()? * &w)?;
        let more = (&w + states)?;
        let own = ((ln_1p(&y_seen)? - (&y_seen / (&y_seen + 1.0)?)?)? * &more)?;
        let of_noised = (((own + &sum)? + certain)? - (&w * ln_1p(&y_clean)?)?)?;

        let rest = ((1.0 - &p_seen)? * &w)?;
        let x = (&rest / (&y_seen + 1.0)?)?;
        let others = (sum - phi(&y_seen)?)?;
        let of_kept = (((phi(&x)? * (states - 1.0))? + (rest * &x)?)? + others)?;
        let of_kept = (of_kept / (&w + 1.0)?)?;
        (&of_kept + (noised * (of_noised - &of_kept)?)?)?.contiguous()
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

    fn product_rate(&mut self) -> Result<f64, TrainError> {
        // Products that a device does in the background: some at once, then a number that needs them.
        const ROWS: usize = 4096;
        const AT_ONCE: usize = 4;
        let (d, width) = (self.shape.hidden, 2 * self.shape.mlp);
        let rows = Tensor::ones((ROWS, d), self.dtype, &self.device)?;
        let weight = Tensor::ones((width, d), self.dtype, &self.device)?;
        let operations = (2 * ROWS * d * width * AT_ONCE) as f64;
        throughput::rate(operations, || {
            let mut last = None;
            for _ in 0..AT_ONCE {
                last = Some(rows.matmul(&weight.t()?)?);
            }
            if let Some(last) = last {
                last.get(0)?
                    .get(0)?
                    .to_dtype(DType::F32)?
                    .to_scalar::<f32>()?;
            }
            Ok(())
        })
    }
}
