//! The fused reduction over the vocabulary against `sampling::reduce` on the CPU.

mod case;

use super::element::{ELEMENTS, Element};
use super::random::Random;
use super::{Extent, Failure};
use crate::canvas::TokenId;
use crate::kernels::Machine;
use crate::sampling::layout::Adjustment;
use crate::sampling::{Basis, FilterOrder, LogitBias, RowLogprobs, RowParams, TokenSet};
pub(super) use case::{Batch, Request, compare};

/// Parameters that take the most probable token, without filters.
pub(super) fn greedy(slot: usize) -> RowParams {
    RowParams {
        seed: 0x1234_5678_9abc_def0,
        step: 3,
        slot,
        ..RowParams::default()
    }
}

/// Logits of one of several characters: about normal, with ties, mostly −∞, large, flat, peaked.
pub(super) fn row(random: &mut Random, vocab: usize) -> Vec<f32> {
    let character = random.below(6);
    let peak = random.below(vocab);
    (0..vocab)
        .map(|token| match character {
            0 => 3.0 * random.normal(),
            1 => (2.0 * random.normal()).round(),
            2 if random.chance(0.8) => f32::NEG_INFINITY,
            2 => random.normal(),
            3 => 1000.0 + 50.0 * random.normal(),
            4 => -2.5,
            _ => 5.0 * random.normal() + if token == peak { 25.0 } else { 0.0 },
        })
        .collect()
}

fn bias(random: &mut Random, vocab: usize) -> LogitBias {
    let count = match random.chance(0.3) {
        true => random.below(6),
        false => 0,
    };
    // Two tokens outside the vocabulary too.
    LogitBias::new((0..count).map(|_| {
        let token = random.below(vocab + 2) as TokenId;
        (token, random.pick(&[1.5, -4.0, f32::NEG_INFINITY]))
    }))
}

fn logprobs(random: &mut Random, vocab: usize) -> Option<RowLogprobs> {
    random.chance(0.3).then(|| RowLogprobs {
        top: random.pick(&[0, 1, 5, 20]),
        of: (0..random.below(4))
            .map(|_| random.below(vocab + 2) as TokenId)
            .collect(),
    })
}

/// Parameters with any of the options.
pub(super) fn params(random: &mut Random, vocab: usize, slot: usize) -> RowParams {
    let some = |random: &mut Random| random.chance(0.4);
    RowParams {
        bias: bias(random, vocab),
        allowed: None,
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 1.7]),
        top_k: some(random).then(|| 1 + random.below(vocab.min(60))),
        top_p: some(random).then(|| random.pick(&[0.1, 0.5, 0.9, 0.95, 1.0])),
        min_p: random
            .chance(0.2)
            .then(|| random.pick(&[0.0, 0.02, 0.3, 1.0])),
        filter_order: random.pick(&[FilterOrder::TopKFirst, FilterOrder::TopPFirst]),
        basis: random.pick(&[Basis::Model, Basis::Sampling]),
        excluded: match random.chance(0.5) {
            true => random.below(vocab) as TokenId,
            false => TokenId::MAX,
        },
        excluded_is_impossible: random.chance(0.5),
        seed: u64::from(random.word()) << 32 | u64::from(random.word()),
        step: random.below(1000),
        slot,
        logprobs: logprobs(random, vocab),
    }
}

fn random_batch(
    random: &mut Random,
    element: Element,
    vocab: usize,
    stride: usize,
    rows: usize,
) -> Batch {
    let logits = (0..rows).map(|_| row(random, vocab)).collect();
    let requests = (0..rows)
        .map(|slot| Request::plain(params(random, vocab, slot)))
        .collect();
    Batch::new(element, vocab, stride, logits, requests)
}

pub(super) fn random(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(1);
    let sizes = [1, 2, 3, 7, 8, 9, 31, 32, 33, 100, 255, 257, 1000];
    let (repeats, rows) = match extent {
        Extent::Small => (2, 4),
        Extent::Full => (4, 64),
    };
    let mut compared = 0;
    for _ in 0..repeats {
        for vocab in sizes {
            for element in ELEMENTS {
                let stride = vocab + random.pick(&[0, 0, 1, 5, 8]);
                let batch = random_batch(&mut random, element, vocab, stride, rows);
                compared += batch.check(machine)?;
            }
        }
    }
    Ok(format!("{compared} rows equal"))
}

