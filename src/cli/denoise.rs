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
use unmask::engine::{Engine, Event, Generation, Statistics, Submission};
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
    let constraint = constraint(engine, &canvas, plan, forms, tokenizer)?;
    let mut trace = output
        .trace
        .as_deref()
        .map(|path| Trace::create(path, &canvas))
        .transpose()?;
    let mut animation = output
        .animate
        .then(|| Animation::start(&canvas, tokenizer))
        .transpose()?;
    let mut generation = engine.enqueue(Submission {
        constraint,
        ..Submission::new(canvas, plan)
    })?;
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
    anyhow::bail!(STOPPED)
}

/// Denoises `canvas` by each of `plans`, several at a time, as [`denoise`] does, and gives what came of each to
/// `finished`, in their order.
pub fn denoise_each(
    engine: &Engine,
    canvas: &Canvas,
    plans: impl IntoIterator<Item = DecodePlan>,
    forms: &[Form],
    tokenizer: &dyn Tokenizer,
    mut finished: impl FnMut(&DecodePlan, &Canvas, &Statistics) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut waiting: VecDeque<(DecodePlan, Generation)> = VecDeque::new();
    let mut plans = plans.into_iter();
    loop {
        while waiting.len() < IN_FLIGHT
            && let Some(plan) = plans.next()
        {
            let canvas = plan.noised(engine.spec().with_scratch(&plan, canvas.clone()));
            let constraint = constraint(engine, &canvas, &plan, forms, tokenizer)?;
            let generation = engine.enqueue(Submission {
                constraint,
                ..Submission::new(canvas, &plan)
            })?;
            waiting.push_back((plan, generation));
        }
        let Some((plan, generation)) = waiting.pop_front() else {
            return Ok(());
        };
        let (canvas, statistics) = finish(generation)?;
        finished(&plan, &canvas, &statistics)?;
    }
}

fn finish(mut generation: Generation) -> anyhow::Result<(Canvas, Statistics)> {
    loop {
        match generation.next_blocking() {
            Some(Event::Step(_)) => {}
            Some(Event::Finished(canvas, statistics)) => return Ok((canvas, statistics)),
            Some(Event::Failed(error)) => return Err(error.into()),
            None => anyhow::bail!(STOPPED),
        }
    }
}

/// What the gaps of `canvas` are to be filled with, if anything is asked for.
fn constraint(
    engine: &Engine,
    canvas: &Canvas,
    plan: &DecodePlan,
    forms: &[Form],
    tokenizer: &dyn Tokenizer,
) -> anyhow::Result<Option<CanvasConstraint>> {
    let gaps = canvas.gaps().len();
    if forms.is_empty() {
        return Ok(None);
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
    Ok(Some(CanvasConstraint::new(canvas, constraints)?))
}
