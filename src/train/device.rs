//! Training on a device: what is trained stays there.
//!
//! Weights, moments and average are f32 and lie on the device from the first step to the last, as do the
//! gradients. A step copies what it needs of its batches to the device first (indices, weights and, where texts
//! see only themselves, the number of each slot's text), then launches everything, and reads once, at its end: the
//! loss and the gradient's norm, 16 bytes. Whether they are finite, and so whether the weights change, is
//! decided on the device. Meanwhile the host makes the next batch.
//!
//! The gradient is written by hand in tensor operations and not derived: candle's backward pass fills a tensor with
//! zeros and adds to it for every use of every intermediate, and looks rows up backwards with one thread a column.

mod arrangement;
mod block;
mod derivatives;
mod gradient;
mod group;
mod inputs;
mod losses;
mod muon;
mod network;
mod row_sums;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};

use super::batch::Batch;
use super::config::{OptimizerKind, Precision};
use super::error::TrainError;
use super::layout::{Layout, NetworkShape};
use super::learner::{Buffers, Learner, Measured};
use super::optimizer::Update;
use super::throughput;
use arrangement::{Arrangement, Parameters};
use gradient::Gradient;
use group::{Group, squares};
use inputs::Inputs;
use network::DeviceNetwork;

/// The most numbers of one tensor: candle's kernels count some in 32 bits, with a sign.
const LARGEST: u64 = i32::MAX as u64;

/// What is trained, on a device.
pub struct DeviceLearner {
    shape: NetworkShape,
    device: Device,
    arrangement: Arrangement,
    network: DeviceNetwork,
    groups: Vec<Group>,
    /// 0 and 1 in f64: made for a step, they would be copied there in its middle.
    zero: Tensor,
    one: Tensor,
}

impl DeviceLearner {
    /// One that continues from `buffers`.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(
        shape: &NetworkShape,
        device: &Device,
        precision: Precision,
        kind: OptimizerKind,
        buffers: Buffers,
    ) -> Result<Self, TrainError> {
        let arrangement = Arrangement::new(Layout::new(shape), kind);
        let mut of_groups = [
            buffers.weights,
            buffers.average,
            buffers.first,
            buffers.second,
        ]
        .map(|flat| arrangement.split(&flat).into_iter());
        let mut groups = Vec::with_capacity(arrangement.groups.len());
        for plan in &arrangement.groups {
            let numbers = of_groups
                .each_mut()
                .map(|groups| groups.next().unwrap_or_default());
            groups.push(Group::new(plan, numbers, device)?);
        }
        Ok(Self {
            network: DeviceNetwork::new(shape, device, precision)?,
            shape: shape.clone(),
            device: device.clone(),
            arrangement,
            groups,
            zero: Tensor::new(0f64, device)?,
            one: Tensor::new(1f64, device)?,
        })
    }

    /// The network's parameters, from a part of every group.
    fn parameters(&self, part: fn(&Group) -> &Tensor) -> candle_core::Result<Parameters<Tensor>> {
        let groups: Vec<Tensor> = self
            .groups
            .iter()
            .map(|group| part(group).clone())
            .collect();
        self.network.parameters(&self.arrangement, &groups)
    }

    /// A part of every group, read from the device; zeros where a group is without it.
    fn read(&self, part: fn(&Group) -> Option<&Tensor>) -> Result<Vec<f32>, TrainError> {
        let groups = self.groups.iter().zip(&self.arrangement.groups);
        let numbers = groups.map(|(group, plan)| match part(group) {
            Some(numbers) => numbers.to_vec1::<f32>(),
            None => Ok(vec![0.0; plan.len]),
        });
        let numbers: Vec<Vec<f32>> = numbers.collect::<candle_core::Result<_>>()?;
        Ok(self.arrangement.join(&numbers))
    }

    /// A batch on the device.
    fn inputs(&self, batch: &Batch, with_backward: bool) -> Result<Inputs, TrainError> {
        let shape = &self.shape;
        let (slots, scored) = (batch.tokens(), batch.scored.len());
        let widest = (2 * shape.hidden).max(shape.mlp);
        let tensors = [
            (slots, shape.heads * batch.context),
            (slots, widest),
            (scored, shape.vocab),
        ];
        for (rows, columns) in tensors {
            if rows as u64 * columns as u64 > LARGEST {
                return Err(TrainError::Setting {
                    field: "batch",
                    given: format!("{} windows of {} slots", batch.windows(), batch.context),
                    allowed: format!(
                        "fewer, with more grad-accumulation: a tensor [{rows}, {columns}] is more than the \
                         {LARGEST} numbers that one may have on a device"
                    ),
                });
            }
        }
        Ok(self.network.inputs(batch, with_backward)?)
    }

    /// The sums over passes of the loss, in f64, and of its gradient.
    fn passes(&self, passes: &[Batch]) -> Result<(Tensor, Gradient), TrainError> {
        // All copies to the device before all launches: one between them might wait for those before it.
        let inputs = passes
            .iter()
            .filter(|pass| !pass.scored.is_empty())
            .map(|pass| self.inputs(pass, true))
            .collect::<Result<Vec<_>, _>>()?;
        let weights = self.parameters(|group| &group.weights)?;
        let mut sum: Option<(Tensor, Gradient)> = None;
        for inputs in inputs {
            let (loss, gradient) =
                self.network
                    .loss_and_gradient(&weights, &inputs, &self.arrangement)?;
            let loss = loss.to_dtype(DType::F64)?;
            sum = Some(match sum {
                Some((losses, gradients)) => ((losses + loss)?, gradients.plus(&gradient)?),
                None => (loss, gradient),
            });
        }
        match sum {
            Some(sum) => Ok(sum),
            None => Ok((
                self.zero.clone(),
                Gradient::zeros(&self.arrangement, &self.device)?,
            )),
        }
    }
}

