//! Which slots of a canvas see each other.

use std::ops::Range;

use serde::Serialize;
use utoipa::ToSchema;

/// Which slots a slot may attend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttentionPattern {
    /// Every slot sees the whole canvas.
    Bidirectional,
    /// A slot sees its own block and those before it.
    BlockCausal {
        /// Slots a block, at least 1.
        block_length: usize,
    },
    /// A block of the gap sees itself, and what an encoder left of the slots before it: keys and values by which
    /// each of them has seen no slot after itself. The encoder reads the prompt and every finished block
    /// (DiffusionGemma).
    EncodedBlocks {
        /// Slots a block, at least 1.
        block_length: usize,
    },
}

impl AttentionPattern {
    /// Row-major `[length, length]`, true where slot i of a canvas of `length` slots may attend to
    /// slot j, as [`Segment::allowed`](crate::models::Segment::allowed) takes it; `None` if every
    /// slot may attend to every other. The first block begins at the first slot.
    ///
    /// # Panics
    /// If the block length is 0.
    pub fn allowed(self, length: usize) -> Option<Vec<bool>> {
        self.allowed_among(0..length, 0)
    }

    /// Row-major `[rows, rows]`, true where a slot of `rows` may attend to another of them, if a block
    /// begins at slot `start`; `None` if every one may attend to every other. The first block of the
    /// canvas may be shorter than the others. Of encoded blocks `start` is where the one begins that is denoised, and
    /// the slots before it are the encoder's.
    ///
    /// # Panics
    /// If the block length is 0.
    pub fn allowed_among(self, rows: Range<usize>, start: usize) -> Option<Vec<bool>> {
        self.allowed_within(None, rows, start)
    }

    /// As [`AttentionPattern::allowed_among`], where a slot sees its own block and, of those before it, what
    /// lies among the last `window` slots up to its block's end.
    ///
    /// # Panics
    /// If the block length is 0.
    pub fn allowed_within(
        self,
        window: Option<usize>,
        rows: Range<usize>,
        start: usize,
    ) -> Option<Vec<bool>> {
        match self {
            Self::Bidirectional => None,
            Self::EncodedBlocks { .. } => {
                if rows.start >= start || rows.len() < 2 {
                    return None;
                }
                let sees = |i: usize, j: usize| i >= start || j <= i;
                let row = |i| rows.clone().map(move |j| sees(i, j));
                Some(rows.clone().flat_map(row).collect())
            }
            Self::BlockCausal { block_length } => {
                let missing = (block_length - start % block_length) % block_length;
                let block = |slot: usize| (slot + missing) / block_length;
                let window = window.unwrap_or(usize::MAX).max(block_length);
                let sees = move |i: usize, j: usize| {
                    let end = (block(i) + 1) * block_length - missing;
                    block(j) <= block(i) && j >= end.saturating_sub(window)
                };
                if rows.is_empty() || block(rows.start) == block(rows.end - 1) {
                    return None;
                }
                let row = |i| rows.clone().map(move |j| sees(i, j));
                Some(rows.clone().flat_map(row).collect())
            }
        }
    }

    /// The block that a slot is in, from 0, if the first block begins at the first slot; one block is the
    /// whole canvas where every slot sees it.
    ///
    /// # Panics
    /// If the block length is 0.
    pub fn block_of(self, slot: usize) -> usize {
        match self {
            Self::Bidirectional => 0,
            Self::BlockCausal { block_length } | Self::EncodedBlocks { block_length } => {
                slot / block_length
            }
        }
    }

    /// Who sees whom in the scoring input \[x_t ; x_0\] of two times `length` rows: row-major
    /// `[2 · length, 2 · length]`, for [`Segment::allowed`](crate::models::Segment::allowed). Row i of either
    /// half is at position i.
    ///
    /// A block of x_t sees itself and the blocks of x_0 before it; a block of x_0 sees itself and the
    /// blocks of x_0 before it (BD3-LM, arXiv:2503.09573, section 3.3 and figure 3): so all blocks are scored
    /// in one evaluation, each after clean ones. The last block may be shorter.
    ///
    /// # Panics
    /// If the block length is 0.
    pub fn allowed_in_scoring(self, length: usize) -> Vec<bool> {
        let place = |row: usize| (row >= length, self.block_of(row % length));
        let sees = |query: usize, key: usize| match (place(query), place(key)) {
            ((false, query), (false, key)) => query == key,
            ((false, query), (true, key)) => query > key,
            ((true, query), (true, key)) => query >= key,
            ((true, _), (false, _)) => false,
        };
        let rows = 0..2 * length;
        rows.clone()
            .flat_map(|query| rows.clone().map(move |key| sees(query, key)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_an_encoded_block_sees_the_block_and_one_before_it_none_after_itself() {
        let pattern = AttentionPattern::EncodedBlocks { block_length: 2 };
        let bits = |rows: &[&str]| Some(rows.concat().chars().map(|bit| bit == '1').collect());
        assert_eq!(pattern.allowed_among(0..3, 4), bits(&["100", "110", "111"]));
        assert_eq!(pattern.allowed_among(4..6, 4), None);
        assert_eq!(pattern.allowed_among(3..4, 4), None);
    }

    #[test]
    fn a_scored_row_sees_its_noised_block_and_the_clean_blocks_before_it() {
        // Three slots in blocks of two: x_t is 0 1 | 2, x_0 is 3 4 | 5.
        let seen = [
            "110000", "110000", "001110", // x_t
            "000110", "000110", "000111", // x_0
        ];
        let expected: Vec<bool> = seen.concat().chars().map(|bit| bit == '1').collect();
        let pattern = AttentionPattern::BlockCausal { block_length: 2 };
        assert_eq!(pattern.allowed_in_scoring(3), expected);
        assert!(pattern.allowed_in_scoring(0).is_empty());
    }
}
