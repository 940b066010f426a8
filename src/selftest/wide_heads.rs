//! Whole models with heads as wide as the attention kernels take, and made-up weights, on a device against the same on
//! the CPU: the goldens' heads are narrower.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::Failure;
use super::goldens::TOLERANCE;
use super::goldens::forward::{outputs, scattered_pool};
use super::random::Random;
use crate::canvas::TokenId;
use crate::models::{Checkpoint, Denoiser, RaggedBatch, Segment};

/// Slots whose keys and values are cached, whole blocks of every model.
const CACHED: usize = 24;

/// Rows that are computed after them.
const ROWS: usize = 4;

/// Rows of segments that are computed without anything cached: less than a block of the attention kernel takes, and many
/// blocks.
const LENGTHS: [usize; 3] = [5, 17, 64];

/// By how much the cached keys have to change a logit: many times what is tolerated, or else they would not have to be
/// read.
const LEAST_CHANGE: f32 = 100.0 * TOLERANCE;

/// Logits in f32 of each model's segments with and without cached keys, which differ from those of the CPU by at most
/// [`TOLERANCE`].
pub(super) fn logits(device: &Device) -> Result<String, Failure> {
    let mut seen = Vec::new();
    for (name, config) in models() {
        let checkpoint = Checkpoint::dummy_of(name, config)?;
        let on_cpu = checkpoint.load(DType::F32, &Device::Cpu)?;
        let wanted = [plain(&*on_cpu)?, cached(&*on_cpu, true)?];
        let change = difference(&wanted[1], &cached(&*on_cpu, false)?)?;
        if change.is_nan() || change < LEAST_CHANGE {
            return Err(Failure::Differs(format!(
                "{name}: cached keys change logits by {change:.1e} only, at least {LEAST_CHANGE:.0e} is asked for"
            )));
        }
        let on_device = checkpoint.load(DType::F32, device)?;
        let found = [plain(&*on_device)?, cached(&*on_device, true)?];
        for ((found, wanted), what) in found.iter().zip(&wanted).zip(["", ", cached keys"]) {
            let difference = difference(found, wanted)?;
            seen.push(format!("{name}{what} {difference:.1e}"));
            if difference.is_nan() || difference > TOLERANCE {
                return Err(Failure::Differs(format!(
                    "{name}{what}: logits differ by {difference:.1e}, at most {TOLERANCE:.0e} is allowed"
                )));
            }
        }
    }
    Ok(format!("largest difference {}", seen.join(", ")))
}

/// The config.json of a bidirectional model, one with biases, and a block-causal one, of query heads that share keys and
/// values.
fn models() -> [(&'static str, Value); 3] {
    let of = |architecture: &str, model_type: &str, heads: usize, head_dim: usize| {
        json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": heads * head_dim,
            "head_dim": head_dim,
            "intermediate_size": 192,
            "num_attention_heads": heads,
            "num_key_value_heads": heads / 2,
            "num_hidden_layers": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": false,
            "vocab_size": 512,
            "mask_token_id": 507,
            "eos_token_id": 500,
        })
    };
    let mut block_causal = of("SDARForCausalLM", "sdar", 2, 128);
    block_causal["block_size"] = ROWS.into();
    [
        (
            "a2d-qwen3-64",
            of("A2DQwen3LMHeadModel", "a2d-qwen3", 4, 64),
        ),
        ("dream-128", of("DreamModel", "Dream", 2, 128)),
        ("sdar-128", block_causal),
    ]
}

fn tokens(random: &mut Random, count: usize) -> Vec<TokenId> {
    let token = |_| random.below(500) as TokenId;
    (0..count).map(token).collect()
}

/// Logits of segments that see themselves alone.
fn plain(model: &dyn Denoiser) -> Result<Tensor, Failure> {
    let mut random = Random::new(70);
    let mut batch = RaggedBatch::new();
    for length in LENGTHS {
        let positions: Vec<u32> = (0..length as u32).collect();
        let segment = Segment {
            allowed: model.spec().attention.allowed(length),
            ..Segment::default()
        };
        batch.push_segment(&tokens(&mut random, length), &positions, segment);
    }
    Ok(outputs(model, &batch, None)?)
}

/// Logits of rows after a canvas whose keys and values another forward kept, which they see if `sees` says so, and of a
/// segment beside them.
fn cached(model: &dyn Denoiser, sees: bool) -> Result<Tensor, Failure> {
    let mut random = Random::new(71);
    let (pool, slot_of) = scattered_pool(model, CACHED)?;
    let slots: Vec<u32> = (0..CACHED).map(slot_of).collect();
    let positions: Vec<u32> = (0..(CACHED + ROWS) as u32).collect();
    let (before, after) = positions.split_at(CACHED);
    let mut batch = RaggedBatch::new();
    let kept = Segment {
        allowed: model.spec().attention.allowed(CACHED),
        store: slots.clone(),
        ..Segment::default()
    };
    batch.push_segment(&tokens(&mut random, CACHED), before, kept);
    outputs(model, &batch, Some(&pool))?;
    let mut batch = RaggedBatch::new();
    let reading = Segment {
        context: if sees { slots } else { Vec::new() },
        ..Segment::default()
    };
    batch.push_segment(&tokens(&mut random, ROWS), after, reading);
    batch.push(tokens(&mut random, ROWS));
    Ok(outputs(model, &batch, Some(&pool))?)
}

/// The largest difference; NaN if there is any.
fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f32> {
    let differences = (a - b)?.abs()?.flatten_all()?.to_vec1::<f32>()?;
    // NaN is larger than any number.
    let largest = differences.into_iter().max_by(f32::total_cmp);
    Ok(largest.unwrap_or(f32::NAN))
}