impl Learner for DeviceLearner {
    fn step(
        &mut self,
        passes: &[Batch],
        update: &Update,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Measured, TrainError> {
        let share = 1.0 / passes.len() as f64;
        let (loss, gradient) = self.passes(passes)?;
        let loss = loss.affine(share, 0.0)?;
        let mut sum = self.zero.clone();
        for group in gradient.groups() {
            sum = (sum + squares(group)?)?;
        }
        let norm = sum.sqrt()?.affine(share, 0.0)?;
        let both = (&loss + &norm)?;
        let is_finite = both.sub(&both)?.eq(&self.zero)?;
        let clip = norm.recip()?.affine(update.clip, 0.0)?.minimum(&self.one)?;
        let scale = clip.affine(share, 0.0)?.to_dtype(DType::F32)?;
        let dtype = self.network.dtype();
        for (group, gradient) in self.groups.iter_mut().zip(gradient.groups()) {
            group.update(gradient, &scale, &is_finite, update, dtype)?;
        }
        let measured = Tensor::stack(&[loss, norm], 0)?;
        meanwhile();
        match measured.to_vec1::<f64>()?[..] {
            [loss, grad_norm] => Ok(Measured { loss, grad_norm }),
            _ => unreachable!("two numbers were stacked"),
        }
    }

    fn average_loss(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        if batch.scored.is_empty() {
            return Ok(0.0);
        }
        let inputs = self.inputs(batch, false)?;
        let weights = self.parameters(|group| &group.average)?;
        let loss = self.network.loss(&weights, &inputs)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn product_rate(&mut self) -> Result<f64, TrainError> {
        // Products that a device does in the background: some at once, then the wait for them.
        const ROWS: usize = 4096;
        const AT_ONCE: usize = 16;
        let (d, width) = (self.shape.hidden, 2 * self.shape.mlp);
        let dtype = self.network.dtype();
        let rows = Tensor::ones((ROWS, d), dtype, &self.device)?;
        let weight = Tensor::ones((width, d), dtype, &self.device)?;
        let operations = (2 * ROWS * d * width * AT_ONCE) as f64;
        throughput::rate(operations, |count| {
            for _ in 0..count * AT_ONCE {
                rows.matmul(&weight.t()?)?;
            }
            Ok(self.device.synchronize()?)
        })
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        self.read(|group| Some(&group.weights)).map(Cow::Owned)
    }

    fn average(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        self.read(|group| Some(&group.average)).map(Cow::Owned)
    }

    fn buffers(&self) -> Result<Buffers<'_>, TrainError> {
        Ok(Buffers {
            weights: self.weights()?,
            average: self.average()?,
            first: self.read(|group| Some(&group.first))?.into(),
            second: self.read(|group| group.second.as_ref())?.into(),
        })
    }
}
