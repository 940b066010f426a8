//! Follows a plan over one canvas.

use std::ops::Range;

use crate::canvas::{Canvas, Commit};
use crate::decode::blocks::blocks;
use crate::decode::{Budget, Candidate, DecodePlan, PlanError, Score};

/// The state of one canvas's denoising: the current block and how many of its steps are left.
#[derive(Debug, Clone)]
pub struct Decoder {
    score: Score,
    budget: Budget,
    blocks: Vec<BlockSchedule>,
    block: usize,
    step_in_block: usize,
    steps: usize,
}

#[derive(Debug, Clone)]
struct BlockSchedule {
    slots: Range<usize>,
    /// Masked slots when the block is entered.
    masked: usize,
    /// The block's share of the plan's steps.
    steps: Option<usize>,
}

impl BlockSchedule {
    /// The even split's count at `step` of this block.
    fn even_share(&self, step: usize) -> usize {
        match self.steps {
            Some(steps) if step < steps => {
                self.masked / steps + usize::from(step < self.masked % steps)
            }
            _ => 0,
        }
    }
}

impl Decoder {
    /// Begins `plan` on `canvas`.
    ///
    /// # Errors
    /// If the plan is invalid, or has fewer steps than the canvas has blocks.
    pub fn new(plan: &DecodePlan, canvas: &Canvas) -> Result<Self, PlanError> {
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
            .map(|(i, slots)| {
                let masked = canvas.masked_in(slots.clone()).count();
                let steps = match (plan.steps, plan.budget) {
                    (Some(steps), _) => {
                        Some((steps / count + usize::from(i < steps % count)).min(masked))
                    }
                    (None, Budget::Even) => Some(masked),
                    (None, _) => None,
                };
                BlockSchedule {
                    slots,
                    masked,
                    steps,
                }
            })
            .collect();
        Ok(Self {
            score: plan.score,
            budget: plan.budget,
            blocks,
            block: 0,
            step_in_block: 0,
            steps: 0,
        })
    }

    /// Denoise steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Whether every block is done.
    pub fn is_done(&self) -> bool {
        self.block == self.blocks.len()
    }

