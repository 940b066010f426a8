//! The likelihood of a token sequence, bounded from above by its negative evidence lower bound (NELBO).
//!
//! Both estimators are unbiased for the same number, the continuous-time NELBO of the log-linear schedule
//! (`docs/mathematics.md`; MDLM, arXiv:2406.07524, eq. 11), for a target of L scored slots
//!
//! ```text
//! NELBO = ∫₀¹ (1/t) E_{each slot masked with probability t} [S(M)] dt     S(M) = Σ_{i ∈ M} −ln p(x_i | rest)
//!       = (1/L) Σ_{x=1}^{L} (L/x) E_{M of size x} [S(M)]
//! ```
//!
//! where M is the set of masked slots. The second line is the first with t integrated out, given the
//! number of masked slots. The loss of a model of the uniform process, of log-scores, or one that is told the noise
//! level is not a function of M alone; only the first line carries over to it. Prompt slots are never masked,
//! and what is bounded is −ln p(target | prompt), given its length.
//!
//! A block-causal model predicts block after block, each after the clean text before it, so that its NELBO is
//! the sum of that of its blocks, with L the scored slots of the block (BD3-LM, arXiv:2503.09573, eq. 8). A draw
//! masks slots of every block, at a level of the block's own, and one forward scores them all
//! ([`AttentionPattern::allowed_in_scoring`](crate::models::AttentionPattern::allowed_in_scoring)).

use serde::Serialize;

use super::scorer::{MaskedTarget, Scorer};
use super::words::Words;
use super::{EvalError, Target, depends_on_level, noised};
use crate::decode::MAX_GUIDANCE_SCALE;
use crate::diffusion::Schedule;
use crate::models::{AttentionPattern, Denoiser};
use crate::sampling::philox::Stream;

/// Why [`Estimator::ExactCount`] is not for models whose loss
/// [depends on the noise level](super::depends_on_level).
pub const EXACT_COUNT_HAS_NO_LEVEL: &str = "the exact count is of slots that are masked at no noise level, and this \
     model's loss depends on the level itself";

/// How the NELBO is estimated. Both estimators have the same expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// LLaDA's (`get_log_likelihood.py` in ML-GSAI/LLaDA): a number of masked slots x, uniform in
    /// {1, …, L} and stratified over the draws of a group, then x random slots, weighted with L/x.
    #[default]
    ExactCount,
    /// Time t in (0, 1), stratified over the draws of a group, then each slot masked with probability
    /// t, weighted with 1/t (MDLM).
    ///
    /// Its variance is infinite: at a small t one slot is masked with a probability of about L·t and
    /// its cross-entropy weighs 1/t, so that the second moment has the part ∫ L·t/t² dt, which diverges
    /// logarithmically at 0. The mean is right, but a sample's spread understates what rare draws do,
    /// and no interval made from it can be relied on. [`Estimator::ExactCount`], whose weights are at
    /// most L, gives the figure to publish; this one is a check of it.
    ///
    /// For a model whose loss [depends on the noise level](super::depends_on_level) it is the only one, with
    /// t = u² for u stratified and the weight 2u on top of the loss's own, which makes the variance finite.
    ContinuousTime,
}

