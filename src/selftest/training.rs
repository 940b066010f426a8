//! Training steps on a device.

use candle_core::Device;

use super::Failure;
use crate::diffusion::{Process, Schedule};
use crate::train::batch::{Batch, Windows};
use crate::train::device::DeviceLearner;
use crate::train::draws::{Purpose, Stream, stratified_times};
use crate::train::layout::{Layout, NetworkShape};
use crate::train::learner::{Buffers, HostLearner, Learner, Measured};
use crate::train::optimizer::{Moments, Update};
use crate::train::{OptimizerKind, Precision, TrainError};

/// Steps of a course.
const STEPS: u64 = 4;

/// How far the losses may be from those of the host in f32, as a share of these, and the weights, as a share of the
/// way that they went.
const TOLERANCES: [(Precision, f64, f64); 2] =
    [(Precision::F32, 1e-5, 1e-3), (Precision::Bf16, 3e-3, 0.15)];

/// Training steps with AdamW and with Muon, of two passes each, with clipping, against those of the host in f32; and a
/// step whose loss is not finite, which must change nothing.
pub fn follows_the_host(device: &Device) -> Result<String, Failure> {
    let shape = NetworkShape {
        vocab: 301,
        context: 32,
        hidden: 64,
        layers: 2,
        heads: 2,
        mlp: 96,
        tied: false,
        rope_theta: 1e4,
        norm_eps: 1e-5,
    };
    let mut seen = Vec::new();
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        let weights = weights(&shape);
        let mut host = HostLearner::new(&shape, Precision::F32, kind, start(&weights));
        let expected = course(&mut host, &shape)?;
        let end = host.weights()?.into_owned();
        for (precision, of_loss, of_way) in TOLERANCES {
            let buffers = start(&weights);
            let mut learner = DeviceLearner::new(&shape, device, precision, kind, buffers)?;
            let found = course(&mut learner, &shape)?;
            let losses = found.iter().zip(&expected);
            let loss = losses
                .map(|(found, expected)| (found.loss / expected.loss - 1.0).abs())
                .fold(0.0, f64::max);
            let way = apart(&learner.weights()?, &end, &weights);
            let what = format!("{kind:?} {precision:?} loss {loss:.1e} weights {way:.1e}");
            // What is not a number is not within, either.
            if !(loss <= of_loss && way <= of_way) {
                let allowed = format!("{what}; at most {of_loss:.0e} and {of_way:.0e} are allowed");
                return Err(Failure::Differs(allowed));
            }
            seen.push(what);
            changes_nothing(&mut learner, &shape)?;
        }
    }
    Ok(seen.join(", "))
}

/// Gives a learner a batch whose loss is infinite.
fn changes_nothing(learner: &mut DeviceLearner, shape: &NetworkShape) -> Result<(), Failure> {
    let before = learner.buffers()?;
    let mut passes = passes(shape, STEPS)?;
    passes[0].weights.fill(f32::INFINITY);
    let before = Buffers {
        weights: before.weights.into_owned().into(),
        average: before.average.into_owned().into(),
        first: before.first.into_owned().into(),
        second: before.second.into_owned().into(),
    };
    let measured = learner.step(&passes, &update(STEPS), &mut || {})?;
    match !measured.is_finite() && learner.buffers()? == before {
        true => Ok(()),
        false => Err(Failure::Differs(format!(
            "a step with an infinite weight found {measured:?}, or changed what is trained"
        ))),
    }
}

/// Initial weights, but for a head that is not zeros and gives all else a gradient.
fn weights(shape: &NetworkShape) -> Vec<f32> {
    let layout = Layout::new(shape);
    let mut weights = layout.initial_weights(1);
    let mut stream = Stream::new(1, Purpose::Weights, 99);
    for weight in &mut weights[layout.head] {
        *weight = (0.1 * stream.normal()) as f32;
    }
    weights
}

fn start(weights: &[f32]) -> Buffers<'static> {
    let moments = Moments::new(weights.len());
    Buffers {
        weights: weights.to_vec().into(),
        average: weights.to_vec().into(),
        first: moments.first.into(),
        second: moments.second.into(),
    }
}

fn course(learner: &mut dyn Learner, shape: &NetworkShape) -> Result<Vec<Measured>, Failure> {
    let mut steps = Vec::new();
    for step in 0..STEPS {
        let measured = learner.step(&passes(shape, step)?, &update(step), &mut || {})?;
        steps.push(measured);
    }
    Ok(steps)
}

fn update(step: u64) -> Update {
    Update {
        lr: 3e-3,
        weight_decay: 0.1,
        clip: 0.1,
        average_decay: 0.9,
        step,
    }
}

/// The two passes of a step.
fn passes(shape: &NetworkShape, step: u64) -> Result<[Batch; 2], Failure> {
    const WINDOWS: usize = 8;
    let process = Process::absorbing(shape.vocab, 0).map_err(TrainError::from)?;
    let mut stream = Stream::new(2, Purpose::Step, step);
    let tokens: Vec<u32> = (0..2 * WINDOWS * shape.context)
        .map(|_| 1 + stream.below(shape.vocab - 1) as u32)
        .collect();
    let times = stratified_times(2 * WINDOWS, &mut stream);
    let windows = Windows::whole(shape.context, &tokens);
    let schedule = Schedule::LogLinear;
    let batch = Batch::noise(windows, &times, &process, &schedule, 0.0, &mut stream)
        .map_err(TrainError::from)?;
    Ok([0, 1].map(|pass| batch.slice(pass * WINDOWS..(pass + 1) * WINDOWS)))
}

/// The distance of `found` from `expected`, as a share of the way from `start` to `expected`.
fn apart(found: &[f32], expected: &[f32], start: &[f32]) -> f64 {
    let distance = |a: &[f32], b: &[f32]| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    distance(found, expected) / distance(start, expected)
}
