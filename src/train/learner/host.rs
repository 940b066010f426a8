//! What is trained, in the host's memory.

use std::borrow::Cow;

use super::{Buffers, Learner, Measured};
use crate::train::batch::Batch;
use crate::train::config::{OptimizerKind, Precision};
use crate::train::cpu::CpuNetwork;
use crate::train::error::TrainError;
use crate::train::layout::{Layout, NetworkShape};
use crate::train::network::Network;
use crate::train::optimizer::{Moments, Optimizer, Scaled, Update, global_norm};

/// The CPU network with flat buffers, and the optimisers over these.
pub struct HostLearner {
    layout: Layout,
    network: CpuNetwork,
    precision: Precision,
    weights: Vec<f32>,
    average: Vec<f32>,
    optimizer: Optimizer,
    gradient: Vec<f32>,
}

impl HostLearner {
    /// One that continues from `buffers`.
    pub fn new(
        shape: &NetworkShape,
        precision: Precision,
        kind: OptimizerKind,
        buffers: Buffers,
    ) -> Self {
        let layout = Layout::new(shape);
        Self {
            network: CpuNetwork::new(shape, precision),
            precision,
            weights: buffers.weights.into_owned(),
            average: buffers.average.into_owned(),
            optimizer: Optimizer {
                kind,
                moments: Moments {
                    first: buffers.first.into_owned(),
                    second: buffers.second.into_owned(),
                },
            },
            gradient: vec![0.0; layout.len()],
            layout,
        }
    }
}

impl Learner for HostLearner {
    fn step(
        &mut self,
        passes: &[Batch],
        update: &Update,
        _meanwhile: &mut dyn FnMut(),
    ) -> Result<Measured, TrainError> {
        let count = passes.len() as f64;
        self.gradient.fill(0.0);
        let mut loss = 0.0;
        for pass in passes {
            let gradient = &mut self.gradient;
            loss += self
                .network
                .loss_and_gradient(&self.weights, pass, gradient)?;
        }
        let measured = Measured {
            loss: loss / count,
            grad_norm: global_norm(&self.gradient) / count,
        };
        if measured.is_finite() {
            let clip = (update.clip / measured.grad_norm).min(1.0);
            self.optimizer.update(
                &self.layout,
                &mut self.weights,
                &mut self.average,
                Scaled {
                    gradient: &self.gradient,
                    scale: clip / count,
                },
                self.precision,
                *update,
            );
        }
        Ok(measured)
    }

    fn average_loss(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        self.network.loss(&self.average, batch)
    }

    fn product_rate(&mut self) -> Result<f64, TrainError> {
        self.network.product_rate()
    }

    fn weights(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        Ok(Cow::Borrowed(&self.weights))
    }

    fn average(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        Ok(Cow::Borrowed(&self.average))
    }

    fn buffers(&self) -> Result<Buffers<'_>, TrainError> {
        let moments = &self.optimizer.moments;
        Ok(Buffers {
            weights: Cow::Borrowed(&self.weights),
            average: Cow::Borrowed(&self.average),
            first: Cow::Borrowed(&moments.first),
            second: Cow::Borrowed(&moments.second),
        })
    }
}
