//! The reduction on the host, rows in parallel.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::exact::{MOST_NOISE, gumbel, gumbel_bound};
use super::filter::cutoff;
use super::philox::{Draws, Stream};
use super::{Basis, Logprobs, RowParams, RowSample, SamplingError};
use crate::canvas::TokenId;
use crate::floats::with_floats;
use crate::simd::LANES;

/// How much less a value may be than one that its bound is compared with: more than the roundings of the bound,
/// of the noise and of values, which are at most 23 where it matters, and of x, which is then at least −26.
const BOUND_ERROR: f32 = 0.01;

pub(super) fn reduce(
    logits: &Tensor,
    params: &[RowParams],
) -> Result<Vec<Result<RowSample, SamplingError>>, candle_core::Error> {
    let (rows, vocab) = logits.dims2()?;
    if rows != params.len() {
        candle_core::bail!("{rows} rows of logits but parameters for {}", params.len());
    }
    let logits = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    with_floats([&logits], |[logits]| {
        logits
            .par_chunks(vocab.max(1))
            .zip(params)
            .map(|(row, params)| reduce_row(row, params))
            .collect()
    })
}

fn reduce_row(logits: &[f32], params: &RowParams) -> Result<RowSample, SamplingError> {
    let mut row = Cow::Borrowed(logits);
    if params.excluded_is_impossible
        && let Some(logit) = row.to_mut().get_mut(params.excluded as usize)
    {
        *logit = f32::NEG_INFINITY;
    }
    let is_adjusted = !params.bias.is_empty() || params.allowed.is_some();
    let unadjusted = (is_adjusted && params.logprobs.is_some()).then(|| row.clone());
    if !params.bias.is_empty() {
        params.bias.add_to(row.to_mut());
    }
    if let Some(allowed) = &params.allowed {
        allowed.restrict(row.to_mut());
    }
    let logits = &*row;
    let (best, second) = two_largest(logits, params)?;
    let drawable = if best.1 == params.excluded as usize {
        second
    } else {
        best
    };
    if drawable.0 == f32::NEG_INFINITY {
        return Err(refusal(params, "no token that could be drawn"));
    }
    // At temperature 0 the filters change no more than the numbers by the sampling basis.
    let floor = match (params.temperature, params.basis) {
        (0.0, Basis::Model) => f32::NEG_INFINITY,
        _ => cutoff(logits, drawable.0, params),
    };
    let token = draw(logits, drawable, floor, params);
    let (floor, temperature) = match params.basis {
        Basis::Model => (f32::NEG_INFINITY, 1.0),
        Basis::Sampling => (floor, params.effective_temperature()),
    };
    // With x = (logit − max) / temperature: ln p = x − ln Σ e^x, and H = ln Σ e^x − Σ x e^x / Σ e^x.
    let exponent = |logit: f32| (logit - best.0) / temperature;
    // In f64: one large term and a hundred thousand small ones lose four digits in f32.
    let (mut sum, mut weighted) = (0.0f64, 0.0f64);
    for &logit in logits {
        if logit < floor {
            continue;
        }
        let x = exponent(logit);
        let e = x.exp();
        sum += f64::from(e);
        if e > 0.0 {
            weighted += f64::from(x * e);
        }
    }
    let entropy = (sum.ln() - weighted / sum).max(0.0) as f32;
    let sum = sum as f32;
    let probability = |logit: f32| {
        if logit < floor {
            0.0
        } else {
            exponent(logit).exp() / sum
        }
    };
    let token = token as TokenId;
    let asked = params.logprobs.as_ref();
    let unadjusted = unadjusted.as_deref().unwrap_or(logits);
    Ok(RowSample {
        token,
        probability: probability(logits[token as usize]),
        most_probable: best.1 as TokenId,
        best: probability(best.0),
        second: probability(second.0),
        entropy,
        uniform: Draws::new(params.seed, params.step, params.slot, Stream::Score).uniform(),
        logprobs: asked.map(|asked| Logprobs::of_row(unadjusted, token, best.1 as TokenId, asked)),
    })
}

fn refusal(params: &RowParams, what: &'static str) -> SamplingError {
    SamplingError::NotADistribution {
        slot: params.slot,
        step: params.step,
        what,
    }
}

/// A logit and its token.
type Scored = (f32, usize);

