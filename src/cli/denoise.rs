//! Denoises one canvas for the command line.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use unmask::canvas::Canvas;
use unmask::constraint::{
    ByteDfa, CanvasConstraint, ConstraintError, GapConstraint, TokenDfa, Vocabulary,
};
use unmask::decode::DecodePlan;
use unmask::engine::{Engine, Event, Generation, Statistics, StepReport, Submission};
use unmask::text::Tokenizer;

use crate::cli::animate::Animation;
use crate::cli::output::{OutputArgs, Trace};

/// Canvases that are submitted before the first is awaited.
const IN_FLIGHT: usize = 32;

/// What a gap is to be filled with.
pub enum Form {
    /// A text of a language.
    Language(ByteDfa),
    /// A text of a grammar.
    Grammar(String),
}

impl Form {
    /// A text of the regular expression that `--regex` gives.
    pub fn regex(pattern: &str) -> anyhow::Result<Self> {
        let language = ByteDfa::regex(pattern).with_context(|| format!("--regex {pattern:?}"))?;
        Ok(Self::Language(language))
    }

    /// A text of the grammar that `--grammar` gives.
    pub fn grammar(text: &str) -> anyhow::Result<Self> {
        // Read before the model is, which may take a while.
        ByteDfa::grammar(text).context("--grammar")?;
        Ok(Self::Grammar(text.to_owned()))
    }

    /// A text of the grammar in a file.
    pub fn grammar_file(path: &Path) -> anyhow::Result<Self> {
        let option = || format!("--grammar-file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(option)?;
        ByteDfa::grammar(&text).with_context(option)?;
        Ok(Self::Grammar(text))
    }

    fn over(&self, vocabulary: &Arc<Vocabulary>) -> Result<TokenDfa, ConstraintError> {
        match self {
            Self::Language(language) => TokenDfa::new(language.clone(), vocabulary.clone()),
            Self::Grammar(text) => TokenDfa::grammar(text, vocabulary),
        }
    }
}

/// Said of a canvas that nobody denoises any more.
const STOPPED: &str = "the engine stopped before the canvas was finished";

/// Denoises `canvas` to the end, with the scratch slots that the model needs, tracing and animating as
/// asked. Each gap is filled with a text of its form, the first with one of the first, if there are any.
pub fn denoise(
    engine: &Engine,
    canvas: Canvas,
    plan: &DecodePlan,
    forms: &[Form],
    output: &OutputArgs,
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<(Canvas, Statistics)> {
    let canvas = plan.noised(engine.spec().with_scratch(plan, canvas));
    let constraint = constraint(
        &canvas,
        gap_constraints(engine, &canvas, plan, forms, tokenizer)?,
    )?;
    let mut trace = output
        .trace
        .as_deref()
        .map(|path| Trace::create(path, &canvas))
        .transpose()?;
    let mut animation = output
        .animate
        .then(|| Animation::start(&canvas, tokenizer))
        .transpose()?;
    let generation = engine.enqueue(Submission {
        constraint,
        ..Submission::new(canvas, plan)
    })?;
    let finished = finish(generation, |report| {
        if let Some(trace) = &mut trace {
            trace.step(report)?;
        }
        if let Some(animation) = &mut animation {
            animation.step(report)?;
        }
        Ok(())
    })?;
    trace.map_or(Ok(()), Trace::finish)?;
    animation.map_or(Ok(()), Animation::finish)?;
    Ok(finished)
}

/// Denoises `canvas` by each of `plans`, which differ in their seeds alone, several at a time, as [`denoise`]
/// does, and gives what came of each to `finished`, in their order.
pub fn denoise_each(
    engine: &Engine,
    canvas: &Canvas,
    plans: impl IntoIterator<Item = DecodePlan>,
    forms: &[Form],
    tokenizer: &dyn Tokenizer,
    mut finished: impl FnMut(&DecodePlan, &Canvas, &Statistics) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut waiting: VecDeque<(DecodePlan, Generation)> = VecDeque::new();
    let mut plans = plans.into_iter().peekable();
    let Some(first) = plans.peek() else {
        return Ok(());
    };
    let with_scratch = |plan: &DecodePlan| engine.spec().with_scratch(plan, canvas.clone());
    // Automata over a whole vocabulary are made once.
    let constraints = gap_constraints(engine, &with_scratch(first), first, forms, tokenizer)?;
    loop {
        while waiting.len() < IN_FLIGHT
            && let Some(plan) = plans.next()
        {
            let canvas = plan.noised(with_scratch(&plan));
            let constraint = constraint(&canvas, constraints.clone())?;
            let generation = engine.enqueue(Submission {
                constraint,
                ..Submission::new(canvas, &plan)
            })?;
            waiting.push_back((plan, generation));
        }
        let Some((plan, generation)) = waiting.pop_front() else {
            return Ok(());
        };
        let (canvas, statistics) = finish(generation, |_| Ok(()))?;
        finished(&plan, &canvas, &statistics)?;
    }
}

/// Waits for the end; each step is told to `step`.
fn finish(
    mut generation: Generation,
    mut step: impl FnMut(&StepReport) -> anyhow::Result<()>,
) -> anyhow::Result<(Canvas, Statistics)> {
    loop {
        match generation.next_blocking() {
            Some(Event::Step(report)) => step(&report)?,
            Some(Event::Finished(canvas, statistics)) => return Ok((canvas, statistics)),
            Some(Event::Failed(error)) => return Err(error.into()),
            None => anyhow::bail!(STOPPED),
        }
    }
}

/// What all gaps of `canvas` together are to be filled with, if anything is asked for.
fn constraint(
    canvas: &Canvas,
    constraints: Vec<GapConstraint>,
) -> anyhow::Result<Option<CanvasConstraint>> {
    Ok(match constraints.is_empty() {
        true => None,
        false => Some(CanvasConstraint::new(canvas, constraints)?),
    })
}

/// What each gap of `canvas` is to be filled with; empty if nothing is asked for.
fn gap_constraints(
    engine: &Engine,
    canvas: &Canvas,
    plan: &DecodePlan,
    forms: &[Form],
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<Vec<GapConstraint>> {
    let gaps = canvas.gaps().len();
    if forms.is_empty() {
        return Ok(Vec::new());
    }
    plan.check_constrained()?;
    if forms.len() != gaps {
        anyhow::bail!(
            "{} regular expressions or grammars are given, and there are {gaps} gaps; allowed: one a gap, in their \
             order",
            forms.len()
        );
    }
    let spec = engine.spec();
    let vocabulary = Arc::new(spec.vocabulary(|token| tokenizer.bytes(token)));
    let mut constraints = Vec::new();
    for (gap, form) in forms.iter().enumerate() {
        let language = form.over(&vocabulary)?;
        let may_end = plan.sampling.may_stop_in(canvas, gap);
        let slots = canvas.gaps()[gap].len();
        let lengths = language.lengths(spec.longest_canvas(plan), may_end);
        if !lengths.get(slots).is_some_and(|fits| *fits) {
            let least = (1..lengths.len()).find(|length| lengths[*length]);
            anyhow::bail!(
                "gap {gap} has {slots} tokens, and no text that it is to hold fills it; {}",
                match least {
                    Some(least) => format!("the shortest has {least}"),
                    None => format!("none has 1 to {} tokens", spec.longest_canvas(plan)),
                }
            );
        }
        constraints.push(GapConstraint {
            gap,
            language: Arc::new(language),
            may_end,
        });
    }
    Ok(constraints)
}
