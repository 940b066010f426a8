//! Attention of a ragged batch against its definition: the kernel for few queries.

use super::element::{ELEMENTS, Element};
use super::random::Random;
use super::{Extent, Failure};
use crate::kernels::{Argument, Machine};
use crate::models::ragged::{self, RaggedPlan};
use crate::models::{Heads, RaggedBatch, Segment};

/// By type, of results of about ±4.
const TOLERANCES: [f64; 3] = [2e-5, 2e-2, 3e-3];

/// Which kernel attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// `ragged_attention`
    FewQueries,
    /// `long_attention`
    ManyQueries,
}

/// What the attention of a layer is given.
#[derive(Clone)]
pub(super) struct Layer {
    pub element: Element,
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub pool_keys: Vec<f32>,
    pub pool_values: Vec<f32>,
}

/// A number of a result by the definition, and what its error may come from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defined {
    /// Σ w v / Σ w
    pub value: f64,
    /// Σ w |v| / Σ w
    pub size: f64,
    /// Σ |v|
    pub values: f64,
    /// The largest Σ |q k| / √dim of a key.
    pub products: f64,
    /// Keys.
    pub keys: usize,
}

impl Layer {
    pub fn random(
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

    fn shape(&self) -> Heads {
        Heads {
            query: self.heads,
            key_value: self.kv_heads,
            dim: self.dim,
        }
    }

    /// What `kernel` is told of `segments`.
    pub fn plan(&self, kernel: Kernel, segments: &[Segment]) -> RaggedPlan {
        let least_long_queries = match kernel {
            Kernel::FewQueries => usize::MAX,
            Kernel::ManyQueries => 0,
        };
        RaggedPlan::new(segments, self.shape(), least_long_queries)
    }

    /// `[rows, heads, dim]`
    pub fn run(
        &self,
        machine: &mut dyn Machine,
        kernel: Kernel,
        segments: &[Segment],
    ) -> Result<Vec<f32>, Failure> {
        let element = self.element;
        let plan = self.plan(kernel, segments);
        let (launch, tiles) = match kernel {
            Kernel::FewQueries => ragged::kernels(self.dim).map(|names| {
                let tiles = &plan.tiles;
                let launch = ragged::launch(element.kernel(names), tiles.len(), self.kv_heads);
                (launch, tiles)
            }),
            Kernel::ManyQueries => ragged::long_kernels(self.dim).and_then(|names| {
                let tiles = &plan.long_tiles;
                let name = names[(element as usize).checked_sub(1)?];
                let launch = ragged::long_launch(name, self.dim, tiles.len(), self.kv_heads);
                Some((launch, tiles))
            }),
        }
        .ok_or_else(|| {
            Failure::Differs(format!(
                "no kernel {kernel:?} for heads of {}, {element:?}",
                self.dim
            ))
        })?;
        let encode = |values: &[f32]| element.encode(values);
        let mut out = encode(&vec![f32::NAN; self.q.len()]);
        let mut partials = vec![f32::NAN; plan.partial_numbers(self.shape())];
        // SAFETY: the parameters of the kernel; the plan names rows of `q`, `k` and `v`, of which `out` is as large as
        // `q`, slots of the pool, and as many places of partial results as there are.
        unsafe {
            machine.launch(
                &launch,
                &mut [
                    Argument::In(&encode(&self.q)),
                    Argument::In(&encode(&self.k)),
                    Argument::In(&encode(&self.v)),
                    Argument::In(&encode(&self.pool_keys)),
                    Argument::In(&encode(&self.pool_values)),
                    Argument::input(&plan.segments),
                    Argument::input(tiles),
                    Argument::input(&plan.context),
                    Argument::input(&plan.first_seen),
                    Argument::input(&plan.visible),
                    Argument::input(&plan.allowed),
                    Argument::U32(self.heads as u32),
                    Argument::U32(self.kv_heads as u32),
                    Argument::F32(1.0 / (self.dim as f32).sqrt()),
                    Argument::Out(&mut out),
                    Argument::output(&mut partials),
                ],
            )
        }?;
        if !plan.merge_tiles.is_empty() {
            let kernel = element.kernel(ragged::MERGE_KERNELS);
            let tiles = plan.merge_tiles.len();
            let launch = ragged::merge_launch(kernel, self.dim, tiles, self.kv_heads);
            // SAFETY: the parameters of the kernel; the plan names rows of `q`, and partial results.
            unsafe {
                machine.launch(
                    &launch,
                    &mut [
                        Argument::input(&partials),
                        Argument::input(&plan.segments),
                        Argument::input(&plan.merge_tiles),
                        Argument::U32(self.heads as u32),
                        Argument::U32(self.kv_heads as u32),
                        Argument::U32(self.dim as u32),
                        Argument::Out(&mut out),
                    ],
                )
            }?;
        }
        Ok(element.decode(&out))
    }

    /// The largest error, and the largest one relative to what `allowed` allows of a number.
    pub fn compare(
        &self,
        machine: &mut dyn Machine,
        kernel: Kernel,
        segments: &[Segment],
        allowed: impl Fn(&Defined) -> f64,
    ) -> Result<[f64; 2], Failure> {
        let out = self.run(machine, kernel, segments)?;
        let mut worst = [0f64; 2];
        for (given, wanted) in out.iter().zip(self.definition(segments)) {
            let (error, allowed) = ((f64::from(*given) - wanted.value).abs(), allowed(&wanted));
            if error.is_nan() || error > allowed {
                return Err(Failure::Differs(format!(
                    "{:?}, heads {:?} of {}, {} rows over {} slots first: {given} for {}, at most {allowed:.1e} off is \
                     allowed",
                    self.element,
                    (self.heads, self.kv_heads),
                    self.dim,
                    segments[0].rows.len(),
                    segments[0].context.len(),
                    wanted.value,
                )));
            }
            worst[0] = worst[0].max(error);
            if allowed > 0.0 {
                worst[1] = worst[1].max(error / allowed);
            }
        }
        Ok(worst)
    }

    /// softmax(q kᵀ / √dim) v in f64, zeros for a row that sees nothing.
    fn definition(&self, segments: &[Segment]) -> Vec<Defined> {
        let (dim, groups) = (self.dim, self.heads / self.kv_heads);
        let mut out = vec![Defined::default(); self.q.len()];
        for segment in segments {
            let length = segment.rows.len();
            for row in 0..length {
                let from = segment.context_from.get(row).copied().unwrap_or(0);
                for head in 0..self.heads {
                    let at = |place: usize| {
                        let first = (place * self.kv_heads + head / groups) * dim;
                        first..first + dim
                    };
                    let cached = segment.context[from..].iter().map(|slot| {
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
                        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), (q, k)| {
                            let product = f64::from(*q) * f64::from(*k);
                            (sum + product, size + product.abs())
                        });
                        let root = (dim as f64).sqrt();
                        (sum / root, size / root)
                    };
                    let scores: Vec<(f64, f64)> = keys.iter().map(|(key, _)| score(key)).collect();
                    let largest = |numbers: &mut dyn Iterator<Item = f64>| {
                        numbers.fold(f64::NEG_INFINITY, f64::max)
                    };
                    let max = largest(&mut scores.iter().map(|(score, _)| *score));
                    let products = largest(&mut scores.iter().map(|(_, size)| *size));
                    let weights: Vec<f64> = scores.iter().map(|(s, _)| (s - max).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for (weight, (_, value)) in weights.iter().zip(&keys) {
                        let weight = weight / sum;
                        for (out, v) in out[first..].iter_mut().zip(*value) {
                            let v = f64::from(*v);
                            out.value += weight * v;
                            out.size += weight * v.abs();
                            out.values += v.abs();
                            (out.products, out.keys) = (products, keys.len());
                        }
                    }
                }
            }
        }
        out
    }
}

/// The tolerance of the kernel for few queries.
pub(super) fn tolerated(element: Element) -> impl Fn(&Defined) -> f64 {
    move |_| TOLERANCES[element as usize]
}

/// Segments of all characters: plain, block-causal, any first rows, any bits, seeing nothing; with and without cached
/// slots, of which rows see all or all from one on.
pub(super) fn batch(random: &mut Random, slots: usize, longest: usize) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for character in 0..6 {
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
            4 => {
                let firsts: Vec<usize> = (0..length).map(|_| random.below(length + 1)).collect();
                let sees = |i: usize| i % length < firsts[i / length];
                Some((0..length * length).map(sees).collect())
            }
            _ => Some(vec![false; length * length]),
        };
        let cached = match random.chance(0.6) {
            true => random.below(slots),
            false => 0,
        };
        let context_from = match random.chance(0.4) {
            true => (0..length).map(|_| random.below(cached + 1)).collect(),
            false => Vec::new(),
        };
        let segment = Segment {
            allowed,
            context: (0..cached).map(|_| random.below(slots) as u32).collect(),
            context_from,
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
            let allowed = tolerated(element);
            let [error, _] =
                layer.compare(machine, Kernel::FewQueries, batch.segments(), allowed)?;
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
            let allowed = tolerated(element);
            let [error, _] = layer.compare(machine, Kernel::FewQueries, &[segment], allowed)?;
            worst[element as usize] = worst[element as usize].max(error);
        }
    }
    let [f32, bf16, f16] = worst;
    Ok(format!(
        "largest error {f32:.1e} (f32), {bf16:.1e} (bf16), {f16:.1e} (f16)"
    ))
}

