//! A transformer block, forward and backward, in the two parts that the last block runs on
//! different rows.

use std::ops::Range;

use super::Pass;
use crate::simd::softmax;
use crate::train::batch::Batch;
use crate::train::cpu::gemm::{Linear, Matrix, Write};
use crate::train::cpu::kernels;
use crate::train::layout::BlockRanges;

impl Pass {
    /// Norm, projections, rotation and attention of a block; the output goes to `wide`. Slots attend to
    /// those of their own text.
    pub(super) fn attention(
        &mut self,
        layer: usize,
        block: &BlockRanges,
        weights: &[f32],
        batch: &Batch,
    ) {
        let (d, slots, heads) = (self.shape.hidden, batch.tokens(), self.shape.heads);
        let head_dim = self.shape.head_dim();
        let saved = &mut self.saved[layer];
        kernels::rms_norm(
            &mut saved.normed[..slots * d],
            &mut saved.inverse_rms[..slots],
            &saved.x[..slots * d],
            &weights[block.attn_norm.clone()],
            self.shape.norm_eps as f32,
        );
        let qkv = &mut saved.qkv[..slots * 3 * d];
        self.products.linear(
            qkv,
            Write::Set,
            &saved.normed,
            &weights[block.qkv.clone()],
            Linear {
                rows: slots,
                input: d,
                output: 3 * d,
            },
        );
        kernels::rotate(qkv, 3 * d, 2 * heads, head_dim, &self.rotary, 1.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        for text in batch.texts() {
            let l = text.len();
            for head in 0..heads {
                let at = text.start * 3 * d + head * head_dim;
                let queries = Matrix::strided(&qkv[at..], l, head_dim, 3 * d);
                let keys = Matrix::strided(&qkv[at + d..], l, head_dim, 3 * d);
                let values = Matrix::strided(&qkv[at + 2 * d..], l, head_dim, 3 * d);
                let place = probabilities_of(&text, head, heads, self.shape.context);
                let probabilities = &mut saved.probabilities[place];
                self.products
                    .multiply(probabilities, l, Write::Set, scale, queries, keys.t());
                softmax(probabilities, l);
                let output = &mut self.wide[text.start * d + head * head_dim..];
                self.products.multiply(
                    output,
                    d,
                    Write::Set,
                    1.0,
                    Matrix::new(probabilities, l, l),
                    values,
                );
            }
        }
    }

    /// The rest of a block, on `rows` rows; the output goes to the next block's input, or to `last`.
    pub(super) fn feed_forward(
        &mut self,
        layer: usize,
        block: &BlockRanges,
        weights: &[f32],
        rows: usize,
    ) {
        let (d, f) = (self.shape.hidden, self.shape.mlp);
        let (saved, after) = self.saved.split_at_mut(layer + 1);
        let saved = &mut saved[layer];
        let output = after.first_mut().map_or(&mut self.last, |next| &mut next.x);
        let middle = &mut saved.middle[..rows * d];
        self.products.linear(
            middle,
            Write::Add,
            &saved.attended,
            &weights[block.attn_out.clone()],
            Linear {
                rows,
                input: d,
                output: d,
            },
        );
        kernels::rms_norm(
            &mut saved.middle_normed[..rows * d],
            &mut saved.middle_inverse_rms[..rows],
            middle,
            &weights[block.ff_norm.clone()],
            self.shape.norm_eps as f32,
        );
        let gate_up = &mut saved.gate_up[..rows * 2 * f];
        self.products.linear(
            gate_up,
            Write::Set,
            &saved.middle_normed,
            &weights[block.gate_up.clone()],
            Linear {
                rows,
                input: d,
                output: 2 * f,
            },
        );
        kernels::gated(&mut self.hidden[..rows * f], gate_up, f);
        output[..rows * d].copy_from_slice(middle);
        self.products.linear(
            output,
            Write::Add,
            &self.hidden,
            &weights[block.ff_out.clone()],
            Linear {
                rows,
                input: f,
                output: d,
            },
        );
    }

    /// Backward of [`feed_forward`](Self::feed_forward): `residual` becomes the gradient to the
    /// block's input by the skip connections, `wide` the gradient to the attention output.
    pub(super) fn feed_forward_backward(
        &mut self,
        layer: usize,
        block: &BlockRanges,
        weights: &[f32],
        gradient: &mut [f32],
        rows: usize,
    ) {
        let (d, f) = (self.shape.hidden, self.shape.mlp);
        let saved = &mut self.saved[layer];
        let residual = &mut self.residual[..rows * d];
        let hidden = &mut self.hidden[..rows * f];
        let gate_up = &mut saved.gate_up[..rows * 2 * f];
        let wide = &mut self.wide[..rows * d];
        self.products.linear_input_gradient(
            hidden,
            residual,
            &weights[block.ff_out.clone()],
            Linear {
                rows,
                input: f,
                output: d,
            },
        );
        kernels::gated_backward(gate_up, hidden, f);
        self.products.linear_weight_gradient(
            &mut gradient[block.ff_out.clone()],
            residual,
            hidden,
            Linear {
                rows,
                input: f,
                output: d,
            },
        );
        let normed = &saved.middle_normed;
        self.products.linear_weight_gradient(
            &mut gradient[block.gate_up.clone()],
            gate_up,
            normed,
            Linear {
                rows,
                input: d,
                output: 2 * f,
            },
        );
        self.products.linear_input_gradient(
            wide,
            gate_up,
            &weights[block.gate_up.clone()],
            Linear {
                rows,
                input: d,
                output: 2 * f,
            },
        );
        kernels::rms_norm_backward(
            residual,
            &mut gradient[block.ff_norm.clone()],
            wide,
            &saved.middle,
            &weights[block.ff_norm.clone()],
            &saved.middle_inverse_rms,
        );
        self.products.linear_weight_gradient(
            &mut gradient[block.attn_out.clone()],
            residual,
            &saved.attended,
            Linear {
                rows,
                input: d,
                output: d,
            },
        );
        self.products.linear_input_gradient(
            wide,
            residual,
            &weights[block.attn_out.clone()],
            Linear {
                rows,
                input: d,
                output: d,
            },
        );
    }

    /// Backward of [`attention`](Self::attention): adds to `residual`.
    pub(super) fn attention_backward(
        &mut self,
        layer: usize,
        block: &BlockRanges,
        weights: &[f32],
        gradient: &mut [f32],
        batch: &Batch,
    ) {
        let (d, slots, heads) = (self.shape.hidden, batch.tokens(), self.shape.heads);
        let head_dim = self.shape.head_dim();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let saved = &self.saved[layer];
        let qkv = &saved.qkv[..slots * 3 * d];
        let d_qkv = &mut self.qkv_gradient[..slots * 3 * d];
        for text in batch.texts() {
            let l = text.len();
            for head in 0..heads {
                let at = text.start * 3 * d + head * head_dim;
                let queries = Matrix::strided(&qkv[at..], l, head_dim, 3 * d);
                let keys = Matrix::strided(&qkv[at + d..], l, head_dim, 3 * d);
                let values = Matrix::strided(&qkv[at + 2 * d..], l, head_dim, 3 * d);
                let place = probabilities_of(&text, head, heads, self.shape.context);
                let probabilities = &saved.probabilities[place];
                let p = Matrix::new(probabilities, l, l);
                let scores = &mut self.scores[..l * l];
                let d_output = Matrix::strided(
                    &self.wide[text.start * d + head * head_dim..],
                    l,
                    head_dim,
                    d,
                );
                self.products.multiply(
                    &mut d_qkv[at + 2 * d..],
                    3 * d,
                    Write::Set,
                    1.0,
                    p.t(),
                    d_output,
                );
                self.products
                    .multiply(scores, l, Write::Set, 1.0, d_output, values.t());
                kernels::softmax_backward(scores, probabilities, l, scale);
                let d_scores = Matrix::new(scores, l, l);
                self.products
                    .multiply(&mut d_qkv[at..], 3 * d, Write::Set, 1.0, d_scores, keys);
                self.products.multiply(
                    &mut d_qkv[at + d..],
                    3 * d,
                    Write::Set,
                    1.0,
                    d_scores.t(),
                    queries,
                );
            }
        }
        kernels::rotate(d_qkv, 3 * d, 2 * heads, head_dim, &self.rotary, -1.0);
        self.products.linear_weight_gradient(
            &mut gradient[block.qkv.clone()],
            d_qkv,
            &saved.normed,
            Linear {
                rows: slots,
                input: d,
                output: 3 * d,
            },
        );
        let wide = &mut self.wide[..slots * d];
        self.products.linear_input_gradient(
            wide,
            d_qkv,
            &weights[block.qkv.clone()],
            Linear {
                rows: slots,
                input: d,
                output: 3 * d,
            },
        );
        kernels::rms_norm_backward(
            &mut self.residual[..slots * d],
            &mut gradient[block.attn_norm.clone()],
            wide,
            &saved.x,
            &weights[block.attn_norm.clone()],
            &saved.inverse_rms,
        );
    }
}

/// Where the probabilities `[n, n]` of a text of n slots and of a head lie in those of a block,
/// `[windows, heads, context, context]`: from the text's first row on, which is no more than it has rows.
fn probabilities_of(
    text: &Range<usize>,
    head: usize,
    heads: usize,
    context: usize,
) -> Range<usize> {
    let (window, row) = (text.start / context, text.start % context);
    let start = ((window * heads + head) * context + row) * context;
    start..start + text.len() * text.len()
}
