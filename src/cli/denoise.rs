//! Denoises one canvas for the command line.

use std::sync::Arc;

use unmask::canvas::Canvas;
use unmask::constraint::{ByteDfa, CanvasConstraint, GapConstraint, TokenDfa};
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, Event, Statistics};
use unmask::text::Tokenizer;

use crate::cli::animate::Animation;
use crate::cli::output::{OutputArgs, Trace};

/// Denoises `canvas` to the end, with the scratch slots that the model needs, tracing and animating as
/// asked. Each gap is filled with a text of its language, the first with one of the first, if there are any.
pub fn denoise(
    engine: &Engine,
    canvas: Canvas,
    plan: &DecodePlan,
    languages: &[ByteDfa],
    output: &OutputArgs,
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<(Canvas, Statistics)> {
    let canvas = plan.noised(engine.spec().with_scratch(plan, canvas));
    let constraint = constraint(engine, &canvas, plan, languages, tokenizer)?;
    let mut trace = output
        .trace
        .as_deref()
        .map(|path| Trace::create(path, &canvas))
        .transpose()?;
    let mut animation = output
        .animate
        .then(|| Animation::start(&canvas, tokenizer))
        .transpose()?;
    let mut generation = engine.submit_constrained(canvas, plan, None, constraint)?;
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

/// What the gaps of `canvas` are to be filled with, if anything is asked for.
fn constraint(
    engine: &Engine,
    canvas: &Canvas,
    plan: &DecodePlan,
    languages: &[ByteDfa],
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<Option<CanvasConstraint>> {
    let gaps = canvas.gaps().len();
    if languages.is_empty() {
        return Ok(None);
    }
    plan.check_constrained()?;
    if languages.len() != gaps {
        anyhow::bail!(
            "--regex is given {} times, and there are {gaps} gaps; allowed: once a gap, in their order",
            languages.len()
        );
    }
    let spec = engine.spec();
    let vocabulary = Arc::new(spec.vocabulary(|token| tokenizer.bytes(token)));
    let mut constraints = Vec::new();
    for (gap, language) in languages.iter().enumerate() {
        let language = TokenDfa::new(language.clone(), vocabulary.clone())?;
        let may_end = plan.sampling.may_stop_in(canvas, gap);
        let slots = canvas.gaps()[gap].len();
        let lengths = language.lengths(spec.max_canvas, may_end);
        if !lengths.get(slots).is_some_and(|fits| *fits) {
            let least = (1..lengths.len()).find(|length| lengths[*length]);
            anyhow::bail!(
                "gap {gap} has {slots} tokens, and no text that it is to hold fills it; {}",
                match least {
                    Some(least) => format!("the shortest has {least}"),
                    None => format!("none has 1 to {} tokens", spec.max_canvas),
                }
            );
        }
        constraints.push(GapConstraint {
            gap,
            language: Arc::new(language),
            may_end,
        });
    }
    Ok(Some(CanvasConstraint::new(canvas, constraints)?))
}
