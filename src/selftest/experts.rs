//! The kernels of a mixture of experts against the router and the definition.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::element::{ELEMENTS, Element};
use super::random::Random;
use super::{Extent, Failure};
use crate::kernels::{Argument, Machine};
use crate::models::grouped::{self, ExpertTile, ROWS_OF_TILE};
use crate::models::{Activation, Router};

/// What no kernel writes.
const UNWRITTEN: u32 = 0xdead_beef;

/// Which experts each row goes to, `[rows, per_row]`, and their weights.
#[derive(Debug, Clone)]
struct Routed {
    per_row: usize,
    chosen: Vec<u32>,
    weights: Vec<f32>,
}

pub(super) fn routes(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(60);
    let mut compared = 0;
    let (all_rows, repeats) = match extent {
        Extent::Small => ([1, 33, 257], 1),
        Extent::Full => ([1, 33, 2500], 20),
    };
    for experts in [1, 2, 7, 12, 64, 128, 256, 512] {
        for per_row in [1, 2, 8, experts] {
            for rows in all_rows {
                // A shim takes its time over ranks of many experts.
                let is_long = extent == Extent::Small && rows * experts > 1 << 13;
                if per_row > experts || is_long {
                    continue;
                }
                for _ in 0..repeats {
                    for router in routers(&mut random, experts) {
                        compare(machine, &mut random, &router, [rows, experts, per_row])?;
                        compared += rows;
                    }
                }
            }
        }
    }
    Ok(format!("{compared} rows equal, bit for bit"))
}

/// Fails unless `router` and its kernel send each of `rows` random rows to the same `per_row` experts.
fn compare(
    machine: &mut dyn Machine,
    random: &mut Random,
    router: &Router,
    [rows, experts, per_row]: [usize; 3],
) -> Result<(), Failure> {
    let stride = experts + random.below(4);
    let logits = logits(random, rows, experts, stride);
    let found = route(machine, router, &logits, stride, experts, per_row)?;
    for (row, logits) in logits.chunks(stride).enumerate() {
        let wanted = router.route(&logits[..experts], per_row);
        let own = row * per_row..(row + 1) * per_row;
        let found = found.chosen[own.clone()].iter().zip(&found.weights[own]);
        let is_same = found.clone().zip(&wanted).all(|(found, wanted)| {
            let both_nan = found.1.is_nan() && wanted.1.is_nan();
            *found.0 as usize == wanted.0 && (both_nan || found.1.to_bits() == wanted.1.to_bits())
        });
        if !is_same {
            let found: Vec<_> = found.collect();
            return Err(Failure::Differs(format!(
                "row {row} by {router:?}: {found:?} for {wanted:?}; logits {logits:?}"
            )));
        }
    }
    Ok(())
}

/// One of each kind.
fn routers(random: &mut Random, experts: usize) -> Vec<Router> {
    let mut numbers = |size: f32| (0..experts).map(|_| size * random.normal()).collect();
    let (of_softmax, of_groups, scales) = (numbers(0.125), numbers(0.125), numbers(1.0));
    let divisors: Vec<usize> = (1..=experts)
        .filter(|n| experts.is_multiple_of(*n))
        .collect();
    let groups = random.pick(&divisors);
    vec![
        Router::Softmax {
            bias: random.chance(0.5).then_some(of_softmax),
            normalized: random.chance(0.5),
            scales: random.chance(0.5).then_some(scales),
        },
        Router::GroupedSigmoid {
            bias: of_groups,
            groups,
            kept_groups: 1 + random.below(groups),
            scale: 2.5,
        },
    ]
}

