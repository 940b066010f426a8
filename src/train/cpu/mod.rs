//! The network's loss and gradient written by hand for the CPU.
//!
//! The windows of a batch are split evenly over the threads. Each thread runs its windows, a few
//! at a time, through the whole network and back with single-threaded matrix products, and sums
//! their gradients into a buffer of its own; the buffers are added at the end, in a fixed order.
//! So threads meet once a step, and the result depends on the number of threads (by rounding) but
//! not on their timing.
//!
//! Two facts of the objective save work: only scored slots have a loss, so the head, and everything
//! after the last block's attention, runs on them alone; and texts that see only themselves attend in
//! squares of their own, without a mask.

#[cfg(target_arch = "x86_64")]
mod bf16;
mod gemm;
mod kernels;
mod pass;
mod plug_in;

use rayon::prelude::*;

use super::batch::Batch;
use super::config::Precision;
use super::error::TrainError;
use super::layout::{Layout, NetworkShape};
use super::network::Network;
pub use gemm::bf16_available;
pub(super) use gemm::{Matrix, Products, Write};
use pass::Pass;

/// Slots that go through the network at once, roughly; more make the matrix products more
/// efficient, fewer keep the activations in the cache.
const SLOTS: usize = 512;

/// The CPU network.
pub struct CpuNetwork {
    layout: Layout,
    windows: usize,
    workers: Vec<Worker>,
}

struct Worker {
    pass: Pass,
    gradient: Vec<f32>,
}

impl CpuNetwork {
    /// A network with one worker for each thread of the current rayon pool.
    pub fn new(shape: &NetworkShape, precision: Precision) -> Self {
        let layout = Layout::new(shape);
        let windows = (SLOTS / shape.context).max(1);
        let workers = (0..rayon::current_num_threads())
            .map(|_| Worker {
                pass: Pass::new(shape, windows, precision),
                gradient: Vec::new(),
            })
            .collect();
        Self {
            layout,
            windows,
            workers,
        }
    }

    /// Measures how many floating-point operations a second all workers do together in the matrix products of
    /// the network's widest layer.
    ///
    /// # Errors
    /// When a worker's products cannot be measured.
    pub fn product_rate(&mut self) -> Result<f64, TrainError> {
        let rates: Vec<f64> = self
            .workers
            .par_iter_mut()
            .map(|worker| worker.pass.product_rate())
            .collect::<Result<_, _>>()?;
        Ok(rates.iter().sum())
    }

    /// Runs all workers and returns the sum of their losses.
    fn run(&mut self, weights: &[f32], batch: &Batch, with_gradient: bool) -> f64 {
        let layout = &self.layout;
        let each = batch.windows().div_ceil(self.workers.len());
        let step = self.windows;
        let scale = 1.0 / batch.tokens() as f32;
        let losses: Vec<f64> = self
            .workers
            .par_iter_mut()
            .enumerate()
            .map(|(index, worker)| {
                if with_gradient {
                    worker.gradient.clear();
                    worker.gradient.resize(layout.len(), 0.0);
                }
                let end = ((index + 1) * each).min(batch.windows());
                let mut start = index * each;
                let mut loss = 0.0;
                while start < end {
                    let part = batch.slice(start..(start + step).min(end));
                    loss += worker.pass.forward(layout, weights, &part, scale);
                    if with_gradient {
                        worker
                            .pass
                            .backward(layout, weights, &part, &mut worker.gradient);
                    }
                    start += part.windows();
                }
                loss
            })
            .collect();
        losses.iter().sum()
    }
}

impl Network for CpuNetwork {
    fn loss(&mut self, weights: &[f32], batch: &Batch) -> Result<f64, TrainError> {
        Ok(self.run(weights, batch, false))
    }

    fn loss_and_gradient(
        &mut self,
        weights: &[f32],
        batch: &Batch,
        gradient: &mut [f32],
    ) -> Result<f64, TrainError> {
        let loss = self.run(weights, batch, true);
        let workers = &self.workers;
        const PART: usize = 1 << 16;
        gradient
            .par_chunks_mut(PART)
            .enumerate()
            .for_each(|(index, gradient)| {
                for worker in workers {
                    let part = &worker.gradient[index * PART..index * PART + gradient.len()];
                    kernels::add(gradient, part);
                }
            });
        Ok(loss)
    }
}
