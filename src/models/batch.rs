//! The ragged batch: rows of several canvases packed end to end, without padding.

use std::ops::Range;

use crate::canvas::TokenId;
use crate::models::{ModelError, ModelSpec};

/// Rows of several segments, end to end; rows attend within their segment only.
#[derive(Debug, Clone, Default)]
pub struct RaggedBatch {
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
}

/// One canvas's rows in a batch.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Row-major `[len, len]`, true where row i may attend to row j; `None` if every row may attend
    /// to every other.
    pub allowed: Option<Vec<bool>>,
}

impl RaggedBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one row a token, at positions 0, 1, …, that all see each other; returns its rows.
    pub fn push(&mut self, tokens: impl IntoIterator<Item = TokenId>) -> Range<usize> {
        let start = self.tokens.len();
        self.tokens.extend(tokens);
        let rows = start..self.tokens.len();
        self.positions.extend(0..rows.len() as u32);
        self.segments.push(Segment {
            rows: rows.clone(),
            allowed: None,
        });
        rows
    }

    /// Appends one row a token, with explicit positions and, optionally, an attention pattern.
    ///
    /// # Panics
    /// If the lengths differ: `positions` must hold one entry a token, `allowed` the square of that.
    pub fn push_with(
        &mut self,
        tokens: &[TokenId],
        positions: &[u32],
        allowed: Option<Vec<bool>>,
    ) -> Range<usize> {
        assert_eq!(tokens.len(), positions.len());
        if let Some(allowed) = &allowed {
            assert_eq!(allowed.len(), tokens.len() * tokens.len());
        }
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend_from_slice(positions);
        let rows = start..self.tokens.len();
        self.segments.push(Segment {
            rows: rows.clone(),
            allowed,
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

    /// Checks every row against a model's limits.
    ///
    /// # Errors
    /// Names the first token outside the vocabulary, or position outside the context.
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        let (vocab, context) = (spec.vocab_size, spec.max_canvas);
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
        Ok(())
    }
}
