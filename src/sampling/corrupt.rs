//! The forward process, with draws that depend on (seed, step, slot) only. The twin on CUDA is
//! `kernels/corrupt.cu`.

use bytemuck::{Pod, Zeroable};

use super::layout::NONE;
use super::philox::{Draws, Stream};
use crate::canvas::TokenId;
use crate::diffusion::{Noise, NoiseLevel, Process};

/// A row of tokens to be noised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CorruptRow {
    /// Key of the noise.
    pub seed: u64,
    /// 1 − α in units of 2⁻³².
    threshold: u64,
    /// Step of the training.
    pub step: u32,
    /// First of its tokens.
    pub first: u32,
    /// Number of its tokens.
    pub length: u32,
    /// Slot of the first of its tokens.
    pub slot: u32,
}

impl CorruptRow {
    /// `length` tokens from `first` on, of which the first is at `slot`, noised to `level`.
    pub fn new(
        seed: u64,
        step: u32,
        level: NoiseLevel,
        first: u32,
        length: u32,
        slot: u32,
    ) -> Self {
        let threshold = (level.one_minus_alpha() * (1u64 << 32) as f64).round() as u64;
        Self {
            seed,
            threshold,
            step,
            first,
            length,
            slot,
        }
    }
}

/// The mask of a process as the kernel is told it, and its number of states.
pub fn kernel_noise(process: &Process) -> (u32, u32) {
    (
        process.mask().map_or(NONE, |mask| mask as u32),
        process.states() as u32,
    )
}

/// `clean` with the slots of `rows` noised: each with its row's probability, to what
/// [`Process::corrupt`] draws from. Tokens of no row stay.
pub fn corrupt(clean: &[TokenId], process: &Process, rows: &[CorruptRow]) -> Vec<TokenId> {
    let mut noisy = clean.to_vec();
    for row in rows {
        for i in 0..row.length {
            let slot = (row.slot + i) as usize;
            let draws = Draws::new(row.seed, row.step as usize, slot, Stream::Corrupt);
            let [chance, choice, ..] = draws.quad(0);
            if u64::from(chance) < row.threshold {
                noisy[(row.first + i) as usize] = match process.noise() {
                    Noise::Absorbing { mask } => mask as TokenId,
                    Noise::Uniform => {
                        ((u64::from(choice) * process.states() as u64) >> 32) as TokenId
                    }
                };
            }
        }
    }
    noisy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_become_what_the_marginal_says() {
        let level = NoiseLevel::from_alpha(0.4).unwrap();
        for process in [
            Process::absorbing(5, 4).unwrap(),
            Process::uniform(5).unwrap(),
        ] {
            let draws = 20_000u32;
            let row = CorruptRow::new(11, 2, level, 0, draws, 100);
            let mut counts = [0; 5];
            for token in corrupt(&vec![1; draws as usize], &process, &[row]) {
                counts[token as usize] += 1;
            }
            let marginal = process.marginal(level, 1).unwrap();
            let statistic: f64 = (0..5)
                .filter(|state| marginal.probability(*state) > 0.0)
                .map(|state| {
                    let expected = marginal.probability(state) * f64::from(draws);
                    (f64::from(counts[state]) - expected).powi(2) / expected
                })
                .sum();
            // The 99.9 % quantile of χ² with 4 degrees of freedom.
            assert!(statistic < 18.47, "{process:?}: {counts:?}");
        }
    }

    #[test]
    fn nothing_is_noised_at_the_clean_level_and_all_at_pure_noise() {
        let process = Process::absorbing(8, 7).unwrap();
        let clean: Vec<TokenId> = (0..1000).map(|i| i % 7).collect();
        let at = |level| {
            corrupt(
                &clean,
                &process,
                &[CorruptRow::new(1, 0, level, 0, 1000, 0)],
            )
        };
        assert_eq!(at(NoiseLevel::CLEAN), clean);
        assert_eq!(at(NoiseLevel::PURE_NOISE), vec![7; 1000]);
    }
}
