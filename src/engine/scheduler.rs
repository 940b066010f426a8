//! Who takes part in the next step.
//!
//! Every running sequence has an account of the rows that it was given. Those with the least go first, so
//! that a canvas of 32 slots takes many steps while one of 2,000 takes one; and none waits forever, since the
//! account of one that is passed over stands still while the others' grow.

use std::collections::HashSet;

use super::cache::{CacheMemory, Contents, Window};
use super::sequence::Running;

/// Rows that a step may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowBudget {
    /// The most of a step made of several sequences.
    pub most: usize,
    /// Those after which no more sequences are added, unless the first alone has more.
    pub target: usize,
    /// The most of one sequence that only prepare the cache.
    pub chunk: usize,
}

/// A sequence's part in a step.
#[derive(Debug)]
pub(super) struct Part {
    /// Its index among the running.
    pub index: usize,
    pub window: Window,
}

/// What the next step is made of.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    pub parts: Vec<Part>,
    /// Slots that were found computed by other sequences.
    pub reused: usize,
}

/// Chooses the parts of the next step, in the order of arrival; at least one if any sequence runs.
pub(super) fn schedule(
    running: &mut [Running],
    memory: &mut CacheMemory,
    logit_shift: usize,
    budget: RowBudget,
) -> Schedule {
    let mut schedule = Schedule::default();
    let mut turns: Vec<(u64, u64, usize, Window)> = Vec::with_capacity(running.len());
    for (index, running) in running.iter_mut().enumerate() {
        let Running {
            sequence, cached, ..
        } = running;
        let place = sequence.place(logit_shift, budget.chunk);
        schedule.reused += cached.reuse(memory, &sequence.canvas, &place.block);
        let window = cached.window(&place);
        turns.push((running.work, running.arrival, index, window));
    }
    turns.sort_by_key(|(work, arrival, ..)| (*work, *arrival));
    let mut rows = 0;
    let mut limit = budget.target;
    // What is being computed in this step is not computed twice: others find it after the step.
    let mut computed: HashSet<Contents> = HashSet::new();
    for (_, _, index, window) in turns {
        let own = rows_of(&running[index], &window);
        if schedule.parts.is_empty() {
            limit = limit.max(own + budget.target / 2).min(budget.most.max(own));
        } else if rows + own > limit {
            continue;
        }
        let Running {
            sequence, cached, ..
        } = &running[index];
        if let Some(contents) = cached.next_contents(&sequence.canvas, window.kept.end)
            && !computed.insert(contents)
        {
            continue;
        }
        rows += own;
        running[index].work += own as u64;
        schedule.parts.push(Part { index, window });
        if rows >= limit {
            break;
        }
    }
    let parts = &mut schedule.parts;
    parts.sort_by_key(|part| running[part.index].arrival);
    schedule
}

fn rows_of(running: &Running, window: &Window) -> usize {
    let sequence = &running.sequence;
    let twin = sequence
        .twin()
        .map_or(0, |twin| twin.slots(&sequence.canvas, &window.rows).len());
    window.rows.len() + twin
}
