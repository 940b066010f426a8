//! What several test binaries share: the goldens, running a plan on them, and a mock model.
//! Each binary uses a part of it.
#![allow(dead_code)]

pub mod mock;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, EngineConfig, Event, StepReport};
use unmask::models::Checkpoint;

/// The folder of a golden checkpoint.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(name)
}

/// A JSON file of a golden.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Token ids of a JSON list.
pub fn ids(value: &Value) -> Vec<TokenId> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as TokenId)
        .collect()
}

/// An engine on a golden checkpoint, in f32 on the CPU.
pub fn engine(name: &str) -> Engine {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    let model = checkpoint.load(DType::F32, &Device::Cpu).unwrap();
    Engine::start(model, EngineConfig::default()).unwrap()
}

/// Denoises `canvas` to the end; the steps, and the finished canvas.
pub fn denoise(engine: &Engine, canvas: Canvas, plan: &DecodePlan) -> (Vec<StepReport>, Canvas) {
    let mut generation = engine.submit(canvas, plan).unwrap();
    let mut steps = Vec::new();
    loop {
        match generation.next_blocking().unwrap() {
            Event::Step(report) => steps.push(report),
            Event::Finished(canvas, _) => return (steps, canvas),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// The canvas after every step.
pub fn trace(engine: &Engine, start: &[TokenId], plan: &DecodePlan) -> Vec<Vec<TokenId>> {
    let canvas = Canvas::from_ids(start, engine.spec().mask_token).unwrap();
    let (steps, _) = denoise(engine, canvas, plan);
    let mut tokens = start.to_vec();
    steps
        .into_iter()
        .map(|report| {
            for (slot, commit) in report.committed {
                tokens[slot] = commit.token;
            }
            tokens.clone()
        })
        .collect()
}

/// Largest absolute difference of two tensors of one shape.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    (a - b)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap()
}
