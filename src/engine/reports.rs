//! The reports of a generation on their way to its reader.
//!
//! A reader that keeps up gets one report a step. What waits for a slow one is bounded: when it grows beyond
//! that, the waiting reports become one that holds the latest state of each slot. So nothing is lost, no
//! reader slows the engine, and no buffer grows with the number of steps.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::{Event, StepReport};

/// Entries that may wait whatever the canvas: short ones are not coalesced for a short delay.
const SLACK: usize = 256;

/// The worker's end.
#[derive(Debug)]
pub(super) struct ReportSender {
    pending: Arc<Mutex<Pending>>,
    /// Holds one token at most: that there is news.
    bell: mpsc::Sender<()>,
    /// The most entries that wait.
    limit: usize,
}

/// The reader's end.
#[derive(Debug)]
pub(super) struct ReportReceiver {
    pending: Arc<Mutex<Pending>>,
    bell: mpsc::Receiver<()>,
}

#[derive(Debug, Default)]
struct Pending {
    reports: VecDeque<StepReport>,
    /// Entries of all reports.
    entries: usize,
    end: Option<Event>,
}

/// Both ends. Given the slots of the canvas, what waits is bounded by them.
pub(super) fn reports(slots: Option<usize>) -> (ReportSender, ReportReceiver) {
    let pending = Arc::<Mutex<Pending>>::default();
    let (bell, rung) = mpsc::channel(1);
    let sender = ReportSender {
        pending: pending.clone(),
        bell,
        // A coalesced report has two entries a slot at most, so that as many may follow before the next.
        limit: slots.map_or(usize::MAX, |slots| SLACK + 4 * slots),
    };
    let receiver = ReportReceiver {
        pending,
        bell: rung,
    };
    (sender, receiver)
}

impl ReportSender {
    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.bell.is_closed()
    }

    /// Reports a step.
    pub fn step(&self, report: StepReport) {
        let mut pending = lock(&self.pending);
        pending.entries += entries(&report);
        pending.reports.push_back(report);
        if pending.entries > self.limit {
            // A splice renumbers the slots after it: reports before it stay as they are. They are few, since plans
            // that resize gaps write a slot once and have a limit of expansions.
            let spliced = |report: &StepReport| !report.spliced.is_empty();
            let from = pending.reports.iter().rposition(spliced);
            let from = from.map_or(0, |index| index + 1);
            let coalesced = coalesced(pending.reports.drain(from..).rev());
            pending.reports.extend(coalesced);
            pending.entries = pending.reports.iter().map(entries).sum();
        }
        drop(pending);
        self.ring();
    }

    /// Reports the end, after which nothing follows.
    pub fn end(&self, event: Event) {
        lock(&self.pending).end = Some(event);
        self.ring();
    }

    /// A bell that rings already is enough; one that nobody hears is found by the check for cancellation.
    fn ring(&self) {
        let _ = self.bell.try_send(());
    }
}

impl ReportReceiver {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if self.bell.recv().await.is_none() {
                return self.try_next();
            }
        }
    }

    /// As [`ReportReceiver::next`], outside an async runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if self.bell.blocking_recv().is_none() {
                return self.try_next();
            }
        }
    }

    /// The next event, if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let mut pending = lock(&self.pending);
        match pending.reports.pop_front() {
            Some(report) => {
                pending.entries -= entries(&report);
                Some(Event::Step(report))
            }
            None => pending.end.take(),
        }
    }
}

/// What waits is whole between any two statements, so that a panic elsewhere does not spoil it.
fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a report counts: itself, and the slots that it tells of.
fn entries(report: &StepReport) -> usize {
    let slots = report.committed.len() + report.remasked.len() + report.noise.len();
    1 + slots + report.spliced.len()
}

