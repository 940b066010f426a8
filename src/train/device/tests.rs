use std::ops::Range;

use super::*;
use crate::diffusion::Process;
use crate::train::checkpoint::{Progress, load_state, save_state};
use crate::train::config::TrainConfig;
use crate::train::learner::HostLearner;
use crate::train::network::{ComposedNetwork, Network};
use crate::train::optimizer::Moments;
use crate::train::samples::{batch, noised, random_weights, shape};

const KINDS: [OptimizerKind; 2] = [OptimizerKind::AdamW, OptimizerKind::Muon];

/// Loss and gradient of a batch by the device's network, on the CPU.
fn loss_and_gradient(
    shape: &NetworkShape,
    precision: Precision,
    weights: &[f32],
    batch: &Batch,
) -> (f64, Vec<f32>) {
    let cpu = Device::Cpu;
    let arrangement = Arrangement::new(Layout::new(shape), OptimizerKind::Muon);
    let network = DeviceNetwork::new(shape, &cpu, precision).unwrap();
    let groups: Vec<Tensor> = (arrangement.split(weights).into_iter())
        .map(|group| Tensor::new(group, &cpu).unwrap())
        .collect();
    let weights = network.parameters(&arrangement, &groups).unwrap();
    let inputs = network.inputs(batch, true).unwrap();
    let (loss, gradient) = network
        .loss_and_gradient(&weights, &inputs, &arrangement)
        .unwrap();
    let alone = network.inputs(batch, false).unwrap();
    let alone = network.loss(&weights, &alone).unwrap();
    let loss = loss.to_scalar::<f32>().unwrap();
    assert_eq!(loss, alone.to_scalar::<f32>().unwrap());
    let groups = gradient.groups().iter();
    let groups: Vec<Vec<f32>> = groups.map(|group| group.to_vec1().unwrap()).collect();
    (f64::from(loss), arrangement.join(&groups))
}

fn processes(shape: &NetworkShape) -> [Process; 2] {
    [
        Process::absorbing(shape.vocab, 0).unwrap(),
        Process::uniform(shape.vocab).unwrap(),
    ]
}

/// The size of a − b over that of b.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let (difference, size) = a
        .iter()
        .zip(b)
        .fold((0.0, 0.0), |(difference, size), (a, b)| {
            let (a, b) = (f64::from(*a), f64::from(*b));
            (difference + (a - b).powi(2), size + b * b)
        });
    f64::sqrt(difference / size)
}

#[test]
fn loss_and_gradient_equal_those_that_candle_derives() {
    for tied in [false, true] {
        let shape = shape(tied);
        let layout = Layout::new(&shape);
        let weights = random_weights(&layout);
        for process in processes(&shape) {
            for borders in [&[][..], &[1, 5, 12]] {
                let batch = noised(&shape, 41, 2, &process, borders);
                let mut reference = ComposedNetwork::new(&shape, &Device::Cpu).unwrap();
                let mut expected = vec![0.0; layout.len()];
                let expected_loss = reference
                    .loss_and_gradient(&weights, &batch, &mut expected)
                    .unwrap();
                let (loss, gradient) = loss_and_gradient(&shape, Precision::F32, &weights, &batch);
                assert!(
                    (loss / expected_loss - 1.0).abs() < 1e-6,
                    "{loss} {expected_loss}"
                );
                for parameter in &layout.parameters {
                    let range = parameter.range.clone();
                    let apart = apart(&gradient[range.clone()], &expected[range]);
                    assert!(apart < 1e-5, "{}: {apart}", parameter.name);
                }
            }
        }
    }
}

