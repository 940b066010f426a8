//! One pass of a few windows through the network and back, on one thread.

mod block;

use super::gemm::{Linear, Products, Write};
use super::kernels;
use super::plug_in::{PlugInRow, plug_in_divergence};
use crate::train::batch::Batch;
use crate::train::config::Precision;
use crate::train::error::TrainError;
use crate::train::layout::{Layout, NetworkShape};
use crate::train::throughput;

/// Logits computed at once, roughly.
const LOGITS: usize = 1 << 20;

/// What a block's backward pass needs from its forward pass.
struct Saved {
    /// Input, `[slots, D]`.
    x: Vec<f32>,
    inverse_rms: Vec<f32>,
    /// Normed input, `[slots, D]`.
    normed: Vec<f32>,
    /// Queries, keys (both rotated), values, `[slots, 3D]`.
    qkv: Vec<f32>,
    /// Attention probabilities, `[windows, H, L, L]`; those of a text of n slots that sees only itself are
    /// `[n, n]`, end to end, from its first row on.
    probabilities: Vec<f32>,
    /// Attention output of the rows that go on, `[rows, D]`.
    attended: Vec<f32>,
    /// Residual stream after attention, `[rows, D]`.
    middle: Vec<f32>,
    middle_inverse_rms: Vec<f32>,
    /// Normed, `[rows, D]`.
    middle_normed: Vec<f32>,
    /// Gate and up projection, `[rows, 2F]`.
    gate_up: Vec<f32>,
}

/// The buffers of a pass. In the last block "rows" are the scored slots, elsewhere all slots.
pub struct Pass {
    shape: NetworkShape,
    products: Products,
    rotary: Vec<f32>,
    saved: Vec<Saved>,
    /// Output of the last block, `[scored, D]`.
    last: Vec<f32>,
    last_inverse_rms: Vec<f32>,
    last_normed: Vec<f32>,
    targets: Vec<u32>,
    row_weights: Vec<f32>,
    plug_in_rows: Vec<PlugInRow>,
    logits: Vec<f32>,
    /// Scratch: `[slots, F]`.
    hidden: Vec<f32>,
    /// Scratch: `[slots, D]`.
    wide: Vec<f32>,
    /// Gradient to the residual stream, `[slots, D]`.
    residual: Vec<f32>,
    /// Gradient to queries, keys, values, `[slots, 3D]`.
    qkv_gradient: Vec<f32>,
    /// Scratch: `[L, L]`.
    scores: Vec<f32>,
}

impl Pass {
    /// Buffers for up to `windows` windows.
    pub fn new(shape: &NetworkShape, windows: usize, precision: Precision) -> Self {
        let (l, d, f) = (shape.context, shape.hidden, shape.mlp);
        let slots = windows * l;
        let zeros = |n: usize| vec![0f32; n];
        let saved = (0..shape.layers)
            .map(|_| Saved {
                x: zeros(slots * d),
                inverse_rms: zeros(slots),
                normed: zeros(slots * d),
                qkv: zeros(slots * 3 * d),
                probabilities: zeros(windows * shape.heads * l * l),
                attended: zeros(slots * d),
                middle: zeros(slots * d),
                middle_inverse_rms: zeros(slots),
                middle_normed: zeros(slots * d),
                gate_up: zeros(slots * 2 * f),
            })
            .collect();
        Self {
            products: Products::new(precision),
            rotary: kernels::rotary_table(l, shape.head_dim(), shape.rope_theta),
            saved,
            last: zeros(slots * d),
            last_inverse_rms: zeros(slots),
            last_normed: zeros(slots * d),
            targets: Vec::new(),
            row_weights: Vec::new(),
            plug_in_rows: Vec::new(),
            logits: Vec::new(),
            hidden: zeros(slots * f),
            wide: zeros(slots * d),
            residual: zeros(slots * d),
            qkv_gradient: zeros(slots * 3 * d),
            scores: zeros(l * l),
            shape: shape.clone(),
        }
    }

    /// The sum over scored slots of `scale` · weight · loss. Keeps what
    /// [`backward`](Self::backward) needs, the gradient through the head included.
    pub fn forward(&mut self, layout: &Layout, weights: &[f32], batch: &Batch, scale: f32) -> f64 {
        let (d, l, v) = (self.shape.hidden, self.shape.context, self.shape.vocab);
        let epsilon = self.shape.norm_eps as f32;
        let scored = &batch.scored;
        if scored.is_empty() {
            return 0.0;
        }
        let embedding = &weights[layout.embedding.clone()];
        for (x, &token) in self.saved[0].x.chunks_exact_mut(d).zip(&batch.noisy) {
            x.copy_from_slice(&embedding[token as usize * d..(token as usize + 1) * d]);
        }
        let slots = batch.tokens();
        for layer in 0..self.shape.layers {
            let last = layer + 1 == self.shape.layers;
            self.attention(layer, &layout.blocks[layer], weights, batch);
            let saved = &mut self.saved[layer];
            let rows = if last {
                gather(&mut saved.attended, &self.wide, scored, d);
                gather(&mut saved.middle, &saved.x, scored, d);
                scored.len()
            } else {
                saved.attended[..slots * d].copy_from_slice(&self.wide[..slots * d]);
                saved.middle[..slots * d].copy_from_slice(&saved.x[..slots * d]);
                slots
            };
            self.feed_forward(layer, &layout.blocks[layer], weights, rows);
        }

        let rows = scored.len();
        kernels::rms_norm(
            &mut self.last_normed[..rows * d],
            &mut self.last_inverse_rms[..rows],
            &self.last[..rows * d],
            &weights[layout.final_norm.clone()],
            epsilon,
        );
        let weight = |slot: u32| batch.weights[slot as usize / l] * scale;
        let clean = |slot: u32| batch.clean[slot as usize];
        let uniform = !batch.signal.is_empty();
        if uniform {
            let row = |&slot: &u32| PlugInRow {
                seen: batch.noisy[slot as usize],
                clean: clean(slot),
                signal: batch.signal[slot as usize / l],
                weight: weight(slot),
            };
            self.plug_in_rows.clear();
            self.plug_in_rows.extend(scored.iter().map(row));
        } else {
            self.targets.clear();
            self.targets.extend(scored.iter().map(|&slot| clean(slot)));
            self.row_weights.clear();
            self.row_weights
                .extend(scored.iter().map(|&slot| weight(slot)));
        }
        self.logits.resize(rows * v, 0.0);
        let head = &weights[layout.head.clone()];
        let mut loss = 0.0;
        let tile = (LOGITS / v).max(16);
        for start in (0..rows).step_by(tile) {
            let range = start..(start + tile).min(rows);
            let logits = &mut self.logits[range.start * v..range.end * v];
            self.products.linear(
                logits,
                Write::Set,
                &self.last_normed[range.start * d..range.end * d],
                head,
                Linear {
                    rows: range.len(),
                    input: d,
                    output: v,
                },
            );
            loss += if uniform {
                plug_in_divergence(logits, &self.plug_in_rows[range], v)
            } else {
                let targets = &self.targets[range.clone()];
                kernels::cross_entropy(logits, targets, &self.row_weights[range], v)
            };
        }
        loss
    }

