//! What the server launches, from tensors on a device, against the same on the CPU: beside a kernel's own promises
//! also that it is given the right numbers.

use candle_core::{DType, Device, Tensor};

use super::Failure;
use super::categorical::{compare, params, row};
use super::element::{ELEMENTS, Element};
use super::random::Random;
use crate::models::{Activation, RmsNorm, Rotary, add_bias, gated};
use crate::sampling::{self, Guidance, RowParams, RowSample, SamplingError};

/// Draws from logits of every type and layout.
pub(super) fn reductions(device: &Device) -> Result<String, Failure> {
    let mut random = Random::new(50);
    let mut compared = 0;
    for vocab in [1, 33, 1000, 50_257] {
        for element in ELEMENTS {
            for layout in LAYOUTS {
                let rows = 1 + random.below(4);
                let logits: Vec<_> = (0..rows).map(|_| row(&mut random, vocab)).collect();
                let logits = within(element, &logits)?;
                let params = all_params(&mut random, vocab, rows);
                let draw = |device| -> Result<_, Failure> {
                    let logits = layout(&logits.to_device(device)?)?;
                    Ok(sampling::reduce(&logits, None, &params)?)
                };
                compared += compare_all(&draw(device)?, &draw(&Device::Cpu)?)?;
            }
        }
    }
    let none = part(&within(Element::F32, &[])?.to_device(device)?)?;
    if !sampling::reduce(&none, None, &[])?.is_empty() {
        return Err(Failure::Differs("no rows give samples".into()));
    }
    Ok(format!("{compared} rows equal"))
}

/// Draws from logits that are led away from others, in rows that are guided and in rows that are not.
pub(super) fn guided(device: &Device) -> Result<String, Failure> {
    let mut random = Random::new(51);
    let (rows, mut compared) = (7, 0);
    for (vocab, element) in [33, 1000, 5000].into_iter().zip(ELEMENTS) {
        for layouts in [[0, 1], [1, 0], [2, 1]] {
            let mut logits = || {
                let row = row(&mut random, vocab).into_iter();
                row.map(|logit| logit.max(-60.0)).collect::<Vec<_>>()
            };
            let conditional: Vec<_> = (0..rows).map(|_| logits()).collect();
            let mut unconditional: Vec<_> = (0..rows).map(|_| logits()).collect();
            let mut scales = vec![Some(0.0), Some(0.5), None, Some(2.5)];
            scales.resize(rows, None);
            scales.rotate_left(random.below(rows));
            for (row, _) in scales
                .iter()
                .enumerate()
                .filter(|(_, scale)| scale.is_none())
            {
                unconditional[row].clone_from(&conditional[row]);
            }
            let logits = [
                within(element, &conditional)?,
                within(element, &unconditional)?,
            ];
            let params = all_params(&mut random, vocab, rows);
            let draw = |device| -> Result<_, Failure> {
                let [c, u] = [0, 1].map(|i| LAYOUTS[layouts[i]](&logits[i].to_device(device)?));
                let guidance = Guidance {
                    unconditional: u?,
                    scales: scales.clone(),
                };
                Ok(sampling::reduce(&c?, Some(&guidance), &params)?)
            };
            compared += compare_all(&draw(device)?, &draw(&Device::Cpu)?)?;
        }
    }
    Ok(format!("{compared} rows equal"))
}

/// What stands between a transformer's products, on numbers of every type.
pub(super) fn layers(device: &Device) -> Result<String, Failure> {
    let mut random = Random::new(52);
    let mut compared = 0;
    for element in ELEMENTS {
        for shape in [
            [1, 1, 64, 32],
            [5, 3, 128, 16],
            [3, 2, 256, 128],
            [2, 2, 512, 256],
            [40, 4, 48, 24],
        ] {
            let input = LayerInput::random(&mut random, element, shape)?;
            let found = input.outputs(element.dtype(), device)?;
            let wanted = input.outputs(DType::F32, &Device::Cpu)?;
            for ((name, found), (_, wanted)) in found.into_iter().zip(wanted) {
                let found = found.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                let found = found.flatten_all()?.to_vec1::<f32>()?;
                let wanted = wanted.flatten_all()?.to_vec1::<f32>()?;
                let unit = [1e-6, 1.0 / 128.0, 1.0 / 1024.0][element as usize];
                for (found, wanted) in found.iter().zip(&wanted) {
                    let error = (found - wanted).abs();
                    if error.is_nan() || error > 4.0 * unit * wanted.abs().max(4.0) {
                        return Err(Failure::Differs(format!(
                            "{name} of {shape:?} {element:?}: {found} for {wanted}"
                        )));
                    }
                }
                compared += found.len();
            }
        }
    }
    Ok(format!(
        "{compared} numbers within a few units in the last place"
    ))
}

