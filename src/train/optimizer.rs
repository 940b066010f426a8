//! AdamW over flat buffers, with clipping by the global norm and an average of the weights.

use rayon::prelude::*;

use super::layout::Layout;

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

/// What [`AdamW::update`] needs beside the buffers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), of the parameters that decay.
    pub weight_decay: f64,
    /// Factor on the gradient (from clipping).
    pub gradient_scale: f64,
    /// Decay of the weight average.
    pub average_decay: f64,
    /// The number of this step, from 0.
    pub step: u64,
}

/// AdamW's state: the moments of the gradient. β = (0.9, 0.98), ε = 1e-8.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moment, one for each weight.
    pub first: Vec<f32>,
    /// Second moment, one for each weight.
    pub second: Vec<f32>,
}

impl AdamW {
    /// Zero moments for `n` weights.
    pub fn new(n: usize) -> Self {
        Self {
            first: vec![0.0; n],
            second: vec![0.0; n],
        }
    }

    /// Updates the weights in place, and their average.
    pub fn update(
        &mut self,
        layout: &Layout,
        weights: &mut [f32],
        average: &mut [f32],
        gradient: &[f32],
        update: Update,
    ) {
        const BETAS: (f64, f64) = (0.9, 0.98);
        const EPSILON: f64 = 1e-8;
        let exponent = (update.step + 1) as f64;
        let correction = (1.0 - BETAS.0.powf(exponent), 1.0 - BETAS.1.powf(exponent));
        let size = (update.lr / correction.0) as f32;
        let root = (1.0 / correction.1.sqrt()) as f32;
        let scale = update.gradient_scale as f32;
        let average_weight = (1.0 - update.average_decay) as f32;
        let (keep1, keep2) = (BETAS.0 as f32, BETAS.1 as f32);
        let (new1, new2) = ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32);
        for parameter in &layout.parameters {
            let range = parameter.range.clone();
            let decay = if parameter.decays {
                update.lr * update.weight_decay
            } else {
                0.0
            };
            let keep = (1.0 - decay) as f32;
            weights[range.clone()]
                .par_chunks_mut(PART)
                .zip(average[range.clone()].par_chunks_mut(PART))
                .zip(self.first[range.clone()].par_chunks_mut(PART))
                .zip(self.second[range.clone()].par_chunks_mut(PART))
                .zip(gradient[range].par_chunks(PART))
                .for_each(|((((weights, average), first), second), gradient)| {
                    let moments = first.iter_mut().zip(second);
                    let values = weights.iter_mut().zip(average);
                    for (((w, a), (m, v)), g) in values.zip(moments).zip(gradient) {
                        let g = g * scale;
                        *m = keep1 * *m + new1 * g;
                        *v = keep2 * *v + new2 * g * g;
                        *w = *w * keep - size * *m / (v.sqrt() * root + EPSILON as f32);
                        *a += average_weight * (*w - *a);
                    }
                });
        }
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
        let mut adam = AdamW::new(layout.len());
        let update = Update {
            lr: 0.01,
            weight_decay: 0.1,
            gradient_scale: 0.5,
            average_decay: 0.9,
            step: 0,
        };
        adam.update(&layout, &mut weights, &mut average, &gradient, update);
        for parameter in &layout.parameters {
            for i in parameter.range.clone() {
                let g = f64::from(gradient[i]) * 0.5;
                let decay = if parameter.decays {
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
