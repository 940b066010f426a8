//! The forward pass of an evaluation: partly masked sequences in, what the model says of their masked
//! slots out. For a model of the uniform process, masked slots hold random tokens; a block-causal model is told
//! of each block after the clean ones before it.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::batches::batches;
use super::supported::{check_guidance, check_spans};
use super::words::Words;
use super::{EvalError, Target};
use crate::canvas::{Blank, Canvas, CanvasError, TokenId};
use crate::models::{
    AttentionPattern, Denoiser, HEAD_ROWS, Parameterisation, RaggedBatch, RowInput, Segment,
};
use crate::sampling::Guidance;
use crate::sampling::philox::Stream;

/// What the model says of one masked slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SlotScore {
    /// ln p(true token).
    pub log_probability: f64,
    /// The most probable token but for the mask token.
    pub best: TokenId,
}

/// A sequence some of whose scored slots are masked.
#[derive(Debug, Clone)]
pub(super) struct MaskedTarget<'a> {
    pub target: &'a Target,
    /// Masked slots, ascending.
    pub masked: &'a [usize],
    /// Seed of the noise that masked slots hold where there is no mask token.
    pub seed: u64,
}

impl MaskedTarget<'_> {
    /// The tokens that the network sees.
    pub fn tokens(&self, blank: Blank) -> Vec<TokenId> {
        let mut tokens = self.target.tokens.clone();
        for &slot in self.masked {
            tokens[slot] = match blank {
                Blank::Mask(mask) => mask,
                Blank::Noise { vocab } => {
                    Words::new(self.seed, 0, slot, Stream::Noise).below(vocab) as TokenId
                }
            };
        }
        tokens
    }

    /// The same with the prompt masked too, for classifier-free guidance.
    fn unconditional_tokens(&self, blank: Blank) -> Vec<TokenId> {
        let mut tokens = self.tokens(blank);
        if let Blank::Mask(mask) = blank {
            for (slot, token) in tokens.iter_mut().enumerate() {
                if self.target.slots.binary_search(&slot).is_err() {
                    *token = mask;
                }
            }
        }
        tokens
    }

    /// The canvas on which the masked slots are gaps.
    pub fn canvas(&self, blank: Blank) -> Result<Canvas, CanvasError> {
        let is_masked = |slot: usize| self.masked.binary_search(&slot).is_ok();
        let slots: Vec<usize> = (0..self.target.tokens.len()).collect();
        let runs = slots.chunk_by(|a, b| is_masked(*a) == is_masked(*b));
        runs.fold(Canvas::builder(blank), |builder, run| {
            match is_masked(run[0]) {
                true => builder.gap(run.len()),
                false => builder.fixed(&self.target.tokens[run[0]..run[0] + run.len()]),
            }
        })
        .build()
    }
}

/// A row whose logits are needed.
struct ScoredRow {
    conditional: u32,
    unconditional: u32,
    slot: usize,
    truth: TokenId,
}

/// Runs a model on masked sequences.
pub(super) struct Scorer<'a> {
    model: &'a dyn Denoiser,
    blank: Blank,
    guidance_scale: f64,
    /// Added to logits before their arg-max, and before anything else where the mask token has probability zero: −∞
    /// for the mask token. `[1, vocab]`
    mask_bias: Tensor,
    /// The noise level σ that the model is told, if it takes one.
    sigma: Option<f32>,
}

impl<'a> Scorer<'a> {
    /// A scorer with classifier-free guidance w: logits are u + (w + 1)(c − u), with u those of the
    /// sequence whose prompt is masked; 0 is off.
    ///
    /// # Errors
    /// [`EvalError::Unsupported`], or the device fails.
    pub fn new(model: &'a dyn Denoiser, guidance_scale: f64) -> Result<Self, EvalError> {
        let spec = model.spec();
        super::check(spec)?;
        let blank = spec.blank();
        check_guidance(spec, guidance_scale)?;
        let mut bias = vec![0.0f32; spec.vocab_size];
        let mask = blank.mask().map(|mask| mask as usize);
        if let Some(entry) = mask.and_then(|mask| bias.get_mut(mask)) {
            *entry = f32::NEG_INFINITY;
        }
        let mask_bias = Tensor::from_vec(bias, (1, spec.vocab_size), model.device())?;
        Ok(Self {
            model,
            blank,
            guidance_scale,
            mask_bias,
            sigma: None,
        })
    }

    /// A scorer of spans whose masked slots are all that is to be filled, of which a model that takes the noise level
    /// is told as at the first step of a plan.
    ///
    /// # Errors
    /// [`EvalError::Unsupported`], or the device fails.
    pub fn of_spans(model: &'a dyn Denoiser) -> Result<Self, EvalError> {
        let spec = model.spec();
        check_spans(spec)?;
        let scorer = Self::new(model, 0.0)?;
        let sigma = spec.sigma_of_masked(1.0);
        Ok(Self {
            sigma: sigma.filter(|_| spec.noise_conditioned),
            ..scorer
        })
    }

