//! Ragged attention against its definition.

use super::element::{ELEMENTS, Element};
use super::random::Random;
use super::{Extent, Failure};
use crate::kernels::{Argument, Machine};
use crate::models::ragged::{self, RaggedPlan};
use crate::models::{RaggedBatch, Segment};

/// By type, of results of about ±4.
const TOLERANCES: [f64; 3] = [2e-5, 2e-2, 3e-3];

#[derive(Clone)]
struct Layer {
    element: Element,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    pool_keys: Vec<f32>,
    pool_values: Vec<f32>,
}

impl Layer {
    fn random(
        random: &mut Random,
        element: Element,
        (heads, kv_heads, dim): (usize, usize, usize),
        rows: usize,
        slots: usize,
    ) -> Self {
        let mut numbers = |count: usize| {
            let numbers: Vec<f32> = (0..count).map(|_| 2.0 * random.normal()).collect();
            element.round(&numbers)
        };
        Self {
            element,
            heads,
            kv_heads,
            dim,
            q: numbers(rows * heads * dim),
            k: numbers(rows * kv_heads * dim),
            v: numbers(rows * kv_heads * dim),
            pool_keys: numbers(slots * kv_heads * dim),
            pool_values: numbers(slots * kv_heads * dim),
        }
    }

    fn run(&self, machine: &mut dyn Machine, segments: &[Segment]) -> Result<Vec<f32>, Failure> {
        let plan = RaggedPlan::new(segments, self.dim, self.heads / self.kv_heads);
        let encode = |values: &[f32]| self.element.encode(values);
        let mut out = encode(&vec![f32::NAN; self.q.len()]);
        let kernels = ragged::kernels(self.dim)
            .ok_or_else(|| Failure::Differs(format!("no kernel for heads of {}", self.dim)))?;
        let kernel = self.element.kernel(kernels);
        // SAFETY: the parameters of the kernel; the plan names rows of `q`, `k` and `v`, of which `out` is as large as
        // `q`, and slots of the pool.
        unsafe {
            machine.launch(
                &ragged::launch(kernel, plan.tiles.len(), self.kv_heads),
                &mut [
                    Argument::In(&encode(&self.q)),
                    Argument::In(&encode(&self.k)),
                    Argument::In(&encode(&self.v)),
                    Argument::In(&encode(&self.pool_keys)),
                    Argument::In(&encode(&self.pool_values)),
                    Argument::input(&plan.segments),
                    Argument::input(&plan.tiles),
                    Argument::input(&plan.context),
                    Argument::input(&plan.visible),
                    Argument::input(&plan.allowed),
                    Argument::U32(self.heads as u32),
                    Argument::U32(self.kv_heads as u32),
                    Argument::F32(1.0 / (self.dim as f32).sqrt()),
                    Argument::Out(&mut out),
                ],
            )
        }?;
        Ok(self.element.decode(&out))
    }

    /// The largest error.
    fn compare(&self, machine: &mut dyn Machine, segments: &[Segment]) -> Result<f64, Failure> {
        let out = self.run(machine, segments)?;
        let tolerance = TOLERANCES[self.element as usize];
        let mut worst = 0f64;
        for (given, wanted) in out.iter().zip(self.definition(segments)) {
            let error = (f64::from(*given) - wanted).abs();
            worst = worst.max(error);
            if error.is_nan() || error > tolerance {
                return Err(Failure::Differs(format!(
                    "{:?}, heads {:?} of {}, {} rows over {} slots first: {given} for {wanted}",
                    self.element,
                    (self.heads, self.kv_heads),
                    self.dim,
                    segments[0].rows.len(),
                    segments[0].context.len(),
                )));
            }
        }
        Ok(worst)
    }

