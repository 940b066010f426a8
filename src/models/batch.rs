//! The ragged batch: rows of several canvases packed end to end, without padding.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::canvas::TokenId;
use crate::kernels::transfer;
use crate::models::{AttentionPattern, ModelError, ModelSpec};

/// Rows of several segments, end to end; rows attend within their segment only.
#[derive(Debug, Clone, Default)]
pub struct RaggedBatch {
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
}

/// One canvas's rows in a batch. Rows attend to every cached slot of `context` and, as `allowed` says,
/// to each other.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Row-major `[len, len]`, true where row i may attend to row j; `None` if every row may attend
    /// to every other. The output of a row that may attend to nothing is finite, and means nothing.
    pub allowed: Option<Vec<bool>>,
    /// Slots of the key/value pool that every row attends to besides.
    pub context: Vec<u32>,
    /// For each row the first of `context` that it attends to; empty if every row attends to all of it.
    pub context_from: Vec<usize>,
    /// Slots of the key/value pool in which keys and values are kept, of as many rows as it names from
    /// row `store_from` of the segment on; empty if none are kept.
    pub store: Vec<u32>,
    /// The first row of the segment whose keys and values are kept.
    pub store_from: usize,
    /// The noise level σ, for a network that takes it.
    pub sigma: Option<f32>,
    /// The rows go through the network's encoder, whose keys and values are kept and whose output means nothing: for
    /// networks of [`AttentionPattern::EncodedBlocks`]. All slots of `context` come right before the segment's first
    /// row, in their order.
    pub encodes: bool,
    /// What [`Denoiser::self_conditioning`](crate::models::Denoiser::self_conditioning) made of the last prediction
    /// for these rows, `[rows, hidden]`, for a network that takes it; `None` at a block's first step.
    pub self_conditioning: Option<Tensor>,
}

/// What a network looks up for a batch's rows, on its device.
pub(super) struct RowTensors {
    /// `[rows]`
    pub tokens: Tensor,
    /// `[rows]`
    pub positions: Tensor,
}

/// What one row's output depends on besides its hidden state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowInput {
    /// The row's token.
    pub token: TokenId,
    /// Its segment's noise level σ.
    pub sigma: Option<f32>,
}

impl Segment {
    /// Whether two segments can be computed as one product: same length, nothing but own rows.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let plain = |segment: &Self| {
            segment.allowed.is_none() && segment.context.is_empty() && segment.store.is_empty()
        };
        self.rows.len() == other.rows.len() && plain(self) && plain(other)
    }
}

impl RaggedBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one row a token, at positions 0, 1, …, that all see each other; returns its rows.
    pub fn push(&mut self, tokens: impl IntoIterator<Item = TokenId>) -> Range<usize> {
        let tokens: Vec<TokenId> = tokens.into_iter().collect();
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        self.push_segment(&tokens, &positions, Segment::default())
    }

    /// Appends one row a token, with explicit positions, and what else `segment` says (its `rows` are
    /// set here); returns its rows.
    ///
    /// # Panics
    /// If lengths differ: `positions` must hold one entry a token, `allowed` the square of that, `context_from` none or
    /// one a token, and `store` no more than there are from `store_from` on.
    pub fn push_segment(
        &mut self,
        tokens: &[TokenId],
        positions: &[u32],
        segment: Segment,
    ) -> Range<usize> {
        let length = tokens.len();
        assert_eq!(positions.len(), length);
        assert!(segment.context_from.is_empty() || segment.context_from.len() == length);
        assert!(segment.store.is_empty() || segment.store_from + segment.store.len() <= length);
        if let Some(allowed) = &segment.allowed {
            assert_eq!(allowed.len(), length * length);
        }
        let rows = self.tokens.len()..self.tokens.len() + length;
        self.tokens.extend_from_slice(tokens);
        self.positions.extend_from_slice(positions);
        self.segments.push(Segment {
            rows: rows.clone(),
            ..segment
        });
        rows
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The token of every row.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The position of every row within its canvas.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The segments in order; together they cover all rows.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Tokens and positions on `device`, which takes them in one copy.
    pub(super) fn row_tensors(&self, device: &Device) -> candle_core::Result<RowTensors> {
        let rows = self.rows();
        let both = [self.tokens(), self.positions()].concat();
        let both = transfer::to_device(&both, 2 * rows, device)?;
        Ok(RowTensors {
            tokens: both.narrow(0, 0, rows)?,
            positions: both.narrow(0, rows, rows)?,
        })
    }

    /// What every row's output depends on besides its hidden state, in row order.
    pub fn row_inputs(&self) -> Vec<RowInput> {
        let of_segment = |segment: &Segment| {
            let sigma = segment.sigma;
            let tokens = self.tokens[segment.rows.clone()].iter();
            tokens.map(move |&token| RowInput { token, sigma })
        };
        self.segments.iter().flat_map(of_segment).collect()
    }

    /// Checks every row against a model's limits.
    ///
    /// # Errors
    /// If there are no rows; else names the first token outside the vocabulary, or position outside the context, or
    /// what the model's network does not take.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        let (vocab, context) = (spec.vocab_size, spec.canvas_limit());
        if self.tokens.is_empty() {
            return Err(ModelError::Batch("the batch has no rows".into()));
        }
        if let Some(token) = self.tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(ModelError::Batch(format!(
                "token {token} is not in the vocabulary of {vocab} tokens"
            )));
        }
        if let Some(position) = self.positions.iter().find(|p| **p as usize >= context) {
            return Err(ModelError::Batch(format!(
                "position {position} is outside the model's context of {context} slots"
            )));
        }
        let has_encoder = matches!(spec.attention, AttentionPattern::EncodedBlocks { .. });
        for segment in &self.segments {
            if segment.encodes && !has_encoder {
                return Err(ModelError::Batch(
                    "a segment is to be encoded, and the network has no encoder".into(),
                ));
            }
            if segment.self_conditioning.is_some() && (!spec.self_conditioned || segment.encodes) {
                return Err(ModelError::Batch(
                    "a segment has a self-conditioning signal, which its rows do not take".into(),
                ));
            }
        }
        Ok(())
    }
}
