//! AdamW (Loshchilov and Hutter, arXiv:1711.05101).

use rayon::prelude::*;

use super::{PART, Slices, Update};

const BETAS: (f64, f64) = (0.9, 0.98);
const EPSILON: f32 = 1e-8;

/// Updates one parameter's weights and moments.
pub fn update(part: &mut Slices, update: Update) {
    let exponent = (update.step + 1) as f64;
    let correction = (1.0 - BETAS.0.powf(exponent), 1.0 - BETAS.1.powf(exponent));
    let size = (update.lr / correction.0) as f32;
    let root = (1.0 / correction.1.sqrt()) as f32;
    let scale = update.gradient_scale as f32;
    let (keep1, keep2) = (BETAS.0 as f32, BETAS.1 as f32);
    let (new1, new2) = ((1.0 - BETAS.0) as f32, (1.0 - BETAS.1) as f32);
    let keep = update.keep(part.parameter.role);
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
                *w = *w * keep - size * *m / (v.sqrt() * root + EPSILON);
            }
        });
}
