//! AdamW (Loshchilov and Hutter, arXiv:1711.05101).

use rayon::prelude::*;

use super::{PART, Slices, Update};

const BETAS: (f64, f64) = (0.9, 0.98);
const EPSILON: f32 = 1e-8;

/// The numbers of a step. With a gradient g, the moments become m ← keep₁ m + new₁ g and
/// v ← keep₂ v + new₂ g², and a weight loses size · m / (√v · root + ε).
#[derive(Debug, Clone, Copy)]
pub struct Coefficients {
    /// keep₁, keep₂.
    pub keep: [f32; 2],
    /// new₁, new₂.
    pub new: [f32; 2],
    /// The learning rate over the correction of m's bias to 0.
    pub size: f32,
    /// The inverse root of the correction of v's bias.
    pub root: f32,
    /// ε.
    pub epsilon: f32,
}

impl Coefficients {
    /// Those of an update.
    pub fn new(update: &Update) -> Self {
        let exponent = (update.step + 1) as f64;
        let correction = (1.0 - BETAS.0.powf(exponent), 1.0 - BETAS.1.powf(exponent));
        Self {
            keep: [BETAS.0 as f32, BETAS.1 as f32],
            new: [(1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32],
            size: (update.lr / correction.0) as f32,
            root: (1.0 / correction.1.sqrt()) as f32,
            epsilon: EPSILON,
        }
    }
}

/// Updates one parameter's weights and moments.
pub(super) fn update(part: &mut Slices, update: Update) {
    let Coefficients {
        keep: [keep1, keep2],
        new: [new1, new2],
        size,
        root,
        epsilon,
    } = Coefficients::new(&update);
    let scale = part.scale;
    let keep = update.keep(part.parameter.role.decays());
    part.weights
        .par_chunks_mut(PART)
        .zip(part.first.par_chunks_mut(PART))
        .zip(part.second.par_chunks_mut(PART))
        .zip(part.gradient.par_chunks(PART))
        .for_each(|(((weights, first), second), gradient)| {
            let moments = first.iter_mut().zip(second);
            for ((w, (m, v)), g) in weights.iter_mut().zip(moments).zip(gradient) {
                let g = g * scale;
                *m = keep1 * *m + new1 * g;
                *v = keep2 * *v + new2 * g * g;
                *w = *w * keep - size * *m / (v.sqrt() * root + epsilon);
            }
        });
}
