//! The element-wise parts of the network, forward and backward, over row-major slices.
//!
//! The loops are written so that the compiler vectorises them.

use crate::simd::{LANES, exp, exp_and_sum, maximum, wide};

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

wide! {
    /// RMSNorm: `y = x / rms(x) * w` by rows of `w.len()`; stores 1 / rms of each row.
    pub fn rms_norm(y: &mut [f32], inverse_rms: &mut [f32], x: &[f32], w: &[f32], epsilon: f32) {
        let width = w.len();
        for ((y, x), inverse) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(inverse_rms) {
            let r = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
            *inverse = r;
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        }
    }
}

wide! {
    /// RMSNorm backward: adds the gradient to the input to `dx`, and to the weight to `dw`.
    pub fn rms_norm_backward(dx: &mut [f32], dw: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], inverse_rms: &[f32]) {
        let width = w.len();
        let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
        for (((dx, dy), x), &r) in rows.zip(inverse_rms) {
            let mut lanes = [0f32; LANES];
            let (dy_chunks, dy_rest) = dy.as_chunks::<LANES>();
            let (x_chunks, x_rest) = x.as_chunks::<LANES>();
            let (w_chunks, w_rest) = w.as_chunks::<LANES>();
            for ((dy, x), w) in dy_chunks.iter().zip(x_chunks).zip(w_chunks) {
                for i in 0..LANES {
                    lanes[i] += dy[i] * x[i] * w[i];
                }
            }
            let rest: f32 = dy_rest.iter().zip(x_rest).zip(w_rest).map(|((dy, x), w)| dy * x * w).sum();
            let projection = (lanes.iter().sum::<f32>() + rest) * r * r / width as f32;
            for ((((dx, dw), dy), x), w) in dx.iter_mut().zip(dw.iter_mut()).zip(dy).zip(x).zip(w) {
                *dw += dy * x * r;
                *dx += r * (dy * w - x * projection);
            }
        }
    }
}

/// The rotary table: cosines then sines, `[2, slots, head_dim / 2]`, of slot / theta^(2i / head_dim).
pub fn rotary_table(slots: usize, head_dim: usize, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let angle = |slot: usize, i: usize| slot as f64 / theta.powf(2.0 * i as f64 / head_dim as f64);
    let slots = 0..slots;
    let cosines = slots
        .clone()
        .flat_map(|slot| (0..half).map(move |i| angle(slot, i).cos() as f32));
    let sines = slots
        .clone()
        .flat_map(|slot| (0..half).map(move |i| angle(slot, i).sin() as f32));
    cosines.chain(sines).collect()
}

wide! {
    /// Rotates the first `heads` heads of each row in place (half-split pairs: i with
    /// i + head_dim / 2). Rows are `width` wide; row r is slot `r % slots`. `direction` 1 is the
    /// forward pass, −1 its inverse, which is also its backward pass.
    pub fn rotate(rows: &mut [f32], width: usize, heads: usize, head_dim: usize, table: &[f32], direction: f32) {
        let half = head_dim / 2;
        let slots = table.len() / (2 * half);
        let (cosines, sines) = table.split_at(slots * half);
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            let slot = index % slots;
            let cosines = &cosines[slot * half..(slot + 1) * half];
            let sines = &sines[slot * half..(slot + 1) * half];
            for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
                let (low, high) = head.split_at_mut(half);
                for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                    let sin = sin * direction;
                    (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                }
            }
        }
    }
}

wide! {
    /// Softmax backward, in place on the gradient: `d = scale * p * (d − Σ d p)` by rows.
    pub fn softmax_backward(d: &mut [f32], p: &[f32], width: usize, scale: f32) {
        for (d, p) in d.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
            let mean = dot(d, p);
            for (d, p) in d.iter_mut().zip(p) {
                *d = scale * p * (*d - mean);
            }
        }
    }
}

wide! {
    /// `h = silu(gate) * up`; a row of `gate_up` is the gate's row, then the up projection's.
    pub fn gated(h: &mut [f32], gate_up: &[f32], width: usize) {
        for (h, gate_up) in h.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((h, gate), up) in h.iter_mut().zip(gate).zip(up) {
                *h = gate * up / (1.0 + exp(-gate));
            }
        }
    }
}