/// Numbers on the CPU, rounded to an element.
struct LayerInput {
    /// `[rows, heads · dim]`, within larger tensors.
    x: Tensor,
    residual: Tensor,
    /// `[heads · dim]`
    weight: Tensor,
    /// `[dim]`
    head_weight: Tensor,
    /// Rows, heads, their width, and half of what is rotated of it.
    shape: [usize; 4],
}

impl LayerInput {
    fn random(
        random: &mut Random,
        element: Element,
        shape: [usize; 4],
    ) -> candle_core::Result<Self> {
        let [rows, heads, dim, _] = shape;
        let mut numbers = |rows: usize, width: usize| {
            let row = |random: &mut Random| (0..width).map(|_| random.normal()).collect();
            let rows: Vec<Vec<f32>> = (0..rows).map(|_| row(random)).collect();
            within(element, &rows)
        };
        Ok(Self {
            x: numbers(rows, heads * dim)?,
            residual: numbers(rows, heads * dim)?,
            weight: part(&numbers(1, heads * dim)?)?.squeeze(0)?,
            head_weight: part(&numbers(1, dim)?)?.squeeze(0)?,
            shape,
        })
    }

    /// What the layers make of the numbers, computed in `dtype`.
    fn outputs(
        &self,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<[(&'static str, Tensor); 8]> {
        let [rows, heads, dim, half] = self.shape;
        let place = |x: &Tensor| x.to_dtype(dtype)?.to_device(device);
        let (x, residual) = (part(&place(&self.x)?)?, part(&place(&self.residual)?)?);
        let weight = place(&self.weight)?;
        let norm = RmsNorm::new(weight.clone(), 1e-5);
        let head_norm = RmsNorm::new(place(&self.head_weight)?, 1e-5);
        // Without its first row, so that it starts in the middle.
        let by_head = Tensor::cat(&[&residual.narrow(0, 0, 1)?, &x], 0)?;
        let by_head = by_head
            .reshape((rows + 1, heads, dim))?
            .narrow(0, 1, rows)?;
        let frequencies = (1..=half).map(|i| 1.0 / i as f64).collect::<Vec<_>>();
        let positions: Vec<u32> = (0..rows as u32).map(|row| 50 - row).collect();
        let rotary = |frequencies: &Vec<f64>, dtype| {
            Rotary::from_frequencies(frequencies.clone(), 100, dtype, device)?.rows(&positions)
        };
        let in_f32 = rotary(&frequencies, DType::F32)?;
        let rotary = rotary(&frequencies, dtype)?;
        let [sum, normed] = norm.forward_sum(&x, &residual)?;
        Ok([
            ("x + residual", sum),
            ("the norm of x + residual", normed),
            ("rotated heads", rotary.apply(&by_head)?),
            ("heads rotated in f32", in_f32.apply(&by_head)?),
            (
                "normed and rotated heads",
                rotary.apply_normed(&by_head, &head_norm)?,
            ),
            (
                "silu(x) ⊙ residual",
                gated(Activation::Silu, &x, &residual)?,
            ),
            (
                "gelu(x) ⊙ residual",
                gated(Activation::GeluTanh, &x, &residual)?,
            ),
            ("x + bias", add_bias(&x, &weight)?),
        ])
    }
}

fn all_params(random: &mut Random, vocab: usize, rows: usize) -> Vec<RowParams> {
    let slots = 0..rows;
    slots.map(|slot| params(random, vocab, slot)).collect()
}

type Sample = Result<RowSample, SamplingError>;

/// The number of rows, which are as many as the twin's.
fn compare_all(found: &[Sample], twin: &[Sample]) -> Result<usize, Failure> {
    if found.len() != twin.len() {
        let (found, twin) = (found.len(), twin.len());
        return Err(Failure::Differs(format!("{found} samples of {twin} rows")));
    }
    for (found, twin) in found.iter().zip(twin) {
        compare(found, twin)?;
    }
    Ok(found.len())
}

/// Rows of numbers after a row of NaN, each with three NaN behind it, on the CPU; [`LAYOUTS`] cut them out.
fn within(element: Element, rows: &[Vec<f32>]) -> candle_core::Result<Tensor> {
    let columns = rows.first().map_or(1, Vec::len) + 3;
    let mut values = vec![f32::NAN; columns];
    for row in rows {
        values.extend(row.iter().chain(&[f32::NAN; 3]));
    }
    Tensor::from_vec(values, (rows.len() + 1, columns), &Device::Cpu)?.to_dtype(element.dtype())
}

/// As a tensor of its own, as a part that starts in the middle and has gaps between its rows, and with the
/// numbers of a column side by side.
const LAYOUTS: [fn(&Tensor) -> candle_core::Result<Tensor>; 3] = [
    |x| part(x)?.contiguous(),
    part,
    |x| part(x)?.t()?.contiguous()?.t(),
];

fn part(x: &Tensor) -> candle_core::Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    x.narrow(0, 1, rows - 1)?.narrow(1, 0, columns - 3)
}
