//! The fused layers against candle's operations on the CPU.

use candle_core::{Device, Tensor};

use super::element::{ELEMENTS, Element};
use super::random::Random;
use super::{Extent, Failure};
use crate::kernels::{Argument, Launch, Machine};
use crate::models::Activation;

const EPSILON: f32 = 1e-5;

struct Input {
    element: Element,
    random: Random,
}

impl Input {
    /// Numbers of about ±3 as the element has them, and their bytes.
    fn numbers(&mut self, count: usize) -> (Vec<f32>, Vec<u8>) {
        let numbers: Vec<f32> = (0..count).map(|_| self.random.normal()).collect();
        let bytes = self.element.encode(&numbers);
        (self.element.decode(&bytes), bytes)
    }
}

/// Fails unless each of `given` is `wanted` but for a rounding or two of a number of its size or of 2.
fn compare(element: Element, given: &[u8], wanted: &Tensor, what: &str) -> Result<(), Failure> {
    let unit = [1e-6, 1.0 / 128.0, 1.0 / 1024.0][element as usize];
    let wanted = wanted.flatten_all()?.to_vec1::<f32>()?;
    for (given, wanted) in element.decode(given).iter().zip(&wanted) {
        let error = (given - wanted).abs();
        if error.is_nan() || error > 2.0 * unit * wanted.abs().max(2.0) {
            return Err(Failure::Differs(format!(
                "{what}, {element:?}: {given} for {wanted}"
            )));
        }
    }
    Ok(())
}

fn tensor(values: &[f32], shape: impl Into<candle_core::Shape>) -> candle_core::Result<Tensor> {
    Tensor::from_slice(values, shape, &Device::Cpu)
}

fn sizes(extent: Extent) -> ([usize; 4], usize) {
    match extent {
        Extent::Small => ([1, 31, 64, 200], 3),
        Extent::Full => ([1, 128, 1000, 4096], 300),
    }
}

pub(super) fn norms(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let (widths, rows) = sizes(extent);
    for element in ELEMENTS {
        let random = Random::new(30);
        let mut input = Input { element, random };
        for width in widths {
            let (x, x_bytes) = input.numbers(rows * width);
            let (residual, residual_bytes) = input.numbers(rows * width);
            let (weight, weight_bytes) = input.numbers(width);
            let weight = tensor(&weight, width)?;
            let (mut sum, mut normed) = (x_bytes.clone(), x_bytes.clone());

            let kernel = element.kernel(["rms_norm_f32", "rms_norm_bf16", "rms_norm_f16"]);
            // SAFETY: the parameters of the kernel; rows of `width` numbers, and as many weights.
            unsafe {
                machine.launch(
                    &Launch::rows(kernel, rows, machine.row_threads()),
                    &mut [
                        Argument::In(&x_bytes),
                        Argument::In(&weight_bytes),
                        Argument::U32(width as u32),
                        Argument::F32(EPSILON),
                        Argument::Out(&mut normed),
                    ],
                )
            }?;
            let twin = candle_nn::ops::rms_norm(&tensor(&x, (rows, width))?, &weight, EPSILON)?;
            compare(element, &normed, &twin, "rms_norm")?;

            // Rows that no 16 bytes begin with.
            let shifted = [&x_bytes[..element.dtype().size_in_bytes()], &x_bytes].concat();
            let mut normed = x_bytes.clone();
            // SAFETY: as above.
            unsafe {
                machine.launch(
                    &Launch::rows(kernel, rows, machine.row_threads()),
                    &mut [
                        Argument::In(&shifted[element.dtype().size_in_bytes()..]),
                        Argument::In(&weight_bytes),
                        Argument::U32(width as u32),
                        Argument::F32(EPSILON),
                        Argument::Out(&mut normed),
                    ],
                )
            }?;
            compare(element, &normed, &twin, "rms_norm of rows not aligned")?;

            let kernel =
                element.kernel(["add_rms_norm_f32", "add_rms_norm_bf16", "add_rms_norm_f16"]);
            // SAFETY: the parameters of the kernel; rows of `width` numbers, and as many weights.
            unsafe {
                machine.launch(
                    &Launch::rows(kernel, rows, machine.row_threads()),
                    &mut [
                        Argument::In(&x_bytes),
                        Argument::In(&residual_bytes),
                        Argument::In(&weight_bytes),
                        Argument::U32(width as u32),
                        Argument::F32(EPSILON),
                        Argument::Out(&mut sum),
                        Argument::Out(&mut normed),
                    ],
                )
            }?;
            let added: Vec<f32> = x.iter().zip(&residual).map(|(a, b)| a + b).collect();
            let added = element.round(&added);
            if element.decode(&sum) != added {
                return Err(Failure::Differs(format!("x + residual, {element:?}")));
            }
            let twin = candle_nn::ops::rms_norm(&tensor(&added, (rows, width))?, &weight, EPSILON)?;
            compare(element, &normed, &twin, "add_rms_norm")?;
        }
    }
    Ok("within two units in the last place".into())
}