#[test]
fn products_in_bfloat16_keep_the_loss_within_1_percent_and_the_gradient_within_3() {
    let shape = shape(false);
    let layout = Layout::new(&shape);
    let weights = random_weights(&layout);
    for process in processes(&shape) {
        let batch = noised(&shape, 32, 3, &process, &[6]);
        let [exact, half] = [Precision::F32, Precision::Bf16]
            .map(|precision| loss_and_gradient(&shape, precision, &weights, &batch));
        assert!(exact.0 != half.0, "bfloat16 was used");
        assert!(
            (half.0 / exact.0 - 1.0).abs() < 1e-2,
            "{} {}",
            half.0,
            exact.0
        );
        let apart = |range: Range<usize>| apart(&half.1[range.clone()], &exact.1[range]);
        let whole = apart(0..layout.len());
        assert!(whole < 0.03, "{whole}");
        for parameter in &layout.parameters {
            let part = apart(parameter.range.clone());
            assert!(part < 0.1, "{}: {part}", parameter.name);
        }
    }
}

/// What is trained of both learners, and the batches that they train on.
struct Case {
    shape: NetworkShape,
    kind: OptimizerKind,
    process: Process,
    borders: &'static [usize],
}

impl Case {
    fn new(kind: OptimizerKind) -> Self {
        let shape = shape(false);
        let [process, _] = processes(&shape);
        Self {
            shape,
            kind,
            process,
            borders: &[],
        }
    }

    fn start(&self) -> Buffers<'static> {
        let weights = random_weights(&Layout::new(&self.shape));
        let moments = Moments::new(weights.len());
        Buffers {
            average: weights.clone().into(),
            weights: weights.into(),
            first: moments.first.into(),
            second: moments.second.into(),
        }
    }

    fn host(&self, buffers: Buffers) -> HostLearner {
        HostLearner::new(&self.shape, Precision::F32, self.kind, buffers)
    }

    fn device(&self, precision: Precision, buffers: Buffers) -> DeviceLearner {
        DeviceLearner::new(&self.shape, &Device::Cpu, precision, self.kind, buffers).unwrap()
    }

    /// Two passes.
    fn passes(&self, step: u64) -> Vec<Batch> {
        [0, 1]
            .map(|pass| noised(&self.shape, 9, 2 * step + pass, &self.process, self.borders))
            .into()
    }

    fn run(&self, learner: &mut dyn Learner, steps: Range<u64>) -> Vec<Measured> {
        steps
            .map(|step| {
                let measured = learner.step(&self.passes(step), &update(step), &mut || {});
                measured.unwrap()
            })
            .collect()
    }
}

/// The gradients of the cases are larger than what they are clipped to.
fn update(step: u64) -> Update {
    Update {
        lr: 3e-3,
        weight_decay: 0.1,
        clip: 0.2,
        average_decay: 0.8,
        step,
    }
}

/// Two courses from the same start: losses and norms differ by less than `scalars` of their size, weights, average
/// and momentum by less than `buffers` of the way that they went.
fn assert_follows(
    (found, at): (&[Measured], &Buffers),
    (expected, to): (&[Measured], &Buffers),
    start: &Buffers,
    [scalars, buffers]: [f64; 2],
) {
    for (found, expected) in found.iter().zip(expected) {
        let loss = (found.loss / expected.loss - 1.0).abs();
        let norm = (found.grad_norm / expected.grad_norm - 1.0).abs();
        assert!(loss < scalars && norm < scalars, "{found:?} {expected:?}");
    }
    type Part = for<'a> fn(&'a Buffers) -> &'a [f32];
    let parts: [Part; 4] = [|b| &b.weights, |b| &b.average, |b| &b.first, |b| &b.second];
    for part in parts {
        let way = |of: &Buffers| -> Vec<f32> {
            let pairs = part(of).iter().zip(part(start));
            pairs.map(|(end, start)| end - start).collect()
        };
        let apart = apart(&way(at), &way(to));
        assert!(apart < buffers, "{apart}");
    }
}

