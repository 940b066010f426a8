//! Follows a plan over one canvas.

mod chance;
mod renoising;
mod resizing;
mod rest;
#[cfg(test)]
mod tests;
mod times;

use std::ops::Range;

use crate::canvas::{Canvas, Commit, Splice, TokenId};
use crate::constraint::CanvasConstraint;
use crate::decode::blocks::blocks;
use crate::decode::budget::scheduled;
use crate::decode::{
    BlockEntry, Budget, Candidate, DecodePlan, EarlyStop, Finish, PlanError, Revision, Rounding,
};
use crate::sampling::exact::gumbel;
use crate::sampling::philox::{Draws, Stream};

pub use resizing::Resizable;
use resizing::ResizeState;
use rest::Stability;

/// The state of one canvas's denoising: the current block and how many of its steps are taken.
#[derive(Debug, Clone)]
pub struct Decoder {
    plan: DecodePlan,
    stop_tokens: Vec<TokenId>,
    blocks: Vec<BlockSchedule>,
    block: usize,
    step_in_block: usize,
    /// Steps taken in the current block since none of its slots was masked.
    post_steps: usize,
    steps: usize,
    /// For each step and slot, the number that decides in the place of the seed's whether it is unmasked.
    recorded: Option<Vec<Vec<f32>>>,
    /// For models that can change the length of gaps.
    resize: Option<ResizeState>,
    /// For plans that go on until the most probable tokens of a block stay the same.
    stability: Stability,
}

/// What a step changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// The step, from 1.
    pub step: usize,
    /// Slots that were committed or edited, in slot order, with what was known of their tokens.
    pub committed: Vec<(usize, Commit)>,
    /// Slots that were masked again, in slot order.
    pub remasked: Vec<usize>,
    /// Slots that hold another noise token than before, with it, in slot order: of the uniform process only.
    pub noise: Vec<(usize, TokenId)>,
    /// Slots that were replaced by masked ones after all that, in slot order, as they were before. None of them
    /// was committed.
    pub spliced: Vec<Splice>,
    /// The steps after it for which the network is not needed and that masked slots again: each with those, in
    /// slot order.
    pub idle: Vec<(usize, Vec<usize>)>,
}

#[derive(Debug, Clone)]
struct BlockSchedule {
    slots: Range<usize>,
    /// Slots that are split over the steps: those masked when the block is entered, or the block length.
    shared: usize,
    /// The block's steps, if the plan names them.
    steps: Option<usize>,
    finish: Finish,
}

impl BlockSchedule {
    /// The even split's count at `step` of this block.
    fn even_share(&self, step: usize) -> usize {
        match self.steps {
            Some(steps) if step < steps => {
                self.shared / steps + usize::from(step < self.shared % steps)
            }
            _ => 0,
        }
    }
}

impl Decoder {
    /// Begins `plan` on `canvas`. A stop token ends the denoising as [`DecodePlan::early_stop`] says.
    ///
    /// # Errors
    /// If the plan is invalid, is of the other process than the canvas, has fewer steps than the canvas
    /// has blocks, or resizes gaps, for which [`Decoder::resizable`] is.
    pub fn new(
        plan: &DecodePlan,
        canvas: &Canvas,
        stop_tokens: &[TokenId],
    ) -> Result<Self, PlanError> {
        if plan.is_resizing() {
            return Err(PlanError::Invalid {
                field: "revision",
                reason: "`resize` needs a model with an expand and a delete token".into(),
            });
        }
        let mut decoder = Self::begin(plan, canvas, stop_tokens)?;
        decoder.skip_idle_steps(canvas);
        Ok(decoder)
    }