pub(super) fn rotations(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let (_, rows) = sizes(extent);
    let threads = machine.row_threads();
    for element in ELEMENTS {
        let random = Random::new(31);
        let mut input = Input { element, random };
        let mut wide = Input {
            element: Element::F32,
            random: Random::new(33),
        };
        for (heads, dim, half) in [
            (1, 64, 32),
            (3, 128, 64),
            (2, 256, 32),
            (5, 96, 48),
            (2, 512, 256),
        ] {
            let (x, x_bytes) = input.numbers(rows * heads * dim);
            let (weight, weight_bytes) = input.numbers(dim);
            let (cos, cos_bytes) = input.numbers(rows * half);
            let (sin, sin_bytes) = input.numbers(rows * half);
            let shape = (rows, heads, dim);
            let normed =
                candle_nn::ops::rms_norm(&tensor(&x, shape)?, &tensor(&weight, dim)?, EPSILON)?;
            let normed = element.round(&normed.flatten_all()?.to_vec1()?);
            let rotated = |x: &[f32], cos: &[f32], sin: &[f32]| -> Result<Tensor, Failure> {
                let x = tensor(x, shape)?;
                let first = x.narrow(2, 0, 2 * half)?.unsqueeze(0)?.contiguous()?;
                let cos = tensor(cos, (rows, half))?;
                let sin = tensor(sin, (rows, half))?;
                let first = candle_nn::rotary_emb::rope_thd(&first, &cos, &sin)?.squeeze(0)?;
                let rest = x.narrow(2, 2 * half, dim - 2 * half)?;
                Ok(Tensor::cat(&[&first, &rest], 2)?)
            };
            let numbers = || [rows * heads, heads, dim, half].map(|n| Argument::U32(n as u32));
            let kernel = element.kernel(["rotate_f32", "rotate_bf16", "rotate_f16"]);
            let mut out = x_bytes.clone();
            let inputs = [&x_bytes, &cos_bytes, &sin_bytes].map(|bytes| Argument::In(bytes));
            let mut arguments: Vec<_> = inputs.into_iter().chain(numbers()).collect();
            arguments.push(Argument::Out(&mut out));
            let launch = Launch::warps(kernel, rows * heads, threads);
            // SAFETY: the parameters of the kernel; as many heads of `dim` numbers as it is told of, cosines and sines
            // of `half` for each row.
            unsafe { machine.launch(&launch, &mut arguments) }?;
            compare(element, &out, &rotated(&x, &cos, &sin)?, "rotate")?;

            let kernel = element.kernel(["rotate_f32", "rotate_by_f32_bf16", "rotate_by_f32_f16"]);
            let angles = [(); 2].map(|()| wide.numbers(rows * half));
            let [(wide_cos, wide_cos_bytes), (wide_sin, wide_sin_bytes)] = angles;
            let inputs = [&x_bytes, &wide_cos_bytes, &wide_sin_bytes];
            let inputs = inputs.map(|bytes| Argument::In(bytes));
            let mut arguments: Vec<_> = inputs.into_iter().chain(numbers()).collect();
            arguments.push(Argument::Out(&mut out));
            let launch = Launch::warps(kernel, rows * heads, threads);
            // SAFETY: as above, with cosines and sines in f32.
            unsafe { machine.launch(&launch, &mut arguments) }?;
            compare(
                element,
                &out,
                &rotated(&x, &wide_cos, &wide_sin)?,
                "rotate by f32",
            )?;

            let kernel = element.kernel(["norm_rotate_f32", "norm_rotate_bf16", "norm_rotate_f16"]);
            let inputs = [&x_bytes, &weight_bytes, &cos_bytes, &sin_bytes];
            let inputs = inputs.map(|bytes| Argument::In(bytes));
            let mut arguments: Vec<_> = inputs.into_iter().chain(numbers()).collect();
            arguments.extend([Argument::F32(EPSILON), Argument::Out(&mut out)]);
            let launch = Launch::warps(kernel, rows * heads, threads);
            // SAFETY: as above, and `dim` weights.
            unsafe { machine.launch(&launch, &mut arguments) }?;
            compare(element, &out, &rotated(&normed, &cos, &sin)?, "norm_rotate")?;
        }
    }
    Ok("within two units in the last place".into())
}