wide! {
    /// Backward of [`gated`]: turns `gate_up` into its gradient, and `dh` into `h`, which the
    /// weight gradient of the next matrix needs.
    pub fn gated_backward(gate_up: &mut [f32], dh: &mut [f32], width: usize) {
        for (dh, gate_up) in dh.chunks_exact_mut(width).zip(gate_up.chunks_exact_mut(2 * width)) {
            let (gate, up) = gate_up.split_at_mut(width);
            let (dh, dh_rest) = dh.as_chunks_mut::<LANES>();
            let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
            let (up, up_rest) = up.as_chunks_mut::<LANES>();
            for ((dh, gate), up) in dh.iter_mut().zip(gate).zip(up) {
                for i in 0..LANES {
                    (dh[i], gate[i], up[i]) = gated_gradient(dh[i], gate[i], up[i]);
                }
            }
            for ((dh, gate), up) in dh_rest.iter_mut().zip(gate_rest).zip(up_rest) {
                (*dh, *gate, *up) = gated_gradient(*dh, *gate, *up);
            }
        }
    }
}

/// `silu(gate) * up`, and its gradients to the gate and to the up projection.
#[inline(always)]
fn gated_gradient(dh: f32, gate: f32, up: f32) -> (f32, f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-gate));
    let silu = gate * sigmoid;
    (
        silu * up,
        dh * up * (sigmoid + silu * (1.0 - sigmoid)),
        dh * silu,
    )
}

wide! {
    /// Cross-entropy of each row of logits `[rows, vocabulary]` against its target, times the row's
    /// weight. Returns the sum in f64 and turns the logits into the gradient of that sum.
    pub fn cross_entropy(logits: &mut [f32], targets: &[u32], weights: &[f32], vocabulary: usize) -> f64 {
        let mut loss = 0f64;
        for ((row, &target), &weight) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(weights) {
            let target = target as usize;
            let shift = maximum(row);
            let at_target = row[target];
            let sum = exp_and_sum(row, shift);
            loss += f64::from(weight) * (f64::from(sum).ln() + f64::from(shift) - f64::from(at_target));
            let scale = weight / sum;
            for x in row.iter_mut() {
                *x *= scale;
            }
            row[target] -= weight;
        }
        loss
    }
}

