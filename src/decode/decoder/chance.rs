//! The steps that the reverse process takes by chance: which slots are unmasked and masked again, and the
//! steps in between for which the network is not needed.

use super::{BlockSchedule, Decoder};
use crate::canvas::Canvas;
use crate::decode::{Budget, Revision};
use crate::sampling::philox::Stream;

/// The re-masking process fails only on parameters out of range, whatever the times, and on probabilities
/// that are not finite, which the sampler refuses.
const VALIDATED: &str = "the parameters were checked with the plan";

impl Decoder {
    /// The masked slots of `block` that the reverse process unmasks in the current step.
    pub(super) fn unmasked_by_chance(
        &self,
        canvas: &Canvas,
        block: &BlockSchedule,
        last: f32,
    ) -> Vec<usize> {
        let masked = canvas.masked_in(block.slots.clone());
        let Some((t, s)) = block.times(self.step_in_block, last) else {
            return masked.collect();
        };
        let probability = match self.plan.revision {
            Revision::Remask(remasking) => remasking
                .step(f64::from(s), f64::from(t))
                .and_then(|step| step.unmasking(committed(canvas, block).count()))
                .expect(VALIDATED) as f32,
            _ => 1.0 - s / t,
        };
        masked
            .filter(|slot| self.unmasking_draw(*slot) < probability)
            .collect()
    }

    /// The number in [0, 1) that decides whether `slot` is unmasked in the current step.
    fn unmasking_draw(&self, slot: usize) -> f32 {
        match &self.recorded {
            Some(steps) => {
                let draw = steps.get(self.steps).and_then(|slots| slots.get(slot));
                // A slot without a recorded number stays masked.
                draw.copied().unwrap_or(f32::INFINITY)
            }
            None => self.draws(slot, Stream::Unmask).uniform(),
        }
    }

    /// The committed slots of `block` that the reverse process masks again in the current step.
    pub(super) fn remasked_by_chance(&self, canvas: &Canvas, block: &BlockSchedule) -> Vec<usize> {
        let (Revision::Remask(remasking), Some(last)) =
            (self.plan.revision, self.plan.budget.last_time())
        else {
            return Vec::new();
        };
        let Some((t, s)) = block.times(self.step_in_block, last) else {
            return Vec::new();
        };
        let committed: Vec<(usize, f64)> = committed(canvas, block).collect();
        let probabilities: Vec<f64> = committed.iter().map(|(_, p)| *p).collect();
        let sigmas = remasking
            .step(f64::from(s), f64::from(t))
            .and_then(|step| step.remasking(&probabilities))
            .expect(VALIDATED);
        committed
            .into_iter()
            .zip(sigmas)
            .map(|((slot, _), sigma)| (slot, sigma))
            .filter(|(slot, sigma)| f64::from(self.draws(*slot, Stream::Remask).uniform()) < *sigma)
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Takes the steps for which the network is not needed: those in which the schedule, or chance,
    /// unmasks no slot.
    pub(super) fn skip_idle_steps(&mut self, canvas: &Canvas) {
        while self.is_idle(canvas) {
            self.steps += 1;
            self.step_in_block += 1;
        }
    }

    /// The same where committed slots may be masked again meanwhile: each step that did so, with those.
    pub(super) fn skip_idle_steps_and_remask(
        &mut self,
        canvas: &mut Canvas,
    ) -> Vec<(usize, Vec<usize>)> {
        let mut all = Vec::new();
        while self.is_idle(canvas) {
            if let Some(block) = self.blocks.get(self.block).cloned() {
                let remasked = self.remasked_by_chance(canvas, &block);
                remask(canvas, &remasked);
                self.steps += 1;
                self.step_in_block += 1;
                if !remasked.is_empty() {
                    all.push((self.steps, remasked));
                }
                self.leave_block_if_done(canvas, &block, true);
            }
        }
        all
    }

    fn is_idle(&self, canvas: &Canvas) -> bool {
        let Some(block) = self.blocks.get(self.block) else {
            return false;
        };
        if self.enters_by_first_slot() {
            return false;
        }
        match (self.plan.budget, self.plan.revision) {
            (Budget::Ancestral { .. }, _) => self.scored_slots(canvas).is_empty(),
            (Budget::Schedule { rounding, eps }, Revision::None) => {
                let masked = canvas.masked_in(block.slots.clone()).count();
                self.scheduled(block, masked, rounding, eps) == 0
            }
            _ => false,
        }
    }
}

/// The committed slots of `block` that are not settled, each with the probability that its token was committed with.
fn committed(canvas: &Canvas, block: &BlockSchedule) -> impl Iterator<Item = (usize, f64)> {
    let slots = block.slots.clone().filter(|slot| !canvas.is_fixed(*slot));
    slots.filter_map(|slot| Some((slot, f64::from(canvas.provenance(slot)?.probability))))
}

/// Masks committed slots again.
pub(super) fn remask(canvas: &mut Canvas, slots: &[usize]) {
    for slot in slots {
        if let Some(slot) = canvas.gap_slot_mut(*slot) {
            slot.remask();
        }
    }
}