impl Estimator {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ExactCount, Self::ContinuousTime];

    /// The name used in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactCount => "exact count",
            Self::ContinuousTime => "continuous time",
        }
    }

    /// One group of `strata` draws for `target` and a model of the attention pattern `attention`, each made when it
    /// is taken. Draws of other (seed, group, index) are independent; `index` tells targets apart. The blocks of a
    /// block-causal model have draws of their own.
    ///
    /// # Panics
    /// If the target has no scored slot.
    pub fn draws(
        self,
        target: &Target,
        attention: AttentionPattern,
        strata: usize,
        seed: u64,
        group: usize,
        index: usize,
    ) -> GroupDraws {
        assert!(!target.slots.is_empty());
        let stream = match self {
            Self::ExactCount => Stream::MaskCount,
            Self::ContinuousTime => Stream::MaskTime,
        };
        let mut words = Words::new(seed, group, index, stream);
        let blocks = target
            .slots
            .chunk_by(|a, b| attention.block_of(*a) == attention.block_of(*b));
        let blocks = blocks.map(|slots| self.block_draws(slots, strata, &mut words));
        GroupDraws {
            blocks: blocks.collect(),
            strata,
            taken: 0,
        }
    }

    /// The draws of one block, which take the next of `words`.
    fn block_draws(self, slots: &[usize], strata: usize, words: &mut Words) -> BlockDraws {
        let length = slots.len();
        let offset = match self {
            Self::ExactCount => Offset::Count(1 + words.below(length)),
            Self::ContinuousTime => Offset::Time(words.uniform()),
        };
        let draws = BlockDraws {
            slots: slots.to_vec(),
            offset,
            words: words.clone(),
        };
        // A word for each slot that is chosen, or asked.
        let of_strata = (0..strata).map(|stratum| match offset {
            Offset::Count(first) => mask_count(first, length, strata, stratum),
            Offset::Time(_) => length,
        });
        words.skip(of_strata.sum::<usize>() as u32);
        draws
    }
}

/// A group of draws, in the order of their strata.
#[derive(Debug, Clone)]
pub struct GroupDraws {
    blocks: Vec<BlockDraws>,
    strata: usize,
    taken: usize,
}

/// What the first stratum of a block begins with.
#[derive(Debug, Clone, Copy)]
enum Offset {
    /// A number of masked slots.
    Count(usize),
    /// A time within the stratum, as a part of it.
    Time(f64),
}

/// The draws of one block's slots.
#[derive(Debug, Clone)]
struct BlockDraws {
    slots: Vec<usize>,
    offset: Offset,
    words: Words,
}

impl Iterator for GroupDraws {
    type Item = Draw;

    fn next(&mut self) -> Option<Draw> {
        let (stratum, strata) = (self.taken, self.strata);
        if stratum == strata {
            return None;
        }
        self.taken += 1;
        let mut draw = Draw::default();
        for block in &mut self.blocks {
            block.extend(&mut draw, stratum, strata);
        }
        Some(draw)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.strata - self.taken;
        (left, Some(left))
    }
}

impl BlockDraws {
    /// Masks slots of the block in the next draw.
    fn extend(&mut self, draw: &mut Draw, stratum: usize, strata: usize) {
        let length = self.slots.len();
        match self.offset {
            Offset::Count(first) => {
                let count = mask_count(first, length, strata, stratum);
                let masked = self.words.choose(length, count).into_iter();
                let weight = length as f64 / count as f64;
                draw.extend(masked.map(|i| self.slots[i]), weight);
            }
            Offset::Time(shift) => {
                let schedule = Schedule::LogLinear;
                let time = (stratum as f64 + shift) / strata as f64;
                let chance = schedule.one_minus_alpha(time);
                let slots = self.slots.iter().copied();
                let masked = slots.filter(|_| self.words.uniform() < chance);
                draw.extend(masked, schedule.weight(time));
            }
        }
    }
}

/// The number of masked slots of a draw of a group: `first`, in 1..=`length`, in the first stratum, and on in steps of
/// length / strata, rounded, coming round to 1 after `length`.
///
/// Halves are rounded up. With torch.round, which the official code uses and which takes halves to the
/// even neighbour, a draw whose offset is a half never has some of the counts; so each is uniform.
fn mask_count(first: usize, length: usize, strata: usize, stratum: usize) -> usize {
    let offset = (2 * stratum * length + strata) / (2 * strata);
    (first - 1 + offset) % length + 1
}

/// One draw of an estimator: which slots are masked, and what their cross-entropies are weighted with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draw {
    masked: Vec<usize>,
    weights: Vec<f64>,
}

impl Draw {
    /// A draw that masks `masked`, scored slots of the target in ascending order, and weighs the cross-entropy
    /// of each with `weight`: L / x, or 1 / t.
    pub fn new(masked: impl IntoIterator<Item = usize>, weight: f64) -> Self {
        let mut draw = Self::default();
        draw.extend(masked, weight);
        draw
    }

