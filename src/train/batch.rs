//! Windows of text, and the same noised.

use super::draws::Stream;
use crate::diffusion::{Error, Noise, Process, Schedule};

/// The strongest signal of the uniform process that has a loss: its square and its products with a
/// vocabulary's size stay far below the largest f32. What weaker noise adds to the bound of a slot whose
/// token has the probability p is at most 1/(p · 10¹⁶) nats.
const MAX_SIGNAL: f64 = 1e16;

/// The most slots that are noised together.
pub const LONGEST_SPAN: usize = 16;

/// Windows before they are noised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Tokens a window.
    pub context: usize,
    /// Tokens, `[windows * context]`.
    pub tokens: Vec<u32>,
    /// How many slots at each window's beginning are never noised, `[windows]`.
    pub prompts: Vec<usize>,
    /// The first slots of texts that see only themselves: ascending indices into `tokens`. Each window
    /// begins one.
    pub starts: Vec<u32>,
}

impl Windows {
    /// No windows, of `context` tokens each.
    pub fn new(context: usize) -> Self {
        Self {
            context,
            tokens: Vec::new(),
            prompts: Vec::new(),
            starts: Vec::new(),
        }
    }

    /// Windows that are noised and seen as a whole, of all of `tokens`, `[windows * context]`.
    pub fn whole(context: usize, tokens: &[u32]) -> Self {
        let mut windows = Self::new(context);
        for window in tokens.chunks_exact(context) {
            windows.push(window, 0, &[]);
        }
        windows
    }

    /// Appends a window whose first `prompt` slots are not noised. `borders` are the slots, other than
    /// the first, at which another text begins; ascending.
    ///
    /// # Panics
    /// If the window is not of `context` tokens.
    pub fn push(&mut self, tokens: &[u32], prompt: usize, borders: &[usize]) {
        assert_eq!(tokens.len(), self.context, "tokens of a window");
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.prompts.push(prompt);
        self.starts.push(first as u32);
        self.starts
            .extend(borders.iter().map(|border| (first + border) as u32));
    }

    /// The number of windows.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Slots that may be noised.
    pub fn noised(&self) -> usize {
        self.tokens.len() - self.prompts.iter().sum::<usize>()
    }
}

/// Windows of text, noised.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Tokens a window.
    pub context: usize,
    /// Clean tokens, `[windows * context]`.
    pub clean: Vec<u32>,
    /// Noisy tokens, `[windows * context]`.
    pub noisy: Vec<u32>,
    /// The slots that have a loss, ascending indices into `noisy`: of the absorbing process those that
    /// are masked, of the uniform one all that may be noised, since which of them are is not seen.
    pub scored: Vec<u32>,
    /// The objective's weight of each window, `[windows]`.
    pub weights: Vec<f32>,
    /// For the uniform process K α/(1 − α) of each window, `[windows]`: by how much its own token is
    /// likelier to be seen at a slot than another one is, less 1; 0 where the weight is. Empty for the
    /// absorbing process.
    pub signal: Vec<f32>,
    /// The first slots of texts that see only themselves: ascending indices into `noisy`. Each window
    /// begins one.
    pub starts: Vec<u32>,
}