fn assert_device_follows_host(case: &Case) {
    let mut host = case.host(case.start());
    let mut device = case.device(Precision::F32, case.start());
    let expected = case.run(&mut host, 0..6);
    let found = case.run(&mut device, 0..6);
    assert!(expected.iter().all(|step| step.grad_norm > 0.2), "clipped");
    assert_follows(
        (&found, &device.buffers().unwrap()),
        (&expected, &host.buffers().unwrap()),
        &case.start(),
        [1e-5, 1e-4],
    );
    let valid = batch(&case.shape, 5, 77);
    let (found, expected) = (device.average_loss(&valid), host.average_loss(&valid));
    let (found, expected) = (found.unwrap(), expected.unwrap());
    assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
}

#[test]
fn adamw_and_muon_on_a_device_follow_the_host() {
    for kind in KINDS {
        assert_device_follows_host(&Case::new(kind));
    }
}

#[test]
fn tied_heads_and_texts_of_their_own_follow_the_host() {
    for kind in KINDS {
        assert_device_follows_host(&Case {
            shape: shape(true),
            borders: &[4, 9],
            ..Case::new(kind)
        });
    }
}

#[test]
fn the_uniform_process_follows_the_host() {
    let case = Case::new(OptimizerKind::Muon);
    let [_, process] = processes(&case.shape);
    assert_device_follows_host(&Case { process, ..case });
}

#[test]
fn in_bfloat16_losses_stay_within_1_percent_and_weights_within_an_eighth_of_their_way() {
    for kind in KINDS {
        let case = Case::new(kind);
        let mut host = case.host(case.start());
        let mut device = case.device(Precision::Bf16, case.start());
        let expected = case.run(&mut host, 0..6);
        let found = case.run(&mut device, 0..6);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found.loss / expected.loss - 1.0).abs() < 1e-2);
        }
        let start = case.start().weights;
        let way = |end: &[f32]| -> Vec<f32> {
            end.iter()
                .zip(&*start)
                .map(|(end, start)| end - start)
                .collect()
        };
        let (found, expected) = (device.weights().unwrap(), host.weights().unwrap());
        let apart = apart(&way(&found), &way(&expected));
        assert!(apart > 1e-3 && apart < 0.125, "{kind:?}: {apart}");
    }
}

fn bits(buffers: &Buffers) -> Vec<u32> {
    let Buffers {
        weights,
        average,
        first,
        second,
    } = buffers;
    let all = [weights, average, first, second];
    all.iter()
        .flat_map(|part| part.iter().map(|x| x.to_bits()))
        .collect()
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    for kind in KINDS {
        let case = Case::new(kind);
        let mut device = case.device(Precision::F32, case.start());
        case.run(&mut device, 0..2);
        let before = bits(&device.buffers().unwrap());
        for weight in [f32::INFINITY, f32::NAN] {
            let mut passes = case.passes(2);
            passes[1].weights.fill(weight);
            let measured = device.step(&passes, &update(2), &mut || {}).unwrap();
            assert!(!measured.is_finite(), "{measured:?}");
            assert!(bits(&device.buffers().unwrap()) == before, "{kind:?}");
        }
        // What follows is as if it had not been.
        case.run(&mut device, 2..4);
        let mut whole = case.device(Precision::F32, case.start());
        case.run(&mut whole, 0..4);
        assert!(bits(&device.buffers().unwrap()) == bits(&whole.buffers().unwrap()));
    }
}

/// The settings of a run of the case's network.
fn config(case: &Case) -> TrainConfig {
    let shape = &case.shape;
    TrainConfig {
        context: shape.context,
        layers: shape.layers,
        hidden: shape.hidden,
        heads: shape.heads,
        mlp_hidden: Some(shape.mlp),
        tie_head: shape.tied,
        optimizer: case.kind,
        ..TrainConfig::new(vec!["train".into()], "valid".into(), "out".into())
    }
}

