//! Sets of tokens.

use crate::canvas::TokenId;

/// A set of tokens as bits: bit i % 32 of word i / 32 says whether token i is in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenSet {
    words: Box<[u32]>,
}

impl TokenSet {
    /// No token of a vocabulary of `vocab` tokens.
    pub fn empty(vocab: usize) -> Self {
        Self {
            words: vec![0; vocab.div_ceil(32)].into(),
        }
    }

    /// Adds a token; one outside the vocabulary is left out.
    pub fn insert(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    /// Adds the tokens of a set of the same vocabulary.
    pub fn extend(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Whether a token is in it.
    pub fn contains(&self, token: TokenId) -> bool {
        let word = self.words.get(token as usize / 32);
        word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// The tokens, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        let words = (0..).zip(&self.words);
        words.flat_map(|(index, word)| {
            let bits = (0..32).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| 32 * index + bit)
        })
    }

    /// The words, for the kernel.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// `logits` of the whole vocabulary with those of all other tokens at −∞.
    pub(super) fn restrict(&self, logits: &mut [f32]) {
        let mut words = self.words.iter();
        for logits in logits.chunks_mut(32) {
            match words.next().copied().unwrap_or_default() {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_added_and_restricts_logits_to_it() {
        let mut set = TokenSet::empty(70);
        for token in [0, 31, 32, 69, 1000] {
            set.insert(token);
        }
        assert_eq!(set.tokens().collect::<Vec<_>>(), [0, 31, 32, 69]);
        assert!(set.contains(69) && !set.contains(1) && !set.contains(1000));
        let mut logits = vec![1.0; 70];
        set.restrict(&mut logits);
        let kept = (0..70).filter(|token| logits[*token] == 1.0);
        assert_eq!(kept.collect::<Vec<_>>(), [0, 31, 32, 69]);
        let mut other = TokenSet::empty(70);
        other.insert(2);
        set.extend(&other);
        assert!(set.contains(2));
    }
}