/// Rows of each kind, `stride` apart, with NaN between them.
fn logits(random: &mut Random, rows: usize, experts: usize, stride: usize) -> Vec<f32> {
    let mut logits = vec![f32::NAN; rows * stride];
    for row in logits.chunks_mut(stride) {
        let row = &mut row[..experts];
        let kind = random.below(10);
        for logit in row.iter_mut() {
            let normal = random.normal();
            *logit = match kind {
                // Ties.
                0 => (normal * 2.0).round() / 2.0,
                1 => 3.0,
                2 => normal * 100.0,
                3 if random.chance(0.5) => f32::NEG_INFINITY,
                4 => f32::NEG_INFINITY,
                // Probabilities that differ in their last place, or not at all.
                5 => 1.0 + normal * 1e-6,
                _ => normal,
            };
        }
        let place = random.below(experts);
        match kind {
            6 => row[place] = f32::NAN,
            7 => row[place] = -f32::NAN,
            8 => row[place] = f32::INFINITY,
            _ => (),
        }
    }
    logits
}

fn route(
    machine: &mut dyn Machine,
    router: &Router,
    logits: &[f32],
    stride: usize,
    experts: usize,
    per_row: usize,
) -> Result<Routed, Failure> {
    let rows = logits.len() / stride;
    let mut chosen = vec![UNWRITTEN; rows * per_row];
    let mut weights = vec![f32::NAN; rows * per_row];
    let [zeros, ones] = [0.0, 1.0].map(|number| vec![number; experts]);
    let (bias, rest) = match router {
        Router::Softmax {
            bias,
            normalized,
            scales,
        } => (
            bias.as_ref().unwrap_or(&zeros),
            vec![
                Argument::U32(u32::from(*normalized)),
                Argument::input(scales.as_ref().unwrap_or(&ones)),
            ],
        ),
        Router::GroupedSigmoid {
            bias,
            groups,
            kept_groups,
            scale,
        } => {
            let groups = [groups, kept_groups].map(|number| Argument::U32(*number as u32));
            let mut rest = Vec::from(groups);
            rest.push(Argument::F32(*scale));
            (bias, rest)
        }
    };
    let mut arguments = vec![
        Argument::input(logits),
        Argument::U64(stride as u64),
        Argument::input(bias),
        Argument::U32(experts as u32),
        Argument::U32(per_row as u32),
    ];
    arguments.extend(rest);
    arguments.push(Argument::output(&mut chosen));
    arguments.push(Argument::output(&mut weights));
    let launch = grouped::route(router, rows, experts);
    // SAFETY: the parameters of the router's kernel; rows of `experts` logits, and as many numbers of a bias and scales.
    unsafe { machine.launch(&launch, &mut arguments) }?;
    Ok(Routed {
        per_row,
        chosen,
        weights,
    })
}

/// How rows choose their experts.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// Any.
    Random,
    /// The first ones: the others have no rows.
    First,
}

impl Choice {
    /// `per_row` different experts for each row.
    fn routed(self, random: &mut Random, rows: usize, experts: usize, per_row: usize) -> Routed {
        let mut chosen = Vec::with_capacity(rows * per_row);
        for _ in 0..rows {
            let mut all: Vec<u32> = (0..experts as u32).collect();
            for place in 0..per_row {
                if let Self::Random = self {
                    all.swap(place, place + random.below(experts - place));
                }
                chosen.push(all[place]);
            }
        }
        let weights = chosen.iter().map(|_| random.uniform()).collect();
        Routed {
            per_row,
            chosen,
            weights,
        }
    }
}

/// Rows by expert.
#[derive(Debug, PartialEq, Eq)]
struct Grouped {
    order: Vec<u32>,
    tiles: Vec<ExpertTile>,
}

