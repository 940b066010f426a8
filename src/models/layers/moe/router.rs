//! Which experts a row goes to, and with what weights. The twin on CUDA is `kernels/experts/route.cuh`, which chooses
//! the same experts and gives them the same weights, bit for bit: exp is made of single rounded operations, and what
//! is summed over all experts is summed as a warp does it.
//!
//! A score of NaN counts as the best, so that it shows in the weights. A softmax of a logit that is NaN or +∞, or of
//! none that is more than −∞, has no other scores: the row goes to the first experts, with weights of NaN.

use crate::sampling::exact;

/// Lanes of a warp, over which a kernel sums.
const LANES: usize = 32;

/// How experts are scored and chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Router {
    /// The most probable experts under a softmax over all of them. Their weights are those
    /// probabilities; `bias` `[experts]` is added before the choice and stays in the weights.
    Softmax {
        /// Added to the probabilities.
        bias: Option<Vec<f32>>,
        /// Whether weights are divided by their sum.
        normalized: bool,
        /// `[experts]`, what weights are multiplied by at the end (Gemma 4).
        scales: Option<Vec<f32>>,
    },
    /// Sigmoid scores, chosen within the best groups of experts (DeepSeek-V3, arXiv:2412.19437, §2.1.2;
    /// `LLaDA2MoeGate`). `bias` decides the choice only. Weights are the scores divided by their
    /// sum, if more than one expert is chosen, times `scale`. A NaN among the chosen makes all their weights NaN.
    GroupedSigmoid {
        /// `[experts]`.
        bias: Vec<f32>,
        /// Number of equal groups; each is scored by the sum of its two best experts.
        groups: usize,
        /// How many of the groups are kept.
        kept_groups: usize,
        /// What the weights are multiplied by.
        scale: f32,
    },
}

impl Router {
    /// The `count` experts of a row with the router's `logits` `[experts]`, best first, and their weights.
    pub fn route(&self, logits: &[f32], count: usize) -> Vec<(usize, f32)> {
        match self {
            Self::Softmax {
                bias,
                normalized,
                scales,
            } => {
                let mut scores = softmax(logits);
                if let Some(bias) = bias {
                    scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                }
                let chosen = best(&scores, count);
                let divisor = if *normalized {
                    sum_of(&chosen, &scores)
                } else {
                    1.0
                };
                let scale = |expert: usize| scales.as_ref().map_or(1.0, |scales| scales[expert]);
                let weight = |expert| (expert, scores[expert] / divisor * scale(expert));
                chosen.into_iter().map(weight).collect()
            }
            Self::GroupedSigmoid {
                bias,
                groups,
                kept_groups,
                scale,
            } => {
                let scores: Vec<f32> = logits.iter().copied().map(sigmoid).collect();
                let mut biased: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
                let size = biased.len() / groups;
                let group_scores: Vec<f32> = biased
                    .chunks(size)
                    .map(|group| sum_of(&best(group, 2), group))
                    .collect();
                let kept = best(&group_scores, *kept_groups);
                for (group, scores) in biased.chunks_mut(size).enumerate() {
                    if !kept.contains(&group) {
                        scores.fill(f32::NEG_INFINITY);
                    }
                }
                let chosen = best(&biased, count);
                let divisor = match count {
                    ..=1 => 1.0,
                    _ => sum_of(&chosen, &scores) + 1e-20,
                };
                let weight = |expert| (expert, scores[expert] / divisor * scale);
                chosen.into_iter().map(weight).collect()
            }
        }
    }
}

/// e^x for x ≤ 0, and NaN for NaN.
fn exp(x: f32) -> f32 {
    if x.is_nan() { x } else { exact::exp(x) }
}

/// 1 / (1 + e^−x)
fn sigmoid(x: f32) -> f32 {
    let power = exp(-x.abs());
    let numerator = if x < 0.0 { power } else { 1.0 };
    numerator / (1.0 + power)
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut scores: Vec<f32> = logits.iter().map(|x| exp(x - largest)).collect();
    let sum = sum_of_lanes(&scores);
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}

/// The sum of `scores` as a warp adds them: each lane every 32nd, then lanes in pairs.
fn sum_of_lanes(scores: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    for chunk in scores.chunks(LANES) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    let mut count = LANES;
    while count > 1 {
        count /= 2;
        for lane in 0..count {
            lanes[lane] = lanes[2 * lane] + lanes[2 * lane + 1];
        }
    }
    lanes[0]
}

/// The sum of the `scores` of `chosen`, in their order.
fn sum_of(chosen: &[usize], scores: &[f32]) -> f32 {
    chosen.iter().fold(0.0, |sum, at| sum + scores[*at])
}

