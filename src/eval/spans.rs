//! Windows with masked spans.

use std::ops::Range;

use super::sample::{Choice, one_of_each_stratum};
use super::scorer::MaskedTarget;
use super::words::Words;
use super::{Corpus, EvalError, Window};
use crate::canvas::{Blank, Canvas, TokenId};
use crate::sampling::philox::Stream;

/// A window some spans of which are masked.
pub(super) struct MaskedWindow<'a> {
    /// The place of its document in the corpus.
    pub document: usize,
    /// The windows of the collection that it stands for.
    pub weight: usize,
    window: &'a Window,
    /// The spans, from left to right. Neighbours may touch.
    pub spans: Vec<Range<usize>>,
    /// Seed of the window's own draws: of the noise that masked slots hold where there is no mask token,
    /// and of its denoising.
    pub seed: u64,
    masked: Vec<usize>,
}

impl MaskedWindow<'_> {
    /// How many slots could be masked.
    pub fn scored(&self) -> usize {
        self.window.target.slots.len()
    }

    /// All tokens, none masked.
    pub fn truth(&self) -> &[TokenId] {
        &self.window.target.tokens
    }

    /// Masked slots, ascending.
    pub fn masked(&self) -> &[usize] {
        &self.masked
    }

    /// The sequence for a single forward.
    pub fn sequence(&self) -> MaskedTarget<'_> {
        MaskedTarget {
            target: &self.window.target,
            masked: &self.masked,
            seed: self.seed,
        }
    }

    /// The canvas for the engine.
    pub fn canvas(&self, blank: Blank) -> Result<Canvas, EvalError> {
        Ok(self.sequence().canvas(blank)?)
    }
}

/// The windows of `corpus` that are denoised, `limit` at most, one at random from each of as many equal parts
/// of them in order, so that documents and places in them are mixed: (place among all, how many of them it
/// stands for).
pub(super) fn denoised(
    corpus: &Corpus,
    limit: usize,
    seed: u64,
) -> impl Iterator<Item = (usize, usize)> {
    one_of_each_stratum(corpus.windows().count(), limit, seed, Choice::Denoised)
}

/// At most `limit` windows of `corpus`, those of [`denoised`], each with spans of `length` tokens masked such
/// that their tokens make up about `rate` of it, at least one span. A window's spans and its own seed are
/// drawn by (`seed`, `index` of the rate, its place in the corpus): a smaller limit leaves them as they are.
pub(super) fn masked_windows<'a>(
    corpus: &'a Corpus,
    limit: usize,
    length: usize,
    rate: f64,
    seed: u64,
    index: usize,
) -> Vec<MaskedWindow<'a>> {
    let windows: Vec<_> = corpus.windows().collect();
    denoised(corpus, limit, seed)
        .map(|(place, stands_for)| {
            let (document, window) = windows[place];
            let mut words = Words::new(seed, index, place, Stream::Spans);
            // The scored slots of a window follow one another.
            let slots = &window.target.slots;
            let first = slots.first().copied().unwrap_or_default();
            let spans: Vec<_> = spans(slots.len(), length, rate, &mut words)
                .into_iter()
                .map(|span| first + span.start..first + span.end)
                .collect();
            let masked = spans.iter().cloned().flatten().collect();
            MaskedWindow {
                document,
                weight: stands_for * window.weight,
                window,
                spans,
                seed: words.bits(),
                masked,
            }
        })
        .collect()
}

/// Cuts a window of `tokens` into pieces of `length` tokens from a random offset on, what is left over at
/// the ends being no piece, and chooses as many of them as make up `rate`, at least one. A window shorter
/// than a piece is one.
fn spans(tokens: usize, length: usize, rate: f64, words: &mut Words) -> Vec<Range<usize>> {
    let length = length.min(tokens);
    let pieces = tokens / length;
    let offset = words.below(tokens % length + 1);
    let count = ((rate * tokens as f64 / length as f64).round() as usize).clamp(1, pieces);
    words
        .choose(pieces, count)
        .into_iter()
        .map(|piece| offset + piece * length..offset + (piece + 1) * length)
        .collect()
}

/// Checks the length of spans, and mask rates that `field` holds.
///
/// # Errors
/// [`EvalError::Setting`].
pub(super) fn check(length: usize, field: &'static str, rates: &[f64]) -> Result<(), EvalError> {
    if length == 0 {
        return Err(EvalError::setting("span", 0, "at least 1"));
    }
    match rates.iter().find(|rate| !(**rate > 0.0 && **rate < 1.0)) {
        Some(rate) => Err(EvalError::setting(
            field,
            rate,
            "more than 0 and less than 1",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_disjoint_whole_and_as_many_as_the_rate_asks_for(
            tokens in 2usize..300,
            length in 1usize..12,
            rate in 0.01f64..0.99,
            seed in any::<u64>(),
        ) {
            let mut words = Words::new(seed, 0, 0, Stream::Spans);
            let spans = spans(tokens, length, rate, &mut words);
            prop_assert!(!spans.is_empty());
            prop_assert!(spans.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(spans.iter().all(|span| span.len() == length.min(tokens)));
            prop_assert!(spans.last().is_some_and(|span| span.end <= tokens));
            let masked = (spans.len() * length) as f64;
            prop_assert!(spans.len() == 1 || masked <= rate * tokens as f64 + length as f64 / 2.0);
        }
    }
}
