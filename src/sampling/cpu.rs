//! The reduction on the host, rows in parallel.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::philox::{Draws, Stream, gumbel};
use super::{RowParams, RowSample, SamplingError};
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
    let refuse = |what| {
        Err(SamplingError::NotADistribution {
            slot: params.slot,
            step: params.step,
            what,
        })
    };
    let mut best = (f32::NEG_INFINITY, 0);
    let mut second = (f32::NEG_INFINITY, 0);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            second = best;
            best = (logit, token);
        } else if logit > second.0 {
            second = (logit, token);
        } else if logit.is_nan() {
            return refuse("NaN");
        }
    }
    let excluded = params.excluded as usize;
    let drawable = if best.1 == excluded { second } else { best };
    if best.0 == f32::INFINITY {
        return refuse("+∞");
    }
    if drawable.0 == f32::NEG_INFINITY {
        return refuse("no token that could be drawn");
    }
    // With x = logit − max: ln p = x − ln Σ e^x, and H = ln Σ e^x − Σ x e^x / Σ e^x.
    let (mut sum, mut weighted) = (0.0f32, 0.0f32);
    for &logit in logits {
        let x = logit - best.0;
        let e = x.exp();
        sum += e;
        if e > 0.0 {
            weighted += x * e;
        }
    }
    let token = draw(logits, drawable, params);
    Ok(RowSample {
        token: token as TokenId,
        probability: (logits[token] - best.0).exp() / sum,
        best: 1.0 / sum,
        second: (second.0 - best.0).exp() / sum,
        entropy: (sum.ln() - weighted / sum).max(0.0),
        uniform: Draws::new(params.seed, params.step, params.slot, Stream::Score).uniform(),
    })
}

/// The arg-max of logit / temperature + Gumbel noise over the tokens that the filters keep, which is
/// a draw from their renormalised distribution; `best`, the most probable one, at temperature 0.
fn draw(logits: &[f32], best: (f32, usize), params: &RowParams) -> usize {
    if params.temperature == 0.0 {
        return best.1;
    }
    let floor = cutoff(logits, best.0, params);
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

/// The smallest logit that top-k, and then top-p of what top-k left, keep.
fn cutoff(logits: &[f32], max: f32, params: &RowParams) -> f32 {
    let top_p = params.top_p.filter(|p| *p < 1.0);
    if params.top_k.is_none() && top_p.is_none() {
        return f32::NEG_INFINITY;
    }
    let mut kept = logits.to_vec();
    if let Some(excluded) = kept.get_mut(params.excluded as usize) {
        *excluded = f32::NEG_INFINITY;
    }
    if let Some(k) = params.top_k.filter(|k| *k < kept.len()) {
        kept.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        kept.truncate(k);
    }
    kept.sort_unstable_by(|a, b| b.total_cmp(a));
    let smallest = kept[kept.len() - 1];
    let Some(top_p) = top_p else {
        return smallest;
    };
    let weights: Vec<f32> = kept
        .iter()
        .map(|logit| ((logit - max) / params.temperature).exp())
        .collect();
    let target = top_p * weights.iter().sum::<f32>();
    let mut sum = 0.0;
    for (logit, weight) in kept.iter().zip(weights) {
        sum += weight;
        if sum >= target {
            return *logit;
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f32, slot: usize) -> RowParams {
        RowParams {
            temperature,
            top_k: None,
            top_p: None,
            excluded: TokenId::MAX,
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
    fn one_token_is_certain() {
        let sample = reduce_row(&[3.0], &params(1.0, 0)).unwrap();
        assert_eq!(
            (sample.token, sample.probability, sample.second),
            (0, 1.0, 0.0)
        );
        assert_eq!(sample.entropy, 0.0);
    }
}
