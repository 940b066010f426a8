//! The optimisers over flat buffers, with clipping by the global norm and an average of the weights.

pub(super) mod adamw;
pub(super) mod muon;

use rayon::prelude::*;

use super::config::{OptimizerKind, Precision};
use super::layout::{Layout, Parameter, Role};

/// Elements that one task updates.
const PART: usize = 1 << 15;

/// The learning rate of a step: linear warm-up over `warmup` steps to `peak`, then half a cosine
/// down to `peak * min_ratio` at the last of `steps`. Steps count from 0.
pub fn learning_rate(step: u64, steps: u64, warmup: u64, peak: f64, min_ratio: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (steps - warmup).saturating_sub(1).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
    peak * (min_ratio + (1.0 - min_ratio) * cosine)
}

/// The decay of the weight average at a step (from 0): `decay`, less in the first steps.
pub fn average_decay(step: u64, decay: f64) -> f64 {
    decay.min((1.0 + step as f64) / (10.0 + step as f64))
}

/// The L2 norm of a gradient. The sum is in f64 and in a fixed order.
pub fn global_norm(gradient: &[f32]) -> f64 {
    let sums: Vec<f64> = gradient
        .par_chunks(PART)
        .map(|part| {
            // Short sums in f32 vectorise; their totals are added in f64.
            let sums = part.chunks(256).map(|few| {
                let mut lanes = [0f32; 16];
                let (chunks, rest) = few.as_chunks::<16>();
                for chunk in chunks {
                    for i in 0..16 {
                        lanes[i] += chunk[i] * chunk[i];
                    }
                }
                f64::from(lanes.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>())
            });
            sums.sum()
        })
        .collect();
    sums.iter().sum::<f64>().sqrt()
}

/// What a step needs beside the buffers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), of the parameters that decay.
    pub weight_decay: f64,
    /// Largest global norm of a gradient; a larger gradient is scaled down to it.
    pub clip: f64,
    /// Decay of the weight average.
    pub average_decay: f64,
    /// The number of this step, from 0.
    pub step: u64,
}

impl Update {
    /// By what a step multiplies weights, which decay or do not, before it changes them.
    pub(super) fn keep(&self, decays: bool) -> f32 {
        match decays {
            true => (1.0 - self.lr * self.weight_decay) as f32,
            false => 1.0,
        }
    }
}

impl OptimizerKind {
    /// Whether the parameters of a role are Muon's; the others are AdamW's.
    pub(super) fn is_muon(self, role: Role) -> bool {
        self == OptimizerKind::Muon && role == Role::Matrix
    }
}

/// A gradient, and by what it is multiplied.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a> {
    /// One number a weight.
    pub gradient: &'a [f32],
    /// The factor: what clipping and the number of passes make of it.
    pub scale: f64,
}

/// An optimiser and what it remembers of the gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// Which one.
    pub kind: OptimizerKind,
    /// The moments.
    pub moments: Moments,
}

/// What an optimiser remembers of the gradients, one number of each kind for each weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// AdamW's first moment, or Muon's momentum.
    pub first: Vec<f32>,
    /// AdamW's second moment; of a matrix that Muon updates, zeros.
    pub second: Vec<f32>,
}

/// One parameter's part of all buffers.
struct Slices<'a> {
    parameter: &'a Parameter,
    weights: &'a mut [f32],
    average: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    gradient: &'a [f32],
    /// By what the gradient is multiplied.
    scale: f32,
}

impl Moments {
    /// Those of `n` weights whose optimiser has seen no gradient.
    pub fn new(n: usize) -> Self {
        Self {
            first: vec![0.0; n],
            second: vec![0.0; n],
        }
    }
}

impl Optimizer {
    /// Updates the weights in place, and their average. `precision` is that of Muon's products.
    pub fn update(
        &mut self,
        layout: &Layout,
        weights: &mut [f32],
        average: &mut [f32],
        scaled: Scaled,
        precision: Precision,
        update: Update,
    ) {
        let Moments { first, second } = &mut self.moments;
        let mut rest = (weights, average, &mut first[..], &mut second[..]);
        let mut parts = Vec::with_capacity(layout.parameters.len());
        for parameter in &layout.parameters {
            let n = parameter.range.len();
            let (weights, weights_rest) = rest.0.split_at_mut(n);
            let (average, average_rest) = rest.1.split_at_mut(n);
            let (first, first_rest) = rest.2.split_at_mut(n);
            let (second, second_rest) = rest.3.split_at_mut(n);
            rest = (weights_rest, average_rest, first_rest, second_rest);
            parts.push(Slices {
                parameter,
                weights,
                average,
                first,
                second,
                gradient: &scaled.gradient[parameter.range.clone()],
                scale: scaled.scale as f32,
            });
        }
        let average_weight = (1.0 - update.average_decay) as f32;
        parts.into_par_iter().for_each(|mut part| {
            match self.kind.is_muon(part.parameter.role) {
                true => muon::update(&mut part, precision, update),
                false => adamw::update(&mut part, update),
            }
            let averages = part.average.par_chunks_mut(PART);
            averages
                .zip(part.weights.par_chunks(PART))
                .for_each(|(average, weights)| {
                    for (a, w) in average.iter_mut().zip(weights) {
                        *a += average_weight * (*w - *a);
                    }
                });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::layout::NetworkShape;

    #[test]
    fn the_learning_rate_warms_up_peaks_and_ends_at_its_minimum() {
        let lr = |step| learning_rate(step, 100, 10, 1.0, 0.1);
        assert!((lr(0) - 0.1).abs() < 1e-12);
        assert!((lr(9) - 1.0).abs() < 1e-12 && (lr(10) - 1.0).abs() < 1e-12);
        assert!((10..99).all(|step| lr(step + 1) < lr(step)));
        assert!((lr(99) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn one_step_equals_the_formula_in_double_precision() {
        let shape = NetworkShape {
            vocab: 7,
            context: 4,
            hidden: 4,
            layers: 1,
            heads: 1,
            mlp: 6,
            tied: false,
            rope_theta: 1e4,
            norm_eps: 1e-5,
        };
        let layout = Layout::new(&shape);
        let start = layout.initial_weights(1);
        let gradient: Vec<f32> = (0..layout.len()).map(|i| (i as f32 * 0.7).sin()).collect();
        let (mut weights, mut average) = (start.clone(), start.clone());
        let mut adam = Optimizer {
            kind: OptimizerKind::AdamW,
            moments: Moments::new(layout.len()),
        };
        let update = Update {
            lr: 0.01,
            weight_decay: 0.1,
            clip: 1.0,
            average_decay: 0.9,
            step: 0,
        };
        adam.update(
            &layout,
            &mut weights,
            &mut average,
            Scaled {
                gradient: &gradient,
                scale: 0.5,
            },
            Precision::F32,
            update,
        );
        for parameter in &layout.parameters {
            for i in parameter.range.clone() {
                let g = f64::from(gradient[i]) * 0.5;
                let decay = if parameter.role.decays() {
                    1.0 - 0.01 * 0.1
                } else {
                    1.0
                };
                let expected = f64::from(start[i]) * decay - 0.01 * g / (g.abs() + 1e-8);
                assert!((f64::from(weights[i]) - expected).abs() < 1e-6);
                let expected = 0.9 * f64::from(start[i]) + 0.1 * expected;
                assert!((f64::from(average[i]) - expected).abs() < 1e-6);
            }
        }
        let norm = gradient
            .iter()
            .map(|&g| f64::from(g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!((global_norm(&gradient) / norm - 1.0).abs() < 1e-6);
    }
}
