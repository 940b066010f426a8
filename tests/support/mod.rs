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
use unmask::engine::{Engine, EngineConfig, Event, StepReport};
use unmask::models::{AttentionPattern, Checkpoint, Denoiser, KvPool, RaggedBatch, Segment};

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
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as TokenId)
        .collect()
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
    goldens[name].to_scalar::<i64>().unwrap() as usize
}

/// Ids or positions of a golden, flattened.
pub fn integers(tensor: &Tensor) -> Vec<u32> {
    let integers: Vec<i64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    integers.into_iter().map(|integer| integer as u32).collect()
}

/// Zeros and ones of a golden, flattened.
pub fn bits(tensor: &Tensor) -> Vec<bool> {
    let bits = tensor.to_dtype(DType::U8).unwrap().flatten_all().unwrap();
    let bits: Vec<u8> = bits.to_vec1().unwrap();
    bits.into_iter().map(|bit| bit != 0).collect()
}

/// For each row of a padding mask `[B, L]`: every slot may attend to those that are valid.
pub fn valid_keys(mask: &Tensor) -> Vec<Option<Vec<bool>>> {
    let length = mask.dim(1).unwrap();
    let rows = bits(mask);
    let rows = rows.chunks(length).map(|row| Some(row.repeat(length)));
    rows.collect()
}

/// For each row of a padding mask `[B, L]`: valid slots may attend to valid slots, others to none.
pub fn valid_pairs(mask: &Tensor) -> Vec<Option<Vec<bool>>> {
    let pairs = |row: &[bool]| {
        let pairs = row.iter().flat_map(|i| row.iter().map(move |j| *i && *j));
        Some(pairs.collect())
    };
    bits(mask).chunks(mask.dim(1).unwrap()).map(pairs).collect()
}

/// Logits `[rows, V]` of the last segment of a batch of one.
fn segment_logits(
    model: &dyn Denoiser,
    tokens: &[TokenId],
    positions: &[u32],
    segment: Segment,
    pool: Option<&KvPool>,
) -> Tensor {
    let mut batch = RaggedBatch::new();
    batch.push_segment(tokens, positions, segment);
    model.head(&model.hidden(&batch, pool).unwrap()).unwrap()
}

/// Logits `[B, L, V]` of `input_ids` `[B, L]` as one ragged batch; positions `[B, L]` are 0, 1, … if
/// not given, and `allowed` has an entry a row.
pub fn logits(
    model: &dyn Denoiser,
    input_ids: &Tensor,
    positions: Option<&Tensor>,
    allowed: &[Option<Vec<bool>>],
) -> Tensor {
    let (rows, length) = input_ids.dims2().unwrap();
    assert_eq!(allowed.len(), rows);
    let tokens = integers(input_ids);
    let positions = match positions {
        Some(positions) => integers(positions),
        None => (0..length as u32).collect::<Vec<_>>().repeat(rows),
    };
    let mut batch = RaggedBatch::new();
    for (row, allowed) in allowed.iter().enumerate() {
        let slots = row * length..(row + 1) * length;
        let segment = Segment {
            allowed: allowed.clone(),
            ..Segment::default()
        };
        batch.push_segment(&tokens[slots.clone()], &positions[slots], segment);
    }
    let logits = model.head(&model.hidden(&batch, None).unwrap()).unwrap();
    let vocab = logits.dim(1).unwrap();
    logits.reshape((rows, length, vocab)).unwrap()
}

/// A pool that holds a canvas of `length` slots, neither in order nor next to each other.
fn scattered_pool(model: &dyn Denoiser, length: usize) -> (KvPool, impl Fn(usize) -> u32) {
    let slots = 2 * length + 3;
    let pool = KvPool::new(model.spec(), slots, DType::F32, &Device::Cpu).unwrap();
    (pool, move |position| (slots - 1 - 2 * position) as u32)
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
    let full = integers(input);
    let positions: Vec<u32> = (0..full.len() as u32).collect();
    let (pool, slot_of) = scattered_pool(model, full.len());
    let segment = Segment {
        store: (0..full.len()).map(&slot_of).collect(),
        ..Segment::default()
    };
    segment_logits(model, &full, &positions, segment, Some(&pool));
    let last = if keys_after { full.len() } else { rows.end };
    let context = (0..rows.start).chain(rows.end..last);
    let segment = Segment {
        context: context.map(slot_of).collect(),
        ..Segment::default()
    };
    segment_logits(
        model,
        &integers(tokens),
        &positions[rows],
        segment,
        Some(&pool),
    )
}

/// The golden `cache0` of a block-causal model: logits of the prefix, whose keys and values are kept,
/// then of the block after it; each `[1, rows, V]`.
pub fn block_cache_logits(
    model: &dyn Denoiser,
    goldens: &HashMap<String, Tensor>,
    block_length: usize,
) -> [Tensor; 2] {
    let prefix = integers(&goldens["cache0.prefix_input_ids"]);
    let positions: Vec<u32> = (0..prefix.len() as u32).collect();
    let (pool, slot_of) = scattered_pool(model, prefix.len());
    let slots: Vec<u32> = (0..prefix.len()).map(slot_of).collect();
    let segment = Segment {
        allowed: AttentionPattern::BlockCausal { block_length }.allowed(prefix.len()),
        store: slots.clone(),
        ..Segment::default()
    };
    let prefix = segment_logits(model, &prefix, &positions, segment, Some(&pool));
    let block = integers(&goldens["cache0.block_input_ids"]);
    let positions = integers(&goldens["cache0.block_position_ids"]);
    let segment = Segment {
        context: slots,
        ..Segment::default()
    };
    let block = segment_logits(model, &block, &positions, segment, Some(&pool));
    [prefix, block].map(|logits| logits.unsqueeze(0).unwrap())
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
pub fn trace(engine: &Engine, start: Canvas, plan: &DecodePlan) -> Vec<Vec<TokenId>> {
    let mut tokens: Vec<TokenId> = start.tokens().collect();
    let (steps, _) = denoise(engine, start, plan);
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