#[test]
fn a_run_that_is_saved_and_resumed_on_a_device_is_one_without_a_break_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    for kind in KINDS {
        for precision in [Precision::F32, Precision::Bf16] {
            let case = Case::new(kind);
            let mut whole = case.device(precision, case.start());
            let expected = case.run(&mut whole, 0..5);

            let mut first = case.device(precision, case.start());
            case.run(&mut first, 0..3);
            let path = directory.path().join("state.safetensors");
            let progress = Progress {
                step: 3,
                best: None,
                seconds: 0.0,
                data: 0,
            };
            let buffers = first.buffers().unwrap();
            save_state(&path, &config(&case), &case.shape, &progress, &buffers).unwrap();
            let state = load_state(&path).unwrap();
            let mut second = case.device(precision, Buffers::from(&state));
            let found = case.run(&mut second, 3..5);
            assert_eq!(found, expected[3..]);
            let (found, expected) = (second.buffers().unwrap(), whole.buffers().unwrap());
            assert!(bits(&found) == bits(&expected), "{kind:?} {precision:?}");
        }
    }
}

#[test]
fn a_run_begun_on_the_host_goes_on_on_a_device_and_the_other_way_round() {
    for kind in KINDS {
        let case = Case::new(kind);
        let mut whole = case.host(case.start());
        let expected = case.run(&mut whole, 0..6);
        let tolerances = [1e-5, 1e-4];

        let mut host = case.host(case.start());
        case.run(&mut host, 0..3);
        let mut device = case.device(Precision::F32, host.buffers().unwrap());
        assert!(bits(&device.buffers().unwrap()) == bits(&host.buffers().unwrap()));
        let found = case.run(&mut device, 3..6);
        assert_follows(
            (&found, &device.buffers().unwrap()),
            (&expected[3..], &whole.buffers().unwrap()),
            &case.start(),
            tolerances,
        );

        let mut device = case.device(Precision::F32, case.start());
        case.run(&mut device, 0..3);
        let mut host = case.host(device.buffers().unwrap());
        let found = case.run(&mut host, 3..6);
        assert_follows(
            (&found, &host.buffers().unwrap()),
            (&expected[3..], &whole.buffers().unwrap()),
            &case.start(),
            tolerances,
        );
    }
}

#[test]
fn a_pass_without_scored_slots_adds_nothing_and_the_next_batch_is_asked_for_once() {
    let case = Case::new(OptimizerKind::Muon);
    let [some, mut none] = [0, 1].map(|pass| case.passes(0).swap_remove(pass));
    none.scored.clear();
    let steps = |passes: &[Batch]| {
        let mut device = case.device(Precision::F32, case.start());
        let mut asked = 0;
        let measured = device.step(passes, &update(0), &mut || asked += 1).unwrap();
        assert_eq!(asked, 1);
        measured
    };
    let alone = steps(std::slice::from_ref(&some));
    let both = steps(&[some, none.clone()]);
    assert!((2.0 * both.loss - alone.loss).abs() < 1e-9, "half the mean");
    assert!((2.0 * both.grad_norm - alone.grad_norm).abs() < 1e-9);
    let nothing = steps(std::slice::from_ref(&none));
    assert_eq!((nothing.loss, nothing.grad_norm), (0.0, 0.0));
    let mut device = case.device(Precision::F32, case.start());
    assert_eq!(device.average_loss(&none).unwrap(), 0.0);
}

#[test]
fn a_pass_whose_tensors_candle_could_not_count_is_refused() {
    let mut case = Case::new(OptimizerKind::Muon);
    (case.shape.context, case.shape.heads) = (8192, 12);
    let passes = [batch(&case.shape, 3, 1)];
    let mut device = case.device(Precision::F32, case.start());
    let error = device.step(&passes, &update(0), &mut || {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("batch is 3 windows of 8192 slots"), "{text}");
    assert!(text.contains("grad-accumulation"), "{text}");
}

#[test]
fn the_rate_of_products_is_measured_on_both_learners() {
    let case = Case::new(OptimizerKind::Muon);
    let mut learners: [Box<dyn Learner>; 2] = [
        Box::new(case.host(case.start())),
        Box::new(case.device(Precision::F32, case.start())),
    ];
    for learner in &mut learners {
        let rate = learner.product_rate().unwrap();
        assert!(rate.is_finite() && rate > 0.0, "{rate}");
    }
}
