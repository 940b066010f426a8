//! The reduction on the host, rows in parallel.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::exact::{self, gumbel};
use super::philox::{Draws, Stream};
use super::{Basis, FilterOrder, Logprobs, RowParams, RowSample, SamplingError};
use crate::canvas::TokenId;

pub(super) fn reduce(
    logits: &Tensor,
    params: &[RowParams],
) -> Result<Vec<Result<RowSample, SamplingError>>, candle_core::Error> {
    let (rows, vocab) = logits.dims2()?;
    if rows != params.len() {
        candle_core::bail!("{rows} rows of logits but parameters for {}", params.len());
    }
    let logits = logits
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    Ok(logits
        .par_chunks(vocab.max(1))
        .zip(params)
        .map(|(row, params)| reduce_row(row, params))
        .collect())
}

fn reduce_row(logits: &[f32], params: &RowParams) -> Result<RowSample, SamplingError> {
    let own = match params.excluded_is_impossible {
        true => Cow::Owned(without(logits, params.excluded)),
        false => Cow::Borrowed(logits),
    };
    let mut biased = Cow::Borrowed(&*own);
    if !params.bias.is_empty() {
        params.bias.add_to(biased.to_mut());
    }
    if let Some(allowed) = &params.allowed {
        allowed.restrict(biased.to_mut());
    }
    let logits = &*biased;
    let (best, second) = two_largest(logits, params)?;
    let drawable = if best.1 == params.excluded as usize {
        second
    } else {
        best
    };
    if drawable.0 == f32::NEG_INFINITY {
        return Err(refusal(params, "no token that could be drawn"));
    }
    let floor = cutoff(logits, drawable.0, params);
    let token = draw(logits, drawable, floor, params);
    let (floor, temperature) = match params.basis {
        Basis::Model => (f32::NEG_INFINITY, 1.0),
        Basis::Sampling => (floor, effective_temperature(params)),
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
    Ok(RowSample {
        token,
        probability: probability(logits[token as usize]),
        best: probability(best.0),
        second: probability(second.0),
        entropy,
        uniform: Draws::new(params.seed, params.step, params.slot, Stream::Score).uniform(),
        logprobs: asked.map(|asked| Logprobs::of_row(&own, token, asked)),
    })
}

fn refusal(params: &RowParams, what: &'static str) -> SamplingError {
    SamplingError::NotADistribution {
        slot: params.slot,
        step: params.step,
        what,
    }
}

fn without(logits: &[f32], token: TokenId) -> Vec<f32> {
    let mut logits = logits.to_vec();
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
    logits
}

/// The temperature of the distribution that is drawn from: at 0 the filters apply to the model's own.
fn effective_temperature(params: &RowParams) -> f32 {
    if params.temperature == 0.0 {
        1.0
    } else {
        params.temperature
    }
}

/// A logit and its token.
type Scored = (f32, usize);

/// The largest and the second largest logit.
fn two_largest(logits: &[f32], params: &RowParams) -> Result<(Scored, Scored), SamplingError> {
    let mut best = (f32::NEG_INFINITY, 0);
    let mut second = (f32::NEG_INFINITY, 0);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            second = best;
            best = (logit, token);
        } else if logit > second.0 {
            second = (logit, token);
        } else if logit.is_nan() {
            return Err(refusal(params, "NaN"));
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
fn draw(logits: &[f32], best: Scored, floor: f32, params: &RowParams) -> usize {
    if params.temperature == 0.0 {
        return best.1;
    }
    let draws = Draws::new(params.seed, params.step, params.slot, Stream::Gumbel);
    let mut winner = (f32::NEG_INFINITY, best.1);
    for (quad, tokens) in logits.chunks(4).enumerate() {
        if tokens.iter().all(|logit| *logit < floor) {
            continue;
        }
        for (lane, (&logit, word)) in tokens.iter().zip(draws.quad(quad as u32)).enumerate() {
            let token = 4 * quad + lane;
            if logit < floor || token == params.excluded as usize {
                continue;
            }
            let value = (logit - best.0) / params.temperature + gumbel(word);
            if value > winner.0 {
                winner = (value, token);
            }
        }
    }
    winner.1
}

/// e^((logit − reference) / temperature) in units of 2⁻⁴⁰. Sums of integers are the same in any order, so
/// every device agrees on the last token that top-p keeps.
pub(super) fn mass(logit: f32, reference: f32, temperature: f32) -> u64 {
    const UNITS: f32 = (1u64 << 40) as f32;
    (exact::exp(((logit - reference) / temperature).min(0.0)) * UNITS) as u64
}

/// The smallest logit that the filters keep; −∞ without one. `reference` is the largest that may be drawn.
fn cutoff(logits: &[f32], reference: f32, params: &RowParams) -> f32 {
    let temperature = effective_temperature(params);
    let by_min_p = params.min_p.map_or(f32::NEG_INFINITY, |p| {
        (reference + temperature * p.ln()).min(reference)
    });
    let top_p = params.top_p.filter(|p| *p < 1.0);
    let top_k = params.top_k.filter(|k| *k < logits.len());
    if top_k.is_none() && top_p.is_none() {
        return by_min_p;
    }
    let mass = |logit: f32| mass(logit, reference, temperature);
    let mut kept = without(logits, params.excluded);
    match top_k {
        Some(k) if params.filter_order == FilterOrder::TopKFirst => {
            kept.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            kept.truncate(k);
        }
        Some(_) => {}
        None => kept.retain(|logit| mass(*logit) > 0),
    }
    kept.sort_unstable_by(|a, b| b.total_cmp(a));
    let by_k = top_k.map_or(f32::NEG_INFINITY, |k| kept[k - 1]);
    let by_p = top_p.and_then(|p| {
        let masses = || kept.iter().map(|logit| mass(*logit));
        let target = (f64::from(p) * masses().sum::<u64>() as f64) as u64;
        let mut sum = 0;
        let mut kept = kept.iter().zip(masses());
        kept.find_map(|(logit, mass)| {
            sum += mass;
            (sum >= target).then_some(*logit)
        })
    });
    by_p.unwrap_or(by_k).max(by_k).max(by_min_p)
}

#[cfg(test)]
mod tests {
    use super::super::{LogitBias, RowLogprobs};
    use super::*;

    fn params(temperature: f32, slot: usize) -> RowParams {
        RowParams {
            bias: LogitBias::default(),
            allowed: None,
            logprobs: None,
            temperature,
            top_k: None,
            top_p: None,
            min_p: None,
            filter_order: FilterOrder::TopKFirst,
            basis: Basis::Model,
            excluded: TokenId::MAX,
            excluded_is_impossible: false,
            seed: 7,
            step: 0,
            slot,
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