impl Batch {
    /// Noises windows: window i at time `times[i]`, each slot that may be noised by itself, with one number
    /// drawn for each of these slots, in order. In a share `span_share` of the windows, in [0, 1], runs of 1 to
    /// [`LONGEST_SPAN`] slots have a number in common: whole phrases are then noised or not, which is what the
    /// gaps of an infilling are. Either way a slot is noised with the probability of its window's time.
    ///
    /// The weight of a window is that of the continuous-time NELBO: −α′/(1 − α) on the cross-entropy of
    /// masked slots, or −α′/(α K) on the divergence of the uniform process. The latter is 0 where α = 0,
    /// and where so little is noised (K α/(1 − α) > 10¹⁶) that f32 cannot hold the divergence's terms.
    ///
    /// # Errors
    /// [`Error::TimeOutOfRange`], or [`Error::StateOutOfRange`] for a token that is no state of `process`.
    pub fn noise(
        windows: Windows,
        times: &[f64],
        process: &Process,
        schedule: &Schedule,
        span_share: f64,
        stream: &mut Stream,
    ) -> Result<Self, Error> {
        let Windows {
            context,
            tokens: clean,
            prompts,
            starts,
        } = windows;
        let mut noisy = clean.clone();
        let mut scored = Vec::new();
        let (mut weights, mut signal) = (Vec::new(), Vec::new());
        let absorbing = matches!(process.noise(), Noise::Absorbing { .. });
        for ((window, &time), prompt) in times.iter().enumerate().zip(prompts) {
            let level = schedule.level(time)?;
            let in_spans = span_share > 0.0 && stream.uniform() < span_share;
            let (mut u, mut left) = (0.0, 0);
            for slot in window * context + prompt..(window + 1) * context {
                if left == 0 {
                    left = if in_spans {
                        1 + stream.below(LONGEST_SPAN)
                    } else {
                        1
                    };
                    u = stream.uniform();
                }
                left -= 1;
                noisy[slot] = process.corrupt(level, clean[slot] as usize, u)? as u32;
                if !absorbing || u < level.one_minus_alpha() {
                    scored.push(slot as u32);
                }
            }
            if absorbing {
                weights.push(schedule.weight(time) as f32);
                continue;
            }
            // Infinite where nothing is noised.
            let ratio = process.signal(level);
            let weight = match level.alpha() > 0.0 && ratio <= MAX_SIGNAL {
                true => (schedule.rate(time) / process.states() as f64) as f32,
                false => 0.0,
            };
            weights.push(weight);
            signal.push(if weight > 0.0 { ratio as f32 } else { 0.0 });
        }
        Ok(Self {
            context,
            clean,
            noisy,
            scored,
            weights,
            signal,
            starts,
        })
    }

    /// The batch with the weight tokens / scored slots for every window: its loss is the mean of its scored
    /// slots' losses.
    pub fn with_equal_weights(mut self) -> Self {
        // Without scored slots there is nothing to weigh.
        let weight = self.tokens() as f64 / self.scored.len().max(1) as f64;
        self.weights.fill(weight as f32);
        self
    }

    /// The batch with each window's weight times its factor: the loss of a window divides by all its
    /// tokens, of which a prompt has no loss.
    pub fn with_factors(mut self, factors: impl IntoIterator<Item = f64>) -> Self {
        for (weight, factor) in self.weights.iter_mut().zip(factors) {
            *weight = (f64::from(*weight) * factor) as f32;
        }
        self
    }

    /// The number of windows.
    pub fn windows(&self) -> usize {
        self.weights.len()
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.clean.len()
    }

    /// The ranges of slots whose texts see only themselves, in order.
    pub fn texts(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let ends = self.starts.iter().skip(1).map(|&start| start as usize);
        let starts = self.starts.iter().map(|&start| start as usize);
        starts
            .zip(ends.chain([self.tokens()]))
            .map(|(start, end)| start..end)
    }

    /// The windows `range`, as a batch of their own.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let slots = range.start * self.context..range.end * self.context;
        let within = |indices: &[u32]| -> Vec<u32> {
            let at = |end: usize| indices.partition_point(|&slot| (slot as usize) < end);
            let inside = &indices[at(slots.start)..at(slots.end)];
            inside
                .iter()
                .map(|slot| slot - slots.start as u32)
                .collect()
        };
        Self {
            context: self.context,
            clean: self.clean[slots.clone()].to_vec(),
            noisy: self.noisy[slots.clone()].to_vec(),
            scored: within(&self.scored),
            weights: self.weights[range.clone()].to_vec(),
            signal: self.signal.get(range).unwrap_or_default().to_vec(),
            starts: within(&self.starts),
        }
    }
}
