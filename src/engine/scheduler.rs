//! Who takes part in the next step.
//!
//! Every running sequence has an account of the rows that it was given. Those with the least go first, so
//! that a canvas of 32 slots takes many steps while one of 2,000 takes one. A [`Clock`] says where the account
//! of a newcomer begins, and goes on with every step, so that none waits forever behind newcomers.

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

/// How many rows each of the running could have been given, had they been shared evenly: the virtual time of fair
/// queueing.
///
/// # How long a sequence waits at most
///
/// Let at most N run, a sequence's part of a step have R rows at most and r at least. No sequence that runs is
/// passed over in more than 3NR/r + N steps in a row:
///
/// - No account is more than R ahead of the clock: that of a sequence that was served is held to its own rows
///   around the clock, and a newcomer's is the least or the clock's time.
/// - All accounts together are at most 2NR behind it. A step that serves C rows in turn, with n running, puts
///   each of them C/n further behind, and takes C from those that it serves. So the sum does not grow, unless
///   one of those was less than its own rows behind: then all that were passed over were less than R behind, as
///   the account that is furthest behind is served first, and the served are within R, so that the sum is at
///   most n(R + C/n) ≤ 2nR. Those that come are not behind, and those that go only take away.
/// - While a sequence is passed over its account stands still and the clock goes on by r/N a step at least: it
///   is behind the clock after NR/r steps. From then on no newcomer is served before it, and the others before
///   it lack at most 2NR rows up to its account. Each step gives at least r of them, but for the last of each
///   of the N.
#[derive(Debug, Default)]
pub(super) struct Clock(f64);

impl Clock {
    /// The account that a newcomer begins with: it does not make up for the time before it came, and does not
    /// stand still while the clock goes on.
    pub fn newcomer(&self, running: &[Running]) -> f64 {
        let accounts = running.iter().map(|other| other.work);
        self.0.max(accounts.reduce(f64::min).unwrap_or(0.0))
    }
}

/// Chooses the parts of the next step, in the order of arrival; at least one if any sequence runs.
pub(super) fn schedule(
    running: &mut [Running],
    clock: &mut Clock,
    memory: &mut CacheMemory,
    logit_shift: usize,
    budget: RowBudget,
) -> Schedule {
    let mut schedule = Schedule::default();
    let mut turns: Vec<(f64, u64, usize, Window)> = Vec::with_capacity(running.len());
    for (index, running) in running.iter_mut().enumerate() {
        let Running {
            sequence, cached, ..
        } = running;
        let place = sequence.place(logit_shift, budget.chunk);
        schedule.reused += cached.reuse(memory, &sequence.canvas, &place.block);
        let window = cached.window(&place);
        turns.push((running.work, running.arrival, index, window));
    }
    turns.sort_by(|(a, a_arrival, ..), (b, b_arrival, ..)| {
        a.total_cmp(b).then(a_arrival.cmp(b_arrival))
    });
    clock.0 = clock.newcomer(running);
    let mut rows = 0;
    // Those before the first that is passed over; who fits beside them fills room that is no one's turn.
    let mut rows_in_turn = None;
    let mut given = Vec::new();
    let mut limit = budget.target;
    // What is being computed in this step is not computed twice: others find it after the step.
    let mut computed: HashSet<Contents> = HashSet::new();
    for (_, _, index, window) in turns {
        let own = rows_of(&running[index], &window);
        if schedule.parts.is_empty() {
            limit = limit.max(own + budget.target / 2).min(budget.most.max(own));
        } else if rows + own > limit {
            rows_in_turn.get_or_insert(rows);
            continue;
        }
        let Running {
            sequence, cached, ..
        } = &running[index];
        if let Some(contents) = cached.next_contents(&sequence.canvas, window.kept.end)
            && !computed.insert(contents)
        {
            rows_in_turn.get_or_insert(rows);
            continue;
        }
        rows += own;
        given.push((index, own as f64));
        schedule.parts.push(Part { index, window });
        if rows >= limit {
            break;
        }
    }
    clock.0 += rows_in_turn.unwrap_or(rows) as f64 / running.len().max(1) as f64;
    for (index, own) in given {
        let work = &mut running[index].work;
        *work = (*work + own).clamp(clock.0 - own, work.max(clock.0 + own));
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
