//! The loss of the network and its gradient: what every implementation computes, and the one
//! composed from candle's differentiable operations.

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::{log_softmax, silu, softmax};

use super::draws::Batch;
use super::error::TrainError;
use super::layout::{Layout, NetworkShape};

/// A network whose parameters live outside, in a flat buffer by [`Layout`].
///
/// The network is LLaDA's: pre-norm blocks with RMSNorm, bidirectional attention with rotary
/// positions (half-split pairs), a SiLU-gated MLP, no biases.
pub trait Network: Send {
    /// The NELBO estimate of a batch in nats per token: the sum over masked slots of weight ·
    /// cross-entropy, divided by the number of all tokens.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn loss(&mut self, weights: &[f32], batch: &Batch) -> Result<f64, TrainError>;

    /// The same, and adds its gradient to `gradient`, which is as long as `weights`.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn loss_and_gradient(
        &mut self,
        weights: &[f32],
        batch: &Batch,
        gradient: &mut [f32],
    ) -> Result<f64, TrainError>;
}

/// The network composed from candle operations, on any device.
///
/// Weights go to the device and gradients come back at every call: 8 bytes a parameter, little
/// beside the computation for the model sizes that are trained here.
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

    fn forward(&self, batch: &Batch) -> candle_core::Result<Tensor> {
        let (windows, l, d) = (batch.windows(), batch.context, self.shape.hidden);
        let (heads, head_dim) = (self.shape.heads, self.shape.head_dim());
        let slots = windows * l;
        let indices = |values: &[u32]| Tensor::from_slice(values, values.len(), &self.device);
        let linear = |x: &Tensor, w: &Var| x.matmul(&w.t()?);
        let mut x = self.variables[0].index_select(&indices(&batch.noisy)?, 0)?;
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
                linear(&normed, w)?
                    .reshape((windows, l, heads, head_dim))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let (q, k, v) = (
                self.rotate(&split(q)?)?,
                self.rotate(&split(k)?)?,
                split(v)?,
            );
            let scores = (q.matmul(&k.t()?)? * (1.0 / (head_dim as f64).sqrt()))?;
            let attended = softmax(&scores, D::Minus1)?.matmul(&v)?;
            let attended = attended.transpose(1, 2)?.reshape((slots, d))?;
            x = (x + linear(&attended, attn_out)?)?;
            let normed = self.norm(&x, ff_norm)?;
            let gated = (silu(&linear(&normed, ff_proj)?)? * linear(&normed, up_proj)?)?;
            x = (x + linear(&gated, ff_out)?)?;
        }
        let x = x.index_select(&indices(&batch.masked)?, 0)?;
        let x = self.norm(&x, &self.variables[1 + 9 * self.shape.layers])?;
        let head = if self.shape.tied {
            &self.variables[0]
        } else {
            &self.variables[self.variables.len() - 1]
        };
        let log_probabilities = log_softmax(&linear(&x, head)?, D::Minus1)?;
        let targets: Vec<u32> = batch
            .masked
            .iter()
            .map(|&slot| batch.clean[slot as usize])
            .collect();
        let row_weights: Vec<f32> = batch
            .masked
            .iter()
            .map(|&slot| -batch.weights[slot as usize / l] / batch.tokens() as f32)
            .collect();
        let row_weights = Tensor::from_vec(row_weights, (targets.len(), 1), &self.device)?;
        let at_targets = log_probabilities.gather(&indices(&targets)?.unsqueeze(1)?, 1)?;
        (at_targets * row_weights)?.sum_all()
    }
}

