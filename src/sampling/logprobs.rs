//! Log-probabilities of a row.

use std::sync::Arc;

use crate::canvas::TokenId;

/// The most log-probabilities of best tokens that are reported of a row (OpenAI's `top_logprobs`).
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Which log-probabilities of a row are reported, beside the drawn token's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowLogprobs {
    /// How many of the most probable tokens, at most [`MAX_TOP_LOGPROBS`].
    pub top: usize,
    /// Further tokens.
    pub of: Arc<[TokenId]>,
}

/// Log-probabilities of a row, in nats: of the model's own distribution, guided if the request is, without
/// temperature, filters or bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The drawn token's; in what a step reports, the committed token's.
    pub token: f32,
    /// That of [`RowSample::most_probable`](super::RowSample::most_probable).
    pub most_probable: f32,
    /// The most probable tokens with theirs, best first; of equal ones the lower id first. Tokens of
    /// probability 0 are left out.
    pub top: Vec<(TokenId, f32)>,
    /// Those of [`RowLogprobs::of`], in its order; −∞ for probability 0 and outside the vocabulary.
    pub of: Vec<f32>,
}

impl Logprobs {
    /// Those of `logits`, of which at least one is finite and none is NaN or +∞.
    pub(crate) fn of_row(
        logits: &[f32],
        token: TokenId,
        most_probable: TokenId,
        asked: &RowLogprobs,
    ) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits
            .iter()
            .map(|logit| f64::from(logit - max).exp())
            .sum();
        let normaliser = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
        let of = |token: &TokenId| {
            let logit = logits.get(*token as usize);
            logit.map_or(f32::NEG_INFINITY, |logit| logprob(*logit))
        };
        let top = best(logits, asked.top.min(MAX_TOP_LOGPROBS));
        Self {
            token: of(&token),
            most_probable: of(&most_probable),
            top: top
                .into_iter()
                .map(|(token, logit)| (token, logprob(logit)))
                .collect(),
            of: asked.of.iter().map(of).collect(),
        }
    }
}

/// The `count` largest logits above −∞, largest first; of equal ones the lower id first.
fn best(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return best;
    }
    let mut floor = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > floor {
            let place = best.partition_point(|(_, other)| *other >= logit);
            best.insert(place, (token as TokenId, logit));
            best.truncate(count);
            if best.len() == count {
                floor = best[count - 1].1;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_best_are_those_of_a_sorted_row(
            logits in proptest::collection::vec(
                prop_oneof![-5i8..5, Just(i8::MIN)], 1..60,
            ),
            count in 0usize..25,
        ) {
            let logits: Vec<f32> = logits
                .into_iter()
                .map(|l| if l == i8::MIN { f32::NEG_INFINITY } else { f32::from(l) })
                .collect();
            let mut sorted: Vec<(TokenId, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.retain(|(_, logit)| logit.is_finite());
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(count);
            prop_assert_eq!(best(&logits, count), sorted);
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_distribution() {
        let probabilities = [0.5f32, 0.25, 0.125, 0.125];
        let logits = probabilities.map(|p| p.ln() + 3.0);
        let asked = RowLogprobs {
            top: 2,
            of: [3, 99].into(),
        };
        let logprobs = Logprobs::of_row(&logits, 1, 0, &asked);
        let close = |a: f32, p: f32| (a - p.ln()).abs() < 1e-6;
        assert!(close(logprobs.token, 0.25) && close(logprobs.most_probable, 0.5));
        assert_eq!(logprobs.top.len(), 2);
        assert!(logprobs.top[0].0 == 0 && close(logprobs.top[0].1, 0.5));
        assert!(close(logprobs.of[0], 0.125));
        assert_eq!(logprobs.of[1], f32::NEG_INFINITY);
    }
}