wide! {
    /// `a += b`.
    pub fn add(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Result, Tensor, Var};
    use candle_nn::ops::{log_softmax, silu, softmax as composed_softmax};

    use super::*;
    use crate::simd::softmax;
    use crate::train::draws::{Purpose, Stream};

    // Odd sizes, so that the loops' remainders are tested too.
    const ROWS: usize = 5;
    const WIDTH: usize = 43;

    fn draw(count: usize, index: u64) -> Vec<f32> {
        let mut stream = Stream::new(8, Purpose::Weights, index);
        (0..count).map(|_| stream.normal() as f32).collect()
    }

    fn variable(values: &[f32], width: usize) -> Var {
        let shape = (values.len() / width, width);
        Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// The composed output, and the gradients of its inner product with `dy`.
    fn composed(
        inputs: &[&Var],
        dy: &[f32],
        compute: impl Fn() -> Result<Tensor>,
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let y = compute().unwrap();
        let dy = Tensor::from_slice(dy, y.dims(), &Device::Cpu).unwrap();
        let gradients = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (
            flat(&y),
            inputs
                .iter()
                .map(|input| flat(gradients.get(input).unwrap()))
                .collect(),
        )
    }

    fn assert_close(ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn rms_norm_equals_the_composed_one() {
        let (x, w, dy) = (draw(ROWS * WIDTH, 1), draw(WIDTH, 2), draw(ROWS * WIDTH, 3));
        let (xv, wv) = (variable(&x, WIDTH), variable(&w, WIDTH));
        let (y, gradients) = composed(&[&xv, &wv], &dy, || {
            let mean = (xv.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?;
            xv.broadcast_div(&mean.sqrt()?)?.broadcast_mul(&wv)
        });
        let (mut ours, mut inverse) = (vec![0.0; x.len()], vec![0.0; ROWS]);
        rms_norm(&mut ours, &mut inverse, &x, &w, 1e-5);
        assert_close(&ours, &y);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; WIDTH]);
        rms_norm_backward(&mut dx, &mut dw, &dy, &x, &w, &inverse);
        assert_close(&dx, &gradients[0]);
        assert_close(&dw, &gradients[1]);
    }

    #[test]
    fn softmax_equals_the_composed_one() {
        let (x, dy) = (draw(ROWS * WIDTH, 1), draw(ROWS * WIDTH, 2));
        let xv = variable(&x, WIDTH);
        let (y, gradients) = composed(&[&xv], &dy, || {
            composed_softmax(&(xv.as_tensor() * 0.5)?, D::Minus1)
        });
        let mut ours: Vec<f32> = x.iter().map(|x| x * 0.5).collect();
        softmax(&mut ours, WIDTH);
        assert_close(&ours, &y);
        let mut dx = dy;
        softmax_backward(&mut dx, &ours, WIDTH, 0.5);
        assert_close(&dx, &gradients[0]);
    }

    #[test]
    fn the_gated_unit_equals_the_composed_one() {
        let (x, dy) = (draw(ROWS * 2 * WIDTH, 1), draw(ROWS * WIDTH, 2));
        let xv = variable(&x, 2 * WIDTH);
        let (y, gradients) = composed(&[&xv], &dy, || {
            silu(&xv.narrow(1, 0, WIDTH)?)? * xv.narrow(1, WIDTH, WIDTH)?
        });
        let mut ours = vec![0.0; y.len()];
        gated(&mut ours, &x, WIDTH);
        assert_close(&ours, &y);
        let (mut dx, mut dh) = (x, dy);
        gated_backward(&mut dx, &mut dh, WIDTH);
        assert_close(&dx, &gradients[0]);
        assert_close(&dh, &y);
    }

    #[test]
    fn rotation_equals_the_composed_one_and_turns_back() {
        let (heads, head_dim, slots) = (2, 6, 4);
        let width = heads * head_dim + 5;
        let (x, dy) = (draw(2 * slots * width, 1), draw(2 * slots * width, 2));
        let table = rotary_table(slots, head_dim, 100.0);
        let half = head_dim / 2;
        let xv = variable(&x, width);
        let (y, gradients) = composed(&[&xv], &dy, || {
            let rows = (0..2 * slots).map(|row| {
                let line = xv.narrow(0, row, 1)?;
                let angle = |i: usize| (row % slots) as f64 / 100f64.powf(i as f64 / half as f64);
                let mut parts = Vec::new();
                for head in 0..heads {
                    let at = |i: usize| line.narrow(1, head * head_dim + i, 1);
                    for i in 0..half {
                        parts.push(
                            ((at(i)? * angle(i).cos())? - (at(i + half)? * angle(i).sin())?)?,
                        );
                    }
                    for i in 0..half {
                        parts.push(
                            ((at(i + half)? * angle(i).cos())? + (at(i)? * angle(i).sin())?)?,
                        );
                    }
                }
                parts.push(line.narrow(1, heads * head_dim, 5)?);
                Tensor::cat(&parts, 1)
            });
            Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
        });
        let mut ours = x.clone();
        rotate(&mut ours, width, heads, head_dim, &table, 1.0);
        assert_close(&ours, &y);
        let mut dx = dy;
        rotate(&mut dx, width, heads, head_dim, &table, -1.0);
        assert_close(&dx, &gradients[0]);
        rotate(&mut ours, width, heads, head_dim, &table, -1.0);
        assert_close(&ours, &x);
    }

    #[test]
    fn cross_entropy_equals_the_composed_one() {
        let x: Vec<f32> = draw(ROWS * WIDTH, 1).iter().map(|x| 5.0 * x).collect();
        let (targets, weights) = ([3u32, 0, 42, 17, 17], [1.0f32, 0.5, 7.0, 0.0, 2.0]);
        let xv = variable(&x, WIDTH);
        let (losses, gradients) = composed(&[&xv], &[1.0; ROWS], || {
            let targets = Tensor::from_slice(&targets, (ROWS, 1), &Device::Cpu)?;
            let weights = Tensor::from_slice(&weights, (ROWS, 1), &Device::Cpu)?;
            log_softmax(&xv, D::Minus1)?.gather(&targets, 1)? * weights.neg()?
        });
        let mut logits = x;
        let loss = cross_entropy(&mut logits, &targets, &weights, WIDTH);
        let expected: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        assert!((loss / expected - 1.0).abs() < 1e-5, "{loss} {expected}");
        assert_close(&logits, &gradients[0]);
    }
}