impl Network for ComposedNetwork {
    fn loss(&mut self, weights: &[f32], batch: &Batch) -> Result<f64, TrainError> {
        if batch.masked.is_empty() {
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
        if batch.masked.is_empty() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::schedule::Schedule;
    use crate::train::config::Precision;
    use crate::train::cpu::CpuNetwork;
    use crate::train::draws::{Purpose, Stream, stratified_times};

    fn shape(tied: bool) -> NetworkShape {
        NetworkShape {
            vocab: 61,
            context: 13,
            hidden: 24,
            layers: 3,
            heads: 3,
            mlp: 40,
            tied,
            rope_theta: 1e4,
            norm_eps: 1e-5,
        }
    }

    fn batch(shape: &NetworkShape, windows: usize, seed: u64) -> Batch {
        let mut stream = Stream::new(seed, Purpose::Step, 0);
        let clean = (0..windows * shape.context)
            .map(|_| 1 + stream.below(shape.vocab - 1) as u32)
            .collect();
        let times = stratified_times(windows, &mut stream);
        Batch::noise(
            shape.context,
            clean,
            &times,
            0,
            Schedule::LogLinear,
            &mut stream,
        )
    }

    fn random_weights(layout: &Layout) -> Vec<f32> {
        let mut stream = Stream::new(5, Purpose::Weights, 99);
        let mut weights = vec![0.0; layout.len()];
        for parameter in &layout.parameters {
            for weight in &mut weights[parameter.range.clone()] {
                let base = if parameter.init_std.is_none() {
                    1.0
                } else {
                    0.0
                };
                *weight = (base + 0.2 * stream.normal()) as f32;
            }
        }
        weights
    }

    #[test]
    fn the_cpu_network_equals_the_composed_one_in_loss_and_gradient() {
        for tied in [false, true] {
            let shape = shape(tied);
            let layout = Layout::new(&shape);
            let weights = random_weights(&layout);
            // More windows than fit one pass, and a number that splits unevenly over the threads.
            let batch = batch(&shape, 83, 1);
            let mut ours = vec![0.0; layout.len()];
            let mut theirs = ours.clone();
            let mut composed = ComposedNetwork::new(&shape, &Device::Cpu).unwrap();
            let mut cpu = CpuNetwork::new(&shape, Precision::F32);
            let expected = composed
                .loss_and_gradient(&weights, &batch, &mut theirs)
                .unwrap();
            let loss = cpu.loss_and_gradient(&weights, &batch, &mut ours).unwrap();
            assert!(
                (loss - expected).abs() < 1e-5 * expected,
                "{loss} {expected}"
            );
            assert_eq!(loss, cpu.loss(&weights, &batch).unwrap());
            for parameter in &layout.parameters {
                let (ours, theirs) = (
                    &ours[parameter.range.clone()],
                    &theirs[parameter.range.clone()],
                );
                let scale = theirs.iter().fold(0f32, |a, b| a.max(b.abs()));
                assert!(scale > 0.0, "{} has a gradient", parameter.name);
                let worst = ours
                    .iter()
                    .zip(theirs)
                    .fold(0f32, |a, (x, y)| a.max((x - y).abs()));
                assert!(
                    worst < 1e-5 * scale.max(1.0),
                    "{}: {worst} of {scale}",
                    parameter.name
                );
            }
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let shape = shape(false);
        let layout = Layout::new(&shape);
        let weights = random_weights(&layout);
        let batch = batch(&shape, 4, 2);
        let mut gradient = vec![0.0; layout.len()];
        let mut cpu = CpuNetwork::new(&shape, Precision::F32);
        cpu.loss_and_gradient(&weights, &batch, &mut gradient)
            .unwrap();
        let norm = gradient
            .iter()
            .map(|&g| f64::from(g).powi(2))
            .sum::<f64>()
            .sqrt();
        let mut moved = |step: f64| {
            let at: Vec<f32> = weights
                .iter()
                .zip(&gradient)
                .map(|(w, g)| w + (step * f64::from(*g) / norm) as f32)
                .collect();
            cpu.loss(&at, &batch).unwrap()
        };
        let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        assert!((slope / norm - 1.0).abs() < 1e-2, "{slope} {norm}");
    }

    #[test]
    fn a_head_of_zeros_has_the_loss_of_the_uniform_distribution() {
        let shape = shape(false);
        let weights = Layout::new(&shape).initial_weights(3);
        let mut cpu = CpuNetwork::new(&shape, Precision::F32);
        let losses: Vec<f64> = (0..40)
            .map(|i| cpu.loss(&weights, &batch(&shape, 64, i)).unwrap())
            .collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let uniform = (shape.vocab as f64).ln();
        assert!((mean / uniform - 1.0).abs() < 0.05, "{mean} {uniform}");
    }

    #[test]
    fn a_batch_without_masks_has_no_loss_and_no_gradient() {
        let shape = shape(false);
        let layout = Layout::new(&shape);
        let weights = random_weights(&layout);
        let clean = vec![1; 2 * shape.context];
        let batch = Batch {
            context: shape.context,
            noisy: clean.clone(),
            clean,
            masked: vec![],
            weights: vec![1.0; 2],
        };
        let mut gradient = vec![0.0; layout.len()];
        assert_eq!(
            CpuNetwork::new(&shape, Precision::F32)
                .loss_and_gradient(&weights, &batch, &mut gradient)
                .unwrap(),
            0.0
        );
        assert!(gradient.iter().all(|&g| g == 0.0));
    }
}