    /// The slots whose logits the next step needs: the masked slots of the current block.
    pub fn scored_slots<'a>(&self, canvas: &'a Canvas) -> impl Iterator<Item = usize> + 'a {
        let slots = self
            .blocks
            .get(self.block)
            .map_or(0..0, |block| block.slots.clone());
        canvas.masked_in(slots)
    }

    /// Commits the chosen of `candidates`, which hold one entry a scored slot in slot order, and goes
    /// on to the next step. Returns the slots that were committed, in slot order.
    pub fn advance(&mut self, canvas: &mut Canvas, candidates: &[Candidate]) -> Vec<usize> {
        let Some(block) = self.blocks.get(self.block) else {
            return Vec::new();
        };
        self.steps += 1;
        let mut ranked = candidates.to_vec();
        // A stable sort: of equal scores the leftmost slot goes first.
        ranked.sort_by(|a, b| self.score.of(b).total_cmp(&self.score.of(a)));
        let mut committed = Vec::new();
        if !ranked.is_empty() {
            let count = self
                .budget
                .count(&ranked, block.even_share(self.step_in_block));
            for candidate in &ranked[..count] {
                if let Some(slot) = canvas.gap_slot_mut(candidate.slot) {
                    slot.commit(Commit {
                        token: candidate.token,
                        probability: candidate.probability,
                        score: self.score.of(candidate),
                        step: self.steps,
                    });
                    committed.push(candidate.slot);
                }
            }
        }
        committed.sort_unstable();
        self.step_in_block += 1;
        if canvas.masked_in(block.slots.clone()).next().is_none() {
            self.block += 1;
            self.step_in_block = 0;
        }
        committed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::canvas::TokenId;
    use crate::decode::BlockOrigin;

    const MASK: TokenId = 0;

    fn candidates(decoder: &Decoder, canvas: &Canvas) -> Vec<Candidate> {
        decoder
            .scored_slots(canvas)
            .map(|slot| {
                let probability = ((slot * 7919) % 101) as f32 / 101.0;
                Candidate {
                    slot,
                    token: 1 + slot as TokenId,
                    probability,
                    best: probability,
                    second: 0.0,
                    entropy: 1.0 - probability,
                    uniform: ((slot * 104_729) % 997) as f32 / 997.0,
                }
            })
            .collect()
    }

    fn run(plan: &DecodePlan, canvas: &mut Canvas) -> Vec<Vec<usize>> {
        let mut decoder = Decoder::new(plan, canvas).unwrap();
        let mut steps = Vec::new();
        while !decoder.is_done() {
            let candidates = candidates(&decoder, canvas);
            steps.push(decoder.advance(canvas, &candidates));
        }
        steps
    }

    #[test]
    fn an_even_split_gives_the_remainder_to_the_first_steps() {
        let mut canvas = Canvas::builder(MASK).fixed(&[5]).gap(10).build().unwrap();
        let plan = DecodePlan {
            steps: Some(4),
            ..DecodePlan::default()
        };
        let counts: Vec<usize> = run(&plan, &mut canvas).iter().map(Vec::len).collect();
        assert_eq!(counts, [3, 3, 2, 2]);
    }

    #[test]
    fn a_block_is_finished_before_the_next_is_begun() {
        let mut canvas = Canvas::builder(MASK).fixed(&[5]).gap(6).build().unwrap();
        let plan = DecodePlan {
            steps: Some(4),
            block_length: Some(4),
            ..DecodePlan::default()
        };
        let steps = run(&plan, &mut canvas);
        assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1, 1]);
        assert!(steps[..2].iter().flatten().all(|slot| *slot < 5));
    }

    #[test]
    fn fewer_steps_than_blocks_are_refused() {
        let canvas = Canvas::builder(MASK).gap(8).build().unwrap();
        let plan = DecodePlan {
            steps: Some(1),
            block_length: Some(4),
            ..DecodePlan::default()
        };
        let error = Decoder::new(&plan, &canvas).unwrap_err();
        assert_eq!(error.field(), "steps");
    }

    fn any_budget() -> impl Strategy<Value = Budget> {
        prop_oneof![
            Just(Budget::Even),
            (0.0f32..=1.0).prop_map(Budget::Threshold),
            (0.0f32..4.0).prop_map(Budget::Factor),
            (0.0f32..4.0).prop_map(Budget::EntropyBound),
        ]
    }

    proptest! {
        #[test]
        fn every_plan_fills_every_gap_and_leaves_fixed_slots_alone(
            ids in proptest::collection::vec(0u32..3, 1..60),
            budget in any_budget(),
            score in proptest::sample::select(&Score::ALL[..]),
            block_length in proptest::option::of(1usize..40),
            extra_steps in proptest::option::of(0usize..30),
            origin in proptest::sample::select(vec![BlockOrigin::Gap, BlockOrigin::Canvas]),
        ) {
            let Ok(mut canvas) = Canvas::from_ids(&ids, MASK) else { return Ok(()) };
            let masked = canvas.masked();
            let mut plan = DecodePlan { block_length, block_origin: origin, score, budget, ..DecodePlan::default() };
            let blocks = blocks(&canvas, block_length, origin).len();
            plan.steps = extra_steps.map(|extra| blocks + extra);
            let steps = run(&plan, &mut canvas);
            prop_assert_eq!(canvas.masked(), 0);
            prop_assert_eq!(steps.iter().map(Vec::len).sum::<usize>(), masked);
            prop_assert!(steps.iter().all(|step| !step.is_empty()));
            if let Some(limit) = plan.steps {
                prop_assert!(steps.len() <= limit);
            }
            for (slot, id) in ids.iter().enumerate().filter(|(_, id)| **id != MASK) {
                prop_assert_eq!(canvas.token(slot), *id);
            }
        }
    }
}