pub(super) fn edges(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    const INFINITE: f32 = f32::NEG_INFINITY;
    let vocab = 40;
    let mut rows = Vec::new();
    let ramp: Vec<f32> = (0..vocab).map(|token| token as f32 * 0.1).collect();
    let with = |changes: &[(usize, f32)], base: &[f32]| {
        let mut row = base.to_vec();
        changes
            .iter()
            .for_each(|&(token, logit)| row[token] = logit);
        row
    };
    let nothing = vec![INFINITE; vocab];
    for row in [
        ramp.clone(),
        vec![0.5; vocab],
        with(&[(0, 0.0), (1, -0.0), (2, 0.0)], &nothing),
        with(&[(7, 3.0)], &nothing),
        nothing.clone(),
        with(&[(39, f32::NAN)], &ramp),
        with(&[(0, f32::NAN), (3, f32::INFINITY)], &ramp),
        with(&[(5, f32::INFINITY)], &ramp),
        with(&[(5, f32::MAX), (6, f32::MIN)], &ramp),
        with(&[(0, 1e-40), (1, -1e-40)], &nothing),
    ] {
        rows.push(row);
    }
    let mut all_params = Vec::new();
    for temperature in [0.0, 1.0, 0.7, 1e-3, 1e-12, 1e-30, f32::MIN_POSITIVE, 1e30] {
        for (top_k, top_p, min_p) in [
            (None, None, None),
            (Some(1), None, None),
            (Some(vocab), None, None),
            (Some(usize::MAX), Some(0.5), None),
            (None, Some(f32::MIN_POSITIVE), None),
            (None, Some(1.0), None),
            (None, Some(1.0 - f32::EPSILON / 2.0), None),
            (Some(3), Some(0.6), Some(0.5)),
            (None, None, Some(1.0)),
        ] {
            for excluded in [TokenId::MAX, 7] {
                all_params.push(RowParams {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    excluded,
                    basis: Basis::Sampling,
                    ..greedy(all_params.len())
                });
            }
        }
    }
    let mut compared = 0;
    for row in rows {
        let requests: Vec<_> = all_params.iter().cloned().map(Request::plain).collect();
        let logits = vec![row; requests.len()];
        compared += Batch::new(Element::F32, vocab, vocab, logits, requests).check(machine)?;
    }
    Ok(format!("{compared} rows equal"))
}

/// The logit of a token.
type Share = fn(usize) -> f32;

/// Rows of which top-p has most to tell apart, by name: how their logits follow from the token.
const SHARES: [(&str, Share); 8] = [
    ("one likely token", |token| match token {
        500 => 20.0,
        _ => (token * 37 % 101) as f32 * 0.05,
    }),
    ("all tokens alike", |_| -2.5),
    ("two values", |token| (token % 3 / 2) as f32),
    ("all in one interval of the exponent", |token| {
        1.0 + (token * 37 % 128) as f32 * 1e-4
    }),
    ("around zero, of both signs", |token| {
        ((token * 37 % 257) as f32 - 128.0) * 1e-5
    }),
    ("zeros and the least numbers", |token| {
        [0.0, -0.0, 1e-40, -1e-40, 1e-38][token % 5]
    }),
    ("at the bounds of intervals", |token| {
        (token * 37 % 600) as f32 * (-1.0 / 64.0)
    }),
    ("far apart", |token| (token * 37 % 101) as f32 * 25.0),
];

