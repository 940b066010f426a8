//! Promises of an evaluation: likelihoods against the official code and against exact enumeration, infill
//! accuracy and speed on models whose answers are known, and the command line.

mod accuracy;
mod blocks;
mod command;
mod corpus;
mod encoded;
mod likelihood;
mod noise_level;
mod oracle;
#[path = "../support/mod.rs"]
mod support;

use candle_core::{DType, Device};
use unmask::models::{Checkpoint, Denoiser};

use support::golden;

/// The golden checkpoint, in f32 on the CPU.
fn load() -> Box<dyn Denoiser> {
    let checkpoint = Checkpoint::open(&golden("llada")).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

/// Four documents, the third of them too short to be evaluated.
fn texts() -> Vec<String> {
    [
        "Beautiful is better than ugly. Explicit is better than implicit.",
        "Readability counts: \u{e9}. ".repeat(12).as_str(),
        "x",
        "In the face of ambiguity, refuse the temptation to guess.",
    ]
    .map(str::to_owned)
    .to_vec()
}
