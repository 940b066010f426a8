//! What several test binaries share: the goldens, forwards of a model, running a plan, and a mock model.
// Each binary uses a part of it.
#![allow(dead_code)]

pub mod mock;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use unmask::canvas::{Canvas, TokenId};
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, EngineConfig, StepReport};
use unmask::models::{Checkpoint, Denoiser};
use unmask::selftest::goldens::{folder, forward, runs};

/// Largest difference from logits of the official code, in f32 on a CPU.
pub const TOLERANCE: f32 = 1e-4;

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
    runs::ids(value).unwrap()
}

/// The network of a golden checkpoint, in f32 on the CPU.
pub fn load(name: &str) -> Box<dyn Denoiser> {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

/// What the official code computed from a golden checkpoint, as `<case>.<field>`.
pub fn forward_goldens(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(name).join("forward.safetensors"), &Device::Cpu).unwrap()
}

/// A number of a golden.
pub fn scalar(goldens: &HashMap<String, Tensor>, name: &str) -> usize {
    folder::scalar(goldens, name).unwrap()
}

/// Ids or positions of a golden, flattened.
pub fn integers(tensor: &Tensor) -> Vec<u32> {
    folder::integers(tensor).unwrap()
}

/// Zeros and ones of a golden, flattened.
pub fn bits(tensor: &Tensor) -> Vec<bool> {
    folder::bits(tensor).unwrap()
}

/// For each row of a padding mask `[B, L]`: every slot may attend to those that are valid.
pub fn valid_keys(mask: &Tensor) -> Vec<Option<Vec<bool>>> {
    folder::valid_keys(mask).unwrap()
}

/// For each row of a padding mask `[B, L]`: valid slots may attend to valid slots, others to none.
pub fn valid_pairs(mask: &Tensor) -> Vec<Option<Vec<bool>>> {
    folder::valid_pairs(mask).unwrap()
}

/// Logits `[B, L, V]` of `input_ids` `[B, L]` as one ragged batch; positions `[B, L]` are 0, 1, … if
/// not given, and `allowed` has an entry a row.
pub fn logits(
    model: &dyn Denoiser,
    input_ids: &Tensor,
    positions: Option<&Tensor>,
    allowed: &[Option<Vec<bool>>],
) -> Tensor {
    forward::logits(model, input_ids, positions, allowed).unwrap()
}

/// Fills a pool from a full forward of `input`, then computes `rows` of `tokens` with the slots before
/// them, and with `keys_after` those after them, from the cache.
pub fn cached_logits(
    model: &dyn Denoiser,
    input: &Tensor,
    tokens: &Tensor,
    rows: Range<usize>,
    keys_after: bool,
) -> Tensor {
    forward::cached_logits(model, input, tokens, rows, keys_after).unwrap()
}

/// The golden `cache0` of a block-causal model: logits of the prefix, whose keys and values are kept,
/// then of the block after it; each `[1, rows, V]`.
pub fn block_cache_logits(
    model: &dyn Denoiser,
    goldens: &HashMap<String, Tensor>,
    block_length: usize,
) -> [Tensor; 2] {
    forward::block_cache_logits(model, goldens, block_length).unwrap()
}

/// Logits of the official code, held to [`TOLERANCE`].
pub fn assert_close(got: &Tensor, official: &Tensor, case: &str) {
    let difference = max_difference(got, official);
    assert!(difference < TOLERANCE, "{case}: {difference}");
}

/// As [`assert_close`], for the rows of `[B, L, V]` whose bit in `[B, L]` is set; the others must be
/// finite.
pub fn assert_close_where(valid: &[bool], got: &Tensor, official: &Tensor, case: &str) {
    let got = got.flatten_to(1).unwrap();
    let official = official.flatten_to(1).unwrap();
    assert_eq!(got.dim(0).unwrap(), valid.len());
    let sum: f32 = got.abs().unwrap().sum_all().unwrap().to_scalar().unwrap();
    assert!(sum.is_finite(), "{case}");
    let rows: Vec<u32> = (0..valid.len() as u32)
        .filter(|row| valid[*row as usize])
        .collect();
    let rows = Tensor::from_slice(&rows, rows.len(), &Device::Cpu).unwrap();
    let select = |logits: &Tensor| logits.index_select(&rows, 0).unwrap();
    assert_close(&select(&got), &select(&official), case);
}

/// An engine on a golden checkpoint, in f32 on the CPU.
pub fn engine(name: &str) -> Engine {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    let model = checkpoint.load(DType::F32, &Device::Cpu).unwrap();
    Engine::start(model, EngineConfig::unshared()).unwrap()
}

/// Denoises `canvas` to the end; the steps, and the finished canvas.
pub fn denoise(engine: &Engine, canvas: Canvas, plan: &DecodePlan) -> (Vec<StepReport>, Canvas) {
    runs::denoise(engine, canvas, plan).unwrap()
}

/// The canvas after every step.
pub fn trace(engine: &Engine, start: Canvas, plan: &DecodePlan) -> Vec<Vec<TokenId>> {
    runs::trace(engine, start, plan).unwrap()
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