pub(super) fn not_finite(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    for element in ELEMENTS {
        not_finite_by(machine, Kernel::FewQueries, element, 64, (70, 40))?;
    }
    Ok(NOT_FINITE.into())
}

/// What [`not_finite_by`] has seen.
pub(super) const NOT_FINITE: &str = "rows of NaN and infinite scores give NaN, the others do not";

/// Queries that overflowed: a row with one gets NaN, and no other row does. Keys and values that did: no row of another
/// segment gets NaN. A score of −∞ weighs nothing, unless there is no other. Of so many `rows` after `cached` keys.
pub(super) fn not_finite_by(
    machine: &mut dyn Machine,
    kernel: Kernel,
    element: Element,
    dim: usize,
    (rows, cached): (usize, usize),
) -> Result<(), Failure> {
    let mut random = Random::new(22);
    let segment = Segment {
        rows: 0..rows,
        context: (0..cached as u32).collect(),
        ..Segment::default()
    };
    let layer = Layer::random(&mut random, element, (2, 1, dim), rows, cached);
    let is_as_it_should = |out: &[f32], what: String, is_bad: &dyn Fn(usize) -> bool| {
        let mut rows = out.chunks(2 * dim).enumerate();
        let wrong = rows.find(|(row, of_row)| of_row.iter().any(|x| x.is_nan() != is_bad(*row)));
        match wrong {
            None => Ok(()),
            Some((row, of_row)) => Err(Failure::Differs(format!(
                "{element:?}, heads of {dim}, {what}: row {row} has {}",
                of_row[0]
            ))),
        }
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut layer = layer.clone();
        let row = random.below(rows);
        // All of the row's scores are infinite or NaN, whatever the keys' signs are.
        layer.q[row * 2 * dim..(row + 1) * 2 * dim].fill(bad);
        layer.k.iter_mut().for_each(|key| *key = key.abs());
        layer.pool_keys.iter_mut().for_each(|key| *key = key.abs());
        let out = layer.run(machine, kernel, std::slice::from_ref(&segment))?;
        is_as_it_should(&out, format!("{bad} in row {row}"), &|other| other == row)?;
    }
    let second = rows / 2 + 2;
    let parts = [0..second, second..rows].map(|rows| Segment {
        rows,
        ..Segment::default()
    });
    let mut others = layer.clone();
    for numbers in [&mut others.k, &mut others.v] {
        numbers[second * dim..].fill(f32::NAN);
    }
    let out = others.run(machine, kernel, &parts)?;
    is_as_it_should(&out, format!("NaN from row {second} on"), &|row| {
        row >= second
    })?;
    // A row that sees nothing, beside values that are not finite.
    let mut blind = vec![true; rows * rows];
    blind[rows..2 * rows].fill(false);
    let blinded = Segment {
        rows: 0..rows,
        allowed: Some(blind),
        ..Segment::default()
    };
    let mut values = layer.clone();
    values.v[..dim].fill(f32::INFINITY);
    let out = values.run(machine, kernel, &[blinded])?;
    if let Some(number) = out[2 * dim..4 * dim].iter().find(|number| **number != 0.0) {
        return Err(Failure::Differs(format!(
            "{element:?}, heads of {dim}: a row that sees nothing has {number}"
        )));
    }
    // The first half of the cached keys, as if nobody saw them.
    let hidden = cached / 2;
    let mut weightless = layer;
    weightless
        .q
        .iter_mut()
        .for_each(|query| *query = query.abs() + 1.0);
    weightless.pool_keys[..hidden * dim].fill(f32::NEG_INFINITY);
    let without = Segment {
        context_from: vec![hidden; rows],
        ..segment.clone()
    };
    let seen = weightless.run(machine, kernel, std::slice::from_ref(&segment))?;
    if seen != weightless.run(machine, kernel, &[without])? {
        return Err(Failure::Differs(format!(
            "{element:?}, heads of {dim}: keys whose scores are −∞ count"
        )));
    }
    weightless.pool_keys.fill(f32::NEG_INFINITY);
    weightless.k.fill(f32::NEG_INFINITY);
    let out = weightless.run(machine, kernel, &[segment])?;
    is_as_it_should(&out, "all scores −∞".into(), &|_| true)
}

