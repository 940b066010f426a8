use candle_core::Device;

use super::*;
use crate::diffusion::{Process, Schedule};
use crate::train::batch::Windows;
use crate::train::config::Precision;
use crate::train::cpu::CpuNetwork;
use crate::train::draws::{Purpose, Stream};
use crate::train::layout::{Layout, NetworkShape};
use crate::train::samples::{batch, noised, random_weights, shape};

/// Loss and gradient of both networks agree.
fn assert_networks_agree(shape: &NetworkShape, batch: &Batch) {
    let layout = Layout::new(shape);
    let weights = random_weights(&layout);
    let mut ours = vec![0.0; layout.len()];
    let mut theirs = ours.clone();
    let mut composed = ComposedNetwork::new(shape, &Device::Cpu).unwrap();
    let mut cpu = CpuNetwork::new(shape, Precision::F32);
    let expected = composed
        .loss_and_gradient(&weights, batch, &mut theirs)
        .unwrap();
    let loss = cpu.loss_and_gradient(&weights, batch, &mut ours).unwrap();
    assert!(
        (loss - expected).abs() < 1e-5 * expected,
        "{loss} {expected}"
    );
    assert_eq!(loss, cpu.loss(&weights, batch).unwrap());
    for parameter in &layout.parameters {
        let (ours, theirs) = (
            &ours[parameter.range.clone()],
            &theirs[parameter.range.clone()],
        );
        let scale = theirs.iter().fold(0f32, |a, b| a.max(b.abs()));
        assert!(scale > 0.0, "{} has a gradient", parameter.name);
        let worst = ours
            .iter()
            .zip(theirs)
            .fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        assert!(
            worst < 1e-5 * scale.max(1.0),
            "{}: {worst} of {scale}",
            parameter.name
        );
    }
}

#[test]
fn the_cpu_network_equals_the_composed_one_in_loss_and_gradient() {
    for tied in [false, true] {
        let shape = shape(tied);
        // More windows than fit one pass, and a number that splits unevenly over the threads.
        assert_networks_agree(&shape, &batch(&shape, 83, 1));
    }
    let shape = shape(false);
    let absorbing = Process::absorbing(shape.vocab, 0).unwrap();
    let uniform = Process::uniform(shape.vocab).unwrap();
    for process in [absorbing, uniform] {
        for borders in [&[][..], &[1, 5, 12]] {
            assert_networks_agree(&shape, &noised(&shape, 41, 2, &process, borders));
        }
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let shape = shape(false);
    let layout = Layout::new(&shape);
    let weights = random_weights(&layout);
    let batch = batch(&shape, 4, 2);
    let mut gradient = vec![0.0; layout.len()];
    let mut cpu = CpuNetwork::new(&shape, Precision::F32);
    cpu.loss_and_gradient(&weights, &batch, &mut gradient)
        .unwrap();
    let norm = gradient
        .iter()
        .map(|&g| f64::from(g).powi(2))
        .sum::<f64>()
        .sqrt();
    let mut moved = |step: f64| {
        let at: Vec<f32> = weights
            .iter()
            .zip(&gradient)
            .map(|(w, g)| w + (step * f64::from(*g) / norm) as f32)
            .collect();
        cpu.loss(&at, &batch).unwrap()
    };
    let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
    assert!((slope / norm - 1.0).abs() < 1e-2, "{slope} {norm}");
}

#[test]
fn a_head_of_zeros_has_the_loss_of_the_uniform_distribution() {
    let shape = shape(false);
    let weights = Layout::new(&shape).initial_weights(3);
    let mut cpu = CpuNetwork::new(&shape, Precision::F32);
    let losses: Vec<f64> = (0..40)
        .map(|i| cpu.loss(&weights, &batch(&shape, 64, i)).unwrap())
        .collect();
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    let uniform = (shape.vocab as f64).ln();
    assert!((mean / uniform - 1.0).abs() < 0.05, "{mean} {uniform}");
}

#[test]
fn a_batch_without_masks_has_no_loss_and_no_gradient() {
    let shape = shape(false);
    let layout = Layout::new(&shape);
    let weights = random_weights(&layout);
    let clean = vec![1; 2 * shape.context];
    let batch = Batch {
        context: shape.context,
        noisy: clean.clone(),
        clean,
        scored: vec![],
        weights: vec![1.0; 2],
        signal: vec![],
        starts: vec![0, shape.context as u32],
    };
    let mut gradient = vec![0.0; layout.len()];
    assert_eq!(
        CpuNetwork::new(&shape, Precision::F32)
            .loss_and_gradient(&weights, &batch, &mut gradient)
            .unwrap(),
        0.0
    );
    assert!(gradient.iter().all(|&g| g == 0.0));
}

#[test]
fn times_at_which_next_to_nothing_is_noised_leave_loss_and_gradient_finite() {
    let shape = shape(false);
    let layout = Layout::new(&shape);
    let weights = random_weights(&layout);
    let process = Process::uniform(shape.vocab).unwrap();
    // 1 − α is 0 in half of the table, and from 10⁻⁴⁷ to 0.2 of the polynomial.
    let times: Vec<f64> = (1..40).map(|i| 1e-3 * 1.19f64.powi(i)).collect();
    for schedule in ["table:1,1,0", "polynomial:16"] {
        let schedule: Schedule = schedule.parse().unwrap();
        let mut stream = Stream::new(8, Purpose::Step, 0);
        let clean = vec![7; times.len() * shape.context];
        let windows = Windows::whole(shape.context, &clean);
        let batch = Batch::noise(windows, &times, &process, &schedule, 0.0, &mut stream).unwrap();
        assert_eq!(batch.weights[0], 0.0, "{schedule}");
        assert!(batch.weights[times.len() - 1] > 0.0, "{schedule}");
        let mut composed = ComposedNetwork::new(&shape, &Device::Cpu).unwrap();
        let mut cpu = CpuNetwork::new(&shape, Precision::F32);
        for network in [&mut composed as &mut dyn Network, &mut cpu] {
            let mut gradient = vec![0.0; layout.len()];
            let loss = network
                .loss_and_gradient(&weights, &batch, &mut gradient)
                .unwrap();
            assert!(loss.is_finite() && loss > 0.0, "{schedule}: {loss}");
            assert!(gradient.iter().all(|g| g.is_finite()), "{schedule}");
        }
    }
}
