//! What a generation reports.

use std::time::Duration;

use super::{CacheScheme, GenerationError};
use crate::canvas::{Canvas, Commit, Splice, TokenId};
use crate::sampling::Logprobs;

/// What one denoise step changed on a canvas, or several where the reader is far behind: then the latest state
/// of each slot that they changed, and the number and the statistics of the last. A step that took a forward has one,
/// even where it changed nothing; one without a forward only where it masked slots again.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step, from 1.
    pub step: usize,
    /// The slots that were committed or edited, in slot order.
    pub committed: Vec<(usize, Commit)>,
    /// Log-probabilities of those slots, in slot order, as they were at this step; empty if none were
    /// asked for.
    pub logprobs: Vec<(usize, Logprobs)>,
    /// The slots that were masked again after that, in slot order.
    pub remasked: Vec<usize>,
    /// The slots that hold another noise token than before, with it, in slot order: of models of the uniform
    /// process only.
    pub noise: Vec<(usize, TokenId)>,
    /// The slots that were replaced by masked ones, or removed, after all that, in slot order, as they were
    /// before: every other slot of this report is named by where it was before, too. Of plans that resize gaps
    /// only.
    pub spliced: Vec<Splice>,
    /// No later step changes what is committed before this slot, counted as slots are after all that. Where the plan
    /// revises, it is the first slot of the block that is denoised next.
    pub final_before: usize,
    /// What the generation took so far, this step included.
    pub statistics: Statistics,
}

impl StepReport {
    /// A report of a step that changed nothing; `final_before` and `statistics` may be of a later step.
    pub(super) fn of(step: usize, final_before: usize, statistics: Statistics) -> Self {
        Self {
            step,
            committed: Vec::new(),
            logprobs: Vec::new(),
            remasked: Vec::new(),
            noise: Vec::new(),
            spliced: Vec::new(),
            final_before,
            statistics: Statistics {
                steps: step,
                ..statistics
            },
        }
    }
}

/// What a generation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Denoise steps of the plan.
    pub steps: usize,
    /// Network evaluations (NFE); with guidance, the canvas and its unconditional twin count as one. Fewer
    /// than steps where the noise schedule changed nothing in a step.
    pub nfe: usize,
    /// Slots of gaps to which a token is committed, each counted once however often it was revised; scratch slots
    /// are none of them.
    pub committed: usize,
    /// What was cached.
    pub cache: CacheScheme,
    /// From submission to the first step.
    pub queued: Duration,
    /// From the beginning of the first step to the end of the last.
    pub denoising: Duration,
}

/// What a generation reports.
#[derive(Debug)]
pub enum Event {
    /// A step was taken.
    Step(StepReport),
    /// Nothing is left to do: every gap is filled, or the plan stopped early. Nothing follows.
    Finished(Canvas, Statistics),
    /// The generation ended early. Nothing follows.
    Failed(GenerationError),
}