    /// softmax(q kᵀ / √dim) v in f64, zeros for a row that sees nothing.
    fn definition(&self, segments: &[Segment]) -> Vec<f64> {
        let (dim, groups) = (self.dim, self.heads / self.kv_heads);
        let mut out = vec![0.0; self.q.len()];
        for segment in segments {
            let length = segment.rows.len();
            for row in 0..length {
                for head in 0..self.heads {
                    let at = |place: usize| {
                        let first = (place * self.kv_heads + head / groups) * dim;
                        first..first + dim
                    };
                    let cached = segment.context.iter().map(|slot| {
                        let at = at(*slot as usize);
                        (&self.pool_keys[at.clone()], &self.pool_values[at])
                    });
                    let sees = |other: &usize| {
                        let allowed = segment.allowed.as_deref();
                        allowed.is_none_or(|allowed| allowed[row * length + other])
                    };
                    let own = (0..length).filter(sees).map(|other| {
                        let at = at(segment.rows.start + other);
                        (&self.k[at.clone()], &self.v[at])
                    });
                    let first = ((segment.rows.start + row) * self.heads + head) * dim;
                    let query = &self.q[first..first + dim];
                    let keys: Vec<_> = cached.chain(own).collect();
                    let score = |key: &[f32]| {
                        let products = query.iter().zip(key);
                        let sum: f64 = products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        sum / (dim as f64).sqrt()
                    };
                    let scores: Vec<f64> = keys.iter().map(|(key, _)| score(key)).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for (weight, (_, value)) in weights.iter().zip(&keys) {
                        for (out, v) in out[first..].iter_mut().zip(*value) {
                            *out += weight / sum * f64::from(*v);
                        }
                    }
                }
            }
        }
        out
    }
}

/// Segments of all characters: plain, block-causal, any bits, seeing nothing; with and without cached slots.
fn batch(random: &mut Random, slots: usize, longest: usize) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for character in 0..5 {
        let length = 1 + random.below(longest);
        let block = 1 + random.below(8);
        let allowed = match character {
            0 | 1 => None,
            2 => Some(
                (0..length * length)
                    .map(|i| i % length / block <= i / length / block)
                    .collect(),
            ),
            3 => Some((0..length * length).map(|_| random.chance(0.6)).collect()),
            _ => Some(vec![false; length * length]),
        };
        let cached = match random.chance(0.6) {
            true => random.below(slots),
            false => 0,
        };
        let segment = Segment {
            allowed,
            context: (0..cached).map(|_| random.below(slots) as u32).collect(),
            ..Segment::default()
        };
        let positions: Vec<u32> = (0..length as u32).collect();
        batch.push_segment(&vec![0; length], &positions, segment);
    }
    batch
}

pub(super) fn random(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(20);
    let (slots, longest) = match extent {
        Extent::Small => (70, 40),
        Extent::Full => (600, 300),
    };
    let mut worst = [0f64; 3];
    for dim in [64, 128, 256, 512] {
        for element in ELEMENTS {
            let heads = random.pick(&[(1, 1), (4, 2), (3, 3), (4, 1)]);
            let batch = batch(&mut random, slots, longest);
            let shape = (heads.0, heads.1, dim);
            let layer = Layer::random(&mut random, element, shape, batch.rows(), slots);
            let error = layer.compare(machine, batch.segments())?;
            worst[element as usize] = worst[element as usize].max(error);
        }
    }
    let [f32, bf16, f16] = worst;
    Ok(format!(
        "largest error {f32:.1e} (f32), {bf16:.1e} (bf16), {f16:.1e} (f16)"
    ))
}

/// Numbers of keys around those that end a pass, a warp's turn and a round, and queries that fill a block's tile, leave
/// some of it free or need another.
pub(super) fn borders(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(23);
    let mut worst = [0f64; 3];
    let widths = [64, 128, 256, 512].into_iter();
    for (dim, element) in widths.flat_map(|dim| ELEMENTS.map(|element| (dim, element))) {
        for (rows, cached) in [
            (1, 0),
            (1, 3),
            (3, 1),
            (5, 0),
            (1, 7),
            (1, 8),
            (1, 31),
            (8, 25),
            (1, 63),
            (1, 64),
            (9, 119),
            (7, 249),
            (1, 255),
            (2, 255),
            (3, 510),
        ] {
            let heads = random.pick(&[(1, 1), (2, 1), (3, 1), (8, 1), (9, 1), (6, 2)]);
            let mut layer =
                Layer::random(&mut random, element, (heads.0, heads.1, dim), rows, cached);
            // A result over few keys is as large as their values.
            layer.v.iter_mut().for_each(|value| *value /= 2.0);
            layer.pool_values.iter_mut().for_each(|value| *value /= 2.0);
            let segment = Segment {
                rows: 0..rows,
                context: (0..cached as u32).rev().collect(),
                ..Segment::default()
            };
            let error = layer.compare(machine, &[segment])?;
            worst[element as usize] = worst[element as usize].max(error);
        }
    }
    let [f32, bf16, f16] = worst;
    Ok(format!(
        "largest error {f32:.1e} (f32), {bf16:.1e} (bf16), {f16:.1e} (f16)"
    ))
}