/// Reports as one, from the newest to the oldest: of each slot its latest state.
fn coalesced(newest_first: impl IntoIterator<Item = StepReport>) -> Option<StepReport> {
    let mut reports = newest_first.into_iter();
    let mut whole = reports.next()?;
    let written = |report: &StepReport| -> Vec<usize> {
        let committed = report.committed.iter().map(|(slot, _)| *slot);
        committed.chain(report.remasked.iter().copied()).collect()
    };
    let mut settled: HashSet<usize> = written(&whole).into_iter().collect();
    let mut noised: HashSet<usize> = whole.noise.iter().map(|(slot, _)| *slot).collect();
    for older in reports {
        let own = written(&older);
        let is_news = |slot: &usize| !settled.contains(slot);
        let committed = older.committed.into_iter();
        whole
            .committed
            .extend(committed.filter(|(slot, _)| is_news(slot)));
        let logprobs = older.logprobs.into_iter();
        whole
            .logprobs
            .extend(logprobs.filter(|(slot, _)| is_news(slot)));
        whole
            .remasked
            .extend(older.remasked.iter().filter(|slot| is_news(slot)));
        for (slot, noise) in older.noise {
            if is_news(&slot) && noised.insert(slot) {
                whole.noise.push((slot, noise));
            }
        }
        settled.extend(own);
    }
    whole.committed.sort_by_key(|(slot, _)| *slot);
    whole.logprobs.sort_by_key(|(slot, _)| *slot);
    whole.remasked.sort_unstable();
    whole.noise.sort_by_key(|(slot, _)| *slot);
    Some(whole)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::canvas::{Commit, Splice, TokenId};
    use crate::engine::Statistics;

    const SLOTS: usize = 6;

    /// What a reader knows of a slot: its commit, or what stands for one.
    type Slot = Result<Commit, TokenId>;

    fn read(slots: &mut Vec<Slot>, report: &StepReport) {
        for (slot, commit) in &report.committed {
            slots[*slot] = Ok(*commit);
        }
        for slot in &report.remasked {
            slots[*slot] = Err(0);
        }
        for (slot, noise) in &report.noise {
            if slots[*slot].is_err() {
                slots[*slot] = Err(*noise);
            }
        }
        Splice::apply(&report.spliced, slots, 0, &Err(0));
    }

    /// A step that does to each slot what `actions` say, as far as its state allows, and then splices some, which
    /// it did nothing else to.
    fn report(step: usize, slots: &[Slot], actions: &[u8], spliced: &[Splice]) -> StepReport {
        let mut report = StepReport {
            step,
            committed: Vec::new(),
            logprobs: Vec::new(),
            remasked: Vec::new(),
            noise: Vec::new(),
            spliced: spliced.to_vec(),
            final_before: 0,
            statistics: Statistics::default(),
        };
        for (slot, held) in slots.iter().enumerate() {
            let action = &actions[slot % actions.len()];
            let is_committed = held.is_ok();
            if spliced.iter().any(|splice| splice.slot == slot) {
                continue;
            }
            if matches!(action, 1 | 2) {
                report.committed.push((
                    slot,
                    Commit {
                        token: step as TokenId,
                        probability: 0.5,
                        score: 0.0,
                        step,
                    },
                ));
            }
            if *action == 2 || (matches!(action, 3 | 4) && is_committed) {
                report.remasked.push(slot);
            }
            if *action == 4 || (*action == 5 && !is_committed) {
                report.noise.push((slot, step as TokenId));
            }
        }
        report
    }

    /// The most splices of a run: each may add a slot.
    const SPLICES: usize = 5;

    proptest! {
        #[test]
        fn a_reader_knows_the_same_whenever_it_reads(
            steps in vec((vec(0u8..6, SLOTS), any::<bool>()), 1..700),
            splices in vec((0usize..700, 0usize..SLOTS, 0usize..3), 0..=SPLICES),
        ) {
            let (sender, mut receiver) = reports(Some(SLOTS));
            let (mut true_slots, mut seen) = (vec![Err(0); SLOTS], vec![Err(0); SLOTS]);
            let count = steps.len();
            // What a splice parts is not coalesced: what waits before it and after it, two entries a slot each.
            let most = SLACK + 4 * SLOTS + 4 * (SPLICES + 1) * (SLOTS + SPLICES + 1);
            for (step, (actions, reads)) in steps.into_iter().enumerate() {
                let mut spliced: Vec<Splice> = splices
                    .iter()
                    .filter(|(at, slot, _)| *at == step && *slot < true_slots.len())
                    .map(|(_, slot, count)| Splice { slot: *slot, count: *count })
                    .collect();
                spliced.sort_by_key(|splice| splice.slot);
                spliced.dedup_by_key(|splice| splice.slot);
                let report = report(step + 1, &true_slots, &actions, &spliced);
                read(&mut true_slots, &report);
                sender.step(report);
                prop_assert!(lock(&receiver.pending).entries <= most);
                if reads && step > 400 && let Some(Event::Step(report)) = receiver.try_next() {
                    read(&mut seen, &report);
                }
            }
            drop(sender);
            let mut last = 0;
            while let Some(event) = receiver.next_blocking() {
                let Event::Step(report) = event else { panic!("no end was reported") };
                prop_assert!(report.step > last);
                last = report.step;
                read(&mut seen, &report);
            }
            prop_assert_eq!(last == count || last == 0, true);
            prop_assert_eq!(seen, true_slots);
        }
    }
}
