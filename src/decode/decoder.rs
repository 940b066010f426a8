//! Follows a plan over one canvas.

use std::ops::Range;

use crate::canvas::{Canvas, Commit, TokenId};
use crate::decode::blocks::blocks;
use crate::decode::budget::scheduled;
use crate::decode::{Budget, Candidate, DecodePlan, EarlyStop, PlanError, Revision, Rounding};
use crate::sampling::philox::{Draws, Stream, gumbel};

/// The re-masking process fails only on parameters out of range, whatever the times, and on probabilities
/// that are not finite, which the sampler refuses.
const VALIDATED: &str = "the parameters were checked with the plan";

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
}

/// What a step changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Slots that were committed or edited, in slot order.
    pub committed: Vec<usize>,
    /// Slots that were masked again, in slot order; possibly one that was committed just before.
    pub remasked: Vec<usize>,
}

#[derive(Debug, Clone)]
struct BlockSchedule {
    slots: Range<usize>,
    /// Slots that are split over the steps: those masked when the block is entered, or the block length.
    shared: usize,
    /// The block's steps, if the plan names them.
    steps: Option<usize>,
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

    /// Times t and s of `step` on the even grid from 1 to `last`, in f32 as the official samplers have
    /// it; `None` at the last step and after it.
    fn times(&self, step: usize, last: f32) -> Option<(f32, f32)> {
        let steps = self.steps.filter(|steps| step + 1 < *steps)?;
        let time = |step: usize| {
            let fraction = step as f32 / steps as f32;
            1.0 - fraction * (1.0 - last)
        };
        Some((time(step), time(step + 1)))
    }
}

impl Decoder {
    /// Begins `plan` on `canvas`. A stop token ends the denoising as [`DecodePlan::early_stop`] says.
    ///
    /// # Errors
    /// If the plan is invalid, or has fewer steps than the canvas has blocks.
    pub fn new(
        plan: &DecodePlan,
        canvas: &Canvas,
        stop_tokens: &[TokenId],
    ) -> Result<Self, PlanError> {
        plan.validate()?;
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
        let blocks = blocks
            .into_iter()
            .enumerate()
            .map(|(i, slots)| schedule(plan, canvas, slots, i, count))
            .collect();
        let mut decoder = Self {
            plan: plan.clone(),
            stop_tokens: stop_tokens.to_vec(),
            blocks,
            block: 0,
            step_in_block: 0,
            post_steps: 0,
            steps: 0,
        };
        decoder.skip_idle_steps(canvas);
        Ok(decoder)
    }

    /// Denoise steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The most steps, and so reports, that this decoder can still take.
    pub fn step_limit(&self) -> usize {
        let post_steps = match self.plan.revision {
            Revision::Edit { max_post_steps, .. } => max_post_steps.saturating_add(1),
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
            (Budget::Ancestral { eps }, _) => self.unmasked_by_chance(canvas, block, eps),
            (_, Revision::Edit { .. }) => block
                .slots
                .clone()
                .filter(|slot| !canvas.is_fixed(*slot))
                .collect(),
            _ => canvas.masked_in(block.slots.clone()).collect(),
        }
    }

    /// Commits the chosen of `candidates`, which hold one entry a scored slot in slot order, revises what
    /// the plan revises, and goes on to the next step.
    pub fn advance(&mut self, canvas: &mut Canvas, candidates: &[Candidate]) -> Change {
        let Some(block) = self.blocks.get(self.block).cloned() else {
            return Change::default();
        };
        // Slots are masked again by what they were before the step.
        let mut remasked = self.remasked_by_chance(canvas, &block);
        self.steps += 1;
        let had_masked = canvas.masked_in(block.slots.clone()).next().is_some();
        let mut committed = self.choose(canvas, &block, candidates);
        let edits = self.edits(canvas, candidates);
        let edited = !edits.is_empty();
        committed.extend(edits);
        committed.sort_by_key(|candidate| candidate.slot);
        for candidate in &committed {
            if let Some(slot) = canvas.gap_slot_mut(candidate.slot) {
                slot.commit(Commit {
                    token: candidate.token,
                    probability: candidate.probability,
                    score: self.plan.score.of(candidate),
                    step: self.steps,
                });
            }
        }
        remask(canvas, &remasked);
        self.step_in_block += 1;
        self.leave_block_if_done(canvas, &block, had_masked || edited);
        remasked.extend(self.skip_idle_steps_and_remask(canvas));
        Change {
            committed: committed.iter().map(|candidate| candidate.slot).collect(),
            remasked,
        }
    }

