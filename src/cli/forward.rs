//! `unmask forward`: logits of given inputs, as the official forward returns them.

mod encoded;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use unmask::canvas::TokenId;
use unmask::models::{RaggedBatch, Segment};

use crate::cli::model::ModelArgs;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask forward --model LLaDA-8B-Base --input inputs.safetensors --output logits.safetensors";

/// Arguments of `unmask forward`.
#[derive(Args)]
pub struct ForwardArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Safetensors file with `input_ids` [B, L] and optionally `attention_mask` [B, L] (0 = key is
    /// padding), `position_ids` [B, L], `allowed_mask` [L, L] or [1, 1, L, L] (1 = may attend), and
    /// `sigma` [B] for a network that takes the noise level; for DiffusionGemma the prompt's `input_ids` [B, P]
    /// with `attention_mask` [B, P], and the block's `decoder_input_ids` [B, L], `self_conditioning_logits`
    /// [B, L, V] and `self_conditioning_mask` [B]
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write `logits` [B, L, V] to, in f32
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Runs `unmask forward`.
pub fn run(args: ForwardArgs) -> anyhow::Result<()> {
    let checkpoint = args.model.checkpoint()?;
    let model = args.model.load(&checkpoint)?;
    let unusable = || format!("cannot use the inputs in {}", args.input.display());
    let tensors = tensors(&args.input, checkpoint.inputs()).with_context(unusable)?;
    let logits = if checkpoint.inputs().contains(&encoded::BLOCKS) {
        let inputs = encoded::Inputs::of(&tensors).with_context(unusable)?;
        inputs.logits(&*model)?
    } else {
        let inputs = Inputs::of(tensors).with_context(unusable)?;
        let batch = inputs.batch()?;
        let hidden = model.hidden(&batch, None)?;
        let logits = model.head_rows(&hidden, &batch.row_inputs())?;
        let vocab = logits.dim(1)?;
        let logits = logits.to_dtype(DType::F32)?;
        logits.reshape((inputs.rows, inputs.length, vocab))?
    };
    candle_core::safetensors::save(&HashMap::from([("logits", logits)]), &args.output)
        .with_context(|| format!("cannot write {}", args.output.display()))
}

/// The tensors of an input file, which are `input_ids` and others of the `used` ones.
fn tensors(path: &Path, used: &[&str]) -> anyhow::Result<HashMap<String, Tensor>> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let names = tensors.keys();
    let unused = names.filter(|name| *name != "input_ids" && !used.contains(&name.as_str()));
    match unused.min() {
        None => Ok(tensors),
        Some(name) => bail!(
            "{name} is not used by this family; remove it (used: input_ids, {})",
            used.join(", ")
        ),
    }
}

/// The tensors of an input file as flat integers.
struct Inputs {
    rows: usize,
    length: usize,
    tokens: Vec<i64>,
    positions: Option<Vec<i64>>,
    valid_keys: Option<Vec<i64>>,
    allowed: Option<Vec<i64>>,
    sigma: Option<Vec<f32>>,
}

impl Inputs {
    fn of(mut tensors: HashMap<String, Tensor>) -> anyhow::Result<Self> {
        let input_ids = tensors
            .remove("input_ids")
            .context("input_ids is missing")?;
        let (rows, length) = input_ids.dims2().context("input_ids")?;
        let mut take = |name: &str, shapes: &[&[usize]]| -> anyhow::Result<Option<Vec<i64>>> {
            let Some(tensor) = tensors.remove(name) else {
                return Ok(None);
            };
            ensure!(
                shapes.contains(&tensor.dims()),
                "{name} has shape {:?}; allowed: {shapes:?}",
                tensor.dims()
            );
            integers(&tensor).with_context(|| name.to_owned()).map(Some)
        };
        let positions = take("position_ids", &[&[rows, length], &[1, length]])?;
        let valid_keys = take("attention_mask", &[&[rows, length]])?;
        let allowed = take(
            "allowed_mask",
            &[&[length, length], &[1, 1, length, length]],
        )?;
        let sigma = match tensors.remove("sigma") {
            None => None,
            Some(sigma) => {
                ensure!(
                    sigma.dims() == [rows],
                    "sigma has shape {:?}; allowed: [{rows}]",
                    sigma.dims()
                );
                Some(sigma.to_dtype(DType::F32)?.to_vec1()?)
            }
        };
        Ok(Self {
            rows,
            length,
            tokens: integers(&input_ids).context("input_ids")?,
            positions,
            valid_keys,
            allowed,
            sigma,
        })
    }

    /// One segment a row.
    fn batch(&self) -> anyhow::Result<RaggedBatch> {
        let length = self.length;
        let mut batch = RaggedBatch::new();
        for row in 0..self.rows {
            let of_row = |values: &[i64]| values[row * length..(row + 1) * length].to_vec();
            let tokens = unsigned("input_ids", &of_row(&self.tokens))?;
            let positions = match &self.positions {
                None => (0..length as u32).collect(),
                Some(positions) if positions.len() == length => {
                    unsigned("position_ids", positions)?
                }
                Some(positions) => unsigned("position_ids", &of_row(positions))?,
            };
            let allowed = match (&self.allowed, &self.valid_keys) {
                (None, None) => None,
                (pattern, valid) => Some(
                    (0..length * length)
                        .map(|pair| {
                            let key = row * length + pair % length;
                            pattern.as_ref().is_none_or(|pattern| pattern[pair] != 0)
                                && valid.as_ref().is_none_or(|valid| valid[key] != 0)
                        })
                        .collect(),
                ),
            };
            let segment = Segment {
                allowed,
                sigma: self.sigma.as_ref().map(|sigma| sigma[row]),
                ..Segment::default()
            };
            batch.push_segment(&tokens, &positions, segment);
        }
        Ok(batch)
    }
}

fn integers(tensor: &Tensor) -> anyhow::Result<Vec<i64>> {
    ensure!(
        tensor.dtype().is_int(),
        "has type {}; allowed: integers",
        tensor.dtype().as_str()
    );
    Ok(tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?)
}

fn unsigned(name: &str, values: &[i64]) -> anyhow::Result<Vec<TokenId>> {
    values
        .iter()
        .map(|value| {
            u32::try_from(*value)
                .with_context(|| format!("{name} holds {value}; allowed: 0 or more"))
        })
        .collect()
}
