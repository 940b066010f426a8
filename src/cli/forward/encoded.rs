//! Inputs of a network that denoises a block after what its encoder read.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, IndexOp, Tensor};
use unmask::canvas::TokenId;
use unmask::models::{Denoiser, KvPool, RaggedBatch, Segment};

use super::{integers, unsigned};

/// The tensor that only such a family takes: its blocks.
pub const BLOCKS: &str = "decoder_input_ids";

/// A batch of such inputs.
pub struct Inputs {
    rows: Vec<Row>,
    /// Slots of a block.
    length: usize,
    /// Slots of a prompt, padding included.
    prompt: usize,
}

struct Row {
    /// Of the prompt, on its left.
    padding: usize,
    prompt: Vec<TokenId>,
    block: Vec<TokenId>,
    /// `[block, vocab]`, of the step before.
    logits: Option<Tensor>,
}

impl Inputs {
    /// From `input_ids` `[B, P]`, `attention_mask` `[B, P]` whose zeros are on the left, `decoder_input_ids` `[B, L]`,
    /// `self_conditioning_logits` `[B, L, V]` and `self_conditioning_mask` `[B]`; all but the two of ids may be absent.
    ///
    /// # Errors
    /// Names the tensor that is missing or does not hold what it should.
    pub fn of(tensors: &HashMap<String, Tensor>) -> anyhow::Result<Self> {
        let prompts = tensors.get("input_ids").context("input_ids is missing")?;
        let (count, prompt) = prompts.dims2().context("input_ids")?;
        let blocks = tensors
            .get(BLOCKS)
            .with_context(|| format!("{BLOCKS} is missing"))?;
        let (_, length) = blocks.dims2().context(BLOCKS)?;
        let of_shape = |name: &str, shape: &[usize]| -> anyhow::Result<Option<&Tensor>> {
            let tensor = tensors.get(name);
            if let Some(tensor) = tensor {
                let begins = tensor.dims().starts_with(shape);
                ensure!(
                    begins,
                    "{name} has shape {:?}; allowed: {shape:?} and, of logits, the vocabulary",
                    tensor.dims()
                );
            }
            Ok(tensor)
        };
        of_shape(BLOCKS, &[count, length])?;
        let mask = of_shape("attention_mask", &[count, prompt])?;
        let logits = of_shape("self_conditioning_logits", &[count, length])?;
        let told = of_shape("self_conditioning_mask", &[count])?;
        let row = |row: usize| {
            let of_row = |name: &str, tensor: &Tensor| {
                integers(&tensor.i(row)?).with_context(|| name.to_owned())
            };
            let mask = mask
                .map(|mask| of_row("attention_mask", mask))
                .transpose()?;
            let padding = mask.as_ref().map_or(0, |mask| {
                mask.iter().take_while(|valid| **valid == 0).count()
            });
            let is_on_the_left = mask.is_none_or(|mask| !mask[padding..].contains(&0));
            ensure!(
                is_on_the_left,
                "attention_mask has a 0 after a 1; allowed: padding on the left"
            );
            let told = told
                .map(|told| integers(&told.i(row..row + 1)?).context("self_conditioning_mask"))
                .transpose()?;
            let logits = logits.filter(|_| told.is_none_or(|told| told[0] != 0));
            let tokens = of_row("input_ids", prompts)?;
            Ok(Row {
                padding,
                prompt: unsigned("input_ids", &tokens[padding..])?,
                block: unsigned(BLOCKS, &of_row(BLOCKS, blocks)?)?,
                logits: logits.map(|logits| logits.i(row)).transpose()?,
            })
        };
        Ok(Self {
            rows: (0..count).map(row).collect::<anyhow::Result<_>>()?,
            length,
            prompt,
        })
    }

    /// Logits `[B, L, V]` of the blocks.
    ///
    /// # Errors
    /// If the inputs do not fit the model, or the device fails.
    pub fn logits(&self, model: &dyn Denoiser) -> anyhow::Result<Tensor> {
        let (count, each) = (self.rows.len(), self.prompt);
        let pool = KvPool::new(
            model.spec(),
            (count * each).max(1),
            model.dtype(),
            model.device(),
        )?;
        let (mut encoded, mut blocks) = (RaggedBatch::new(), RaggedBatch::new());
        for (index, row) in self.rows.iter().enumerate() {
            let positions: Vec<u32> = (row.padding as u32..each as u32).collect();
            let slots: Vec<u32> = positions
                .iter()
                .map(|position| (index * each) as u32 + position)
                .collect();
            if !row.prompt.is_empty() {
                let segment = Segment {
                    allowed: model
                        .spec()
                        .attention
                        .allowed_among(0..row.prompt.len(), row.prompt.len()),
                    store: slots.clone(),
                    encodes: true,
                    ..Segment::default()
                };
                encoded.push_segment(&row.prompt, &positions, segment);
            }
            let logits = row.logits.as_ref();
            let signal = logits
                .map(|logits| model.self_conditioning(&logits.to_device(model.device())?))
                .transpose()?;
            let segment = Segment {
                context: slots,
                self_conditioning: signal,
                ..Segment::default()
            };
            let positions: Vec<u32> = (each..each + self.length).map(|p| p as u32).collect();
            blocks.push_segment(&row.block, &positions, segment);
        }
        if encoded.rows() > 0 {
            model.hidden(&encoded, Some(&pool))?;
        }
        let hidden = model.hidden(&blocks, Some(&pool))?;
        let logits = model.head(&hidden)?.to_dtype(DType::F32)?;
        let vocab = logits.dim(1)?;
        Ok(logits
            .reshape((count, self.length, vocab))?
            .to_device(&Device::Cpu)?)
    }
}
