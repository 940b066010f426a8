//! What the tests of the diffusion transformers share.
// Each binary uses a part of it.
#![allow(dead_code)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use unmask::canvas::TokenId;
use unmask::models::{Checkpoint, Denoiser, RaggedBatch};
use unmask::selftest::goldens::{folder, forward};

use crate::support::{golden, json};

pub const TOLERANCE: f32 = 1e-4;

/// Named tensors.
pub type Tensors = HashMap<String, Tensor>;

/// A golden checkpoint's network.
pub fn load(name: &str) -> Box<dyn Denoiser> {
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

/// A golden checkpoint's network after an edit of its config.json and its weights.
pub fn load_edited(name: &str, edit: impl FnOnce(&mut Value, &mut Tensors)) -> Box<dyn Denoiser> {
    let mut config = json(&golden(name).join("config.json"));
    let mut weights = tensors(name, "model.safetensors");
    edit(&mut config, &mut weights);
    from_parts(&config, &weights)
}

/// The network of a config.json and its weights.
pub fn from_parts(config: &Value, weights: &Tensors) -> Box<dyn Denoiser> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let file = directory.path().join("model.safetensors");
    candle_core::safetensors::save(weights, file).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    checkpoint.load(DType::F32, &Device::Cpu).unwrap()
}

/// The tensors of one of a golden's files.
pub fn tensors(name: &str, file: &str) -> Tensors {
    candle_core::safetensors::load(golden(name).join(file), &Device::Cpu).unwrap()
}

/// The sequences of `[B, L]` token ids.
pub fn sequences(ids: &Tensor) -> Vec<Vec<TokenId>> {
    folder::sequences(ids).unwrap()
}

/// The numbers of a tensor.
pub fn numbers(tensor: &Tensor) -> Vec<f32> {
    folder::numbers(tensor).unwrap()
}

/// One segment a sequence, at positions from 0, each with its own noise level.
pub fn batch(sequences: &[Vec<TokenId>], sigmas: &[f32]) -> RaggedBatch {
    assert_eq!(sequences.len(), sigmas.len());
    forward::noised_batch(sequences, sigmas)
}

/// The network's output `[rows, V]` of every row of a batch.
pub fn outputs(model: &dyn Denoiser, batch: &RaggedBatch) -> Tensor {
    forward::outputs(model, batch, None).unwrap()
}

/// `[B, L, V]` → `[B · L, V]`.
pub fn rows(tensor: &Tensor) -> Tensor {
    tensor.flatten_to(1).unwrap()
}

/// Log-probabilities of the clean token under SUBS, from logits of `[rows, V]` and the rows' tokens, as
/// the official code computes them: the mask's logit falls by 10⁶, and a row that is not masked has 0 at
/// its token and −10⁶ elsewhere.
pub fn subs(logits: &Tensor, tokens: &[TokenId], mask: TokenId) -> Tensor {
    let mut rows: Vec<Vec<f32>> = logits.to_vec2().unwrap();
    for (row, &token) in rows.iter_mut().zip(tokens) {
        if token == mask {
            row[mask as usize] -= 1e6;
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|logit| (logit - max).exp()).sum();
            row.iter_mut().for_each(|logit| *logit -= max + sum.ln());
        } else {
            row.fill(-1e6);
            row[token as usize] = 0.0;
        }
    }
    let vocab = rows[0].len();
    Tensor::from_vec(rows.concat(), (rows.len(), vocab), &Device::Cpu).unwrap()
}

/// Asserts that log-probabilities equal the official ones. Those of about −10⁶ stand for probability
/// zero and are rounded to steps of 1/16; of them only that they are so low is compared.
pub fn assert_same_log_probabilities(got: &Tensor, expected: &Tensor) {
    assert_eq!(got.shape(), expected.shape());
    for (got, expected) in numbers(got).into_iter().zip(numbers(expected)) {
        let both_impossible = got < -9e5 && expected < -9e5;
        assert!(
            both_impossible || (got - expected).abs() < TOLERANCE,
            "{got} for {expected}"
        );
    }
}