    /// The same draw that masks more slots, all of them behind the others, weighed with `weight`.
    pub fn and(mut self, masked: impl IntoIterator<Item = usize>, weight: f64) -> Self {
        self.extend(masked, weight);
        self
    }

    fn extend(&mut self, masked: impl IntoIterator<Item = usize>, weight: f64) {
        self.masked.extend(masked);
        self.weights.resize(self.masked.len(), weight);
    }

    /// Masked slots, ascending.
    pub fn masked(&self) -> &[usize] {
        &self.masked
    }

    /// The weight of each masked slot's cross-entropy; of slots of one block it is the same.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }
}

/// The most draws of a group, and the most groups.
const MAX_DRAWS: usize = 4096;

/// Draws whose slots' scores are held at once: enough of the shortest sequences to fill a batch.
const DRAWS_AT_ONCE: usize = 256;

/// How many draws are taken, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The estimator.
    pub estimator: Estimator,
    /// Independent groups of draws, at least 1.
    pub groups: usize,
    /// Stratified draws a group, at least 1.
    pub strata: usize,
    /// Classifier-free guidance w: logits are u + (w + 1)(c − u), with u those of the sequence whose
    /// prompt is masked, at most 1000. 0 is off; otherwise it is the guided denoiser that is scored.
    pub guidance_scale: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Settings {
    /// LLaDA's defaults: 128 draws, 16 a group.
    fn default() -> Self {
        Self {
            estimator: Estimator::default(),
            groups: 8,
            strata: 16,
            guidance_scale: 0.0,
            seed: 0,
        }
    }
}

impl Settings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`EvalError::Setting`] names the first field out of range.
    pub fn check(&self) -> Result<(), EvalError> {
        for (field, value) in [("groups", self.groups), ("draws", self.strata)] {
            if !(1..=MAX_DRAWS).contains(&value) {
                return Err(EvalError::setting(field, value, "1 to 4096"));
            }
        }
        let scale = self.guidance_scale;
        if !(0.0..=f64::from(MAX_GUIDANCE_SCALE)).contains(&scale) {
            return Err(EvalError::setting("guidance_scale", scale, "0 to 1000"));
        }
        Ok(())
    }
}

/// An estimate of the NELBO of one target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean over all draws, in nats; −ln p(target | prompt) is not larger in expectation.
    pub nelbo: f64,
    /// Its Monte-Carlo standard error in nats, from the spread of the groups' means; from the
    /// differences of neighbouring strata if there is a single group; `None` for a single draw.
    pub standard_error: Option<f64>,
    /// Draws taken.
    pub draws: usize,
}

