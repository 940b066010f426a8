//! Attention of a ragged batch against its definition: the kernel for many queries, on tensor cores.

use super::attention::{
    Defined, INVARIANT, Kernel, Layer, NOT_FINITE, SLOTS, alone_or_not, batch, cached_or_not,
    not_finite_by,
};
use super::element::Element;
use super::random::Random;
use super::{Extent, Failure};
use crate::kernels::Machine;
use crate::models::Segment;

pub(super) const WIDTHS: [usize; 4] = [64, 128, 256, 512];

/// Types that the kernel takes.
pub(super) const HALVES: [Element; 2] = [Element::Bf16, Element::F16];

/// Query heads, and key/value heads: groups of 1, 4, 7 and others.
const HEADS: [(usize, usize); 6] = [(1, 1), (2, 2), (4, 1), (8, 2), (7, 1), (3, 1)];

/// What rounding may change, to the first order, of a result over `keys` keys of heads of width `dim`. With u = 2⁻⁸ of bf16
/// or 2⁻¹¹ of f16, half of what is between one and the next number, and a number of f32 added to within 2⁻²³ of the sum, as
/// tensor cores do that cut off what does not fit:
///
/// - a weight is rounded, by u, and so is the result;
/// - a score is a sum of 16 products at a time, so its error is (20 + dim / 16) 2⁻²³ Σ |q k| / √dim at the most, with what
///   scaling it and taking the largest off adds; so much of a weight that is e to its power, and 2⁻²² for the power itself,
///   above the fraction bar and below it;
/// - the sum of weighted values is one of 16 products at a time too;
/// - in f16 a weight below 2⁻¹⁴ of the largest is off by up to 2⁻²⁵ of it, and so is a result below 2⁻¹⁴.
pub(super) fn rounding(element: Element, dim: usize) -> impl Fn(&Defined) -> f64 {
    let (unit, least) = match element {
        Element::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (2f64.powi(-8), 0.0),
    };
    let added = 2f64.powi(-23);
    move |defined: &Defined| {
        let of_scores = (20.0 + dim as f64 / 16.0) * added * defined.products + 2.0 * added;
        let of_sum = (20.0 + defined.keys as f64 / 16.0) * added;
        let relative = unit + 2.0 * of_scores + of_sum;
        // The second order.
        let more = 1.02;
        more * (relative * defined.size + unit * defined.value.abs())
            + least * (defined.values + f64::from(u8::from(defined.keys > 0)))
    }
}

/// The largest errors by type, and how much of what is allowed they are.
#[derive(Default)]
struct Worst([[f64; 2]; 2]);

impl Worst {
    fn take(&mut self, element: Element, error: [f64; 2]) {
        let of_element = &mut self.0[usize::from(element == Element::F16)];
        for (worst, error) in of_element.iter_mut().zip(error) {
            *worst = worst.max(error);
        }
    }

    fn in_words(&self) -> String {
        let [[bf16, of_bf16], [f16, of_f16]] = self.0;
        format!(
            "largest error {bf16:.1e} (bf16), {f16:.1e} (f16): {:.0} and {:.0} % of what rounding may make",
            100.0 * of_bf16,
            100.0 * of_f16
        )
    }
}

pub(super) fn random(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(24);
    let (slots, longest) = match extent {
        Extent::Small => (100, 90),
        Extent::Full => (600, 300),
    };
    let mut worst = Worst::default();
    for dim in WIDTHS {
        for element in HALVES {
            let (heads, kv_heads) = random.pick(&HEADS);
            let batch = batch(&mut random, slots, longest);
            let shape = (heads, kv_heads, dim);
            let layer = Layer::random(&mut random, element, shape, batch.rows(), slots);
            let allowed = rounding(element, dim);
            let error = layer.compare(machine, Kernel::ManyQueries, batch.segments(), allowed)?;
            worst.take(element, error);
        }
    }
    Ok(worst.in_words())
}

/// Numbers of rows and of cached keys around those that end what a warp and a block take, and a tile of keys; causal rows
/// and bits, which end anywhere in it.
pub(super) fn borders(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(25);
    let mut worst = Worst::default();
    let cases = [
        (1, 0),
        (15, 1),
        (16, 100),
        (17, 63),
        (31, 0),
        (32, 33),
        (33, 64),
        (63, 1),
        (64, 0),
        (65, 127),
        (130, 16),
        (130, 300),
    ];
    for (index, (rows, cached)) in cases.into_iter().enumerate() {
        for (turn, dim) in WIDTHS.into_iter().enumerate() {
            let element = HALVES[(index + turn) % 2];
            let (heads, kv_heads) = HEADS[(index + turn) % HEADS.len()];
            let shape = (heads, kv_heads, dim);
            let layer = Layer::random(&mut random, element, shape, rows, cached);
            let allowed = match index % 3 {
                0 => None,
                1 => Some((0..rows * rows).map(|i| i % rows <= i / rows).collect()),
                // Far from the diagonal nothing is seen, so that whole tiles are not.
                _ => Some(
                    (0..rows * rows)
                        .map(|i| (i % rows).abs_diff(i / rows) < 9 && random.chance(0.8))
                        .collect(),
                ),
            };
            let segment = Segment {
                rows: 0..rows,
                context: (0..cached as u32).rev().collect(),
                context_from: match index % 4 {
                    3 => (0..rows).map(|row| (row * 3).min(cached)).collect(),
                    _ => Vec::new(),
                },
                allowed,
                ..Segment::default()
            };
            let allowed = rounding(element, dim);
            let error = layer.compare(machine, Kernel::ManyQueries, &[segment], allowed)?;
            worst.take(element, error);
        }
    }
    Ok(worst.in_words())
}

pub(super) fn not_finite(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    for (element, dim) in HALVES
        .into_iter()
        .zip([64, 128])
        .chain([(Element::Bf16, 256), (Element::F16, 512)])
    {
        not_finite_by(machine, Kernel::ManyQueries, element, dim, (70, 40))?;
    }
    Ok(NOT_FINITE.into())
}

pub(super) fn invariance(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(26);
    let kernel = Kernel::ManyQueries;
    for (heads, dim, element) in [
        (2, 64, Element::F16),
        (3, 128, Element::Bf16),
        (1, 256, Element::F16),
        (3, 512, Element::Bf16),
    ] {
        let batch = batch(&mut random, SLOTS, 45);
        alone_or_not(machine, &mut random, kernel, element, (heads, dim), &batch)?;
    }
    for (rows, cached, dim, element) in [
        (40, 23, 64, Element::Bf16),
        (200, 135, 128, Element::Bf16),
        (41, 6, 256, Element::F16),
        (90, 71, 512, Element::F16),
    ] {
        let cached = [0, cached];
        cached_or_not(machine, &mut random, kernel, element, (rows, cached, dim))?;
    }
    Ok(INVARIANT.into())
}
