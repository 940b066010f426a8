//! A distribution over short sequences that can be enumerated, and its exact denoiser.

use unmask::diffusion::{Categorical, NoiseLevel, Process};

/// A joint distribution over sequences of `slots` slots, each in one of `tokens` states.
pub struct Toy {
    pub slots: usize,
    /// Every sequence with its probability.
    pub sequences: Vec<(Vec<usize>, f64)>,
}

/// All sequences of `slots` slots over `states` states.
pub fn sequences(slots: usize, states: usize) -> Vec<Vec<usize>> {
    (0..slots).fold(vec![Vec::new()], |shorter, _| {
        let longer = shorter.iter().flat_map(|sequence| {
            (0..states).map(move |state| {
                let mut sequence = sequence.clone();
                sequence.push(state);
                sequence
            })
        });
        longer.collect()
    })
}

impl Toy {
    /// Random probabilities, far from a product of its slots.
    pub fn new(slots: usize, tokens: usize, mut uniform: impl FnMut() -> f64) -> Self {
        let sequences = sequences(slots, tokens);
        let weights = sequences.iter().map(|_| uniform().powi(4) + 1e-3).collect();
        let p = Categorical::from_weights(weights).unwrap();
        let pairs = sequences.into_iter().zip(p.probabilities().iter().copied());
        Self {
            slots,
            sequences: pairs.collect(),
        }
    }

    pub fn entropy(&self) -> f64 {
        self.sequences.iter().map(|(_, p)| -p * p.ln()).sum()
    }

    /// q(x_t | x_0) of a whole sequence.
    pub fn likelihood(process: &Process, level: NoiseLevel, x_t: &[usize], x_0: &[usize]) -> f64 {
        let slots = x_t.iter().zip(x_0);
        slots
            .map(|(x_t, x_0)| process.transition(level, *x_t, *x_0).unwrap())
            .product()
    }

    /// q_t(x_t).
    pub fn marginal(&self, process: &Process, level: NoiseLevel, x_t: &[usize]) -> f64 {
        let joint = self.sequences.iter();
        joint
            .map(|(x_0, p)| p * Self::likelihood(process, level, x_t, x_0))
            .sum()
    }

    /// p(x_0^slot | x_t) for every slot, by Bayes' rule; `None` where q_t(x_t) = 0.
    pub fn denoisers(
        &self,
        process: &Process,
        level: NoiseLevel,
        x_t: &[usize],
    ) -> Option<Vec<Categorical>> {
        let mut joint = vec![vec![0.0; process.states()]; self.slots];
        for (x_0, p) in &self.sequences {
            let mass = p * Self::likelihood(process, level, x_t, x_0);
            for (slot, state) in x_0.iter().enumerate() {
                joint[slot][*state] += mass;
            }
        }
        joint
            .into_iter()
            .map(|weights| Categorical::from_weights(weights).ok())
            .collect()
    }

    /// E over x_0 and x_t of Σ_slot `term`(x_t^slot, x_0^slot, denoiser of that slot), where `denoisers`
    /// gives one denoiser a slot.
    pub fn expectation(
        &self,
        process: &Process,
        level: NoiseLevel,
        denoisers: impl Fn(&[usize]) -> Option<Vec<Categorical>>,
        term: impl Fn(usize, usize, &Categorical) -> f64,
    ) -> f64 {
        let mut total = 0.0;
        for x_t in sequences(self.slots, process.states()) {
            let Some(denoisers) = denoisers(&x_t) else {
                continue;
            };
            for (x_0, p) in &self.sequences {
                let mass = p * Self::likelihood(process, level, &x_t, x_0);
                if mass < 1e-300 {
                    continue;
                }
                let slots = 0..self.slots;
                total += mass
                    * slots
                        .map(|i| term(x_t[i], x_0[i], &denoisers[i]))
                        .sum::<f64>();
            }
        }
        total
    }
}
