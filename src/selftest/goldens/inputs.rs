//! The recorded forwards of the official code, as their inputs are laid out.

use candle_core::Tensor;

use super::difference::Compared;
use super::folder::{
    Tensors, bits, integers, numbers, scalar, sequences, tensor, valid_keys, valid_pairs,
};
use super::{encoded, forward};
use crate::models::{AttentionPattern, Denoiser, ModelError};

/// Tokens that an encoder reads at once: prompts in two parts or more, as a server reads long ones.
const MOST_ENCODED: usize = 4;

/// A forward of the official code.
pub(super) struct Forward {
    pub case: &'static str,
    input: Input,
}

/// How its input is laid out.
pub(super) enum Input {
    /// `input_ids` `[B, L]`, at positions 0, 1, … or, if so, at `position_ids`.
    Canvas { sees: Sees, is_shifted: bool },
    /// As a padded canvas at `position_ids`, of which the rows that `pad_token_id` fills are not compared.
    Padded,
    /// The slots after a prefix that a full forward kept.
    PrefixCache,
    /// A block between slots that a full forward kept.
    DualCache,
    /// A block after a prefix that was kept; the field holds the block length.
    BlockCache(&'static str),
    /// Sequences under a field, each at its own noise level under another; what it gives is under the third, or its
    /// exponential.
    Noised {
        sequences: &'static str,
        sigma: &'static str,
        output: &'static str,
        is_exponential: bool,
    },
    /// [x_t ; x_0] of BD3-LM.
    Scoring,
    /// Sequences in blocks of BD3-LM.
    Blocks,
    /// A block of BD3-LM after blocks that were kept.
    NoisedBlockCache,
    /// A block that a decoder reads after what an encoder has read.
    Encoded,
}

/// What the slots of a canvas see.
pub(super) enum Sees {
    All,
    /// The slots that `attention_mask` has as valid.
    ValidKeys,
    /// Valid slots those, others none: their rows are not compared.
    ValidPairs,
    /// What the bits under a field say, the same in each row.
    Bits(&'static str),
}

impl Forward {
    /// Computes the forward with `model`.
    ///
    /// # Errors
    /// If the golden lacks a tensor, or the network cannot be run.
    pub fn compute(
        &self,
        model: &dyn Denoiser,
        goldens: &Tensors,
    ) -> Result<Vec<Compared>, ModelError> {
        let name = |field: &str| format!("{}.{field}", self.case);
        let field = |field: &str| tensor(goldens, &name(field));
        let compared = |got: Tensor, output: &str| {
            let official = field(output)?.clone();
            Ok::<_, ModelError>(Compared::new(name(output), got, official))
        };
        let by = |output| Ok::<_, ModelError>(numbers(field(output)?)?);
        let one = |compared: Compared| vec![compared];
        Ok(match &self.input {
            Input::Canvas { sees, is_shifted } => {
                let input = field("input_ids")?;
                let positions = is_shifted.then(|| field("position_ids")).transpose()?;
                let allowed = match sees {
                    Sees::All => vec![None; input.dim(0)?],
                    Sees::ValidKeys => valid_keys(field("attention_mask")?)?,
                    Sees::ValidPairs => valid_pairs(field("attention_mask")?)?,
                    Sees::Bits(bits_of) => vec![Some(bits(field(bits_of)?)?); input.dim(0)?],
                };
                let got = forward::logits(model, input, positions, &allowed)?;
                let rows = match sees {
                    Sees::ValidPairs => Some(bits(field("attention_mask")?)?),
                    _ => None,
                };
                one(Compared {
                    rows,
                    ..compared(got, "logits")?
                })
            }
            Input::Padded => {
                let input = field("input_ids")?;
                let pad = scalar(goldens, &name("pad_token_id"))? as u32;
                let rows = integers(input)?.into_iter().map(|id| id != pad).collect();
                let allowed = vec![Some(bits(field("allowed_mask_4d")?)?); input.dim(0)?];
                let positions = Some(field("position_ids")?);
                let got = forward::logits(model, input, positions, &allowed)?;
                one(Compared {
                    rows: Some(rows),
                    ..compared(got, "logits")?
                })
            }
            Input::PrefixCache => {
                let input = field("input_ids")?;
                let rows = forward::suffix_rows(goldens, self.case)?;
                let suffix = input.narrow(1, rows.start, rows.len())?;
                let got = forward::cached_logits(model, input, &suffix, rows, false)?;
                one(compared(got, "suffix_logits")?)
            }
            Input::DualCache => {
                let [start, end] =
                    ["block_start", "block_end"].map(|field| scalar(goldens, &name(field)));
                let input = field("cached_input_ids")?;
                let tokens = field("block_input_ids")?;
                let got = forward::cached_logits(model, input, tokens, start?..end?, true)?;
                one(compared(got, "block_logits")?)
            }
            Input::BlockCache(block_length) => {
                let block_length = scalar(goldens, &name(block_length))?;
                let [prefix, block] = forward::block_cache_logits(model, goldens, block_length)?;
                vec![
                    compared(prefix, "prefix_logits")?,
                    compared(block, "block_logits")?,
                ]
            }
            Input::Noised {
                sequences: input,
                sigma,
                output,
                is_exponential,
            } => {
                let batch = forward::noised_batch(&sequences(field(input)?)?, &by(sigma)?);
                let got = forward::outputs(model, &batch, None)?;
                let mut compared = compared(got, output)?;
                if *is_exponential {
                    compared.official = compared.official.log()?;
                }
                one(compared)
            }
            Input::Scoring => {
                let input = sequences(field("input_ids")?)?;
                let batch = forward::scoring_batch(model, &input, &by("timesteps")?);
                one(compared(
                    forward::scoring_outputs(model, &batch)?,
                    "logits",
                )?)
            }
            Input::Blocks => {
                let input = sequences(field("input_ids")?)?;
                let batch =
                    forward::block_causal_batch(block_length_of(model)?, &input, &by("timesteps")?);
                one(compared(forward::outputs(model, &batch, None)?, "logits")?)
            }
            Input::NoisedBlockCache => {
                let block_length = block_length_of(model)?;
                let got = forward::noised_block_cache_outputs(model, goldens, block_length)?;
                one(compared(got, "block_logits")?)
            }
            Input::Encoded => one(compared(
                encoded::logits(model, goldens, self.case, MOST_ENCODED)?,
                "logits",
            )?),
        })
    }
}

fn block_length_of(model: &dyn Denoiser) -> Result<usize, ModelError> {
    match model.spec().attention {
        AttentionPattern::BlockCausal { block_length } => Ok(block_length),
        AttentionPattern::EncodedBlocks { block_length } => Ok(block_length),
        AttentionPattern::Bidirectional => {
            Err(ModelError::Batch("the model knows no blocks".into()))
        }
    }
}

const PLAIN: Input = Input::Canvas {
    sees: Sees::All,
    is_shifted: false,
};
pub(super) const SHIFTED: Input = Input::Canvas {
    sees: Sees::All,
    is_shifted: true,
};
pub(super) const VALID_KEYS: Input = Input::Canvas {
    sees: Sees::ValidKeys,
    is_shifted: false,
};

/// Whole sequences, of which every slot sees every other.
pub(super) const fn plain(case: &'static str) -> Forward {
    of(case, PLAIN)
}

/// Whole sequences, of which the bits under `field` say what a slot sees.
pub(super) const fn by_bits(case: &'static str, field: &'static str) -> Forward {
    let input = Input::Canvas {
        sees: Sees::Bits(field),
        is_shifted: false,
    };
    of(case, input)
}

/// The case of this name, laid out so.
pub(super) const fn of(case: &'static str, input: Input) -> Forward {
    Forward { case, input }
}

/// `input_ids` at noise levels `sigma`.
pub(super) const fn noised(case: &'static str, output: &'static str) -> Forward {
    let input = Input::Noised {
        sequences: "input_ids",
        sigma: "sigma",
        output,
        is_exponential: false,
    };
    of(case, input)
}
