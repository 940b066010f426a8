//! Mixtures of experts from tensors on a device, against the same on the CPU.

use candle_core::{DType, Device, Tensor};

use super::Failure;
use super::element::{ELEMENTS, Element};
use super::random::Random;
use crate::models::{Activation, MixtureOfExperts, Router};

/// How large a mixture is.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    hidden: usize,
    intermediate: usize,
    experts: usize,
    per_row: usize,
}

const fn size(
    rows: usize,
    hidden: usize,
    intermediate: usize,
    experts: usize,
    per_row: usize,
) -> Size {
    Size {
        rows,
        hidden,
        intermediate,
        experts,
        per_row,
    }
}

/// With widths that kernels are not built for, with more rows an expert than they are used for, and others.
const SIZES: [Size; 6] = [
    size(1, 64, 40, 8, 2),
    size(33, 40, 16, 8, 8),
    size(33, 128, 64, 64, 8),
    size(5, 12, 7, 4, 2),
    size(257, 64, 24, 4, 2),
    size(17, 264, 520, 1, 1),
];

pub(super) fn mixtures(device: &Device) -> Result<String, Failure> {
    let mut random = Random::new(64);
    let mut compared = 0;
    for size in SIZES {
        for (router, activation) in kinds(&mut random, size.experts) {
            for element in ELEMENTS {
                let input = Input::random(&mut random, element, size)?;
                let output = |dtype, device| input.output(&router, activation, dtype, device);
                let found = output(element.dtype(), device)?;
                let wanted = output(DType::F32, &Device::Cpu)?;
                let unit = [1e-6, 1.0 / 128.0, 1.0 / 1024.0][element as usize];
                for (found, wanted) in found.iter().zip(&wanted) {
                    let error = (found - wanted).abs();
                    if error.is_nan() || error > 8.0 * unit * wanted.abs().max(2.0) {
                        return Err(Failure::Differs(format!(
                            "{size:?} by {router:?}, {activation:?}, {element:?}: {found} for {wanted}"
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

/// Every router, and experts of every activation.
fn kinds(random: &mut Random, experts: usize) -> [(Router, Activation); 4] {
    let bias = (0..experts).map(|_| random.normal() / 8.0).collect();
    let scales = (0..experts).map(|_| 0.5 + random.uniform()).collect();
    let softmax = |normalized, scales| Router::Softmax {
        bias: None,
        normalized,
        scales,
    };
    let groups = if experts.is_multiple_of(4) { 4 } else { 1 };
    let of_groups = Router::GroupedSigmoid {
        bias,
        groups,
        kept_groups: groups.div_ceil(2),
        scale: 2.5,
    };
    [
        (softmax(false, None), Activation::Silu),
        (softmax(true, None), Activation::GeluTanh),
        (softmax(true, Some(scales)), Activation::GeluTanh),
        (of_groups, Activation::Silu),
    ]
}

/// Tensors on the CPU, in f32 but rounded to an element.
struct Input {
    /// After a row of NaN.
    x: Tensor,
    gate: Tensor,
    experts: Vec<[Tensor; 3]>,
    size: Size,
}

impl Input {
    /// The router's input and weight are multiples of 1/8, whose products and sums are exact: every device has the
    /// same logits, ties among them.
    fn random(random: &mut Random, element: Element, size: Size) -> candle_core::Result<Self> {
        let Size {
            rows,
            hidden,
            intermediate,
            experts,
            ..
        } = size;
        let eighths = |random: &mut Random, count: usize, scale: f32| {
            let eighth = |_| (random.normal() * scale * 8.0).round() / 8.0;
            (0..count).map(eighth).collect::<Vec<f32>>()
        };
        let mut x = vec![f32::NAN; hidden];
        x.extend(eighths(random, rows * hidden, 1.0));
        let gate = eighths(random, experts * hidden, 0.25);
        let mut matrix = |to: usize, from: usize| {
            let scale = 1.0 / (from as f32).sqrt();
            let values: Vec<f32> = (0..to * from).map(|_| random.normal() * scale).collect();
            tensor(&element.round(&values), (to, from))
        };
        let expert = |_| {
            let (gate, up) = (matrix(intermediate, hidden)?, matrix(intermediate, hidden)?);
            Ok([gate, up, matrix(hidden, intermediate)?])
        };
        Ok(Self {
            x: tensor(&x, (rows + 1, hidden))?,
            gate: tensor(&gate, (experts, hidden))?,
            experts: (0..experts)
                .map(expert)
                .collect::<candle_core::Result<_>>()?,
            size,
        })
    }

    /// What the mixture makes of the rows, computed in `dtype`.
    fn output(
        &self,
        router: &Router,
        activation: Activation,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Vec<f32>> {
        let place = |x: &Tensor| x.to_dtype(dtype)?.to_device(device);
        let experts = self.experts.iter().map(|[gate, up, down]| {
            let (gate, up) = (place(gate)?, place(up)?);
            Ok([gate, up, place(down)?])
        });
        let mixture = MixtureOfExperts::from_tensors(
            self.gate.to_device(device)?,
            router.clone(),
            activation,
            experts.collect::<candle_core::Result<_>>()?,
            self.size.per_row,
        )?;
        let x = place(&self.x)?.narrow(0, 1, self.size.rows)?;
        let out = mixture.forward(&x)?.to_device(&Device::Cpu)?;
        out.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }
}

fn tensor(values: &[f32], shape: (usize, usize)) -> candle_core::Result<Tensor> {
    Tensor::from_slice(values, shape, &Device::Cpu)
}
