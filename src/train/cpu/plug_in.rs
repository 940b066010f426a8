//! The loss of the uniform process and its gradient, over rows of logits.

use crate::simd::{LANES, exp_and_sum, maximum, wide};

/// ln x for x of at least 1, to about 1 unit in the last place.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let bits = x.to_bits();
    let exponent = ((bits >> 23) as i32 - 127) as f32;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    let large = mantissa > std::f32::consts::SQRT_2;
    let mantissa = if large { 0.5 * mantissa } else { mantissa };
    let exponent = if large { exponent + 1.0 } else { exponent };
    // Cephes logf.
    let r = mantissa - 1.0;
    let square = r * r;
    let mut p = 7.037_683_6e-2f32;
    p = p * r - 1.151_461e-1;
    p = p * r + 1.167_699_87e-1;
    p = p * r - 1.242_014_1e-1;
    p = p * r + 1.424_932_3e-1;
    p = p * r - 1.666_805_8e-1;
    p = p * r + 2.000_071_5e-1;
    p = p * r - 2.499_999_4e-1;
    p = p * r + 3.333_333e-1;
    let p = p * r * square + exponent * LN2_LOW - 0.5 * square;
    r + p + exponent * LN2_HIGH
}

/// y − ln(1 + y) for y of at least 0, to about 1e-7 y.
#[inline(always)]
fn excess(y: f32) -> f32 {
    let u = 1.0 + y;
    // What the sum lost of y, to first order.
    let lost = (y - (u - 1.0)) / u;
    y - ln(u) - lost
}

/// What a row of [`plug_in_divergence`] needs beside its logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlugInRow {
    /// The token that is seen, x_t.
    pub seen: u32,
    /// The clean token, x_0.
    pub clean: u32,
    /// w = K α/(1 − α).
    pub signal: f32,
    /// The row's weight.
    pub weight: f32,
}

