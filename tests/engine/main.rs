//! Promises of the engine.

mod cache;
mod digest;
mod guidance;
mod invariance;
mod promises;
mod soak;
#[path = "../support/mod.rs"]
mod support;

use unmask::canvas::Canvas;
use unmask::engine::{Event, Generation, Statistics};

/// The finished canvas and what it took, or why there is none.
fn end(mut generation: Generation) -> Result<(Canvas, Statistics), String> {
    loop {
        match generation.next_blocking() {
            Some(Event::Step(_)) => {}
            Some(Event::Finished(canvas, statistics)) => return Ok((canvas, statistics)),
            Some(Event::Failed(error)) => return Err(error.to_string()),
            None => return Err("no last event".into()),
        }
    }
}

/// The finished canvas, or why there is none.
fn finish(generation: Generation) -> Result<Canvas, String> {
    end(generation).map(|(canvas, _)| canvas)
}
