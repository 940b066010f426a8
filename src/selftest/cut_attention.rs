//! Attention of segments whose keys are cut into spans, against its definition: by both kernels, and the one that merges.

use super::attention::{
    Defined, INVARIANT, Kernel, Layer, NOT_FINITE, alone_or_not, cached_or_not, not_finite_by,
    tolerated,
};
use super::element::{ELEMENTS, Element};
use super::long_attention::{HALVES, WIDTHS, rounding};
use super::random::Random;
use super::{Extent, Failure};
use crate::kernels::Machine;
use crate::models::{RaggedBatch, Segment};

/// Query heads, and key/value heads.
const HEADS: [(usize, usize); 4] = [(1, 1), (4, 2), (3, 1), (8, 1)];

/// Segments of few rows and many keys: plain, block-causal, of any first rows, of any bits, seeing nothing, or only the last
/// of the cached keys, or none of them; with keys that end a span and begin one.
fn batch(random: &mut Random, longest: usize) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for character in 0..7 {
        let length = match character {
            // So that what none of a block's queries sees is a span.
            4 => 200,
            _ => 1 + random.below(20),
        };
        let cached = match random.chance(0.3) {
            true => 64 * (8 + random.below(longest / 64)) + 1 - length.min(2),
            false => 512 + random.below(longest),
        };
        let allowed: Option<Vec<bool>> = match character {
            0 | 1 => None,
            2 => Some(
                (0..length * length)
                    .map(|i| i % length / 4 <= i / length / 4)
                    .collect(),
            ),
            3 => Some((0..length * length).map(|_| random.chance(0.6)).collect()),
            4 => {
                let firsts: Vec<usize> = (0..length).map(|row| row / 64 * 50).collect();
                let sees = |i: usize| i % length < firsts[i / length];
                Some((0..length * length).map(sees).collect())
            }
            _ => Some(vec![false; length * length]),
        };
        let context_from = match character {
            1 => (0..length).map(|_| random.below(cached + 1)).collect(),
            // All but the last keys are hidden from all rows, or from some.
            4 => (0..length).map(|row| cached - row.min(70)).collect(),
            5 => vec![cached; length],
            6 => (0..length).map(|row| cached - row % 2).collect(),
            _ => Vec::new(),
        };
        let segment = Segment {
            allowed,
            context: (0..cached).map(|_| random.below(longest) as u32).collect(),
            context_from,
            ..Segment::default()
        };
        let positions: Vec<u32> = (0..length as u32).collect();
        batch.push_segment(&vec![0; length], &positions, segment);
    }
    batch
}

/// Cached keys of a segment at the most, beyond 512.
fn longest(extent: Extent) -> usize {
    match extent {
        Extent::Small => 400,
        Extent::Full => 8000,
    }
}

/// The largest error, where all of the segments are cut.
fn compare(
    machine: &mut dyn Machine,
    kernel: Kernel,
    layer: &Layer,
    segments: &[Segment],
    allowed: impl Fn(&Defined) -> f64,
) -> Result<f64, Failure> {
    for segment in segments {
        is_cut(layer, kernel, segment)?;
    }
    let [error, _] = layer.compare(machine, kernel, segments, allowed)?;
    Ok(error)
}

fn is_cut(layer: &Layer, kernel: Kernel, segment: &Segment) -> Result<(), Failure> {
    let plan = layer.plan(kernel, std::slice::from_ref(segment));
    match plan.merge_tiles.is_empty() {
        false => Ok(()),
        true => Err(Failure::Differs(format!(
            "{kernel:?}, {} rows over {} slots: their keys are not cut",
            segment.rows.len(),
            segment.context.len()
        ))),
    }
}

pub(super) fn defined(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(27);
    let mut worst = [0f64; 3];
    let mut take = |element: Element, error: f64| {
        let worst = &mut worst[element as usize];
        *worst = worst.max(error);
    };
    for dim in WIDTHS {
        for element in ELEMENTS {
            let (heads, kv_heads) = match dim {
                512 => (1, 1),
                _ => random.pick(&HEADS),
            };
            let batch = batch(&mut random, longest(extent));
            let shape = (heads, kv_heads, dim);
            let layer = Layer::random(&mut random, element, shape, batch.rows(), longest(extent));
            // Of many rows and heads the kernel for few has blocks enough.
            let is_short = |segment: &&Segment| segment.rows.len() <= 20;
            let short: Vec<Segment> = batch.segments().iter().filter(is_short).cloned().collect();
            let allowed = tolerated(element);
            take(
                element,
                layer.compare(machine, Kernel::FewRows, batch.segments(), allowed)?[0],
            );
            for segment in &short {
                is_cut(&layer, Kernel::FewRows, segment)?;
            }
            if HALVES.contains(&element) {
                let allowed = rounding(element, dim);
                let error = compare(machine, Kernel::ManyRows, &layer, batch.segments(), allowed)?;
                take(element, error);
            }
        }
    }
    let [f32, bf16, f16] = worst;
    Ok(format!(
        "largest error {f32:.1e} (f32), {bf16:.1e} (bf16), {f16:.1e} (f16)"
    ))
}

pub(super) fn not_finite(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    for (element, dim) in ELEMENTS.into_iter().zip([64, 128, 64]) {
        not_finite_by(machine, Kernel::FewRows, element, dim, 600)?;
    }
    for (element, dim) in HALVES.into_iter().zip([64, 256]) {
        not_finite_by(machine, Kernel::ManyRows, element, dim, 600)?;
    }
    Ok(NOT_FINITE.into())
}

pub(super) fn invariance(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(28);
    for (kernel, heads, dim, element) in [
        (Kernel::FewRows, 2, 64, Element::F32),
        (Kernel::FewRows, 1, 512, Element::Bf16),
        (Kernel::ManyRows, 4, 128, Element::Bf16),
        (Kernel::ManyRows, 1, 256, Element::F16),
    ] {
        let batch = batch(&mut random, longest(extent));
        alone_or_not(machine, &mut random, kernel, element, (heads, dim), &batch)?;
    }
    // Three spans, with fewer cached keys and with more.
    for (kernel, rows, cached, dim, element) in [
        (Kernel::FewRows, 610, [540, 600], 64, Element::F32),
        (Kernel::FewRows, 520, [500, 519], 128, Element::F16),
        (Kernel::ManyRows, 700, [0, 660], 64, Element::Bf16),
        (Kernel::ManyRows, 610, [500, 600], 512, Element::F16),
    ] {
        cached_or_not(machine, &mut random, kernel, element, (rows, cached, dim))?;
    }
    Ok(INVARIANT.into())
}
