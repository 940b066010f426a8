//! What the drawn tokens are distributed as, whatever the twin says.

use super::categorical::{Batch, Request, greedy};
use super::element::Element;
use super::{Extent, Failure};
use crate::kernels::Machine;
use crate::sampling::RowParams;

/// The number of draws of each token from `logits`.
fn counts(
    machine: &mut dyn Machine,
    logits: &[f32],
    draws: usize,
    params: &RowParams,
) -> Result<Vec<usize>, Failure> {
    let mut counts = vec![0; logits.len()];
    // Rows of a batch differ in their slot only.
    let rows = 256.min(draws);
    for first in (0..draws).step_by(rows) {
        let requests = (first..first + rows)
            .map(|slot| {
                Request::plain(RowParams {
                    slot,
                    ..params.clone()
                })
            })
            .collect();
        let logits = vec![logits.to_vec(); rows];
        let vocab = logits[0].len();
        let batch = Batch::new(Element::F32, vocab, vocab, logits, requests);
        for found in batch.run(machine)?.found {
            if found.status != 0 {
                return Err(Failure::Differs(format!("no draw: {found:?}")));
            }
            counts[found.token as usize] += 1;
        }
    }
    Ok(counts)
}

/// χ² of counts against probabilities; tokens of probability 0 must not be drawn.
fn statistic(counts: &[usize], probabilities: &[f64]) -> Result<f64, Failure> {
    let draws = counts.iter().sum::<usize>() as f64;
    let mut sum = 0.0;
    for (token, (&count, &p)) in counts.iter().zip(probabilities).enumerate() {
        if p == 0.0 && count > 0 {
            return Err(Failure::Differs(format!("token {token} was drawn")));
        }
        if p > 0.0 {
            sum += (count as f64 - p * draws).powi(2) / (p * draws);
        }
    }
    Ok(sum)
}

pub(super) fn chi_squared(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let weights = [0.4f64, 0.2, 0.15, 0.1, 0.08, 0.05, 0.015, 0.005];
    let logits = weights.map(|p| p.ln() as f32);
    let draws = match extent {
        Extent::Small => 1024,
        Extent::Full => 256_000,
    };
    let plain = RowParams {
        temperature: 1.0,
        ..greedy(0)
    };
    let mut seen = Vec::new();
    // Which tokens are kept, and to which power their probabilities are taken.
    for (name, params, kept, power) in [
        ("plain", plain.clone(), 8, 1.0),
        (
            "temperature 0.5",
            RowParams {
                temperature: 0.5,
                ..plain.clone()
            },
            8,
            2.0,
        ),
        (
            "top-k 3",
            RowParams {
                top_k: Some(3),
                ..plain.clone()
            },
            3,
            1.0,
        ),
        (
            "top-p 0.7",
            RowParams {
                top_p: Some(0.7),
                ..plain.clone()
            },
            3,
            1.0,
        ),
        (
            "min-p 0.3",
            RowParams {
                min_p: Some(0.3),
                ..plain.clone()
            },
            3,
            1.0,
        ),
    ] {
        let powers = weights.map(|p| p.powf(power));
        let sum: f64 = powers[..kept].iter().sum();
        let mut probabilities = powers.map(|p| p / sum);
        probabilities[kept..].fill(0.0);
        let statistic = statistic(&counts(machine, &logits, draws, &params)?, &probabilities)?;
        // The 99.9 % quantile with 7 degrees of freedom.
        if statistic > 24.32 {
            return Err(Failure::Differs(format!("{name}: χ² is {statistic:.1}")));
        }
        seen.push(format!("{name} {statistic:.1}"));
    }
    Ok(format!("χ² {}", seen.join(", ")))
}

pub(super) fn tail(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut logits = vec![(0.1f32 / 100_000.0).ln(); 100_001];
    logits[0] = 0.9f32.ln();
    let draws = match extent {
        Extent::Small => 256,
        Extent::Full => 25_600,
    };
    let params = RowParams {
        temperature: 1.0,
        ..greedy(0)
    };
    let tail = draws - counts(machine, &logits, draws, &params)?[0];
    let (mean, deviation) = (0.1 * draws as f64, (0.09 * draws as f64).sqrt());
    if (tail as f64 - mean).abs() > 3.5 * deviation {
        return Err(Failure::Differs(format!(
            "{tail} of {draws} draws from a tail of 10 %"
        )));
    }
    Ok(format!("{tail} of {draws} draws from a tail of 10 %"))
}
