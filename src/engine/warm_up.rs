//! What an engine denoises before its first request, so that no request waits for what a device does once only: kernels
//! are compiled for the card when they are loaded, and libraries take memory of their own when they first compute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::{self, CacheMemory};
use super::queue::Queue;
use super::worker::{Counters, Worker};
use super::{
    Engine, EngineConfig, Event, Generation, GenerationError, LogprobRequest, StartError,
    Submission, SubmitError,
};
use crate::canvas::{Canvas, TokenId};
use crate::decode::{Budget, Cache, CachePolicy, DecodePlan, Revision};
use crate::models::{Denoiser, ModelSpec};

/// Slots of a long prompt: so many rows of a segment that attention has a kernel of its own for them, beside those that a
/// shorter prompt of the same tokens left in the pool.
const LONG_PROMPT: usize = 128;

/// Slots of a gap that several steps fill, of which the first keeps keys and values and a later one reads them.
const GAP: usize = 4;

/// What was denoised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WarmUp {
    /// Canvases.
    pub canvases: usize,
    /// Denoise steps of them all, those that only prepare a cache among them.
    pub steps: u64,
    /// How long it took.
    pub took: Duration,
}

/// A canvas of its own kind.
struct Example {
    canvas: Canvas,
    plan: DecodePlan,
    logprobs: Option<LogprobRequest>,
}

/// Denoises a small canvas of each kind that `engine`, which has no worker yet, takes, by the steps of a worker with a
/// queue and counters of its own. Model and memory come back as they were, and nothing is left in the books on the memory.
///
/// A kind that would be refused as a request, by the model or for want of memory for its keys and values, is left out.
///
/// # Errors
/// If a step fails.
pub(super) fn warm_up(
    engine: &Engine,
    model: Box<dyn Denoiser>,
    memory: CacheMemory,
    config: EngineConfig,
) -> Result<(Box<dyn Denoiser>, CacheMemory, WarmUp), StartError> {
    let start = Instant::now();
    let queue = Arc::new(Queue::new(usize::MAX));
    let mut generations = Vec::new();
    for example in examples(&engine.spec) {
        match queued(engine, &queue, example) {
            Ok(generation) => generations.push(generation),
            Err(error) => tracing::debug!(%error, "not denoised at the start"),
        }
    }
    queue.close();
    let counters = Arc::new(Counters::new());
    // Of several at a time some might be shed for want of memory, and the others go on.
    let config = EngineConfig {
        max_sequences: 1,
        ..config
    };
    let worker = Worker::new(model, memory, config, queue, counters.clone());
    let (model, mut memory) = worker.run();
    memory.forget_all();
    let canvases = generations.len();
    for generation in generations {
        check_end(generation)?;
    }
    let warm_up = WarmUp {
        canvases,
        steps: counters.status(0, 0).steps,
        took: start.elapsed(),
    };
    Ok((model, memory, warm_up))
}

/// Queues an example as the engine queues requests.
fn queued(engine: &Engine, queue: &Queue, example: Example) -> Result<Generation, SubmitError> {
    let submission = Submission {
        logprobs: example.logprobs,
        ..Submission::new(example.canvas, &example.plan)
    };
    example.plan.validate()?;
    submission.check(&engine.spec)?;
    let (sequence, generation) = engine.lay_out(submission)?;
    queue.push(sequence)?;
    Ok(generation)
}

/// Whether a generation that is over was finished.
fn check_end(mut generation: Generation) -> Result<(), StartError> {
    loop {
        match generation.try_next() {
            Some(Event::Step(_)) => {}
            Some(Event::Finished(..)) => return Ok(()),
            Some(Event::Failed(GenerationError::OutOfMemory)) => {
                return Err(StartError::StepMemory);
            }
            Some(Event::Failed(error)) => return Err(StartError::WarmUp(error)),
            None => return Err(StartError::WarmUp(GenerationError::Stopped)),
        }
    }
}

/// Canvases that launch between them what requests do: with keys and values of the pool and without, short and long,
/// drawn in each of the ways of the reduction, guided. Prompts are shorter where a canvas has no room for them; there are
/// none of a model that has no token for a prompt.
fn examples(spec: &ModelSpec) -> Vec<Example> {
    let mut tokens = 0..spec.vocab_size as TokenId;
    let Some(token) = tokens.find(|token| Some(*token) != spec.mask_token()) else {
        return Vec::new();
    };
    // Whole blocks of the pool, so that blocks before the gap are finished where a model denoises in blocks.
    let prompt = cache::block_slots(spec);
    let example = |prompt: usize, gap: usize, change: fn(&mut DecodePlan)| {
        let mut plan = short(&spec.default_plan, gap);
        change(&mut plan);
        let prompt = prompt.min(spec.room_before(&plan, gap)?);
        let canvas = Canvas::builder(spec.blank())
            .fixed(&vec![token; prompt])
            .gap(gap)
            .build();
        let canvas = spec.with_scratch(&plan, canvas.ok()?);
        Some(Example {
            canvas,
            plan,
            logprobs: None,
        })
    };
    let examples = [
        example(prompt, GAP, |_| ()),
        example(prompt, GAP, |plan| {
            plan.cache = Cache {
                policy: CachePolicy::Prefix,
                refresh: None,
            }
        }),
        example(LONG_PROMPT.max(prompt), 1, |_| ()),
        example(prompt, 1, |plan| {
            plan.sampling.guidance_scale = 1.0;
            // Budgets by scores take no guidance, and where slots are masked others do.
            if plan.budget.is_by_scores() {
                plan.replace_budget(Budget::Even);
            }
        }),
        example(prompt, 1, |plan| drawn(plan, 1.0, None)),
        example(prompt, 1, |plan| drawn(plan, 1.0, Some(0.9))),
        example(prompt, 1, |plan| drawn(plan, 0.0, None)).map(|example| Example {
            logprobs: Some(LogprobRequest {
                top: 1,
                ..LogprobRequest::default()
            }),
            ..example
        }),
    ];
    examples.into_iter().flatten().collect()
}

/// `plan` in as many steps as a gap has slots, whose number does not change.
fn short(plan: &DecodePlan, gap: usize) -> DecodePlan {
    let mut plan = plan.clone();
    if plan.is_resizing() {
        plan.revision = Revision::None;
    }
    match &mut plan.steps_per_block {
        Some(steps) => *steps = gap,
        None => plan.steps = Some(gap),
    }
    plan
}

/// Draws at `temperature` from the tokens that `top_p` keeps, and no other filter.
fn drawn(plan: &mut DecodePlan, temperature: f32, top_p: Option<f32>) {
    let sampling = &mut plan.sampling;
    sampling.set_temperature(temperature);
    (sampling.top_k, sampling.top_p, sampling.min_p) = (None, top_p, None);
}