impl Estimate {
    /// From what [`losses`] gives for whole groups of draws, group by group and stratum by stratum.
    ///
    /// # Panics
    /// If `values` is empty or `strata` is 0.
    pub fn of(values: &[f64], strata: usize) -> Self {
        assert!(!values.is_empty() && strata > 0);
        let nelbo = mean(values);
        let samples: Vec<f64> = match values.len() / strata {
            1 => values.to_vec(),
            _ => values.chunks(strata).map(mean).collect(),
        };
        let squares: f64 = match values.len() / strata {
            // Estimator v₂ for systematic samples in Wolter, Introduction to Variance Estimation, 2nd ed.,
            // §8.2: what differs from stratum to stratum in the mean is not noise.
            1 => {
                let pairs = samples.windows(2);
                pairs.map(|pair| (pair[0] - pair[1]).powi(2) / 2.0).sum()
            }
            _ => samples.iter().map(|mean| (mean - nelbo).powi(2)).sum(),
        };
        let count = samples.len() as f64;
        Self {
            nelbo,
            standard_error: (count > 1.0).then(|| (squares / (count * (count - 1.0))).sqrt()),
            draws: values.len(),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Σ −weight · ln p(x_i | rest) over the masked slots, in nats, of each of `draws`: a single-draw
/// estimate of the NELBO each. For draws that were recorded or enumerated.
///
/// # Errors
/// If the target does not fit the model, a draw masks a slot that is not scored, or the model fails.
pub fn losses(
    model: &dyn Denoiser,
    target: &Target,
    draws: &[Draw],
    guidance_scale: f64,
) -> Result<Vec<f64>, EvalError> {
    if depends_on_level(model.spec()) {
        return Err(EvalError::Unsupported {
            family: model.spec().family,
            reason: "a draw masks slots at no noise level, and its loss depends on the level",
        });
    }
    let scorer = Scorer::new(model, guidance_scale)?;
    target.check(model.spec())?;
    for draw in draws {
        let mut last = None;
        for &slot in &draw.masked {
            if target.slots.binary_search(&slot).is_err() || last >= Some(slot) {
                return Err(EvalError::MaskedSlot { slot });
            }
            last = Some(slot);
        }
    }
    let draws: Vec<_> = draws.iter().map(|draw| (target, draw)).collect();
    draw_losses(&scorer, &draws, &mut |_| ())
}

/// Estimates the NELBO of each target. The draws of a target depend on the seed and on its place in
/// `targets`, and on nothing else. `progress` is told of forwards that are done, of
/// `targets · groups · strata` in all.
///
/// # Errors
/// If a setting is out of range, a target does not fit the model, or the model fails.
pub fn estimate(
    model: &dyn Denoiser,
    targets: &[&Target],
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Estimate>, EvalError> {
    settings.check()?;
    let Settings {
        estimator,
        groups,
        strata,
        ..
    } = *settings;
    if depends_on_level(model.spec()) {
        if estimator == Estimator::ExactCount {
            return Err(EvalError::Unsupported {
                family: model.spec().family,
                reason: EXACT_COUNT_HAS_NO_LEVEL,
            });
        }
        let losses = noised::losses(model, targets, settings, progress)?;
        return Ok(losses
            .chunks(groups * strata)
            .map(|losses| Estimate::of(losses, strata))
            .collect());
    }
    let scorer = Scorer::new(model, settings.guidance_scale)?;
    for target in targets {
        target.check(model.spec())?;
    }
    // Draws are made when they are due, and of each one number is kept.
    let mut draws = (0..targets.len())
        .flat_map(|index| (0..groups).map(move |group| (index, group)))
        .flat_map(|(index, group)| {
            let (target, attention) = (targets[index], model.spec().attention);
            let draws = estimator.draws(target, attention, strata, settings.seed, group, index);
            draws.map(move |draw| (target, draw))
        });
    let mut losses = Vec::with_capacity(targets.len() * groups * strata);
    loop {
        let some: Vec<(&Target, Draw)> = draws.by_ref().take(DRAWS_AT_ONCE).collect();
        if some.is_empty() {
            break;
        }
        let some: Vec<_> = some.iter().map(|(target, draw)| (*target, draw)).collect();
        losses.extend(draw_losses(&scorer, &some, progress)?);
    }
    Ok(losses
        .chunks(groups * strata)
        .map(|losses| Estimate::of(losses, strata))
        .collect())
}

fn draw_losses(
    scorer: &Scorer,
    draws: &[(&Target, &Draw)],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, EvalError> {
    let sequences: Vec<MaskedTarget> = draws
        .iter()
        .map(|(target, draw)| MaskedTarget {
            target,
            masked: &draw.masked,
            seed: 0,
        })
        .collect();
    let scores = scorer.score(&sequences, progress)?;
    Ok(draws
        .iter()
        .zip(scores)
        .map(|((_, draw), scores)| {
            let weighted = scores.iter().zip(&draw.weights);
            weighted
                .map(|(score, weight)| -weight * score.log_probability)
                .sum()
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cases(block_length: usize) -> impl Iterator<Item = (Estimator, AttentionPattern)> {
        let patterns = [
            AttentionPattern::Bidirectional,
            AttentionPattern::BlockCausal { block_length },
        ];
        let estimators = Estimator::ALL.into_iter();
        estimators.flat_map(move |estimator| patterns.map(|pattern| (estimator, pattern)))
    }

    proptest! {
        #[test]
        fn every_count_is_uniform_over_the_first_one_and_near_its_exact_place(
            length in 1usize..40,
            strata in 1usize..20,
        ) {
            let mut seen = vec![vec![0; length]; strata];
            for first in 1..=length {
                for (stratum, seen) in seen.iter_mut().enumerate() {
                    let count = mask_count(first, length, strata, stratum);
                    prop_assert!((1..=length).contains(&count));
                    seen[count - 1] += 1;
                    let exact = (first as f64 - 1.0 + stratum as f64 * length as f64 / strata as f64)
                        .rem_euclid(length as f64);
                    let apart = ((count - 1) as f64 - exact).abs();
                    prop_assert!(apart.min(length as f64 - apart) <= 0.5 + 1e-9);
                }
            }
            prop_assert!(seen.iter().flatten().all(|times| *times == 1));
        }

        #[test]
        fn draws_mask_scored_slots_only_as_many_as_their_weight_says(
            prompt in 0usize..9,
            answer in 1usize..30,
            strata in 1usize..9,
            block_length in 1usize..12,
            seed in any::<u64>(),
        ) {
            let target = Target::after_prompt(&vec![1; prompt], &vec![2; answer]);
            let slots = || prompt..prompt + answer;
            for (estimator, attention) in cases(block_length) {
                let draws = || estimator.draws(&target, attention, strata, seed, 0, 0);
                prop_assert!(draws().eq(draws()));
                let draws: Vec<Draw> = draws().collect();
                prop_assert_eq!(draws.len(), strata);
                for draw in draws {
                    prop_assert!(draw.masked.iter().all(|slot| *slot >= prompt));
                    prop_assert!(draw.masked.is_sorted_by(|a, b| a < b));
                    prop_assert!(draw.weights.iter().all(|w| *w >= 1.0 && w.is_finite()));
                    prop_assert_eq!(draw.weights.len(), draw.masked.len());
                    if estimator == Estimator::ContinuousTime {
                        continue;
                    }
                    // Every block has masked slots, that weigh its length over their number.
                    for slot in slots() {
                        let alike = |other: &usize| attention.block_of(*other) == attention.block_of(slot);
                        let length = slots().filter(alike).count() as f64;
                        let masked = draw.masked.iter().copied().filter(alike).count() as f64;
                        prop_assert!(masked >= 1.0);
                        if let Ok(place) = draw.masked.binary_search(&slot) {
                            prop_assert_eq!(draw.weights[place], length / masked);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn times_fall_one_in_each_stratum() {
        let target = Target::whole(vec![1; 3]);
        let mut seen = 0;
        for (seed, block_length) in (0..50).flat_map(|seed| [1, 3].map(|length| (seed, length))) {
            let attention = AttentionPattern::BlockCausal { block_length };
            let draws = Estimator::ContinuousTime.draws(&target, attention, 8, seed, 0, 0);
            for (stratum, draw) in draws.enumerate() {
                for weight in draw.weights() {
                    assert_eq!((8.0 / weight) as usize, stratum);
                    seen += 1;
                }
            }
        }
        assert!(seen > 0);
    }

    #[test]
    fn the_standard_error_is_that_of_group_means_or_of_neighbouring_strata() {
        let estimate = Estimate::of(&[1.0, 3.0, 5.0, 7.0], 2);
        assert_eq!((estimate.nelbo, estimate.draws), (4.0, 4));
        assert_eq!(estimate.standard_error, Some(2.0));
        let single = Estimate::of(&[1.0, 3.0], 2);
        assert_eq!(single.standard_error, Some(1.0));
        let trend = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0], 5);
        assert_eq!(trend.standard_error, Some((0.5f64 / 5.0).sqrt()));
        assert_eq!(Estimate::of(&[1.0], 1).standard_error, None);
    }
}
