//! A batch on a device.

use candle_core::{DType, Device, Result, Tensor};

use super::row_sums::{RowSums, places};
use crate::models::{Rotary, RotaryRows};
use crate::train::batch::Batch;
use crate::train::layout::NetworkShape;
use crate::train::network::UniformSlots;

/// Added to the score of a slot of another text: e to this power is 0 in f32 beside any other score.
const UNSEEN: f64 = -1e30;

/// What a pass needs of its batch, copied to the device once.
pub struct Inputs {
    /// Windows.
    pub windows: usize,
    /// Slots a window.
    pub context: usize,
    /// Noisy tokens, `[slots]`.
    pub tokens: Tensor,
    /// The slots that have a loss, `[scored]`.
    pub scored: Tensor,
    /// Their clean tokens, `[scored, 1]`.
    pub clean: Tensor,
    /// Their weights over the number of all tokens, `[scored, 1]`.
    pub weights: Tensor,
    /// What the loss of the uniform process needs.
    pub uniform: Option<UniformSlots>,
    /// What is added to attention scores, `[windows, 1, L, L]`; `None` where every slot sees its whole window.
    pub bias: Option<Tensor>,
    /// The angles of the slots' positions. Queries and keys are also multiplied by head_dim^(−1/4) each, which
    /// makes the factor of their products.
    pub rotary: RotaryRows,
    /// What the backward pass needs beside.
    pub backward: Option<BackwardInputs>,
}

/// What the backward pass needs of its batch.
pub struct BackwardInputs {
    /// The opposite angles.
    pub rotary: RotaryRows,
    /// For each slot its place among the scored ones, `[slots]`; of others one that reads zeros.
    pub places: Tensor,
    /// The sums over slots of a token.
    pub row_sums: RowSums,
}

impl Inputs {
    /// Those of a batch that has scored slots; for a loss alone, or with what the backward pass needs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        batch: &Batch,
        shape: &NetworkShape,
        rotary: &Rotary,
        with_backward: bool,
        device: &Device,
    ) -> Result<Self> {
        let (windows, context) = (batch.windows(), batch.context);
        let scored = batch.scored.len();
        let weights = batch
            .scored
            .iter()
            .map(|&slot| batch.weights[slot as usize / context] / batch.tokens() as f32);
        let clean = batch.scored.iter().map(|&slot| batch.clean[slot as usize]);
        let positions: Vec<u32> = (0..windows).flat_map(|_| 0..context as u32).collect();
        let rotary = rotary
            .rows(&positions)?
            .times((shape.head_dim() as f64).powf(-0.25))?;
        let backward = match with_backward {
            true => Some(BackwardInputs {
                rotary: rotary.transposed()?,
                places: indices(places(&batch.scored, batch.tokens()), device)?,
                row_sums: RowSums::new(&batch.noisy, shape.vocab, device)?,
            }),
            false => None,
        };
        Ok(Self {
            windows,
            context,
            tokens: indices(batch.noisy.clone(), device)?,
            scored: indices(batch.scored.clone(), device)?,
            clean: Tensor::from_vec(clean.collect(), (scored, 1), device)?,
            weights: Tensor::from_vec(weights.collect(), (scored, 1), device)?,
            uniform: UniformSlots::of(batch, device)?,
            bias: bias(batch, device)?,
            rotary,
            backward,
        })
    }
}

fn indices(values: Vec<u32>, device: &Device) -> Result<Tensor> {
    let count = values.len();
    Tensor::from_vec(values, count, device)
}

/// From the numbers of the slots' texts, which are few beside the scores.
fn bias(batch: &Batch, device: &Device) -> Result<Option<Tensor>> {
    let (windows, l) = (batch.windows(), batch.context);
    if batch.starts.len() == windows {
        return Ok(None);
    }
    let texts = (0..).zip(batch.texts());
    let text_of_slot: Vec<u32> = texts
        .flat_map(|(text, slots)| slots.map(move |_| text))
        .collect();
    let texts = Tensor::from_vec(text_of_slot, (windows, 1, l, 1), device)?;
    let seen = texts.broadcast_eq(&texts.reshape((windows, 1, 1, l))?)?;
    seen.to_dtype(DType::F32)?.affine(-UNSEEN, UNSEEN).map(Some)
}