    /// Operations a second of the products that the gate and the up projection are, on this thread.
    pub fn product_rate(&mut self) -> Result<f64, TrainError> {
        let (input, output) = (self.shape.hidden, 2 * self.shape.mlp);
        let rows = self.saved[0].x.len() / input;
        let size = Linear {
            rows,
            input,
            output,
        };
        let weight = vec![1.0; output * input];
        let Saved { x, gate_up, .. } = &mut self.saved[0];
        throughput::rate((2 * rows * input * output) as f64, |count| {
            for _ in 0..count {
                self.products.linear(gate_up, Write::Set, x, &weight, size);
            }
            Ok(())
        })
    }

    /// Adds the gradient of the last [`forward`](Self::forward) to `gradient`.
    pub fn backward(
        &mut self,
        layout: &Layout,
        weights: &[f32],
        batch: &Batch,
        gradient: &mut [f32],
    ) {
        let (d, v) = (self.shape.hidden, self.shape.vocab);
        let scored = &batch.scored;
        let rows = scored.len();
        if rows == 0 {
            return;
        }
        let normed = &self.last_normed[..rows * d];
        self.products.linear_weight_gradient(
            &mut gradient[layout.head.clone()],
            &self.logits,
            normed,
            Linear {
                rows,
                input: d,
                output: v,
            },
        );
        let normed_gradient = &mut self.wide[..rows * d];
        self.products.linear_input_gradient(
            normed_gradient,
            &self.logits,
            &weights[layout.head.clone()],
            Linear {
                rows,
                input: d,
                output: v,
            },
        );
        let residual = &mut self.residual[..rows * d];
        residual.fill(0.0);
        kernels::rms_norm_backward(
            residual,
            &mut gradient[layout.final_norm.clone()],
            normed_gradient,
            &self.last[..rows * d],
            &weights[layout.final_norm.clone()],
            &self.last_inverse_rms,
        );

        let slots = batch.tokens();
        for layer in (0..self.shape.layers).rev() {
            let last = layer + 1 == self.shape.layers;
            let block = &layout.blocks[layer];
            let rows = if last { scored.len() } else { slots };
            self.feed_forward_backward(layer, block, weights, gradient, rows);
            if last {
                scatter(&mut self.residual[..slots * d], scored, d);
                scatter(&mut self.wide[..slots * d], scored, d);
            }
            self.attention_backward(layer, block, weights, gradient, batch);
        }
        let embedding = &mut gradient[layout.embedding.clone()];
        for (x, &token) in self.residual.chunks_exact(d).zip(&batch.noisy) {
            kernels::add(
                &mut embedding[token as usize * d..(token as usize + 1) * d],
                x,
            );
        }
    }
}

/// Copies rows `picked` of `from` to the start of `to`.
fn gather(to: &mut [f32], from: &[f32], picked: &[u32], width: usize) {
    for (to, &row) in to.chunks_exact_mut(width).zip(picked) {
        to.copy_from_slice(&from[row as usize * width..(row as usize + 1) * width]);
    }
}

/// Moves the first rows to the places `picked` (ascending) and fills the other rows with zeros.
fn scatter(rows: &mut [f32], picked: &[u32], width: usize) {
    let mut end = rows.len();
    // From the back: a row never moves up, so no row is overwritten before it has moved.
    for (from, &to) in picked.iter().enumerate().rev() {
        let to = to as usize * width;
        rows[to + width..end].fill(0.0);
        rows.copy_within(from * width..(from + 1) * width, to);
        end = to;
    }
    rows[..end].fill(0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_inverts_gather() {
        let mut rows = vec![1.0, 1.5, 2.0, 2.5, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0];
        scatter(&mut rows, &[1, 3], 2);
        assert_eq!(rows, [0.0, 0.0, 1.0, 1.5, 0.0, 0.0, 2.0, 2.5, 0.0, 0.0]);
        let mut back = vec![0.0; 4];
        gather(&mut back, &rows, &[1, 3], 2);
        assert_eq!(back, [1.0, 1.5, 2.0, 2.5]);
    }
}