impl Grouped {
    fn by_kernel(
        machine: &mut dyn Machine,
        routed: &Routed,
        experts: usize,
    ) -> Result<Self, Failure> {
        let entries = routed.chosen.len();
        let tile_count = grouped::most_tiles(entries, experts);
        let mut order = vec![UNWRITTEN; entries];
        let mut tiles = vec![[UNWRITTEN; 3]; tile_count];
        let mut arguments = vec![Argument::input(&routed.chosen)];
        arguments.extend([entries, experts, tile_count].map(|number| Argument::U32(number as u32)));
        arguments.push(Argument::output(&mut order));
        arguments.push(Argument::output(&mut tiles));
        // SAFETY: the parameters of the kernel; entries name experts, and there are as many tiles as they can come to.
        unsafe { machine.launch(&grouped::group(experts), &mut arguments) }?;
        let tiles = tiles.into_iter().map(|[expert, first, rows]| ExpertTile {
            expert,
            first,
            rows,
        });
        Ok(Self {
            order,
            tiles: tiles.collect(),
        })
    }

    fn by_sorting(routed: &Routed, experts: usize) -> Self {
        let mut order: Vec<u32> = (0..routed.chosen.len() as u32).collect();
        order.sort_by_key(|entry| routed.chosen[*entry as usize]);
        let (mut tiles, mut first) = (Vec::new(), 0);
        for expert in 0..experts as u32 {
            let mut left = routed.chosen.iter().filter(|own| **own == expert).count();
            while left > 0 {
                let rows = left.min(ROWS_OF_TILE);
                tiles.push(ExpertTile {
                    expert,
                    first,
                    rows: rows as u32,
                });
                first += rows as u32;
                left -= rows;
            }
        }
        let none = ExpertTile {
            expert: 0,
            first: 0,
            rows: 0,
        };
        tiles.resize(grouped::most_tiles(routed.chosen.len(), experts), none);
        Self { order, tiles }
    }
}

/// Rows, experts and experts a row.
const SIZES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (40, 1, 1),
    (1, 8, 8),
    (33, 4, 4),
    (7, 16, 2),
    (33, 64, 8),
    (257, 3, 1),
    (257, 16, 2),
    (2, 512, 8),
    (1, 9, 2),
];

pub(super) fn groups(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(61);
    let mut compared = 0;
    for (rows, experts, per_row) in SIZES {
        for choice in [Choice::Random, Choice::First] {
            let routed = choice.routed(&mut random, rows, experts, per_row);
            let found = Grouped::by_kernel(machine, &routed, experts)?;
            let wanted = Grouped::by_sorting(&routed, experts);
            if found != wanted {
                return Err(Failure::Differs(format!(
                    "{rows} rows to {per_row} of {experts} experts: {found:?} for {wanted:?}"
                )));
            }
            compared += rows * per_row;
        }
    }
    Ok(format!("{compared} entries in the order of a stable sort"))
}

/// Bytes at an address that is a multiple of 16.
struct Aligned(Vec<u128>);