pub(super) fn gates(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let (widths, rows) = sizes(extent);
    for element in ELEMENTS {
        let random = Random::new(32);
        let mut input = Input { element, random };
        for width in widths {
            let count = rows * width;
            let (gate, gate_bytes) = input.numbers(count);
            let (up, up_bytes) = input.numbers(count);
            let (gate, up) = (tensor(&gate, count)?, tensor(&up, count)?);
            // From the second number on, which no 16 bytes begin with.
            let second = element.dtype().size_in_bytes();
            for (activation, activated) in [
                (Activation::Silu, gate.silu()?),
                (Activation::GeluTanh, gate.gelu()?),
            ] {
                let mut out = gate_bytes.clone();
                let kernel = element.kernel(["gated_f32", "gated_bf16", "gated_f16"]);
                // SAFETY: the parameters of the kernel; all memory is of `count` numbers.
                unsafe {
                    machine.launch(
                        &Launch::numbers(kernel, count, machine.row_threads()),
                        &mut [
                            Argument::In(&gate_bytes),
                            Argument::In(&up_bytes),
                            Argument::U64(count as u64),
                            Argument::U32(activation as u32),
                            Argument::Out(&mut out),
                        ],
                    )
                }?;
                let what = format!("gated by {activation:?}");
                let wanted = (activated * &up)?;
                compare(element, &out, &wanted, &what)?;

                let mut out = gate_bytes[second..].to_vec();
                // SAFETY: as above, of one number less.
                unsafe {
                    machine.launch(
                        &Launch::numbers(kernel, count, machine.row_threads()),
                        &mut [
                            Argument::In(&gate_bytes[second..]),
                            Argument::In(&up_bytes[second..]),
                            Argument::U64(count as u64 - 1),
                            Argument::U32(activation as u32),
                            Argument::Out(&mut out),
                        ],
                    )
                }?;
                compare(element, &out, &wanted.narrow(0, 1, count - 1)?, &what)?;
            }
        }
    }
    Ok("within two units in the last place".into())
}

pub(super) fn biases(machine: &mut dyn Machine, extent: Extent) -> Result<String, Failure> {
    let (widths, rows) = sizes(extent);
    for element in ELEMENTS {
        let random = Random::new(34);
        let mut input = Input { element, random };
        for width in widths {
            let (x, x_bytes) = input.numbers(rows * width);
            let (bias, bias_bytes) = input.numbers(width);
            let mut sum = x_bytes.clone();
            let kernel = element.kernel(["add_bias_f32", "add_bias_bf16", "add_bias_f16"]);
            // SAFETY: the parameters of the kernel; rows of `width` numbers, and as many of the bias.
            unsafe {
                machine.launch(
                    &Launch::rows(kernel, rows, machine.row_threads()),
                    &mut [
                        Argument::In(&x_bytes),
                        Argument::In(&bias_bytes),
                        Argument::U32(width as u32),
                        Argument::Out(&mut sum),
                    ],
                )
            }?;
            let twin = tensor(&x, (rows, width))?.broadcast_add(&tensor(&bias, width)?)?;
            let twin = twin.flatten_all()?.to_vec1::<f32>()?;
            if element.decode(&sum) != element.round(&twin) {
                return Err(Failure::Differs(format!("x + bias, {element:?}")));
            }
        }
    }
    Ok("equal".into())
}