/// The largest and the second largest logit.
fn two_largest(logits: &[f32], params: &RowParams) -> Result<(Scored, Scored), SamplingError> {
    let mut best = (f32::NEG_INFINITY, 0);
    let mut second = (f32::NEG_INFINITY, 0);
    for (chunk, logits) in logits.chunks(LANES).enumerate() {
        // Most chunks have neither of the two, nor NaN, which is not ≤ either.
        if logits
            .iter()
            .fold(true, |none, logit| none & (*logit <= second.0))
        {
            continue;
        }
        for (lane, &logit) in logits.iter().enumerate() {
            let token = chunk * LANES + lane;
            if logit > best.0 {
                second = best;
                best = (logit, token);
            } else if logit > second.0 {
                second = (logit, token);
            } else if logit.is_nan() {
                return Err(refusal(params, "NaN"));
            }
        }
    }
    if best.0 == f32::INFINITY {
        return Err(refusal(params, "+∞"));
    }
    Ok((best, second))
}

/// The arg-max of logit / temperature + Gumbel noise over the tokens that the filters keep, those of at
/// least `floor`, which is a draw from their renormalised distribution; `best`, the most probable one,
/// at temperature 0.
///
/// The noise's logarithms are spared to tokens that cannot win: those whose value is less than one that is
/// known already even by a bound of their noise. The most probable token's value is known first.
fn draw(logits: &[f32], best: Scored, floor: f32, params: &RowParams) -> usize {
    if params.temperature == 0.0 {
        return best.1;
    }
    let draws = Draws::new(params.seed, params.step, params.slot, Stream::Gumbel);
    let least_logit = |reach: f32| floor.max(best.0 + params.temperature * (reach - MOST_NOISE));
    let mut reach = gumbel(draws.quad(best.1 as u32 / 4)[best.1 % 4]) - BOUND_ERROR;
    let mut least = least_logit(reach);
    let mut winner = (f32::NEG_INFINITY, best.1);
    for (quad, tokens) in logits.chunks(4).enumerate() {
        if tokens.iter().all(|logit| *logit < least) {
            continue;
        }
        for (lane, (&logit, word)) in tokens.iter().zip(draws.quad(quad as u32)).enumerate() {
            let token = 4 * quad + lane;
            if logit < least || token == params.excluded as usize {
                continue;
            }
            let x = (logit - best.0) / params.temperature;
            if x + gumbel_bound(word) < reach {
                continue;
            }
            let value = x + gumbel(word);
            if value > winner.0 {
                winner = (value, token);
                reach = reach.max(value - BOUND_ERROR);
                least = least_logit(reach);
            }
        }
    }
    winner.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{FilterOrder, LogitBias, RowLogprobs, TokenSet};
    use super::*;

    fn params(temperature: f32, slot: usize) -> RowParams {
        RowParams {
            temperature,
            seed: 7,
            slot,
            ..RowParams::default()
        }
    }

    fn draw_counts(logits: &[f32], rows: usize, adapt: impl Fn(&mut RowParams)) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for slot in 0..rows {
            let mut params = params(1.0, slot);
            adapt(&mut params);
            counts[reduce_row(logits, &params).unwrap().token as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let probabilities = [0.5f32, 0.25, 0.125, 0.0625, 0.0625];
        let logits = probabilities.map(f32::ln);
        let rows = 20_000;
        let counts = draw_counts(&logits, rows, |_| ());
        let chi_squared: f64 = counts
            .iter()
            .zip(probabilities)
            .map(|(&count, p)| {
                let expected = f64::from(p) * rows as f64;
                (count as f64 - expected).powi(2) / expected
            })
            .sum();
        // The 99.9 % quantile of χ² with 4 degrees of freedom.
        assert!(chi_squared < 18.47, "{chi_squared}");
    }

    #[test]
    fn a_long_tail_keeps_its_share() {
        let mut logits = vec![(0.1f32 / 100_000.0).ln(); 100_001];
        logits[0] = 0.9f32.ln();
        let rows = 400;
        let tail = rows - draw_counts(&logits, rows, |_| ())[0];
        // Binomial(400, 0.1): mean 40, standard deviation 6.
        assert!((20..=60).contains(&tail), "{tail}");
    }

    #[test]
    fn filters_keep_only_the_most_probable_tokens() {
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let top_k = draw_counts(&logits, 500, |params| params.top_k = Some(2));
        assert!(top_k[0] > 0 && top_k[1] > 0);
        assert_eq!(top_k[2..], [0, 0]);
        let top_p = draw_counts(&logits, 500, |params| params.top_p = Some(0.75));
        assert!(top_p[2] > 0);
        assert_eq!(top_p[3], 0);
        let smallest = draw_counts(&logits, 100, |params| params.top_p = Some(1e-6));
        assert_eq!(smallest, [100, 0, 0, 0]);
    }

    #[test]
    fn min_p_keeps_what_is_at_least_that_share_of_the_best() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        for (min_p, kept) in [(1.0, 1), (0.5, 2), (0.29, 3), (0.0, 4)] {
            let counts = draw_counts(&logits, 500, |params| params.min_p = Some(min_p));
            assert_eq!(counts.iter().filter(|count| **count > 0).count(), kept);
        }
    }

    #[test]
    fn numbers_of_a_row_are_those_of_its_distribution() {
        let probabilities = [0.6f32, 0.3, 0.1];
        let sample = reduce_row(&probabilities.map(f32::ln), &params(0.0, 0)).unwrap();
        let entropy: f32 = probabilities.iter().map(|p| -p * p.ln()).sum();
        assert_eq!(sample.token, 0);
        assert!((sample.probability - 0.6).abs() < 1e-6);
        assert!((sample.best - 0.6).abs() < 1e-6);
        assert!((sample.second - 0.3).abs() < 1e-6);
        assert!((sample.entropy - entropy).abs() < 1e-6);
    }

    #[test]
    fn rows_that_are_no_distribution_are_refused_and_forbidden_tokens_never_drawn() {
        let infinite = f32::NEG_INFINITY;
        for row in [[f32::NAN, 0.0], [0.0, f32::INFINITY], [infinite, infinite]] {
            assert!(reduce_row(&row, &params(1.0, 0)).is_err(), "{row:?}");
        }
        let counts = draw_counts(&[infinite, 0.0, infinite], 50, |_| ());
        assert_eq!(counts, [0, 50, 0]);
    }

    #[test]
    fn the_excluded_token_is_never_drawn_and_keeps_its_probability() {
        let logits = [0.6f32, 0.3, 0.1].map(f32::ln);
        let mut greedy = params(0.0, 0);
        greedy.excluded = 0;
        let sample = reduce_row(&logits, &greedy).unwrap();
        assert_eq!(sample.token, 1);
        assert!((sample.probability - 0.3).abs() < 1e-6);
        for top_k in [None, Some(1)] {
            let counts = draw_counts(&logits, 200, |params| {
                params.excluded = 0;
                params.top_k = top_k;
            });
            assert_eq!(counts[0], 0);
            assert_eq!(counts[2] == 0, top_k.is_some());
        }
    }

    #[test]
    fn an_impossible_token_leaves_its_probability_to_the_others() {
        let logits = [0.6f32, 0.3, 0.1].map(f32::ln);
        let mut params = params(0.0, 0);
        params.excluded = 0;
        params.excluded_is_impossible = true;
        let sample = reduce_row(&logits, &params).unwrap();
        assert_eq!(sample.token, 1);
        assert!((sample.probability - 0.75).abs() < 1e-6);
        assert!((sample.second - 0.25).abs() < 1e-6);
    }

    #[test]
    fn numbers_by_the_sampling_basis_are_those_after_temperature_and_filters() {
        let logits = [0.5f32, 0.3, 0.1, 0.1].map(f32::ln);
        let mut params = params(0.5, 0);
        params.basis = Basis::Sampling;
        params.top_k = Some(2);
        let sample = reduce_row(&logits, &params).unwrap();
        // Squares of 0.5 and 0.3, renormalised.
        let (best, second) = (0.25 / 0.34, 0.09 / 0.34);
        assert!((sample.best - best).abs() < 1e-6);
        assert!((sample.second - second).abs() < 1e-6);
        let entropy = -(best * best.ln() + second * second.ln());
        assert!((sample.entropy - entropy).abs() < 1e-6);
        params.top_k = Some(1);
        let sample = reduce_row(&logits, &params).unwrap();
        assert_eq!((sample.probability, sample.second), (1.0, 0.0));
    }

    #[test]
    fn the_filters_order_decides_of_which_distribution_top_p_is_taken() {
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let kept = |order| {
            let counts = draw_counts(&logits, 500, |params| {
                params.filter_order = order;
                params.top_k = Some(3);
                params.top_p = Some(0.75);
            });
            counts.iter().filter(|count| **count > 0).count()
        };
        // 0.4 + 0.3 is 78 % of the best three, and 70 % of all.
        assert_eq!(kept(FilterOrder::TopKFirst), 2);
        assert_eq!(kept(FilterOrder::TopPFirst), 3);
    }

    #[test]
    fn a_bias_changes_what_is_drawn_and_scored_but_no_log_probability() {
        let logits = [0.6f32, 0.3, 0.1].map(f32::ln);
        let mut params = params(0.0, 0);
        params.logprobs = Some(RowLogprobs {
            top: 3,
            of: [0].into(),
        });
        let plain = reduce_row(&logits, &params).unwrap();
        params.bias = LogitBias::default().without(&[0]);
        let suppressed = reduce_row(&logits, &params).unwrap();
        assert_eq!((plain.token, suppressed.token), (0, 1));
        assert!((suppressed.probability - 0.75).abs() < 1e-6);
        let (plain, suppressed) = (plain.logprobs.unwrap(), suppressed.logprobs.unwrap());
        assert_eq!((&plain.top, &plain.of), (&suppressed.top, &suppressed.of));
        assert!((suppressed.token - 0.3f32.ln()).abs() < 1e-6);
        params.bias = LogitBias::new([(2, 2.0)]);
        let favoured = reduce_row(&logits, &params).unwrap();
        let weights = [0.6, 0.3, 0.1 * 2.0f32.exp()];
        assert_eq!(favoured.token, 2);
        assert!((favoured.probability - weights[2] / weights.iter().sum::<f32>()).abs() < 1e-6);
    }

    #[test]
    fn log_probabilities_are_of_all_tokens_but_an_impossible_one() {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let mut allowed = TokenSet::empty(4);
        allowed.insert(3);
        let mut params = params(0.0, 0);
        params.allowed = Some(allowed.into());
        params.excluded = 0;
        params.excluded_is_impossible = true;
        params.logprobs = Some(RowLogprobs {
            top: 4,
            of: [0].into(),
        });
        let sample = reduce_row(&logits, &params).unwrap();
        let logprobs = sample.logprobs.unwrap();
        assert_eq!((sample.token, sample.probability), (3, 1.0));
        assert!((logprobs.token - 0.25f32.ln()).abs() < 1e-6);
        let top: Vec<TokenId> = logprobs.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(
            (top, &*logprobs.of),
            (vec![1, 2, 3], &[f32::NEG_INFINITY][..])
        );
    }

    proptest! {
        #[test]
        fn a_draw_is_the_winner_of_the_whole_race(
            logits in proptest::collection::vec(
                prop_oneof![
                    4 => -8.0f32..8.0,
                    2 => (-2i8..2).prop_map(f32::from),
                    1 => -1e4f32..1e4,
                    1 => Just(f32::NEG_INFINITY),
                ],
                1..300,
            ),
            temperature in prop_oneof![0.1f32..3.0, Just(1e-30), Just(1e30)],
            excluded in 0u32..400,
            slot in 0usize..1000,
        ) {
            let mut params = params(temperature, slot);
            params.excluded = excluded;
            let drawable = || {
                let tokens = (0..).zip(logits.iter().copied());
                tokens.filter(|(token, logit)| *token != excluded && *logit > f32::NEG_INFINITY)
            };
            let best = drawable().map(|(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
            let draws = Draws::new(params.seed, params.step, slot, Stream::Gumbel);
            let value = |(token, logit): (TokenId, f32)| {
                let word = draws.quad(token / 4)[token as usize % 4];
                (token, (logit - best) / temperature + gumbel(word))
            };
            let winner = drawable().map(value).reduce(|a, b| if b.1 > a.1 { b } else { a });
            let drawn = reduce_row(&logits, &params).ok().map(|sample| sample.token);
            prop_assert_eq!(drawn, winner.map(|(token, _)| token));
        }
    }

    #[test]
    fn a_suppressed_token_is_never_drawn_whatever_the_filters() {
        let logits = [0.6f32, 0.3, 0.1].map(f32::ln);
        for (top_k, top_p) in [(None, None), (Some(1), None), (None, Some(0.5))] {
            let counts = draw_counts(&logits, 200, |params| {
                params.bias = LogitBias::default().without(&[0]);
                params.top_k = top_k;
                params.top_p = top_p;
            });
            assert_eq!(counts[0], 0);
            assert!(counts[1] > 0);
        }
        let mut all = params(1.0, 0);
        all.bias = LogitBias::default().without(&[0, 1, 2]);
        assert!(reduce_row(&logits, &all).is_err());
    }

    #[test]
    fn one_token_is_certain() {
        let sample = reduce_row(&[3.0], &params(1.0, 0)).unwrap();
        assert_eq!(
            (sample.token, sample.probability, sample.second),
            (0, 1.0, 0.0)
        );
        assert_eq!(sample.entropy, 0.0);
    }
}