impl Aligned {
    /// `values` as the element has them, of which eight fill whole units.
    fn new(element: Element, values: &[f32]) -> Self {
        let bytes = element.encode(values);
        let (units, _) = bytes.as_chunks();
        Self(units.iter().copied().map(u128::from_ne_bytes).collect())
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Experts' weights, rounded to an element.
struct Experts {
    element: Element,
    activation: Activation,
    hidden: usize,
    intermediate: usize,
    /// Gate and up `[intermediate, hidden]`, down `[hidden, intermediate]` of each.
    weights: Vec<[Vec<f32>; 3]>,
}

impl Experts {
    /// Such that numbers keep their size.
    fn random(
        random: &mut Random,
        element: Element,
        activation: Activation,
        (hidden, intermediate): (usize, usize),
        experts: usize,
    ) -> Self {
        let mut matrix = |from: usize| {
            let scale = 1.0 / (from as f32).sqrt();
            let values = (0..hidden * intermediate).map(|_| random.normal() * scale);
            element.round(&values.collect::<Vec<f32>>())
        };
        let expert = |_| [matrix(hidden), matrix(hidden), matrix(intermediate)];
        Self {
            element,
            activation,
            hidden,
            intermediate,
            weights: (0..experts).map(expert).collect(),
        }
    }

    fn rows(&self, random: &mut Random, rows: usize) -> Vec<f32> {
        let values: Vec<f32> = (0..rows * self.hidden).map(|_| random.normal()).collect();
        self.element.round(&values)
    }

    /// `[rows, hidden]` by all kernels but the router's.
    fn run(
        &self,
        machine: &mut dyn Machine,
        x: &[f32],
        routed: &Routed,
    ) -> Result<Vec<f32>, Failure> {
        let (rows, entries) = (x.len() / self.hidden, routed.chosen.len());
        let grouped = Grouped::by_kernel(machine, routed, self.weights.len())?;
        let tiles: &[ExpertTile] = &grouped.tiles;
        let weights: Vec<Aligned> = (self.weights.iter().flatten())
            .map(|weight| Aligned::new(self.element, weight))
            .collect();
        let table = || Argument::Addresses(weights.iter().map(Aligned::bytes).collect());
        let number = |number: usize| Argument::U32(number as u32);
        let x = Aligned::new(self.element, x);
        let unwritten = vec![f32::NAN; entries * self.intermediate];
        let mut activations = Aligned::new(self.element, &unwritten);
        let kernel = self.element.kernel(grouped::GATE_UP);
        let mut arguments = [
            Argument::In(x.bytes()),
            table(),
            Argument::input(tiles),
            Argument::input(&grouped.order),
            number(routed.per_row),
            number(self.hidden),
            number(self.intermediate),
            Argument::U32(self.activation as u32),
            Argument::Out(activations.bytes_mut()),
        ];
        let launch = grouped::gate_up(kernel, tiles.len(), self.intermediate);
        // SAFETY: the parameters of the kernel; tiles are of experts in the table and of entries of rows of x, whose
        // widths are multiples of eight.
        unsafe { machine.launch(&launch, &mut arguments) }?;

        let mut outputs = vec![f32::NAN; entries * self.hidden];
        let kernel = self.element.kernel(grouped::DOWN);
        let mut arguments = [
            Argument::In(activations.bytes()),
            table(),
            Argument::input(tiles),
            Argument::input(&grouped.order),
            number(self.hidden),
            number(self.intermediate),
            Argument::output(&mut outputs),
        ];
        let launch = grouped::down(kernel, tiles.len(), self.hidden);
        // SAFETY: as above; there are outputs for each entry.
        unsafe { machine.launch(&launch, &mut arguments) }?;

        let mut out = Aligned::new(self.element, &vec![f32::NAN; rows * self.hidden]);
        let kernel = self.element.kernel(grouped::SUM);
        let mut arguments = [
            Argument::input(&outputs),
            Argument::input(&routed.weights),
            number(routed.per_row),
            number(self.hidden),
            Argument::Out(out.bytes_mut()),
        ];
        let launch = grouped::sum(kernel, rows, self.hidden);
        // SAFETY: the parameters of the kernel; outputs and weights of `per_row` entries a row.
        unsafe { machine.launch(&launch, &mut arguments) }?;
        Ok(self.element.decode(out.bytes()))
    }

    /// Row by row, in double precision.
    fn definition(&self, x: &[f32], routed: &Routed) -> Vec<f64> {
        let dot = |weight: &[f32], x: &[f64]| -> f64 {
            weight.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
        };
        let mut sums = Vec::with_capacity(x.len());
        for (row, x) in x.chunks(self.hidden).enumerate() {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let mut sum = vec![0.0; self.hidden];
            for rank in 0..routed.per_row {
                let entry = row * routed.per_row + rank;
                let [gate, up, down] = &self.weights[routed.chosen[entry] as usize];
                let gated = gate.chunks(self.hidden).zip(up.chunks(self.hidden));
                let activations: Vec<f64> = gated
                    .map(|(gate, up)| activated(self.activation, dot(gate, &x)) * dot(up, &x))
                    .collect();
                let weight = f64::from(routed.weights[entry]);
                for (sum, down) in sum.iter_mut().zip(down.chunks(self.intermediate)) {
                    *sum += weight * dot(down, &activations);
                }
            }
            sums.append(&mut sum);
        }
        sums
    }
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (x + 0.044_715 * x.powi(3));
            x * (1.0 + u.tanh()) / 2.0
        }
    }
}

