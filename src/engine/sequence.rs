//! One request's state in the engine.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{Event, Statistics};
use crate::canvas::Canvas;
use crate::decode::{Decoder, Sampling};

/// A canvas being denoised.
pub(super) struct Sequence {
    pub canvas: Canvas,
    pub decoder: Decoder,
    pub sampling: Sampling,
    pub events: mpsc::Sender<Event>,
    pub submitted: Instant,
    pub started: Option<Instant>,
    pub nfe: usize,
}

impl Sequence {
    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether a second segment, with the fixed slots masked, goes into the batch.
    pub fn is_guided(&self) -> bool {
        self.sampling.guidance_scale > 0.0
    }

    /// Rows that the sequence takes in a step.
    pub fn rows(&self) -> usize {
        self.canvas.len() * if self.is_guided() { 2 } else { 1 }
    }

    /// Reports an event. The channel has room for every event of a sequence, so that sending fails
    /// only if nobody listens, which the next step's check for cancellation finds.
    pub fn report(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// What the sequence took so far.
    pub fn statistics(&self) -> Statistics {
        let started = self.started.unwrap_or(self.submitted);
        Statistics {
            steps: self.decoder.steps(),
            nfe: self.nfe,
            queued: started - self.submitted,
            denoising: started.elapsed(),
        }
    }

    /// Reports the end and gives the canvas away.
    pub fn finish(self) {
        let statistics = self.statistics();
        let _ = self
            .events
            .try_send(Event::Finished(self.canvas, statistics));
    }
}