/// Queries that overflowed: a row with one gets NaN, and no other row does.
pub(super) fn not_finite(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(22);
    let (rows, dim, cached) = (70, 64, 40);
    let segment = Segment {
        rows: 0..rows,
        context: (0..cached as u32).collect(),
        ..Segment::default()
    };
    for element in ELEMENTS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut layer = Layer::random(&mut random, element, (2, 1, dim), rows, cached);
            let row = random.below(rows);
            // All of the row's scores are infinite or NaN, whatever the keys' signs are.
            layer.q[row * 2 * dim..(row + 1) * 2 * dim].fill(bad);
            layer.k.iter_mut().for_each(|key| *key = key.abs());
            layer.pool_keys.iter_mut().for_each(|key| *key = key.abs());
            let out = layer.run(machine, std::slice::from_ref(&segment))?;
            for (at, value) in out.iter().enumerate() {
                let is_bad = at / (2 * dim) == row;
                if value.is_nan() != is_bad {
                    return Err(Failure::Differs(format!(
                        "{element:?}, {bad} in row {row}: row {} has {value}",
                        at / (2 * dim)
                    )));
                }
            }
        }
    }
    Ok("rows of NaN and infinite scores give NaN, the others do not".into())
}

pub(super) fn invariance(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(21);
    let slots = 50;
    for (heads, dim) in [(2, 64), (3, 128), (1, 256), (3, 512)] {
        let batch = batch(&mut random, slots, 45);
        let layer = Layer::random(
            &mut random,
            Element::F32,
            (heads, 1, dim),
            batch.rows(),
            slots,
        );
        let together = layer.run(machine, batch.segments())?;
        for segment in batch.segments() {
            let alone = layer.run(machine, std::slice::from_ref(segment))?;
            let own = segment.rows.start * heads * dim..segment.rows.end * heads * dim;
            if alone[own.clone()] != together[own] {
                return Err(Failure::Differs(format!(
                    "rows {:?} depend on the others of the batch, heads of {dim}",
                    segment.rows
                )));
            }
        }
    }
    for (rows, cached, dim) in [(40, 23, 64), (300, 261, 128), (41, 6, 256), (40, 23, 512)] {
        cached_or_not(machine, &mut random, rows, cached, dim)?;
    }
    Ok("bit-identical, alone or in a batch, cached or not".into())
}

/// The last rows of a sequence, their keys before them recomputed or in the pool.
fn cached_or_not(
    machine: &mut dyn Machine,
    random: &mut Random,
    rows: usize,
    cached: usize,
    dim: usize,
) -> Result<(), Failure> {
    let mut layer = Layer::random(random, Element::F32, (2, 1, dim), rows, cached);
    let keys = cached * dim;
    layer.pool_keys = layer.k[..keys].to_vec();
    layer.pool_values = layer.v[..keys].to_vec();
    let whole = Segment {
        rows: 0..rows,
        ..Segment::default()
    };
    let rest = Segment {
        rows: cached..rows,
        context: (0..cached as u32).collect(),
        ..Segment::default()
    };
    let whole = layer.run(machine, &[whole])?;
    let rest = layer.run(machine, &[rest])?;
    let own = cached * 2 * dim..;
    if whole[own.clone()] != rest[own] {
        return Err(Failure::Differs(format!(
            "{cached} cached keys of {rows} give other results, heads of {dim}"
        )));
    }
    Ok(())
}
