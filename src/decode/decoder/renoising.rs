//! The reverse process of the uniform one: every slot of a gap is drawn anew at every step.

use super::{BlockSchedule, Change, Decoder};
use crate::canvas::{Blank, Canvas};
use crate::decode::{Candidate, Revision};
use crate::diffusion::{Interval, Process, Schedule};
use crate::sampling::philox::Stream;

/// Times lie on a grid in [0, 1], and tokens in the vocabulary that the engine checked.
const IN_RANGE: &str = "times and tokens are in range";

impl Decoder {
    /// ln q(x_t = k | x_0 = k) − ln q(x_t = k | x_0 ≠ k) in the next step: what Bayes' rule adds to the logit
    /// of the token k that a slot holds. `None` for plans that do not renoise, or do so by scores, which say it
    /// all.
    pub fn own_token_bias(&self, canvas: &Canvas) -> Option<f32> {
        if self.plan.budget.is_by_scores() {
            return None;
        }
        let block = self.renoised_block()?;
        let t = block.time(self.step_in_block, self.plan.budget.last_time()?)?;
        let level = Schedule::LogLinear.level(f64::from(t)).expect(IN_RANGE);
        Some(process(canvas)?.signal(level).ln_1p() as f32)
    }

    fn renoised_block(&self) -> Option<&BlockSchedule> {
        self.blocks
            .get(self.block)
            .filter(|_| self.plan.revision == Revision::Renoise)
    }

    /// Takes a step: each candidate's token is x̂_0, from which x_s is drawn by q(x_s | x_t, x̂_0); in the
    /// last step x_s is x̂_0.
    ///
    /// A slot that becomes x̂_0 is committed, one that keeps its token stays what it is, and one that
    /// becomes another token holds noise. By scores each candidate's token is x_s: a slot whose token changes
    /// is committed, and in the last step every one.
    pub(super) fn renoise(
        &mut self,
        canvas: &mut Canvas,
        block: &BlockSchedule,
        candidates: &[Candidate],
    ) -> Change {
        let times = self.plan.budget.last_time();
        let times = times.and_then(|last| block.times(self.step_in_block, last));
        let is_last = times.is_none();
        let by_scores = self.plan.budget.is_by_scores();
        let interval = times.filter(|_| !by_scores).map(|(t, s)| {
            let interval = Schedule::LogLinear.interval(f64::from(s), f64::from(t));
            interval.expect(IN_RANGE)
        });
        let drawn: Vec<usize> = candidates
            .iter()
            .map(|candidate| self.renoised(canvas, interval.as_ref(), candidate))
            .collect();
        self.steps += 1;
        let mut change = Change {
            step: self.steps,
            ..Change::default()
        };
        for (candidate, drawn) in candidates.iter().zip(drawn) {
            let held = canvas.token(candidate.slot) as usize;
            let Some(slot) = canvas.gap_slot_mut(candidate.slot) else {
                continue;
            };
            let committed = slot.provenance().is_some();
            if by_scores && !is_last && drawn == held {
                continue;
            }
            if drawn == candidate.token as usize {
                if !committed || drawn != held {
                    let commit = self.commit_of(candidate);
                    slot.commit(commit);
                    change.committed.push((candidate.slot, commit));
                }
            } else if drawn != held {
                slot.renoise(drawn as u32);
                change.noise.push((candidate.slot, drawn as u32));
                if committed {
                    change.remasked.push(candidate.slot);
                }
            }
        }
        change
    }

    /// x_s of one slot.
    fn renoised(
        &self,
        canvas: &Canvas,
        interval: Option<&Interval>,
        candidate: &Candidate,
    ) -> usize {
        let clean = candidate.token as usize;
        let (Some(interval), Some(process)) = (interval, process(canvas)) else {
            return clean;
        };
        let seen = canvas.token(candidate.slot) as usize;
        let u = self.draws(candidate.slot, Stream::Renoise).fine_uniform();
        process
            .posterior_draw(interval, seen, clean, u)
            .expect(IN_RANGE)
    }
}

/// The process that the canvas's noise is of.
fn process(canvas: &Canvas) -> Option<Process> {
    match canvas.blank() {
        Blank::Mask(_) => None,
        Blank::Noise { vocab } => Process::uniform(vocab).ok(),
    }
}
