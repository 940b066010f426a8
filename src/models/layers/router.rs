//! Which experts a row goes to, and with what weights.

/// How experts are scored and chosen.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::models) enum Router {
    /// The most probable experts under a softmax over all of them. Their weights are those
    /// probabilities; `bias` `[experts]` is added before the choice and stays in the weights.
    Softmax {
        /// Added to the probabilities.
        bias: Option<Vec<f32>>,
        /// Whether weights are divided by their sum.
        normalized: bool,
    },
    /// As `Softmax` with weights divided by their sum, each then multiplied by its expert's scale (Gemma 4).
    ScaledSoftmax {
        /// `[experts]`.
        scales: Vec<f32>,
    },
    /// Sigmoid scores, chosen within the best groups of experts (DeepSeek-V3, arXiv:2412.19437, §2.1.2;
    /// `LLaDA2MoeGate`). `bias` decides the choice only. Weights are the scores divided by their
    /// sum, if more than one expert is chosen, times `scale`.
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
    /// The `count` experts of a row with the router's `logits` `[experts]`, and their weights.
    pub fn route(&self, logits: &[f32], count: usize) -> Vec<(usize, f32)> {
        match self {
            Self::ScaledSoftmax { scales } => {
                let scores = softmax(logits);
                let chosen = best(&scores, count);
                let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
                let weight = |expert| (expert, scores[expert] / sum * scales[expert]);
                chosen.into_iter().map(weight).collect()
            }
            Self::Softmax { bias, normalized } => {
                let mut scores = softmax(logits);
                if let Some(bias) = bias {
                    scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                }
                let chosen = best(&scores, count);
                let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
                let divisor = if *normalized { sum } else { 1.0 };
                let weight = |expert| (expert, scores[expert] / divisor);
                chosen.into_iter().map(weight).collect()
            }
            Self::GroupedSigmoid {
                bias,
                groups,
                kept_groups,
                scale,
            } => {
                let scores: Vec<f32> = logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
                let mut biased: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
                let size = biased.len() / groups;
                let group_scores: Vec<f32> = biased
                    .chunks(size)
                    .map(|group| best(group, 2).into_iter().map(|expert| group[expert]).sum())
                    .collect();
                let kept = best(&group_scores, *kept_groups);
                for (group, scores) in biased.chunks_mut(size).enumerate() {
                    if !kept.contains(&group) {
                        scores.fill(f32::NEG_INFINITY);
                    }
                }
                let chosen = best(&biased, count);
                let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
                let divisor = if count > 1 { sum + 1e-20 } else { 1.0 };
                let weight = |expert| (expert, scores[expert] / divisor * scale);
                chosen.into_iter().map(weight).collect()
            }
        }
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut scores: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}

/// Indices of the `count` highest scores, best first; of equal scores the first.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
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
        let router = |normalized, bias| Router::Softmax { bias, normalized };
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
        let scales = vec![9.0, 0.5, 9.0, 2.0];
        let router = Router::ScaledSoftmax { scales };
        close(
            &router.route(&logits, 2),
            &[(1, 0.5 * 4.0 / 7.0), (3, 2.0 * 3.0 / 7.0)],
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
        };
        close(&router.route(&[0.0, 0.0], 2), &[(0, 0.5), (1, 0.5)]);
    }
}
