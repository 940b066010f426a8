//! The steps of the uniform process that accept some slots of a block and noise all others anew.

use super::{BlockSchedule, Change, Decoder};
use crate::canvas::{Blank, Canvas, TokenId};
use crate::decode::Candidate;
use crate::decode::plan::noise;
use crate::sampling::philox::Stream;

/// For how many steps the most probable tokens of a block have stayed the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Stability {
    tokens: Vec<TokenId>,
    /// Steps before the last one with the same tokens.
    steps: usize,
}

impl Stability {
    /// Notes the most probable tokens of a step; for how many steps before it they were the same.
    fn note(&mut self, tokens: Vec<TokenId>) -> usize {
        self.steps = match tokens == self.tokens {
            true => self.steps + 1,
            false => 0,
        };
        self.tokens = tokens;
        self.steps
    }
}

impl Decoder {
    /// Takes a step: the chosen `candidates` are committed, and all other slots of the block take new noise. In the
    /// block's last step every slot takes its most probable token: it is the last of the block's, or one whose most
    /// probable tokens were the same for as many steps before it as the first of the limits says, with a mean entropy
    /// below the second.
    ///
    /// A slot that keeps a committed token stays as it is.
    pub(super) fn accept_or_renoise(
        &mut self,
        canvas: &mut Canvas,
        block: &BlockSchedule,
        candidates: &[Candidate],
        (stable_steps, max_entropy): (usize, f32),
    ) -> Change {
        let most_probable = candidates.iter().map(|candidate| candidate.most_probable);
        let is_stable = self.stability.note(most_probable.collect()) >= stable_steps;
        let entropy: f32 = candidates.iter().map(|candidate| candidate.entropy).sum();
        let is_certain = entropy / (candidates.len().max(1) as f32) < max_entropy;
        let is_out_of_steps = block
            .steps
            .is_none_or(|steps| self.step_in_block + 1 >= steps);
        let is_last = is_out_of_steps || (is_stable && is_certain);
        let accepted: Vec<usize> = match is_last {
            true => Vec::new(),
            false => {
                let chosen = self.choose(canvas, block, candidates, false);
                let mut slots: Vec<usize> = chosen.iter().map(|chosen| chosen.slot).collect();
                slots.sort_unstable();
                slots
            }
        };
        self.steps += 1;
        let mut change = Change {
            step: self.steps,
            ..Change::default()
        };
        for candidate in candidates {
            if is_last {
                let best = Candidate {
                    token: candidate.most_probable,
                    probability: candidate.best,
                    ..*candidate
                };
                self.commit_anew(canvas, &best, &mut change);
            } else if accepted.binary_search(&candidate.slot).is_ok() {
                self.commit_anew(canvas, candidate, &mut change);
            } else {
                self.noise_anew(canvas, candidate.slot, &mut change);
            }
        }
        self.step_in_block += 1;
        if is_last {
            self.stability = Stability::default();
        }
        self.leave_block_if_done(canvas, block, !is_last);
        change
    }

    fn commit_anew(&self, canvas: &mut Canvas, candidate: &Candidate, change: &mut Change) {
        let Some(slot) = canvas.gap_slot_mut(candidate.slot) else {
            return;
        };
        let held = slot.provenance().map(|commit| commit.token);
        if held != Some(candidate.token) {
            let commit = self.commit_of(candidate);
            slot.commit(commit);
            change.committed.push((candidate.slot, commit));
        }
    }

    fn noise_anew(&self, canvas: &mut Canvas, slot: usize, change: &mut Change) {
        let Blank::Noise { vocab } = canvas.blank() else {
            return;
        };
        let drawn = noise(self.draws(slot, Stream::Renoise), vocab);
        let Some(of_gap) = canvas.gap_slot_mut(slot) else {
            return;
        };
        if of_gap.provenance().is_some() {
            change.remasked.push(slot);
        }
        of_gap.renoise(drawn);
        change.noise.push((slot, drawn));
    }
}
