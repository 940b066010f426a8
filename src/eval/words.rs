//! Sequences of random numbers for an evaluation.

use crate::sampling::philox::{Draws, Stream};

/// The random words of one (seed, step, slot, stream), one after the other.
#[derive(Debug, Clone)]
pub(super) struct Words {
    draws: Draws,
    next: u32,
}

impl Words {
    pub fn new(seed: u64, step: usize, slot: usize, stream: Stream) -> Self {
        Self {
            draws: Draws::new(seed, step, slot, stream),
            next: 0,
        }
    }

    /// Passes over the next `count` words.
    pub fn skip(&mut self, count: u32) {
        self.next = self.next.wrapping_add(count);
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let words = self.draws.quad(self.next / 2);
        let at = 2 * (self.next % 2) as usize;
        self.next += 1;
        u64::from(words[at]) | u64::from(words[at + 1]) << 32
    }

    /// Uniform in (0, 1): neither end is ever drawn.
    pub fn uniform(&mut self) -> f64 {
        // With 53 bits the half would round the largest up to 1.
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Uniform in 0..n, for n ≥ 1.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// `count` ≤ `n` different numbers of 0..n in ascending order, every such set with equal
    /// probability (a partial Fisher-Yates shuffle).
    pub fn choose(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut numbers: Vec<usize> = (0..n).collect();
        for i in 0..count {
            numbers.swap(i, i + self.below(n - i));
        }
        numbers.truncate(count);
        numbers.sort_unstable();
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_a_size_is_chosen_equally_often() {
        let mut words = Words::new(1, 0, 0, Stream::MaskCount);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            *counts.entry(words.choose(4, 2)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Binomial(6000, 1/6): mean 1000, standard deviation 29.
        assert!(counts.values().all(|count| (880..1120).contains(count)));
    }

    #[test]
    fn all_and_none_can_be_chosen() {
        let mut words = Words::new(1, 0, 0, Stream::MaskCount);
        assert_eq!(words.choose(3, 3), [0, 1, 2]);
        assert!(words.choose(3, 0).is_empty());
    }
}