    /// Goes on to the next block if this one is finished; `active` says whether the step had a masked slot
    /// to look at or edited one.
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
            (Revision::Remask(_), _) => block
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

    /// The candidates to commit to masked slots.
    fn choose(
        &self,
        canvas: &Canvas,
        block: &BlockSchedule,
        candidates: &[Candidate],
    ) -> Vec<Candidate> {
        let masked = candidates
            .iter()
            .filter(|candidate| canvas.is_masked(candidate.slot));
        let mut ranked: Vec<Candidate> = masked.copied().collect();
        if matches!(self.plan.budget, Budget::Ancestral { .. }) || ranked.is_empty() {
            return ranked;
        }
        // A stable sort: of equal ranks the leftmost slot goes first.
        ranked.sort_by(|a, b| self.rank(b).total_cmp(&self.rank(a)));
        let count = match self.plan.budget {
            Budget::Schedule { rounding, eps } => {
                self.scheduled(block, ranked.len(), rounding, eps)
            }
            budget => budget
                .by_candidates(&ranked)
                .max(block.even_share(self.step_in_block))
                .max(self.plan.at_least)
                .max(1),
        };
        ranked.truncate(count);
        ranked
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

    /// The masked slots of `block` that the reverse process unmasks in the current step.
    fn unmasked_by_chance(&self, canvas: &Canvas, block: &BlockSchedule, last: f32) -> Vec<usize> {
        let masked = canvas.masked_in(block.slots.clone());
        let Some((t, s)) = block.times(self.step_in_block, last) else {
            return masked.collect();
        };
        let probability = match self.plan.revision {
            Revision::Remask(remasking) => remasking
                .step(f64::from(s), f64::from(t))
                .and_then(|step| step.unmasking())
                .expect(VALIDATED) as f32,
            _ => 1.0 - s / t,
        };
        masked
            .filter(|slot| self.draws(*slot, Stream::Unmask).uniform() < probability)
            .collect()
    }

    /// The committed slots of `block` that the reverse process masks again in the current step.
    fn remasked_by_chance(&self, canvas: &Canvas, block: &BlockSchedule) -> Vec<usize> {
        let (Revision::Remask(remasking), Some(last)) =
            (self.plan.revision, self.plan.budget.last_time())
        else {
            return Vec::new();
        };
        let Some((t, s)) = block.times(self.step_in_block, last) else {
            return Vec::new();
        };
        let committed: Vec<(usize, f64)> = block
            .slots
            .clone()
            .filter_map(|slot| Some((slot, f64::from(canvas.provenance(slot)?.probability))))
            .collect();
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
    fn skip_idle_steps(&mut self, canvas: &Canvas) {
        while self.is_idle(canvas) {
            self.steps += 1;
            self.step_in_block += 1;
        }
    }

    /// The same where committed slots may be masked again meanwhile; those that were.
    fn skip_idle_steps_and_remask(&mut self, canvas: &mut Canvas) -> Vec<usize> {
        let mut all = Vec::new();
        while self.is_idle(canvas) {
            if let Some(block) = self.blocks.get(self.block).cloned() {
                let remasked = self.remasked_by_chance(canvas, &block);
                remask(canvas, &remasked);
                all.extend(remasked);
                self.steps += 1;
                self.step_in_block += 1;
                self.leave_block_if_done(canvas, &block, true);
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn is_idle(&self, canvas: &Canvas) -> bool {
        let Some(block) = self.blocks.get(self.block) else {
            return false;
        };
        match (self.plan.budget, self.plan.revision) {
            (Budget::Ancestral { .. }, _) => self.scored_slots(canvas).is_empty(),
            (Budget::Schedule { rounding, eps }, Revision::None) => {
                let masked = canvas.masked_in(block.slots.clone()).count();
                self.scheduled(block, masked, rounding, eps) == 0
            }
            _ => false,
        }
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
        };
    }
    let follows_schedule = plan.budget.last_time().is_some();
    let steps = match plan.steps {
        Some(steps) => {
            let share = steps / count + usize::from(index < steps % count);
            // An even split of more steps than slots would commit nothing in some of them.
            Some(if follows_schedule {
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
    }
}

fn remask(canvas: &mut Canvas, slots: &[usize]) {
    for slot in slots {
        if let Some(slot) = canvas.gap_slot_mut(*slot) {
            slot.remask();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::{BlockOrigin, Remasking, Score};

    const MASK: TokenId = 0;
    const STOP: TokenId = 77;

    fn candidates(decoder: &Decoder, canvas: &Canvas) -> Vec<Candidate> {
        let candidate = |slot: usize| {
            let salt = decoder.steps() * 31;
            let probability = ((slot * 7919 + salt) % 101) as f32 / 101.0;
            Candidate {
                slot,
                token: 1 + ((slot + salt) % 50) as TokenId,
                probability,
                best: probability,
                second: 0.0,
                entropy: 1.0 - probability,
                uniform: ((slot * 104_729 + salt) % 997) as f32 / 997.0,
            }
        };
        let slots = decoder.scored_slots(canvas);
        slots.into_iter().map(candidate).collect()
    }

    fn run(plan: &DecodePlan, canvas: &mut Canvas) -> Vec<Change> {
        let mut decoder = Decoder::new(plan, canvas, &[STOP]).unwrap();
        let limit = decoder.step_limit();
        let mut changes = Vec::new();
        while !decoder.is_done() {
            let candidates = candidates(&decoder, canvas);
            changes.push(decoder.advance(canvas, &candidates));
            assert!(changes.len() <= limit, "more reports than the limit");
        }
        changes
    }

    fn counts(changes: &[Change]) -> Vec<usize> {
        changes
            .iter()
            .map(|change| change.committed.len())
            .collect()
    }

    fn gap_of(length: usize) -> Canvas {
        Canvas::builder(MASK)
            .fixed(&[5])
            .gap(length)
            .build()
            .unwrap()
    }

    #[test]
    fn an_even_split_gives_the_remainder_to_the_first_steps() {
        let plan = DecodePlan {
            steps: Some(4),
            ..DecodePlan::default()
        };
        assert_eq!(counts(&run(&plan, &mut gap_of(10))), [3, 3, 2, 2]);
    }

    #[test]
    fn a_block_is_finished_before_the_next_is_begun() {
        let plan = DecodePlan {
            steps: Some(4),
            block_length: Some(4),
            ..DecodePlan::default()
        };
        let changes = run(&plan, &mut gap_of(6));
        assert_eq!(counts(&changes), [2, 2, 1, 1]);
        let mut first_block = changes[..2].iter().flat_map(|change| &change.committed);
        assert!(first_block.all(|slot| *slot < 5));
    }

    #[test]
    fn steps_per_block_share_the_block_length_whatever_part_of_it_is_masked() {
        let plan = DecodePlan {
            steps_per_block: Some(3),
            block_length: Some(8),
            block_origin: BlockOrigin::Canvas,
            budget: Budget::Threshold(1.0),
            ..DecodePlan::default()
        };
        // The first block of 8 holds one fixed slot: shares 3, 3 and what is left.
        assert_eq!(counts(&run(&plan, &mut gap_of(9))), [3, 3, 1, 2]);
    }

    #[test]
    fn a_schedule_is_run_through_in_each_block() {
        let plan = DecodePlan {
            steps_per_block: Some(3),
            block_length: Some(8),
            budget: Budget::Schedule {
                rounding: Rounding::Nearest,
                eps: 0.0,
            },
            ..DecodePlan::default()
        };
        assert_eq!(counts(&run(&plan, &mut gap_of(11))), [3, 2, 3, 1, 1, 1]);
    }

    #[test]
    fn steps_in_which_a_schedule_commits_nothing_are_taken_without_the_network() {
        let plan = |steps| DecodePlan {
            steps: Some(steps),
            budget: Budget::Schedule {
                rounding: Rounding::Floor,
                eps: 1e-3,
            },
            ..DecodePlan::default()
        };
        // Dream's counts for 16 slots in 16 steps are none, then one, and two at the last.
        let expected = [vec![1; 14], vec![2]].concat();
        for steps in [16, 512] {
            let mut canvas = gap_of(16);
            assert_eq!(counts(&run(&plan(steps), &mut canvas)), expected);
            let last = (1..17).filter_map(|slot| canvas.provenance(slot));
            assert_eq!(last.map(|commit| commit.step).max(), Some(steps));
        }
    }

    #[test]
    fn candidates_reach_the_budget_or_the_least_number() {
        let plan = |budget, at_least| DecodePlan {
            budget,
            at_least,
            ..DecodePlan::default()
        };
        let never = Budget::Threshold(1.0);
        assert_eq!(counts(&run(&plan(never, 0), &mut gap_of(3))), [1, 1, 1]);
        assert_eq!(counts(&run(&plan(never, 2), &mut gap_of(3))), [2, 1]);
        let always = Budget::Threshold(0.0);
        assert_eq!(counts(&run(&plan(always, 0), &mut gap_of(3))), [3]);
    }

    #[test]
    fn ancestral_sampling_unmasks_each_slot_with_the_probability_of_the_reverse_process() {
        let plan = |seed| {
            let mut plan = DecodePlan {
                steps: Some(4),
                budget: Budget::Ancestral { eps: 0.0 },
                ..DecodePlan::default()
            };
            plan.sampling.seed = seed;
            plan
        };
        let mut by_step = [0usize; 4];
        for seed in 0..200 {
            let mut canvas = gap_of(20);
            run(&plan(seed), &mut canvas);
            for slot in 1..21 {
                by_step[canvas.provenance(slot).unwrap().step - 1] += 1;
            }
        }
        // Each of the four steps unmasks a quarter: 1000 of 4000, standard deviation 27.
        for count in by_step {
            assert!(count.abs_diff(1000) < 110, "{by_step:?}");
        }
    }

    #[test]
    fn re_masking_masks_committed_slots_again_and_still_fills_every_gap() {
        for remasking in [
            Remasking::Cap(0.1),
            Remasking::Rescale(0.5),
            Remasking::Confidence(1.0),
            Remasking::Stochastic(4.0),
            Remasking::Corrector(1.0),
            Remasking::Loop {
                eta: 0.1,
                t_on: 0.55,
                t_off: 0.05,
                alpha_on: 0.9,
            },
        ] {
            let mut plan = DecodePlan {
                steps: Some(40),
                budget: Budget::Ancestral { eps: 1e-5 },
                revision: Revision::Remask(remasking),
                ..DecodePlan::default()
            };
            plan.sampling.seed = 3;
            let mut canvas = gap_of(30);
            let changes = run(&plan, &mut canvas);
            assert_eq!(canvas.masked(), 0);
            let remasked: usize = changes.iter().map(|change| change.remasked.len()).sum();
            let counted: usize = (1..31)
                .map(|slot| canvas.gap_slot(slot).unwrap().remasked())
                .sum();
            assert!(remasked > 0 && counted >= remasked, "{remasking:?}");
        }
    }

    #[test]
    fn editing_replaces_committed_tokens_and_ends() {
        let plan = DecodePlan {
            budget: Budget::Threshold(0.9),
            revision: Revision::Edit {
                threshold: 0.5,
                max_post_steps: 3,
            },
            ..DecodePlan::default()
        };
        let mut canvas = gap_of(8);
        run(&plan, &mut canvas);
        assert_eq!(canvas.masked(), 0);
        let edits: usize = (1..9)
            .map(|slot| canvas.gap_slot(slot).unwrap().edited())
            .sum();
        assert!(edits > 0);
        assert_eq!(canvas.token(0), 5);
    }

    #[test]
    fn a_stop_token_ends_the_canvas_after_its_block_or_at_once() {
        let committed = |early_stop| {
            let plan = DecodePlan {
                block_length: Some(4),
                early_stop,
                score: Score::LeftToRight,
                ..DecodePlan::default()
            };
            let mut canvas = gap_of(12);
            let mut decoder = Decoder::new(&plan, &canvas, &[STOP]).unwrap();
            while !decoder.is_done() {
                let mut candidates = candidates(&decoder, &canvas);
                for candidate in &mut candidates {
                    candidate.token = if candidate.slot == 2 { STOP } else { 1 };
                }
                decoder.advance(&mut canvas, &candidates);
            }
            12 - canvas.masked()
        };
        assert_eq!(committed(EarlyStop::Never), 12);
        assert_eq!(committed(EarlyStop::AfterBlock), 4);
        assert_eq!(committed(EarlyStop::AtOnce), 2);
    }

    #[test]
    fn plans_that_contradict_themselves_are_refused_by_the_field() {
        let canvas = gap_of(8);
        let plan = DecodePlan {
            block_length: Some(4),
            ..DecodePlan::default()
        };
        let remask = Revision::Remask(Remasking::Cap(0.1));
        let refused = [
            (
                "steps",
                DecodePlan {
                    steps: Some(1),
                    ..plan.clone()
                },
            ),
            (
                "steps",
                DecodePlan {
                    steps: Some(0),
                    ..plan.clone()
                },
            ),
            (
                "revision",
                DecodePlan {
                    revision: remask,
                    ..plan.clone()
                },
            ),
            (
                "steps_per_block",
                DecodePlan {
                    steps: Some(8),
                    steps_per_block: Some(2),
                    ..plan.clone()
                },
            ),
            (
                "steps_per_block",
                DecodePlan {
                    steps_per_block: Some(2),
                    block_length: None,
                    ..plan.clone()
                },
            ),
            (
                "score_temperature",
                DecodePlan {
                    score_temperature: -1.0,
                    ..plan
                },
            ),
        ];
        for (field, plan) in refused {
            assert_eq!(
                Decoder::new(&plan, &canvas, &[]).unwrap_err().field(),
                field
            );
        }
    }

    fn any_budget() -> impl Strategy<Value = Budget> {
        prop_oneof![
            Just(Budget::Even),
            (0.0f32..=1.0).prop_map(Budget::Threshold),
            (0.0f32..4.0).prop_map(Budget::Factor),
            (0.0f32..4.0).prop_map(Budget::EntropyBound),
            (0.0f32..0.1, proptest::bool::ANY).prop_map(|(eps, floor)| Budget::Schedule {
                eps,
                rounding: if floor {
                    Rounding::Floor
                } else {
                    Rounding::Nearest
                },
            }),
            (0.0f32..0.1).prop_map(|eps| Budget::Ancestral { eps }),
        ]
    }

    proptest! {
        #[test]
        fn every_plan_fills_every_gap_and_leaves_fixed_slots_alone(
            ids in proptest::collection::vec(0u32..3, 1..60),
            budget in any_budget(),
            score in proptest::sample::select(&Score::ALL[..]),
            score_temperature in prop_oneof![Just(0.0f32), Just(0.5)],
            block_length in proptest::option::of(1usize..40),
            extra_steps in proptest::option::of(0usize..30),
            origin in proptest::sample::select(vec![BlockOrigin::Gap, BlockOrigin::Canvas]),
            seed in 0u64..1000,
            revise in proptest::bool::ANY,
        ) {
            let Ok(mut canvas) = Canvas::from_ids(&ids, MASK) else { return Ok(()) };
            let masked = canvas.masked();
            let revision = match (revise, budget) {
                (false, _) => Revision::None,
                (true, Budget::Ancestral { .. }) => Revision::Remask(Remasking::Rescale(0.3)),
                (true, _) => Revision::Edit { threshold: 0.4, max_post_steps: 2 },
            };
            let score_temperature = match budget {
                Budget::Ancestral { .. } => 0.0,
                _ => score_temperature,
            };
            let mut plan = DecodePlan {
                block_length, block_origin: origin, score, score_temperature, budget, revision,
                ..DecodePlan::default()
            };
            plan.sampling.seed = seed;
            let blocks = blocks(&canvas, block_length, origin).len();
            plan.steps = extra_steps.map(|extra| blocks + extra);
            let changes = run(&plan, &mut canvas);
            prop_assert_eq!(canvas.masked(), 0);
            if !plan.is_revising() {
                prop_assert_eq!(counts(&changes).iter().sum::<usize>(), masked);
                if let Some(limit) = plan.steps {
                    prop_assert!(changes.len() <= limit);
                }
            }
            for (slot, id) in ids.iter().enumerate().filter(|(_, id)| **id != MASK) {
                prop_assert_eq!(canvas.token(slot), *id);
            }
        }
    }
}
