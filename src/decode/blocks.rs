//! Blocks: the ranges of slots that are denoised one after the other.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::canvas::Canvas;

/// Where the first block begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockOrigin {
    /// At the first slot of the first gap (LLaDA's generate.py; dllm's BD3LMSampler, which fills prompts
    /// up to whole blocks on the left).
    #[default]
    Gap,
    /// At the first slot of the canvas, so that the prompt's end and the gap may share a block (LLaDA2's
    /// and SDAR's generate; dllm's infill).
    Canvas,
}

/// What the first step of a block commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockEntry {
    /// What score and budget choose, as in every step.
    #[default]
    Budget,
    /// The block's first masked slot alone (Fast-dLLM's sampler for Dream, whose networks read the logits of
    /// a block's first slot before the block: its cached steps need not).
    FirstSlot,
}

/// The blocks of `canvas` that have a masked slot, in order. Without a block length the whole
/// canvas is one block.
pub(super) fn blocks(
    canvas: &Canvas,
    block_length: Option<usize>,
    origin: BlockOrigin,
) -> Vec<Range<usize>> {
    let end = canvas.len();
    let start = match origin {
        BlockOrigin::Gap => {
            let gaps = canvas.gaps().iter();
            let mut open = gaps.filter(|gap| !canvas.is_fixed(gap.start));
            open.next().map_or(0, |gap| gap.start)
        }
        BlockOrigin::Canvas => 0,
    };
    let length = block_length.unwrap_or(end).max(1);
    (start..end)
        .step_by(length)
        .map(|block| block..block.saturating_add(length).min(end))
        .filter(|block| canvas.masked_in(block.clone()).next().is_some())
        .collect()
}
