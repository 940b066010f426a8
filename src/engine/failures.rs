//! What the log says of steps that fail.

use std::time::{Duration, Instant};

/// The least time between two lines about failed steps: with broken weights every step fails, hundreds a second.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Says of failed steps why, but not of all.
#[derive(Debug, Default)]
pub(super) struct Failures {
    last_said: Option<Instant>,
    /// Failed steps that nothing was said of since then.
    unsaid: usize,
}

impl Failures {
    /// Notes at `now` that so many `sequences` of a step failed.
    pub fn note(&mut self, now: Instant, sequences: usize, reason: &str) {
        if let Some(unsaid) = self.turn_to_speak(now) {
            tracing::error!(reason, sequences, unsaid, "a step failed");
        }
    }

    /// How many failed steps nothing was said of since the last line; none if it is too early for another line.
    fn turn_to_speak(&mut self, now: Instant) -> Option<usize> {
        let is_early = |last| now.saturating_duration_since(last) < LOG_INTERVAL;
        if self.last_said.is_some_and(is_early) {
            self.unsaid += 1;
            return None;
        }
        self.last_said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_failures_one_a_second_is_told_of_with_the_number_of_the_others() {
        let mut failures = Failures::default();
        let begun = Instant::now();
        let mut said = Vec::new();
        for tenth in 0..25 {
            let now = begun + Duration::from_millis(100) * tenth;
            said.extend(failures.turn_to_speak(now).map(|unsaid| (tenth, unsaid)));
        }
        assert_eq!(said, [(0, 0), (10, 9), (20, 9)]);
    }
}
