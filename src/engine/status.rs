//! What an engine tells of itself.

use std::time::Duration;

use super::Phases;

/// What an engine is doing, and has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStatus {
    /// Requests that wait for their first step.
    pub queued: usize,
    /// Sequences being denoised.
    pub running: usize,
    /// Denoise steps taken; each is one batch.
    pub steps: u64,
    /// Rows computed in them.
    pub rows: u64,
    /// Those of them whose keys and values were kept.
    pub kept: u64,
    /// Rows whose logits were computed in them.
    pub scored: u64,
    /// Slots committed or edited in them.
    pub committed: u64,
    /// Slots whose keys and values were found computed by an earlier request.
    pub reused: u64,
    /// Steps in a row up to now that brought none of their sequences on; 0 as soon as one does.
    pub failing: usize,
    /// Slots of the key/value pool.
    pub kv_slots: usize,
    /// Those in blocks that running sequences use.
    pub kv_used: usize,
    /// Time spent in the steps, and between them while there was work.
    pub phases: Phases,
}

/// A denoise step of the running sequences whose turn it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSummary {
    /// Rows computed.
    pub rows: usize,
    /// Those of them whose keys and values were kept.
    pub kept: usize,
    /// Rows whose logits were computed.
    pub scored: usize,
    /// Slots committed or edited.
    pub committed: usize,
    /// How long those waited whose first step it is.
    pub waited: Vec<Duration>,
    /// Time spent, since the step before if there was work all the while.
    pub phases: Phases,
}