pub(super) fn shares(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    // Rows begin at every place within 16 bytes, and end within a group of eight.
    let vocab = 1003;
    let mut all_params = Vec::new();
    for temperature in [0.3, 1.0, 1.7, 20.0] {
        for top_p in [1e-6, 0.3, 0.95, 0.999_99] {
            for (top_k, filter_order) in [
                (None, FilterOrder::TopKFirst),
                (Some(40), FilterOrder::TopKFirst),
                (Some(40), FilterOrder::TopPFirst),
            ] {
                let slot = all_params.len();
                all_params.push(RowParams {
                    temperature,
                    top_p: Some(top_p),
                    top_k,
                    filter_order,
                    basis: Basis::Sampling,
                    excluded: [TokenId::MAX, 500, 7][slot / 3 % 3],
                    excluded_is_impossible: slot % 2 == 0,
                    ..greedy(slot)
                });
            }
        }
    }
    let mut compared = 0;
    for element in ELEMENTS {
        for (name, logit) in SHARES {
            let requests: Vec<_> = all_params.iter().cloned().map(Request::plain).collect();
            let logits = vec![(0..vocab).map(logit).collect(); requests.len()];
            compared += Batch::new(element, vocab, vocab, logits, requests)
                .check(machine)
                .map_err(|failure| match failure {
                    Failure::Differs(what) => Failure::Differs(format!("{name}: {what}")),
                    other => other,
                })?;
        }
    }
    Ok(format!("{compared} rows equal"))
}

pub(super) fn shaped(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(2);
    let rounds = match extent {
        Extent::Small => 4,
        Extent::Full => 40,
    };
    let mut compared = 0;
    for _ in 0..rounds {
        for (vocab, element) in [1, 31, 64, 300].into_iter().zip(ELEMENTS.repeat(2)) {
            let mut batch = random_batch(&mut random, element, vocab, vocab + 3, 6);
            batch.set_unconditional((0..6).map(|_| row(&mut random, vocab)).collect());
            for request in &mut batch.requests {
                shape(&mut random, vocab, request);
            }
            compared += batch.check(machine)?;
        }
    }
    Ok(format!("{compared} rows equal"))
}

fn shape(random: &mut Random, vocab: usize, request: &mut Request) {
    if random.chance(0.5) {
        request.guidance = Some((random.below(6), random.pick(&[0.0, 0.5, 2.0])));
    }
    request.params.bias = LogitBias::default();
    if random.chance(0.6) {
        let tokens = (0..vocab as TokenId).filter(|_| random.chance(0.15));
        let tokens: Vec<_> = tokens.collect();
        request.adjustments = tokens
            .into_iter()
            .map(|token| Adjustment {
                token,
                penalty: random.pick(&[1.0, 1.2, 0.8]),
                bias: random.pick(&[0.0, 1.5, -4.0, f32::NEG_INFINITY]),
            })
            .collect();
    }
    if random.chance(0.4) {
        let share = random.pick(&[0.02, 0.5, 0.98]);
        let mut allowed = TokenSet::empty(vocab);
        for token in (0..vocab as TokenId).filter(|_| random.chance(share)) {
            allowed.insert(token);
        }
        request.params.allowed = Some(allowed.into());
    }
    request.params.logprobs = logprobs(random, vocab);
}

pub(super) fn large(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(3);
    let rows = match extent {
        Extent::Small => 2,
        Extent::Full => 96,
    };
    let mut compared = 0;
    for (vocab, element) in [
        (50_257, Element::F32),
        (126_464, Element::Bf16),
        (262_144, Element::F16),
    ] {
        let mut batch = random_batch(&mut random, element, vocab, vocab, rows);
        batch.requests[0] = Request::plain(RowParams {
            temperature: 0.8,
            top_p: Some(0.95),
            ..greedy(0)
        });
        shape(&mut random, vocab, &mut batch.requests[1]);
        batch.requests[1].guidance = None;
        compared += batch.check(machine)?;
    }
    Ok(format!("{compared} rows equal"))
}

pub(super) fn invariance(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(4);
    let vocab = 777;
    let batch = random_batch(&mut random, Element::Bf16, vocab, vocab, 9);
    let together = batch.run(machine)?;
    for (row, found) in together.found.iter().enumerate() {
        let alone = Batch::new(
            Element::Bf16,
            vocab,
            vocab,
            vec![batch.logits[row].clone()],
            vec![batch.requests[row].clone()],
        );
        let alone = alone.run(machine)?.found[0];
        if bytemuck::bytes_of(&alone) != bytemuck::bytes_of(found) {
            return Err(Failure::Differs(format!(
                "row {row}: {found:?} in a batch, {alone:?} alone"
            )));
        }
    }
    Ok("bit-identical".into())
}
