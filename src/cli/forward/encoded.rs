//! Inputs of a network that denoises a block after what its encoder read.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use candle_core::{IndexOp, Tensor};
use unmask::models::encoded_forward::{self, EncodedText};
use unmask::models::{Denoiser, KvPool};

use super::{integers, unsigned};

/// The tensor that only such a family takes: its blocks.
pub const BLOCKS: &str = "decoder_input_ids";

/// A batch of such inputs.
pub struct Inputs {
    texts: Vec<EncodedText>,
    /// Slots of a prompt, padding included.
    prompt: usize,
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
            Ok(EncodedText {
                first: padding,
                encoded: unsigned("input_ids", &tokens[padding..])?,
                block: unsigned(BLOCKS, &of_row(BLOCKS, blocks)?)?,
                predicted: logits.map(|logits| logits.i(row)).transpose()?,
            })
        };
        Ok(Self {
            texts: (0..count).map(row).collect::<anyhow::Result<_>>()?,
            prompt,
        })
    }

    /// Logits `[B, L, V]` of the blocks.
    ///
    /// # Errors
    /// If the inputs do not fit the model, or the device fails.
    pub fn logits(&self, model: &dyn Denoiser) -> anyhow::Result<Tensor> {
        let slots = self.texts.len() * self.prompt;
        let (dtype, device) = (model.dtype(), model.device());
        let pool = KvPool::new(model.spec(), slots.max(1), dtype, device)?;
        let slot_of = |row: usize, slot: usize| (row * self.prompt + slot) as u32;
        // The whole prompt at once, as the official forward reads it.
        let part = self.prompt;
        let logits = encoded_forward::logits(model, &self.texts, part, &pool, slot_of)?;
        Ok(logits)
    }
}
