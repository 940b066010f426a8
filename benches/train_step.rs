//! Speed of a training step (loss and gradient of 32 windows of 128 tokens) of the default model:
//! `cargo bench --bench train_step [-- f32|bf16|composed [STEPS]]`.

use std::time::Instant;

use candle_core::Device;
use unmask::diffusion::{Process, Schedule};
use unmask::train::batch::{Batch, Windows};
use unmask::train::cpu::CpuNetwork;
use unmask::train::draws::{Purpose, Stream, stratified_times};
use unmask::train::layout::Layout;
use unmask::train::network::{ComposedNetwork, Network};
use unmask::train::{Precision, TrainConfig};

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let only = arguments.first();
    let steps: usize = arguments
        .get(1)
        .map_or(10, |steps| steps.parse().expect("a number of steps"));
    let config = TrainConfig::new(vec![], "".into(), "".into());
    let shape = config.shape(config.vocab_size_or_default());
    let layout = Layout::new(&shape);
    let mut weights = layout.initial_weights(0);
    // The initial head is zeros, which would leave the gradient to all else at zero.
    for (i, weight) in weights[layout.head.clone()].iter_mut().enumerate() {
        *weight = ((i * 7919) % 1000) as f32 * 4e-5 - 0.02;
    }
    let mut stream = Stream::new(0, Purpose::Step, 0);
    let clean: Vec<u32> = (0..config.batch * config.context)
        .map(|_| stream.below(shape.vocab) as u32)
        .collect();
    let times = stratified_times(config.batch, &mut stream);
    let process = Process::absorbing(shape.vocab, 0).expect("the mask is a token");
    let windows = Windows::whole(config.context, &clean);
    let batch = Batch::noise(
        windows,
        &times,
        &process,
        &Schedule::LogLinear,
        0.0,
        &mut stream,
    )
    .expect("tokens of the vocabulary");
    println!(
        "{} parameters, {} tokens a step, {} threads",
        layout.len(),
        batch.tokens(),
        rayon::current_num_threads()
    );
    let mut gradient = vec![0.0; layout.len()];
    for name in ["composed", "f32", "bf16"] {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let mut network: Box<dyn Network> = match name {
            "composed" => Box::new(ComposedNetwork::new(&shape, &Device::Cpu).expect("CPU")),
            "f32" => Box::new(CpuNetwork::new(&shape, Precision::F32)),
            _ => Box::new(CpuNetwork::new(&shape, Precision::Bf16)),
        };
        let mut fastest = f64::INFINITY;
        for _ in 0..steps {
            let start = Instant::now();
            network
                .loss_and_gradient(&weights, &batch, &mut gradient)
                .expect("a loss");
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{name}: {:.0} tokens/s (fastest of {steps} steps)",
            batch.tokens() as f64 / fastest
        );
    }
}
