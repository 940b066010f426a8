//! exp, ln and Gumbel noise from single rounded operations, so that every device gets the same bits.
//!
//! A platform's own exp and ln differ in the last place, which is enough for another token to win a
//! draw or for another one to be the last that top-p keeps. The polynomials are those of Cephes'
//! `expf.c` and `logf.c` (Moshier). The twin on CUDA is `kernels/exact.cuh`.

/// ln 2 as a short number, whose multiples are exact, and the rest.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// a · b + c, rounded twice: what every processor can do.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    a * b + c
}

/// e^x for x ≤ 0, within 2 units in the last place; 0 below −87.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "coefficients as published")]
pub fn exp(x: f32) -> f32 {
    let in_range = x >= -87.0;
    let x = if in_range { x } else { 0.0 };
    let n = multiply_add(x, std::f32::consts::LOG2_E, 0.5).floor();
    let r = multiply_add(n, -LN_2_LOW, multiply_add(n, -LN_2_HIGH, x));
    let p = [
        1.398_199_950_7e-3,
        8.333_451_907_3e-3,
        4.166_579_589_4e-2,
        1.666_666_545_9e-1,
        5.000_000_120_1e-1,
    ]
    .into_iter()
    .fold(1.987_569_15e-4, |p, c| multiply_add(p, r, c));
    let p = multiply_add(p * r, r, r) + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add_signed((n as i32) << 23));
    if in_range { scaled } else { 0.0 }
}

/// ln x for a positive normal x, within 2 units in the last place.
#[expect(clippy::excessive_precision, reason = "coefficients as published")]
pub fn ln(x: f32) -> f32 {
    const ROOT_HALF: i32 = 0x3f35_04f3;
    let bits = x.to_bits() as i32;
    // x = m · 2^n with m in [√½, √2).
    let n = (bits - ROOT_HALF) >> 23;
    let m = f32::from_bits((bits - (n << 23)) as u32) - 1.0;
    let square = m * m;
    let p = [
        -1.151_461_031e-1,
        1.167_699_874e-1,
        -1.242_014_084_6e-1,
        1.424_932_278_7e-1,
        -1.666_805_766_5e-1,
        2.000_071_476_5e-1,
        -2.499_999_399_3e-1,
        3.333_333_117_4e-1,
    ]
    .into_iter()
    .fold(7.037_683_629_2e-2, |p, c| multiply_add(p, m, c));
    let exponent = n as f32;
    let tail = multiply_add(p * m, square, exponent * LN_2_LOW);
    let tail = multiply_add(square, -0.5, tail);
    multiply_add(exponent, LN_2_HIGH, m + tail)
}

/// Standard Gumbel noise −ln E, with E = −ln(1 − v) exponential, from one random word.
///
/// v = (word + ½) / 2³² is kept near 0 with full precision, where the largest noise comes from, so the
/// upper tail is right down to probabilities of 2⁻³³; v is kept below 1, so the noise is always finite.
pub fn gumbel(word: u32) -> f32 {
    const LARGEST: f32 = 1.0 - f32::EPSILON / 2.0;
    let v = (2 * u64::from(word) + 1) as f32 * (1.0 / (1u64 << 33) as f32);
    let v = v.min(LARGEST);
    let rest = 1.0 - v;
    // ln(1 − v) as Kahan computes it: the rounding of 1 − v cancels.
    let exponential = if rest == 1.0 {
        v
    } else {
        ln(rest) * v / (rest - 1.0)
    };
    -ln(exponential)
}

/// No [`gumbel`] noise is larger.
pub const MOST_NOISE: f32 = 23.0;

/// At least [`gumbel`]`(word)`, to within 10⁻⁵, at the price of no logarithm; at most 0.07 more for words of 2¹⁰ to
/// 2²⁵, of which alone much noise comes.
///
/// E ≥ v, so −ln E ≤ −ln v. A number's bits, read as an integer, are its binary logarithm but for the mantissa,
/// which stands there as a straight line below the logarithm.
pub fn gumbel_bound(word: u32) -> f32 {
    // (word − 1) / 2 ≤ v · 2³¹, as a signed number, which processors convert faster.
    let v = (word >> 1) as i32 as f32;
    let logarithm = v.to_bits() as i32 as f32 * (1.0 / (1u32 << 23) as f32);
    std::f32::consts::LN_2 * (127.0 + 31.0 - logarithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// |given − true| in units of the last place of the true value.
    fn error(given: f32, truth: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) / 2.0 * truth.abs().log2().floor().exp2() * 2.0;
        (f64::from(given) - truth).abs() / unit
    }

    #[test]
    fn exponentials_and_logarithms_are_right_to_two_units_in_the_last_place() {
        for i in 0..1_000_000u32 {
            let x = -87.0 * i as f32 / 1e6;
            assert!(error(exp(x), f64::from(x).exp()) <= 2.0, "exp({x})");
            let x = f32::from_bits(0x0080_0000 + i * 2130);
            if (f64::from(x).ln()).abs() > 1e-3 {
                assert!(error(ln(x), f64::from(x).ln()) <= 2.0, "ln({x})");
            }
        }
        assert_eq!(
            (exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn gumbel_noise_is_right_and_finite_at_both_ends() {
        for i in 0..1_000_000u64 {
            // Beyond v = 0.9 the rounding of v shows, in noise that wins nothing.
            let word = (i * 3865) as u32;
            let v = (f64::from(word) + 0.5) / 4_294_967_296.0;
            let truth = -(-(-v).ln_1p()).ln();
            let error = (f64::from(gumbel(word)) - truth).abs();
            assert!(error < 2e-6, "gumbel({word}) is {error} off");
        }
        assert!(gumbel(0) <= MOST_NOISE && gumbel(0) > 22.0 && gumbel(0).is_finite());
        assert!(gumbel(u32::MAX) < -2.8 && gumbel(u32::MAX).is_finite());
    }

    #[test]
    fn the_bound_of_gumbel_noise_is_never_below_it() {
        let words = (0..1_000_000u64).map(|i| (i * 4295) as u32);
        let small = 0..1_000_000;
        let powers = (0..32).flat_map(|n| [(1u32 << n) - 1, 1 << n, (1 << n) + 1]);
        let large = (0..100_000).map(|i| u32::MAX - i);
        for word in words.chain(small).chain(powers).chain(large) {
            let (noise, bound) = (gumbel(word), gumbel_bound(word));
            assert!(bound >= noise - 1e-5, "word {word}: {bound} < {noise}");
            if (1024..1 << 25).contains(&word) {
                assert!(bound <= noise + 0.07, "word {word}: {bound} > {noise}");
            }
        }
    }
}