    fn begin(
        plan: &DecodePlan,
        canvas: &Canvas,
        stop_tokens: &[TokenId],
    ) -> Result<Self, PlanError> {
        plan.validate()?;
        plan.check_blank(canvas.blank())?;
        let blocks = blocks(canvas, plan.block_length, plan.block_origin);
        if let Some(steps) = plan.steps
            && steps < blocks.len()
        {
            return Err(PlanError::TooFewSteps {
                steps,
                blocks: blocks.len(),
                block_length: plan.block_length.unwrap_or(canvas.len()),
            });
        }
        let count = blocks.len();
        let blocks: Vec<BlockSchedule> = blocks
            .into_iter()
            .enumerate()
            .map(|(i, slots)| schedule(plan, canvas, slots, i, count))
            .collect();
        for steps in blocks.iter().filter_map(|block| block.steps) {
            plan.check_idle_steps(steps)?;
        }
        Ok(Self {
            plan: plan.clone(),
            stop_tokens: stop_tokens.to_vec(),
            blocks,
            block: 0,
            step_in_block: 0,
            post_steps: 0,
            steps: 0,
            recorded: None,
            resize: None,
            stability: Stability::default(),
        })
    }

    /// As [`Decoder::new`], for a run of another implementation whose random numbers were recorded: at the
    /// n-th step from 0 slot i is unmasked by chance if `unmasking[n][i]` is below the probability for it.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn replay(
        plan: &DecodePlan,
        canvas: &Canvas,
        stop_tokens: &[TokenId],
        unmasking: Vec<Vec<f32>>,
    ) -> Result<Self, PlanError> {
        let mut decoder = Self::begin(plan, canvas, stop_tokens)?;
        decoder.recorded = Some(unmasking);
        decoder.skip_idle_steps(canvas);
        Ok(decoder)
    }

    /// The temperature by which the next step's tokens are drawn.
    pub fn temperature(&self) -> f32 {
        let removes_noise = self.plan.finish == Finish::MostProbable
            && self.plan.budget.last_time().is_some_and(|last| {
                let block = self.blocks.get(self.block);
                block.is_some_and(|block| block.times(self.step_in_block, last).is_none())
            });
        match removes_noise {
            true => 0.0,
            false => self.scheduled_temperature(),
        }
    }

    fn scheduled_temperature(&self) -> f32 {
        let steps = |blocks: &[BlockSchedule]| -> usize {
            blocks.iter().filter_map(|block| block.steps).sum()
        };
        let block = self.block.min(self.blocks.len());
        // Steps after those of the block, which only revise it, are as warm as its last one.
        let last = self.blocks.get(block).and_then(|block| block.steps);
        let step = match last {
            Some(steps) => self.step_in_block.min(steps.saturating_sub(1)),
            None => self.step_in_block,
        };
        let sampling = &self.plan.sampling;
        let schedule = sampling.temperature_schedule;
        let (step, steps) = match schedule.is_by_block() {
            true => (step, last.unwrap_or(0)),
            false => (steps(&self.blocks[..block]) + step, steps(&self.blocks)),
        };
        schedule.at(sampling.temperature, step, steps)
    }

    /// How many the plan commits a step.
    pub fn budget(&self) -> Budget {
        self.plan.budget
    }

    /// Denoise steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The most steps, and so reports, that this decoder can still take.
    pub fn step_limit(&self) -> usize {
        let post_steps = match self.plan.revision {
            Revision::Edit { max_post_steps, .. } => max_post_steps.saturating_add(1),
            Revision::Resize(_) => self.resize.map_or(0, |resize| resize.step_allowance()),
            _ => 0,
        };
        self.blocks[self.block.min(self.blocks.len())..]
            .iter()
            .map(|block| {
                block
                    .slots
                    .len()
                    .max(block.steps.unwrap_or(0))
                    .saturating_add(post_steps)
            })
            .fold(0, usize::saturating_add)
    }

    /// The slots of the current block; empty when nothing is left to do.
    pub fn block(&self) -> Range<usize> {
        self.blocks
            .get(self.block)
            .map_or(0..0, |block| block.slots.clone())
    }

    /// The slots of the last block; empty if there are no blocks.
    pub fn last_block(&self) -> Range<usize> {
        self.blocks.last().map_or(0..0, |block| block.slots.clone())
    }

    /// The slot before which no later step changes what is committed: the first of the current block where the plan
    /// revises, as it does within a block alone; otherwise, and when nothing is left to do, the canvas's end.
    pub fn final_before(&self, canvas: &Canvas) -> usize {
        match self.blocks.get(self.block) {
            Some(block) if self.plan.is_revising() => block.slots.start,
            _ => canvas.len(),
        }
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.block >= self.blocks.len()
    }

    /// The slots whose logits the next step needs, in slot order.
    pub fn scored_slots(&self, canvas: &Canvas) -> Vec<usize> {
        let Some(block) = self.blocks.get(self.block) else {
            return Vec::new();
        };
        match (self.plan.budget, self.plan.revision) {
            (_, Revision::Edit { .. } | Revision::Renoise | Revision::RenoiseRest { .. }) => block
                .slots
                .clone()
                .filter(|slot| !canvas.is_fixed(*slot))
                .collect(),
            (Budget::Ancestral { eps }, _) => self.unmasked_by_chance(canvas, block, eps),
            _ => canvas.masked_in(block.slots.clone()).collect(),
        }
    }

    /// Commits the chosen of `candidates`, which hold one entry a scored slot in slot order, revises what
    /// the plan revises, and goes on to the next step.
    pub fn advance(&mut self, canvas: &mut Canvas, candidates: &[Candidate]) -> Change {
        self.advance_within(canvas, candidates, None)
    }

    /// As [`Decoder::advance`], within a constraint by which each candidate by itself may be committed, and whose
    /// share of work may have left some of the scored slots without a candidate. Candidates are
    /// committed in their order; one that contradicts those before it is put off to a later step, and so are all
    /// after the first once the step's share of the constraint's work is spent, so that a canvas may take more
    /// steps than the plan has.
    pub fn advance_within(
        &mut self,
        canvas: &mut Canvas,
        candidates: &[Candidate],
        mut constraint: Option<&mut CanvasConstraint>,
    ) -> Change {
        let Some(block) = self.blocks.get(self.block).cloned() else {
            return Change::default();
        };
        if self.plan.revision == Revision::Renoise {
            let change = self.renoise(canvas, &block, candidates);
            self.step_in_block += 1;
            self.leave_block_if_done(canvas, &block, true);
            return change;
        }
        if let Revision::RenoiseRest {
            stable_steps,
            max_entropy,
        } = self.plan.revision
        {
            let limits = (stable_steps, max_entropy);
            return self.accept_or_renoise(canvas, &block, candidates, limits);
        }
        // Slots are masked again by what they were before the step.
        let remasked = self.remasked_by_chance(canvas, &block);
        self.steps += 1;
        let step = self.steps;
        let had_masked = canvas.masked_in(block.slots.clone()).next().is_some();
        let left_some = constraint.is_some() && candidates.len() < self.scored_slots(canvas).len();
        let mut committed = self.choose(canvas, &block, candidates, constraint.is_some());
        let spliced = self.splices(canvas, &mut committed);
        let edits = self.edits(canvas, candidates);
        committed.extend(edits);
        if let Some(constraint) = &mut constraint {
            let mut count = 0;
            committed.retain(|candidate| {
                let fits = (count == 0 || !constraint.is_spent())
                    && constraint.commit(candidate.slot, candidate.token);
                count += usize::from(fits);
                fits
            });
        }
        let is_edit = |candidate: &Candidate| !canvas.is_masked(candidate.slot);
        let edited = committed.iter().any(is_edit);
        committed.sort_by_key(|candidate| candidate.slot);
        let committed: Vec<(usize, Commit)> = committed
            .iter()
            .map(|candidate| (candidate.slot, self.commit_of(candidate)))
            .collect();
        for (slot, commit) in &committed {
            if let Some(slot) = canvas.gap_slot_mut(*slot) {
                slot.commit(*commit);
            }
        }
        chance::remask(canvas, &remasked);
        let block = self.splice(canvas, block, &spliced);
        self.step_in_block += 1;
        self.leave_block_if_done(canvas, &block, had_masked || edited || left_some);
        let idle = self.skip_idle_steps_and_remask(canvas);
        if let Some(constraint) = constraint {
            let in_idle = idle.iter().flat_map(|(_, slots)| slots);
            let all = remasked.iter().chain(in_idle);
            all.for_each(|slot| constraint.free(*slot));
        }
        Change {
            step,
            committed,
            remasked,
            noise: Vec::new(),
            spliced,
            idle,
        }
    }

    /// What is known of a candidate's token in the current step.
    fn commit_of(&self, candidate: &Candidate) -> Commit {
        Commit {
            token: candidate.token,
            probability: candidate.probability,
            score: self.plan.score.of(candidate),
            step: self.steps,
        }
    }

    /// Goes on to the next block if this one is finished; `active` says whether the step had a masked slot
    /// to look at, edited one, or left some for a later step; where the rest is noised anew, whether the block has
    /// another step.
    fn leave_block_if_done(&mut self, canvas: &Canvas, block: &BlockSchedule, active: bool) {
        let masked = canvas.masked_in(block.slots.clone()).next().is_some();
        let done = match (self.plan.revision, self.plan.budget) {
            _ if self.stops_at_once(canvas) => {
                self.block = self.blocks.len();
                return;
            }
            (Revision::Edit { max_post_steps, .. }, _) if !masked => {
                self.post_steps += 1;
                !active || self.post_steps > max_post_steps
            }
            (Revision::RenoiseRest { .. }, _) => !active,
            (Revision::Remask(_) | Revision::Renoise, _) => block
                .steps
                .is_none_or(|steps| self.step_in_block >= steps && !masked),
            _ => !masked,
        };
        if done {
            self.block += 1;
            self.step_in_block = 0;
            self.post_steps = 0;
            if self.plan.early_stop != EarlyStop::Never && self.first_stop(canvas).is_some() {
                self.block = self.blocks.len();
            }
        }
    }

    /// The candidates to commit, to masked slots or where the plan chooses anew to any, the best first.
    fn choose(
        &self,
        canvas: &Canvas,
        block: &BlockSchedule,
        candidates: &[Candidate],
        is_constrained: bool,
    ) -> Vec<Candidate> {
        let chooses_anew = matches!(self.plan.revision, Revision::RenoiseRest { .. });
        let open = candidates
            .iter()
            .filter(|candidate| chooses_anew || canvas.is_masked(candidate.slot));
        let mut ranked: Vec<Candidate> = open.copied().collect();
        if matches!(self.plan.budget, Budget::Ancestral { .. }) || ranked.is_empty() {
            return ranked;
        }
        if let (true, Some(eps)) = (
            self.plan.budget.is_by_scores(),
            self.plan.budget.last_time(),
        ) {
            if block.times(self.step_in_block, eps).is_some() {
                ranked.retain(|c| c.uniform < c.unmasking.unwrap_or(0.0));
            }
            return ranked;
        }
        if self.enters_by_first_slot() {
            ranked.truncate(1);
            return ranked;
        }
        let is_last = |candidate: &Candidate| self.plan.commit_last.contains(&candidate.token);
        // A stable sort: of equal ranks the leftmost slot goes first.
        ranked.sort_by(|a, b| self.rank(b).total_cmp(&self.rank(a)));
        ranked.sort_by_key(is_last);
        let others = match ranked.partition_point(|candidate| !is_last(candidate)) {
            0 => ranked.len(),
            others => others,
        };
        let count = match self.plan.budget {
            Budget::Schedule { rounding, eps } => {
                // All of them, those that a constraint leaves for a later step too.
                let masked = canvas.masked_in(block.slots.clone()).count();
                self.scheduled(block, masked, rounding, eps)
            }
            // What was put off is made up for once the plan's steps are taken.
            _ if is_constrained && block.steps.is_some_and(|s| self.step_in_block >= s) => {
                ranked.len()
            }
            budget => budget
                .by_candidates(&mut ranked[..others])
                .max(match chooses_anew {
                    true => 0,
                    false => block.even_share(self.step_in_block),
                })
                .max(self.plan.at_least)
                .max(1),
        };
        ranked.truncate(count);
        ranked
    }

    /// Whether this step commits its block's first slot, whatever the budget.
    fn enters_by_first_slot(&self) -> bool {
        self.plan.block_entry == BlockEntry::FirstSlot && self.step_in_block == 0
    }

    /// How many of `masked` slots the schedule asks for in the current step.
    fn scheduled(
        &self,
        block: &BlockSchedule,
        masked: usize,
        rounding: Rounding,
        eps: f32,
    ) -> usize {
        match block.times(self.step_in_block, eps) {
            Some((t, s)) => scheduled(masked, t, s, rounding),
            None => masked,
        }
    }

    fn rank(&self, candidate: &Candidate) -> f32 {
        let score = self.plan.score.of(candidate);
        let temperature = self.plan.score_temperature;
        if temperature == 0.0 {
            return score;
        }
        let draws = self.draws(candidate.slot, Stream::ScoreNoise);
        score / temperature + gumbel(draws.quad(0)[0])
    }

    /// The candidates that replace another committed token of the current block.
    fn edits(&self, canvas: &Canvas, candidates: &[Candidate]) -> Vec<Candidate> {
        let Revision::Edit { threshold, .. } = self.plan.revision else {
            return Vec::new();
        };
        candidates
            .iter()
            .filter(|candidate| {
                canvas
                    .provenance(candidate.slot)
                    .is_some_and(|commit| commit.token != candidate.token)
                    && candidate.probability > threshold
            })
            .copied()
            .collect()
    }

    fn stops_at_once(&self, canvas: &Canvas) -> bool {
        self.plan.early_stop == EarlyStop::AtOnce
            && self
                .first_stop(canvas)
                .is_some_and(|stop| canvas.masked_in(0..stop).next().is_none())
    }

    /// The first slot that holds a committed stop token.
    fn first_stop(&self, canvas: &Canvas) -> Option<usize> {
        canvas.gaps().iter().flat_map(Clone::clone).find(|slot| {
            canvas
                .provenance(*slot)
                .is_some_and(|commit| self.stop_tokens.contains(&commit.token))
        })
    }

    fn draws(&self, slot: usize, stream: Stream) -> Draws {
        Draws::new(self.plan.sampling.seed, self.steps, slot, stream)
    }
}

fn schedule(
    plan: &DecodePlan,
    canvas: &Canvas,
    slots: Range<usize>,
    index: usize,
    count: usize,
) -> BlockSchedule {
    let masked = canvas.masked_in(slots.clone()).count();
    if let (Some(steps), Some(length)) = (plan.steps_per_block, plan.block_length) {
        return BlockSchedule {
            slots,
            shared: length,
            steps: Some(steps),
            finish: plan.finish,
        };
    }
    let follows_schedule = plan.budget.last_time().is_some();
    let steps = match plan.steps {
        Some(steps) => {
            let share = steps / count + usize::from(index < steps % count);
            let revises = matches!(plan.revision, Revision::RenoiseRest { .. });
            // An even split of more steps than slots would commit nothing in some of them.
            Some(if follows_schedule || revises {
                share
            } else {
                share.min(masked)
            })
        }
        None if follows_schedule || plan.budget == Budget::Even => Some(masked),
        None => None,
    };
    BlockSchedule {
        slots,
        shared: masked,
        steps,
        finish: plan.finish,
    }
}
