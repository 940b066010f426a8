//! Attention of segments whose keys are cut into splits, against its definition: by both kernels, and the one that merges.

use super::attention::{
    INVARIANT, Kernel, Layer, NOT_FINITE, alone_or_not, cached_or_not, not_finite_by, tolerated,
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
/// of the cached keys, or none of them; with keys that end a step of splits, and others.
fn batch(random: &mut Random, kernel: Kernel, longest: usize) -> RaggedBatch {
    let mut batch = RaggedBatch::new();
    for character in 0..7 {
        // The fourth one has two blocks of queries, and a last split of its own rows, which none of the first block sees.
        let length = match (character, kernel) {
            (4, Kernel::FewQueries) => 14,
            (4, Kernel::ManyQueries) => 70,
            _ => 1 + random.below(12),
        };
        let cached = match character {
            4 => 1024,
            _ if random.chance(0.3) => 64 * (9 + random.below(longest / 64)) - length,
            _ => 512 + random.below(longest),
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
                let sees = |i: usize| i / length >= length - 6 && i % length < length / 2;
                Some((0..length * length).map(sees).collect())
            }
            _ => Some(vec![false; length * length]),
        };
        let context_from = match character {
            1 => (0..length).map(|_| random.below(cached + 1)).collect(),
            4 => (0..length).map(|row| 60 * row.min(15)).collect(),
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
        Extent::Small => 250,
        Extent::Full => 8000,
    }
}

pub(super) fn defined(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(27);
    let mut worst = [0f64; 3];
    let longest = longest(extent);
    let few = ELEMENTS.map(|element| (Kernel::FewQueries, element));
    let many = HALVES.map(|element| (Kernel::ManyQueries, element));
    for dim in WIDTHS {
        for (kernel, element) in few.into_iter().chain(many) {
            let (heads, kv_heads) = random.pick(&HEADS);
            let batch = batch(&mut random, kernel, longest);
            let shape = (heads, kv_heads, dim);
            let layer = Layer::random(&mut random, element, shape, batch.rows(), longest);
            are_cut(&layer, kernel, batch.segments())?;
            let [error, _] = match kernel {
                Kernel::FewQueries => {
                    layer.compare(machine, kernel, batch.segments(), tolerated(element))?
                }
                Kernel::ManyQueries => {
                    layer.compare(machine, kernel, batch.segments(), rounding(element, dim))?
                }
            };
            worst[element as usize] = worst[element as usize].max(error);
        }
    }
    let [f32, bf16, f16] = worst;
    Ok(format!(
        "largest error {f32:.1e} (f32), {bf16:.1e} (bf16), {f16:.1e} (f16)"
    ))
}

/// Whether the keys of each segment are cut, or else nothing would be checked.
fn are_cut(layer: &Layer, kernel: Kernel, segments: &[Segment]) -> Result<(), Failure> {
    let is_cut = |segment: &&Segment| {
        let plan = layer.plan(kernel, std::slice::from_ref(*segment));
        !plan.merge_tiles.is_empty()
    };
    match segments.iter().find(|segment| !is_cut(segment)) {
        None => Ok(()),
        Some(segment) => Err(Failure::Differs(format!(
            "{kernel:?}, {} rows over {} slots: their keys are not cut",
            segment.rows.len(),
            segment.context.len()
        ))),
    }
}

pub(super) fn not_finite(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    for (element, dim) in ELEMENTS.into_iter().zip([64, 128, 64]) {
        not_finite_by(machine, Kernel::FewQueries, element, dim, (20, 600))?;
    }
    for (element, dim) in HALVES.into_iter().zip([64, 256]) {
        not_finite_by(machine, Kernel::ManyQueries, element, dim, (20, 600))?;
    }
    Ok(NOT_FINITE.into())
}

pub(super) fn invariance(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(28);
    for (kernel, heads, dim, element) in [
        (Kernel::FewQueries, 2, 64, Element::F32),
        (Kernel::FewQueries, 1, 512, Element::Bf16),
        (Kernel::ManyQueries, 4, 128, Element::Bf16),
        (Kernel::ManyQueries, 1, 256, Element::F16),
    ] {
        let batch = batch(&mut random, kernel, longest(extent));
        alone_or_not(machine, &mut random, kernel, element, (heads, dim), &batch)?;
    }
    // Three splits, with fewer cached keys and with more.
    for (kernel, rows, cached, dim, element) in [
        (Kernel::FewQueries, 610, [540, 600], 64, Element::F32),
        (Kernel::FewQueries, 520, [500, 519], 128, Element::F16),
        (Kernel::ManyQueries, 700, [0, 660], 64, Element::Bf16),
        (Kernel::ManyQueries, 610, [500, 600], 512, Element::F16),
    ] {
        cached_or_not(machine, &mut random, kernel, element, (rows, cached, dim))?;
    }
    Ok(INVARIANT.into())
}