wide! {
    /// The divergence of the uniform process's bound
    /// ([`plug_in_divergence`](crate::diffusion::elbo::plug_in_divergence)) of each row of logits
    /// `[rows, vocabulary]`, times the row's weight. Returns the sum in f64 and turns the logits into the
    /// gradient of that sum.
    ///
    /// With h_k = w p_k/(1 + w p_k), its derivative to p_k is c_k w/(1 + w p_k), so that its gradient to
    /// the logits is h_k c_k − p_k Σ_j h_j c_j. For x_0 ≠ x_t, c is −1, but for x_0 −(1 + w) and for x_t
    /// (K + w) h − 1; for x_0 = x_t it is −1/(1 + w), but for x_t (K + w)/(1 + w) − (K + w)/(1 + w p) − 1.
    pub fn plug_in_divergence(logits: &mut [f32], rows: &[PlugInRow], vocabulary: usize) -> f64 {
        let states = vocabulary as f64;
        let mut loss = 0f64;
        for (row, &PlugInRow { seen, clean, signal, weight }) in logits.chunks_exact_mut(vocabulary).zip(rows) {
            let (seen, clean) = (seen as usize, clean as usize);
            let shift = maximum(row);
            let inverse = 1.0 / exp_and_sum(row, shift);
            let (mut excesses, mut shares) = ([0f32; LANES], [0f32; LANES]);
            let (chunks, rest) = row.as_chunks_mut::<LANES>();
            for chunk in chunks {
                for i in 0..LANES {
                    let y = signal * chunk[i] * inverse;
                    excesses[i] += excess(y);
                    shares[i] += y / (1.0 + y);
                }
            }
            for (i, e) in rest.iter().enumerate() {
                let y = signal * e * inverse;
                excesses[i] += excess(y);
                shares[i] += y / (1.0 + y);
            }
            let excesses: f64 = excesses.iter().map(|x| f64::from(*x)).sum();
            let shares: f64 = shares.iter().map(|x| f64::from(*x)).sum();

            let w = f64::from(signal);
            let y = |token: usize| w * f64::from(row[token] * inverse);
            let share = |y: f64| y / (1.0 + y);
            let (y_seen, y_clean) = (y(seen), y(clean));
            let (divergence, other, at_seen, at_clean);
            if seen != clean {
                let certain = (1.0 + w) * w.ln_1p() - w;
                let own = (states + w) * (y_seen.ln_1p() - share(y_seen));
                divergence = own + excesses + certain - w * y_clean.ln_1p();
                other = -1.0;
                at_seen = (states + w) * share(y_seen) - 1.0;
                at_clean = -(1.0 + w);
            } else {
                let left = w - y_seen;
                let x = left / (1.0 + y_seen);
                let phi = |y: f64| y - y.ln_1p();
                let sum = (states - 1.0) * phi(x) + left * x;
                divergence = (sum + (excesses - phi(y_seen)).max(0.0)) / (1.0 + w);
                other = -1.0 / (1.0 + w);
                // (K + w) (1/(1 + w) − 1/(1 + y)) is minus (K + w) (w − y)/((1 + w)(1 + y)).
                at_seen = -(states + w) * x / (1.0 + w) - 1.0;
                at_clean = at_seen;
            }
            loss += f64::from(weight) * divergence;

            let mut total = other * shares + (at_seen - other) * share(y_seen);
            if seen != clean {
                total += (at_clean - other) * share(y_clean);
            }
            let (other, total) = (other as f32, total as f32);
            let p_seen = row[seen] * inverse;
            let p_clean = row[clean] * inverse;
            for e in row.iter_mut() {
                let p = *e * inverse;
                let y = signal * p;
                *e = weight * (other * y / (1.0 + y) - p * total);
            }
            let gradient = |c: f64, y: f64, p: f32| weight * ((c * share(y)) as f32 - p * total);
            row[clean] = gradient(at_clean, y_clean, p_clean);
            row[seen] = gradient(at_seen, y_seen, p_seen);
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::elbo;
    use crate::train::draws::{Purpose, Stream};

    // An odd size, so that the loops' remainders are tested too.
    const WIDTH: usize = 43;

    #[test]
    fn ln_is_right_to_a_few_units_in_the_last_place_and_the_excess_to_as_much_of_its_argument() {
        for i in 0..=90_000 {
            let y = (f64::from(i) * 1e-3 - 30.0).exp() as f32;
            let truth = f64::from(y) - f64::from(y).ln_1p();
            assert!(
                (f64::from(excess(y)) - truth).abs() < 3e-7 * f64::from(y),
                "{y}"
            );
            let x = 1.0 + y;
            let truth = f64::from(x).ln();
            assert!(
                (f64::from(ln(x)) - truth).abs() < 3e-7 * truth.max(1e-3),
                "{x}"
            );
        }
    }

    #[test]
    fn the_plug_in_divergence_equals_the_formula_in_double_precision_and_its_slope() {
        let mut stream = Stream::new(8, Purpose::Weights, 4);
        let logits: Vec<f32> = (0..WIDTH).map(|_| 2.0 * stream.normal() as f32).collect();
        let formula = |logits: &[f64], row: &PlugInRow| {
            let shift = logits.iter().fold(f64::MIN, |a, b| a.max(*b));
            let sum: f64 = logits.iter().map(|x| (x - shift).exp()).sum();
            let others: Vec<f64> = logits.iter().map(|x| (x - shift).exp() / sum).collect();
            let signal = f64::from(row.signal);
            elbo::plug_in_divergence(signal, row.seen as usize, row.clean as usize, &others)
        };
        for signal in [1e-3f32, 0.1, 3.0, 1e3, 1e6] {
            for (seen, clean) in [(5, 5), (5, 17), (42, 0), (42, 42)] {
                // As the bound weighs it: 1/K, times 1/α, which is large where the signal is small.
                let weight = (1.0 + WIDTH as f32 / signal) / WIDTH as f32;
                let row = PlugInRow {
                    seen,
                    clean,
                    signal,
                    weight,
                };
                let mut gradient = logits.clone();
                let loss = plug_in_divergence(&mut gradient, &[row], WIDTH);
                let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
                let expected = f64::from(weight) * formula(&wide, &row);
                let tolerance = 2e-5 * expected.abs().max(1.0);
                assert!(
                    (loss - expected).abs() < tolerance,
                    "{row:?}: {loss} {expected}"
                );
                let scale = gradient
                    .iter()
                    .fold(0.0f32, |a, b| a.max(b.abs()))
                    .max(1e-2);
                for k in 0..WIDTH {
                    let moved = |step: f64| {
                        let mut at = wide.clone();
                        at[k] += step;
                        formula(&at, &row)
                    };
                    let slope = f64::from(weight) * (moved(1e-4) - moved(-1e-4)) / 2e-4;
                    let apart = (f64::from(gradient[k]) - slope).abs();
                    assert!(
                        apart < 1e-4 * f64::from(scale),
                        "{row:?} {k}: {} {slope}",
                        gradient[k]
                    );
                }
            }
        }
    }
}