/// Indices of the `count` highest scores, best first; of equal scores the first, −0 being less than 0.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let key = |index: &usize| match scores[*index] {
        score if score.is_nan() => f32::NAN.abs(),
        score => score,
    };
    let order = |a: &usize, b: &usize| key(b).total_cmp(&key(a)).then(a.cmp(b));
    let mut indices: Vec<usize> = (0..scores.len()).collect();
    if count < indices.len() {
        indices.select_nth_unstable_by(count, order);
        indices.truncate(count);
    }
    indices.sort_unstable_by(order);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(routed: &[(usize, f32)], expected: &[(usize, f32)]) {
        assert_eq!(routed.len(), expected.len());
        for ((expert, weight), (expected_expert, expected_weight)) in routed.iter().zip(expected) {
            assert_eq!(expert, expected_expert);
            assert!((weight - expected_weight).abs() < 1e-6, "{weight}");
        }
    }

    fn ln(p: f32) -> f32 {
        p.ln()
    }

    fn logit(p: f32) -> f32 {
        (p / (1.0 - p)).ln()
    }

    #[test]
    fn softmax_weights_are_the_probabilities_of_the_best() {
        let logits = [ln(0.1), ln(0.4), ln(0.2), ln(0.3)];
        let router = |normalized, bias| Router::Softmax {
            bias,
            normalized,
            scales: None,
        };
        close(
            &router(false, None).route(&logits, 2),
            &[(1, 0.4), (3, 0.3)],
        );
        close(
            &router(true, None).route(&logits, 2),
            &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)],
        );
        let bias = Some(vec![0.5, 0.0, 0.0, 0.0]);
        close(
            &router(false, bias).route(&logits, 2),
            &[(0, 0.6), (1, 0.4)],
        );
    }

    #[test]
    fn scales_multiply_the_weights_after_they_are_normalised_and_decide_no_choice() {
        let logits = [ln(0.1), ln(0.4), ln(0.2), ln(0.3)];
        let router = |normalized| Router::Softmax {
            bias: None,
            normalized,
            scales: Some(vec![9.0, 0.5, 9.0, 2.0]),
        };
        close(
            &router(true).route(&logits, 2),
            &[(1, 0.5 * 4.0 / 7.0), (3, 2.0 * 3.0 / 7.0)],
        );
        close(
            &router(false).route(&logits, 2),
            &[(1, 0.5 * 0.4), (3, 2.0 * 0.3)],
        );
    }

    #[test]
    fn grouped_sigmoid_chooses_by_biased_score_within_the_best_groups_and_weighs_unbiased() {
        let p = [0.9, 0.1, 0.6, 0.55, 0.5, 0.45];
        let logits = p.map(logit);
        let router = |bias: [f32; 6], kept_groups| Router::GroupedSigmoid {
            bias: bias.to_vec(),
            groups: 3,
            kept_groups,
            scale: 2.5,
        };
        // Group scores are 1.0, 1.15 and 0.95: the best single expert is not in the best group.
        let sum = 0.6 + 0.55;
        close(
            &router([0.0; 6], 1).route(&logits, 2),
            &[(2, 0.6 / sum * 2.5), (3, 0.55 / sum * 2.5)],
        );
        // The bias brings the last group to the front, and does not show in the weights.
        let sum = 0.5 + 0.45;
        close(
            &router([0.0, 0.0, 0.0, 0.0, 1.0, 1.1], 1).route(&logits, 2),
            &[(5, 0.45 / sum * 2.5), (4, 0.5 / sum * 2.5)],
        );
        // A single expert keeps its score.
        close(&router([0.0; 6], 3).route(&logits, 1), &[(0, 0.9 * 2.5)]);
    }

    #[test]
    fn as_many_experts_as_there_are_can_be_chosen() {
        let router = Router::Softmax {
            bias: None,
            normalized: true,
            scales: None,
        };
        close(&router.route(&[0.0, 0.0], 2), &[(0, 0.5), (1, 0.5)]);
    }

    #[test]
    fn what_is_not_a_number_is_chosen_and_shows_in_the_weights() {
        let routers = [
            Router::Softmax {
                bias: None,
                normalized: false,
                scales: None,
            },
            Router::GroupedSigmoid {
                bias: vec![0.0; 4],
                groups: 2,
                kept_groups: 1,
                scale: 1.0,
            },
        ];
        for router in &routers {
            for nan in [f32::NAN, -f32::NAN] {
                let routed = router.route(&[1.0, 2.0, nan, 3.0], 2);
                assert!(routed.iter().all(|(_, weight)| weight.is_nan()));
            }
        }
        for logits in [[1.0, f32::INFINITY, 0.0, 0.0], [f32::NEG_INFINITY; 4]] {
            let routed = routers[0].route(&logits, 2);
            assert_eq!([routed[0].0, routed[1].0], [0, 1]);
            assert!(routed.iter().all(|(_, weight)| weight.is_nan()));
        }
    }
}
