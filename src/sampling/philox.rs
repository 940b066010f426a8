//! Philox4x32-10, a counter-based random number generator.
//!
//! Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A draw is a
//! pure function of (key, counter): nothing is carried from one draw to the next.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a draw is for; draws of different streams are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Gumbel noise on the logits; the index is the token's.
    Gumbel = 0,
    /// The uniform number by which random scores rank slots.
    Score = 1,
    /// Whether the reverse process unmasks a slot.
    Unmask = 2,
    /// Whether the reverse process masks a slot again.
    Remask = 3,
    /// Gumbel noise on the score of a candidate.
    ScoreNoise = 4,
    /// Numbers of masked slots, and which they are, in the evaluation of a likelihood.
    MaskCount = 5,
    /// Diffusion times, and the slots masked at them, in the evaluation of a likelihood.
    MaskTime = 6,
    /// Masked spans in the evaluation of infilling.
    Spans = 7,
    /// Gumbel noise on the log-probabilities of a gap's choices.
    Choice = 8,
    /// Whether the forward process noises a slot, and with which token.
    Corrupt = 9,
    /// The noise that a gap of the uniform process begins as.
    Noise = 10,
    /// What the reverse step of the uniform process makes of a slot.
    Renoise = 11,
    /// Diffusion times and noise of the uniform process, in the evaluation of a likelihood.
    NoiseTime = 12,
    /// Documents and windows that an evaluation takes.
    Sample = 13,
}

/// The four words of `counter` under `key`.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let low = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let high = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
    }
    counter
}

/// The draws of one (seed, step, slot) in one stream.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    key: [u32; 2],
    step: u32,
    slot: u32,
    stream: u32,
}

impl Draws {
    /// Draws for `slot` at `step` of the request with `seed`.
    pub fn new(seed: u64, step: usize, slot: usize, stream: Stream) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            step: step as u32,
            slot: slot as u32,
            stream: stream as u32,
        }
    }

    /// The four words with indices 4·`quad` to 4·`quad` + 3.
    pub fn quad(&self, quad: u32) -> [u32; 4] {
        philox4x32([quad, self.slot, self.step, self.stream], self.key)
    }

    /// A uniform number in [0, 1).
    pub fn uniform(&self) -> f32 {
        (self.quad(0)[0] >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// A uniform number in [0, 1) with 53 bits, where one choice is among many tokens.
    pub fn fine_uniform(&self) -> f64 {
        let [high, low, ..] = self.quad(0);
        let bits = u64::from(high) << 32 | u64::from(low);
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_random123s_known_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_steps_slots_and_seeds_draw_differently() {
        let base = Draws::new(1, 2, 3, Stream::Gumbel).quad(0);
        for other in [
            Draws::new(2, 2, 3, Stream::Gumbel),
            Draws::new(1 << 32, 2, 3, Stream::Gumbel),
            Draws::new(1, 3, 3, Stream::Gumbel),
            Draws::new(1, 2, 4, Stream::Gumbel),
            Draws::new(1, 2, 3, Stream::Score),
            Draws::new(1, 2, 3, Stream::MaskCount),
        ] {
            assert_ne!(base, other.quad(0));
        }
        assert_ne!(base, Draws::new(1, 2, 3, Stream::Gumbel).quad(1));
    }
}
