//! Promises of the engine.

mod cache;
mod digest;
mod failures;
mod finality;
mod guidance;
mod invariance;
mod levels;
mod logprobs;
mod promises;
mod queue;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod warm_up;

use std::time::Duration;

use support::mock::{MASK, MockModel};
use unmask::canvas::Canvas;
use unmask::engine::{Engine, EngineConfig, Event, Generation, Statistics};

fn canvas(gap: usize) -> Canvas {
    Canvas::builder(MASK).fixed(&[1]).gap(gap).build().unwrap()
}

fn start(model: MockModel, config: EngineConfig) -> Engine {
    Engine::start(Box::new(model), config).unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the condition never held");
}

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