    /// Scores the masked slots of each sequence, in slot order. `progress` is told of every sequence
    /// that is done.
    pub fn score(
        &self,
        sequences: &[MaskedTarget],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<SlotScore>>, EvalError> {
        for sequence in sequences {
            sequence.target.check(self.model.spec())?;
        }
        let mut scores = Vec::with_capacity(sequences.len());
        for batch in batches(sequences, |sequence| self.rows(sequence)) {
            scores.extend(self.score_batch(batch)?);
            progress(batch.len());
        }
        Ok(scores)
    }

    /// Rows of the batch that a sequence takes: with guidance those of its unconditional twin too.
    fn rows(&self, sequence: &MaskedTarget) -> usize {
        let length = sequence.target.tokens.len();
        let own = match self.model.spec().attention {
            AttentionPattern::Bidirectional => length,
            AttentionPattern::BlockCausal { .. } | AttentionPattern::EncodedBlocks { .. } => {
                2 * length
            }
        };
        let is_guided = self.guidance_scale > 0.0;
        own + if is_guided { length } else { 0 }
    }

    /// Appends a sequence, of a block-causal model followed by its clean tokens; returns its rows.
    fn push(&self, batch: &mut RaggedBatch, sequence: &MaskedTarget) -> Range<usize> {
        let tokens = sequence.tokens(self.blank);
        let attention = self.model.spec().attention;
        let length = tokens.len();
        let positions: Vec<u32> = (0..length as u32).collect();
        if attention == AttentionPattern::Bidirectional {
            let segment = Segment {
                sigma: self.sigma,
                ..Segment::default()
            };
            return batch.push_segment(&tokens, &positions, segment);
        }
        let segment = Segment {
            allowed: Some(attention.allowed_in_scoring(length)),
            ..Segment::default()
        };
        let both = [tokens, sequence.target.tokens.clone()].concat();
        batch.push_segment(&both, &positions.repeat(2), segment)
    }

    /// Where the logits of a slot are read, from the sequence's first row on: those of a slot before its block
    /// in the clean tokens.
    fn row(&self, sequence: &MaskedTarget, slot: usize) -> usize {
        let spec = self.model.spec();
        let row = slot.saturating_sub(spec.logit_shift);
        match spec.attention.block_of(row) == spec.attention.block_of(slot) {
            true => row,
            false => sequence.target.tokens.len() + row,
        }
    }

    fn score_batch(&self, sequences: &[MaskedTarget]) -> Result<Vec<Vec<SlotScore>>, EvalError> {
        let mut batch = RaggedBatch::new();
        let mut scored = Vec::new();
        for sequence in sequences {
            if sequence.masked.is_empty() {
                continue;
            }
            let rows = self.push(&mut batch, sequence);
            let unconditional = match self.guidance_scale > 0.0 {
                true => batch.push(sequence.unconditional_tokens(self.blank)),
                false => rows.clone(),
            };
            scored.extend(sequence.masked.iter().map(|&slot| {
                let row = self.row(sequence, slot);
                ScoredRow {
                    conditional: (rows.start + row) as u32,
                    unconditional: (unconditional.start + row) as u32,
                    slot,
                    truth: sequence.target.tokens[slot],
                }
            }));
        }
        let mut scores = Vec::with_capacity(scored.len());
        if !scored.is_empty() {
            let hidden = self.model.hidden(&batch, None)?;
            let inputs = batch.row_inputs();
            for rows in scored.chunks(HEAD_ROWS) {
                scores.extend(self.score_rows(&hidden, &inputs, rows)?);
            }
        }
        let mut scores = scores.into_iter();
        Ok(sequences
            .iter()
            .map(|sequence| scores.by_ref().take(sequence.masked.len()).collect())
            .collect())
    }

    /// What the model says of `rows` of `hidden`, which were computed from `inputs`.
    fn score_rows(
        &self,
        hidden: &Tensor,
        inputs: &[RowInput],
        rows: &[ScoredRow],
    ) -> Result<Vec<SlotScore>, EvalError> {
        let mut logits = self.logits(hidden, inputs, rows)?;
        if self.model.spec().parameterisation != Parameterisation::Logits {
            logits = logits.broadcast_add(&self.mask_bias)?;
        }
        let truth: Vec<TokenId> = rows.iter().map(|row| row.truth).collect();
        let truth = Tensor::from_vec(truth, (rows.len(), 1), logits.device())?;
        let log_probabilities: Vec<f32> = logits
            .gather(&truth, 1)?
            .squeeze(1)?
            .sub(&logits.log_sum_exp(1)?)?
            .to_vec1()?;
        let best: Vec<u32> = logits
            .broadcast_add(&self.mask_bias)?
            .argmax(1)?
            .to_vec1()?;
        let scores = rows.iter().zip(log_probabilities).zip(best);
        scores
            .map(|((row, log_probability), best)| {
                if !log_probability.is_finite() {
                    return Err(EvalError::NotFinite {
                        slot: row.slot,
                        token: row.truth,
                        value: log_probability,
                    });
                }
                Ok(SlotScore {
                    log_probability: f64::from(log_probability),
                    best,
                })
            })
            .collect()
    }

    /// Logits `[rows, vocab]` in f32, guided where asked for.
    fn logits(
        &self,
        hidden: &Tensor,
        inputs: &[RowInput],
        rows: &[ScoredRow],
    ) -> Result<Tensor, EvalError> {
        let select = |index: fn(&ScoredRow) -> u32| -> Result<Tensor, EvalError> {
            let indices: Vec<u32> = rows.iter().map(index).collect();
            let inputs: Vec<RowInput> = indices.iter().map(|row| inputs[*row as usize]).collect();
            let indices = Tensor::from_vec(indices, rows.len(), hidden.device())?;
            let hidden = hidden.index_select(&indices, 0)?;
            Ok(self.model.head_rows(&hidden, &inputs)?)
        };
        let conditional = select(|row| row.conditional)?;
        if self.guidance_scale == 0.0 {
            return Ok(conditional.to_dtype(DType::F32)?);
        }
        let guidance = Guidance {
            unconditional: select(|row| row.unconditional)?,
            scales: vec![Some(self.guidance_scale as f32); rows.len()],
        };
        Ok(guidance.apply(&conditional)?)
    }
}
