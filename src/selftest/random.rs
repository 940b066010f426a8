//! Random inputs that are the same on every run.

use crate::sampling::philox::philox4x32;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(super) struct Random {
    key: u32,
    count: u32,
}

impl Random {
    pub fn new(key: u32) -> Self {
        Self { key, count: 0 }
    }

    pub fn word(&mut self) -> u32 {
        self.count += 1;
        philox4x32([self.count, 0, 0, 0], [self.key, 0x5e1f])[0]
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.word() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f32) -> bool {
        self.uniform() < p
    }

    /// About standard normal: the sum of four uniform numbers, scaled.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.uniform()).sum();
        (sum - 2.0) * 3f32.sqrt()
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
