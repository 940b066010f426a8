//! Denoises one canvas for the command line.

use unmask::canvas::Canvas;
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, Event, Statistics};
use unmask::text::Tokenizer;

use crate::cli::animate::Animation;
use crate::cli::output::{OutputArgs, Trace};

/// Denoises `canvas` to the end, with the scratch slots that the model needs, tracing and animating as
/// asked.
pub fn denoise(
    engine: &Engine,
    canvas: Canvas,
    plan: &DecodePlan,
    output: &OutputArgs,
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<(Canvas, Statistics)> {
    let canvas = plan.noised(engine.spec().with_scratch(plan, canvas));
    let mut trace = output
        .trace
        .as_deref()
        .map(|path| Trace::create(path, &canvas))
        .transpose()?;
    let mut animation = output
        .animate
        .then(|| Animation::start(&canvas, tokenizer))
        .transpose()?;
    let mut generation = engine.submit(canvas, plan)?;
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Step(report) => {
                if let Some(trace) = &mut trace {
                    trace.step(&report)?;
                }
                if let Some(animation) = &mut animation {
                    animation.step(&report)?;
                }
            }
            Event::Finished(canvas, statistics) => {
                trace.map_or(Ok(()), Trace::finish)?;
                animation.map_or(Ok(()), Animation::finish)?;
                return Ok((canvas, statistics));
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the engine stopped before the canvas was finished")
}