pub(super) fn mixtures(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let mut random = Random::new(62);
    let widths: &[(usize, usize)] = match extent {
        Extent::Small => &[(8, 8), (24, 40), (264, 16), (16, 520)],
        Extent::Full => &[(264, 520), (2048, 512), (1024, 768)],
    };
    let mut worst = [0f64; 3];
    let activations = [Activation::Silu, Activation::GeluTanh].into_iter().cycle();
    for ((rows, experts, per_row), activation) in SIZES.into_iter().zip(activations) {
        for element in ELEMENTS {
            let experts = match extent {
                Extent::Small => experts.min(16),
                Extent::Full => experts,
            };
            let per_row = per_row.min(experts);
            // The definition takes its time over many products.
            let rows = if experts * per_row > 16 {
                rows.min(40)
            } else {
                rows
            };
            let widths = random.pick(widths);
            let choice = random.pick(&[Choice::Random, Choice::First]);
            let routed = choice.routed(&mut random, rows, experts, per_row);
            let mixture = Experts::random(&mut random, element, activation, widths, experts);
            let x = mixture.rows(&mut random, rows);
            let out = mixture.run(machine, &x, &routed)?;
            // Of a number of its size or of 1: activations are rounded to the element too.
            let tolerance = [2e-5, 2e-2, 3e-3][element as usize];
            for (given, wanted) in out.iter().zip(mixture.definition(&x, &routed)) {
                let error = (f64::from(*given) - wanted).abs() / wanted.abs().max(1.0);
                worst[element as usize] = worst[element as usize].max(error);
                if error.is_nan() || error > tolerance {
                    return Err(Failure::Differs(format!(
                        "{element:?}, {activation:?}, {rows} rows of {widths:?} to {per_row} of {experts} experts, \
                         {choice:?}: {given} for {wanted}"
                    )));
                }
            }
        }
    }
    let [f32, bf16, f16] = worst;
    Ok(format!(
        "largest error {f32:.1e} (f32), {bf16:.1e} (bf16), {f16:.1e} (f16)"
    ))
}

pub(super) fn invariance(machine: &mut dyn Machine, _: Extent) -> Result<String, Failure> {
    let mut random = Random::new(63);
    let (rows, experts, per_row, width) = (37, 5, 2, 72);
    for element in ELEMENTS {
        let activation = random.pick(&[Activation::Silu, Activation::GeluTanh]);
        let mixture = Experts::random(&mut random, element, activation, (width, 40), experts);
        let routed = Choice::Random.routed(&mut random, rows, experts, per_row);
        let mut x = mixture.rows(&mut random, rows);
        let bad = random.below(rows);
        x[bad * width + random.below(width)] = f32::NAN;
        let together = mixture.run(machine, &x, &routed)?;
        for (row, x) in x.chunks(width).enumerate() {
            let own = row * per_row..(row + 1) * per_row;
            let alone = Routed {
                per_row,
                chosen: routed.chosen[own.clone()].to_vec(),
                weights: routed.weights[own].to_vec(),
            };
            let alone = mixture.run(machine, x, &alone)?;
            let together = &together[row * width..(row + 1) * width];
            let is_right = match row == bad {
                true => together.iter().all(|value| value.is_nan()),
                false => alone == together,
            };
            if !is_right {
                return Err(Failure::Differs(format!(
                    "{element:?}, row {row}, NaN in row {bad}: {together:?} in a batch, {alone:?} alone"
                )));
            }
        }
    }
    Ok("bit-identical, alone or in a batch".into())
}