pub(super) fn invariance(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(21);
    let (kernel, element) = (Kernel::FewQueries, Element::F32);
    for (heads, dim) in [(2, 64), (3, 128), (1, 256), (3, 512)] {
        let batch = batch(&mut random, SLOTS, 45);
        alone_or_not(machine, &mut random, kernel, element, (heads, dim), &batch)?;
    }
    for (rows, cached, dim) in [(40, 23, 64), (300, 261, 128), (41, 6, 256), (40, 23, 512)] {
        let cached = [0, cached];
        cached_or_not(machine, &mut random, kernel, element, (rows, cached, dim))?;
    }
    Ok(INVARIANT.into())
}

/// What [`alone_or_not`] and [`cached_or_not`] have seen.
pub(super) const INVARIANT: &str = "bit-identical, alone or in a batch, cached or not";

/// Slots of the pool where rows are compared.
pub(super) const SLOTS: usize = 50;

/// The rows of each segment of `batch`, of `heads` of width `dim` that share keys, by themselves and in it.
pub(super) fn alone_or_not(
    machine: &mut dyn Machine,
    random: &mut Random,
    kernel: Kernel,
    element: Element,
    (heads, dim): (usize, usize),
    batch: &RaggedBatch,
) -> Result<(), Failure> {
    let named = batch.segments().iter().flat_map(|s| &s.context);
    let slots = named.max().map_or(0, |slot| *slot as usize + 1);
    let layer = Layer::random(random, element, (heads, 1, dim), batch.rows(), slots);
    let together = layer.run(machine, kernel, batch.segments())?;
    for segment in batch.segments() {
        let alone = layer.run(machine, kernel, std::slice::from_ref(segment))?;
        let own = segment.rows.start * heads * dim..segment.rows.end * heads * dim;
        if alone[own.clone()] != together[own] {
            return Err(Failure::Differs(format!(
                "rows {:?} depend on the others of the batch, heads of {dim}",
                segment.rows
            )));
        }
    }
    Ok(())
}

/// The last rows of a sequence, of whose keys before them fewer or more are in the pool and the others recomputed.
pub(super) fn cached_or_not(
    machine: &mut dyn Machine,
    random: &mut Random,
    kernel: Kernel,
    element: Element,
    (rows, [fewer, more], dim): (usize, [usize; 2], usize),
) -> Result<(), Failure> {
    let mut layer = Layer::random(random, element, (2, 1, dim), rows, more);
    let keys = more * dim;
    layer.pool_keys = layer.k[..keys].to_vec();
    layer.pool_values = layer.v[..keys].to_vec();
    let mut after = |cached: usize| {
        let segment = Segment {
            rows: cached..rows,
            context: (0..cached as u32).collect(),
            ..Segment::default()
        };
        layer.run(machine, kernel, &[segment])
    };
    let own = more * 2 * dim..;
    if after(fewer)?[own.clone()] != after(more)?[own] {
        return Err(Failure::Differs(format!(
            "{more} cached keys of {rows} give other results than {fewer}, heads of {dim}"
        )));
    }
    Ok(())
}
