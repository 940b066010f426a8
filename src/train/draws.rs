//! Random draws that depend on the seed and the step only, so that a resumed run repeats them.

/// The smallest diffusion time; the weight 1/t of the objective diverges at 0.
pub const MIN_TIME: f64 = 1e-3;

/// What a stream of random numbers is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights; the index is the parameter's number.
    Weights = 1,
    /// Windows, times and masks of a training step; the index is the step.
    Step = 2,
    /// Times and masks of validation; index 0.
    Validation = 3,
}

/// A stream of random numbers: SplitMix64 (Steele, Lea, Flood 2014) started from a hash of
/// (seed, purpose, index).
#[derive(Debug, Clone)]
pub struct Stream(u64);

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Stream {
    /// The stream of a (seed, purpose, index).
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = mix(seed.wrapping_add(GOLDEN));
        let state = mix(state ^ (purpose as u64).wrapping_mul(GOLDEN));
        Self(mix(state ^ index.wrapping_mul(GOLDEN)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n. `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// `n` diffusion times in [[`MIN_TIME`], 1], one in each of n equal strata of [0, 1] (clamped), in
/// random order: all have one random place in their strata (the low-discrepancy sampler of VDM, arXiv:2107.00630).
pub fn stratified_times(n: usize, stream: &mut Stream) -> Vec<f64> {
    let shift = stream.uniform();
    let mut times: Vec<f64> = (0..n)
        .map(|i| ((shift + i as f64) / n as f64).max(MIN_TIME))
        .collect();
    for i in (1..n).rev() {
        times.swap(i, stream.below(i + 1));
    }
    times
}

/// `n` independent diffusion times, uniform in [0, 1] and raised to [`MIN_TIME`].
pub fn independent_times(n: usize, stream: &mut Stream) -> Vec<f64> {
    (0..n).map(|_| stream.uniform().max(MIN_TIME)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_one_in_each_stratum() {
        for index in 0..50 {
            let mut stream = Stream::new(7, Purpose::Step, index);
            let mut times = stratified_times(32, &mut stream);
            assert!(times.windows(2).any(|pair| pair[0] > pair[1]), "shuffled");
            times.sort_by(f64::total_cmp);
            for (i, time) in times.iter().enumerate() {
                assert!(
                    *time >= MIN_TIME && *time >= i as f64 / 32.0 && *time < (i + 1) as f64 / 32.0
                );
            }
        }
    }

    #[test]
    fn independent_times_are_uniform_and_not_stratified() {
        let times = independent_times(20_000, &mut Stream::new(7, Purpose::Step, 0));
        assert!(times.iter().all(|time| (MIN_TIME..1.0).contains(time)));
        let mean = times.iter().sum::<f64>() / 20_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let first = |time: &&f64| **time < 1.0 / 20_000.0 + MIN_TIME;
        assert!(times.iter().filter(first).count() > 1);
    }

    #[test]
    fn streams_of_other_steps_seeds_and_purposes_differ() {
        let first = |seed, purpose, index| Stream::new(seed, purpose, index).bits();
        let reference = first(1, Purpose::Step, 1);
        assert_eq!(reference, first(1, Purpose::Step, 1));
        for other in [
            first(2, Purpose::Step, 1),
            first(1, Purpose::Step, 2),
            first(1, Purpose::Validation, 1),
        ] {
            assert_ne!(reference, other);
        }
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut stream = Stream::new(3, Purpose::Weights, 0);
        let draws: Vec<f64> = (0..100_000).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(
            mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }
}
