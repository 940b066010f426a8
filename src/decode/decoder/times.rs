//! The times of the steps, of plans that follow a noise schedule.

use super::{BlockSchedule, Decoder};
use crate::decode::{Budget, Finish, Remasking, Revision};

impl BlockSchedule {
    /// Times t and s of `step` on the even grid from 1 to `last`, in f32 as the official samplers have
    /// it; `None` at the last step and after it.
    pub(super) fn times(&self, step: usize, last: f32) -> Option<(f32, f32)> {
        let steps = self.steps.filter(|steps| step + 1 < *steps)?;
        let t = self.time(step, last)?;
        let s = match self.finish {
            // The shorter step ends before `last`, but not always when it is rounded.
            Finish::DrawnAfterShortSteps => (t - (1.0 - last) / steps as f32).max(last),
            _ => self.time(step + 1, last)?,
        };
        Some((t, s))
    }

    /// The time at which `step` begins, and of steps after those of the block that of its last one; `None` if the block
    /// has no steps of its own.
    pub(super) fn time(&self, step: usize, last: f32) -> Option<f32> {
        let last_step = self.steps?.saturating_sub(1);
        let intervals = match self.finish {
            Finish::WithLastInterval => last_step + 1,
            Finish::MostProbable | Finish::Drawn | Finish::DrawnAfterShortSteps => last_step,
        };
        let (step, intervals) = (step.min(last_step), intervals.max(1));
        Some(match last == 0.0 {
            // As dllm has it, which divides what is left; samplers whose grid ends before 0 count from 1 down.
            true => (intervals - step) as f32 / intervals as f32,
            false => 1.0 - step as f32 / intervals as f32 * (1.0 - last),
        })
    }
}

impl Decoder {
    /// Times t and s between which the next step denoises, for the budgets that follow a noise schedule; s is
    /// 0 at the last step. `None` for other budgets.
    pub fn times(&self) -> Option<(f32, f32)> {
        let last = self.plan.budget.last_time()?;
        let block = self.blocks.get(self.block)?;
        let t = block.time(self.step_in_block, last)?;
        let s = block
            .times(self.step_in_block, last)
            .map_or(0.0, |(_, s)| s);
        Some((t, s))
    }

    /// The share of the slots to be filled that is masked on average when the next step begins, where the plan's times
    /// say it: the time itself, of the budget `ancestral`. `None` where it is the canvas that says it: of other budgets, of
    /// ReMDM's loop, whose shares are its own, and after the steps of a block, with slots left that a constraint put off.
    pub fn expected_masked_share(&self) -> Option<f64> {
        let Budget::Ancestral { eps } = self.plan.budget else {
            return None;
        };
        if let Revision::Remask(Remasking::Loop { .. }) = self.plan.revision {
            return None;
        }
        let block = self.blocks.get(self.block)?;
        let has_steps = block.steps.is_some_and(|steps| self.step_in_block < steps);
        let time = block.time(self.step_in_block, eps).filter(|_| has_steps)?;
        Some(f64::from(time))
    }
}
