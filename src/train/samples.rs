//! Networks and batches of tests.

use super::batch::{Batch, Windows};
use super::draws::{Purpose, Stream, stratified_times};
use super::layout::{Layout, NetworkShape};
use crate::diffusion::{Process, Schedule};

/// A small network.
pub fn shape(tied: bool) -> NetworkShape {
    NetworkShape {
        vocab: 61,
        context: 13,
        hidden: 24,
        layers: 3,
        heads: 3,
        mlp: 40,
        tied,
        rope_theta: 1e4,
        norm_eps: 1e-5,
    }
}

/// A batch of the absorbing process whose mask is token 0.
pub fn batch(shape: &NetworkShape, windows: usize, seed: u64) -> Batch {
    let process = Process::absorbing(shape.vocab, 0).unwrap();
    noised(shape, windows, seed, &process, &[])
}

/// A batch of `process`, each window of which holds texts that begin at slot 0 and at `borders`.
pub fn noised(
    shape: &NetworkShape,
    count: usize,
    seed: u64,
    process: &Process,
    borders: &[usize],
) -> Batch {
    let mut stream = Stream::new(seed, Purpose::Step, 0);
    let clean: Vec<u32> = (0..count * shape.context)
        .map(|_| 1 + stream.below(shape.vocab - 1) as u32)
        .collect();
    let times = stratified_times(count, &mut stream);
    let mut windows = Windows::new(shape.context);
    for window in clean.chunks(shape.context) {
        windows.push(window, 0, borders);
    }
    Batch::noise(
        windows,
        &times,
        process,
        &Schedule::LogLinear,
        0.0,
        &mut stream,
    )
    .unwrap()
}

/// Weights all of which have a gradient.
pub fn random_weights(layout: &Layout) -> Vec<f32> {
    let mut stream = Stream::new(5, Purpose::Weights, 99);
    let mut weights = vec![0.0; layout.len()];
    for parameter in &layout.parameters {
        for weight in &mut weights[parameter.range.clone()] {
            let base = if parameter.init_std.is_none() {
                1.0
            } else {
                0.0
            };
            *weight = (base + 0.2 * stream.normal()) as f32;
        }
    }
    weights
}
