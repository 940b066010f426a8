//! Random weights, for measuring shapes whose weights are not at hand.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::Source;

/// Standard deviation of a matrix's weights, that of most models' initialisation: activations stay finite
/// however deep the network is.
const DEVIATION: f32 = 0.02;
/// Base of rotary frequencies that a checkpoint stores.
const ROTARY_BASE: f64 = 1e4;
/// Values that one task makes.
const CHUNK: usize = 1 << 16;

/// A source of every tensor there could be: matrices are uniform random numbers, the weights of norms are
/// one, biases zero, stored rotary frequencies those of base 10000. A tensor's values depend on its name and
/// shape alone, so that the same config.json always makes the same network.
pub(in crate::models) struct Dummy;

impl Source for Dummy {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = match *shape {
            [dim] if name.ends_with("inv_freq") => {
                let frequency = |i| ROTARY_BASE.powf(-(i as f64) / dim as f64) as f32;
                let frequencies: Vec<f32> = (0..dim).map(frequency).collect();
                Tensor::from_vec(frequencies, shape, device)?
            }
            [_] if name.ends_with("weight") => Tensor::ones(shape, DType::F32, device)?,
            [] | [_] => Tensor::zeros(shape, DType::F32, device)?,
            _ => {
                let count = shape.iter().product();
                Tensor::from_vec(uniform(key(name), count), shape, device)?
            }
        };
        tensor.to_dtype(dtype)
    }
}

/// FNV-1a of a name.
fn key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `count` numbers, uniform with mean 0 and standard deviation [`DEVIATION`].
fn uniform(key: u64, count: usize) -> Vec<f32> {
    let width = DEVIATION * 12f32.sqrt();
    let mut values = vec![0.0; count];
    values
        .par_chunks_mut(CHUNK)
        .enumerate()
        .for_each(|(chunk, values)| {
            for (i, value) in values.iter_mut().enumerate() {
                let bits = split_mix(key.wrapping_add((chunk * CHUNK + i) as u64)) >> 40;
                *value = (bits as f32 / (1u32 << 24) as f32 - 0.5) * width;
            }
        });
    values
}

/// The output function of SplitMix64 (Steele et al., 2014) at a state that counts.
fn split_mix(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_depends_on_its_name_and_has_the_deviation_of_an_initialisation() {
        let (a, b) = (uniform(key("a"), 1 << 17), uniform(key("b"), 1 << 17));
        assert_eq!(a, uniform(key("a"), 1 << 17));
        assert_ne!(a, b);
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 1e-3, "{mean}");
        assert!((variance.sqrt() - DEVIATION).abs() < 1e-3, "{variance}");
    }
}
