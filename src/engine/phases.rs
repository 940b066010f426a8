//! Where the time of a step goes.

use std::time::{Duration, Instant};

/// The time of steps by phase. On a GPU, whose work is queued, a phase that needs results waits for the
/// phases before it: the forward is short, and sampling long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phases {
    /// Retiring what has ended, admission, the choice of rows and their layout.
    pub schedule: Duration,
    /// The network up to the hidden states of all rows.
    pub forward: Duration,
    /// The head on the scored rows.
    pub head: Duration,
    /// The reduction of logits to candidates.
    pub sampling: Duration,
    /// The decode policies, the reports, and the books on the cache.
    pub decode: Duration,
}

impl Phases {
    /// The names, in the order of [`Phases::durations`].
    pub const NAMES: [&'static str; 5] = ["schedule", "forward", "head", "sampling", "decode"];

    /// Those of durations in the order of [`Phases::NAMES`].
    pub fn of(durations: [Duration; 5]) -> Self {
        let [schedule, forward, head, sampling, decode] = durations;
        Self {
            schedule,
            forward,
            head,
            sampling,
            decode,
        }
    }

    /// Each phase's.
    pub fn durations(&self) -> [Duration; 5] {
        [
            self.schedule,
            self.forward,
            self.head,
            self.sampling,
            self.decode,
        ]
    }

    /// All phases together.
    pub fn total(&self) -> Duration {
        self.durations().iter().sum()
    }

    /// The part spent in the model: forward and head.
    pub fn model(&self) -> Duration {
        self.forward + self.head
    }
}

/// Tells one phase's time from the next one's.
#[derive(Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the last lap, or the start.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
