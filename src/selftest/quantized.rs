//! Products with weights in Q8_0 on a device, against the sums that they are.

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};

use super::Failure;
use super::random::Random;
use crate::models::{BlockWeight, ModelError, WeightFormat};

/// Numbers of rows: candle has a kernel for each up to eight, and for more those that multiply so many at a time.
const ROWS: [usize; 19] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 40, 48, 65, 96, 112, 130,
];

/// Widths of weights, output and input. Kernels read two outputs at a time, or 128, and 256 inputs.
const WIDTHS: [(usize, usize); 9] = [
    (1, 32),
    (3, 96),
    (64, 64),
    (127, 256),
    (128, 320),
    (129, 704),
    (257, 288),
    (96, 1536),
    (1001, 512),
];

/// The most that a number differs by, as a share of Σ |x w|: x is rounded to 8 bits, w has its own on both sides.
const TOLERANCE: f64 = 0.01;

pub(super) fn products(device: &Device) -> Result<String, Failure> {
    if let Err(refused @ ModelError::QuantizedKernels { .. }) =
        WeightFormat::Q8_0.check_kernels(device)
    {
        return Ok(format!("none, as the format is refused: {refused}"));
    }
    let mut random = Random::new(80);
    let (mut compared, mut most) = (0, 0f64);
    for (to, from) in WIDTHS {
        let weights = tensor(&mut random, to, from)?;
        let blocks = BlockWeight::new(&weights, GgmlDType::Q8_0, device)?;
        for rows in ROWS {
            let x = tensor(&mut random, rows, from)?;
            // As part of a longer tensor, after a row that is not read.
            let around = Tensor::cat(&[&tensor(&mut random, 1, from)?, &x], 0)?;
            let x_there = around.to_device(device)?.narrow(0, 1, rows)?;
            let product = blocks.multiply(&x_there)?.to_device(&Device::Cpu)?;
            if product.dims() != [rows, to] {
                return Err(Failure::Differs(format!(
                    "{:?} for [{rows}, {to}]",
                    product.dims()
                )));
            }
            let weights = weights.to_vec2::<f32>()?;
            for (x, product) in x.to_vec2::<f32>()?.iter().zip(product.to_vec2::<f32>()?) {
                for (output, (w, got)) in weights.iter().zip(product).enumerate() {
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
                        (sum + term, size + f64::abs(term))
                    });
                    let error = (f64::from(got) - sum).abs() / size.max(f64::MIN_POSITIVE);
                    if error.is_nan() || error > TOLERANCE {
                        return Err(Failure::Differs(format!(
                            "output {output} of {rows} rows from {from} to {to}: {got} for {sum}"
                        )));
                    }
                    most = most.max(error);
                    compared += 1;
                }
            }
        }
    }
    Ok(format!(
        "{compared} numbers, which differ by at most {:.2} % of the sum of their terms' sizes, of at most {:.0} %",
        100.0 * most,
        100.0 * TOLERANCE
    ))
}

/// `[rows, from]` on the CPU, of which every third row is zeros.
fn tensor(random: &mut Random, rows: usize, from: usize) -> candle_core::Result<Tensor> {
    let numbers = (0..rows * from).map(|place| match place / from % 3 {
        2 => 0.0,
        _ => random.normal(),
    });
    Tensor::from_vec(numbers.collect(), (rows, from), &Device::Cpu)
}
