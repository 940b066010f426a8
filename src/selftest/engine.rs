//! The engine with the embedded model on a device: what it promises of every answer, and how many of its tokens are
//! those of the CPU.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::Failure;
use super::categorical::compare;
use crate::canvas::{Canvas, CanvasError, TokenId};
use crate::constraint::{ByteDfa, CanvasConstraint, ConstraintError, GapConstraint, TokenDfa};
use crate::decode::{Budget, Cache, CachePolicy, DecodePlan, PlanError};
use crate::engine::{
    Engine, EngineConfig, Event, Generation, StartError, Statistics, StepReport, Submission,
    SubmitError,
};
use crate::models::{ModelError, RaggedBatch, embedded};
use crate::sampling::{self, RowParams};
use crate::text::{HfTokenizer, TextError, Tokenizer};

/// The least share of tokens in f32 that are those of the CPU. A draw that rounding turns over changes what follows on
/// its canvas, a tenth of all tokens, and is rare; what reads wrong keys or wrong rows leaves hardly an answer as it
/// is.
const LEAST_EQUAL: f64 = 0.75;

/// Why the engine does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum EngineFailure {
    /// The model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The tokenizer cannot be read or used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A canvas is none.
    #[error(transparent)]
    Canvas(#[from] CanvasError),
    /// A plan cannot be followed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A constraint cannot be followed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// No engine was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The engine refused a canvas.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A draw is not the twin's.
    #[error(transparent)]
    Draw(#[from] Failure),
    /// A promise does not hold.
    #[error("{0}")]
    Broken(String),
}

/// What is asked of the engine.
struct Request {
    name: &'static str,
    canvas: Canvas,
    plan: DecodePlan,
    /// The language of its only gap, and the tokenizer by which the gap is read.
    language: Option<(ByteDfa, Arc<HfTokenizer>)>,
    constraint: Option<CanvasConstraint>,
}

/// The canvas that a request became.
type Answer = Canvas;

/// Checks that every answer keeps the promises that hold on any device, in f32 and, but for a CPU, which is slow at it, in
/// bfloat16, alone and among others:
/// fixed slots stay, gaps are filled, within their language if they have one, each slot says when and with which
/// probability it was committed, every step is one evaluation of the network (NFE), and the steps that were reported
/// make up the answer. Where the model promises that a seeded answer does not depend on what else is denoised
/// ([`Engine::is_batch_invariant`]), it is held to that; elsewhere the share of equal tokens is reported.
///
/// # Errors
/// If a promise does not hold, or the device fails.
pub fn keeps_its_promises(device: &Device) -> Result<String, EngineFailure> {
    let mut seen = Vec::new();
    let types = [("f32", DType::F32), ("bf16", DType::BF16)];
    let types = &types[..if device.is_cpu() { 1 } else { 2 }];
    for &(name, dtype) in types {
        let engine = engine(dtype, device)?;
        let requests = requests(&engine)?;
        let alone = alone(&engine, &requests)?;
        let mut equal = Share::default();
        for rotation in [0, 3] {
            let among = among_others(&engine, &requests, rotation)?;
            for ((request, alone), among) in requests.iter().zip(&alone).zip(&among) {
                if engine.is_batch_invariant() && alone != among {
                    return Err(EngineFailure::Broken(format!(
                        "{name}, {}: the answer depends on what else is denoised",
                        request.name
                    )));
                }
                equal.count(&request.canvas, alone, among);
            }
        }
        seen.push(format!("{name} {equal} as alone"));
    }
    Ok(format!("tokens among others: {}", seen.join(", ")))
}

/// Checks that in f32 at least three quarters of the tokens of seeded answers are those of the CPU; the share in
/// bfloat16 is reported.
///
/// # Errors
/// If fewer are, or the device fails.
pub fn answers_as_the_cpu(device: &Device) -> Result<String, EngineFailure> {
    let truth = engine(DType::F32, &Device::Cpu)?;
    let requests = requests(&truth)?;
    let truth = alone(&truth, &requests)?;
    let mut seen = Vec::new();
    for (name, dtype, least) in [("f32", DType::F32, LEAST_EQUAL), ("bf16", DType::BF16, 0.0)] {
        let answers = alone(&engine(dtype, device)?, &requests)?;
        let mut equal = Share::default();
        for ((request, truth), answer) in requests.iter().zip(&truth).zip(&answers) {
            equal.count(&request.canvas, truth, answer);
        }
        seen.push(format!("{name} {equal}"));
        if equal.share() < least {
            return Err(EngineFailure::Broken(format!(
                "{equal} are those of the CPU in {name}, at least {least} of them should be"
            )));
        }
    }
    Ok(format!("equal tokens: {}", seen.join(", ")))
}

/// Checks that what the device draws from the model's own logits is what the CPU draws from the same logits.
///
/// # Errors
/// If a draw is another, or the device fails.
pub fn draws_by_its_logits(device: &Device) -> Result<String, EngineFailure> {
    let mut compared = 0;
    for dtype in [DType::F32, DType::BF16] {
        let model = embedded::checkpoint()?.load(dtype, device)?;
        let mut batch = RaggedBatch::new();
        for request in requests(&engine(DType::F32, &Device::Cpu)?)? {
            batch.push(request.canvas.tokens());
        }
        let logits = model.head(&model.hidden(&batch, None)?)?;
        let params: Vec<RowParams> = (0..batch.rows())
            .map(|slot| RowParams {
                temperature: [0.0, 0.7, 1.0][slot % 3],
                top_p: (slot % 4 == 0).then_some(0.9),
                seed: 7,
                slot,
                ..RowParams::default()
            })
            .collect();
        let found = sampling::reduce(&logits, None, &params)?;
        let twin = sampling::reduce(&logits.to_device(&Device::Cpu)?, None, &params)?;
        for (found, twin) in found.iter().zip(&twin) {
            compare(found, twin)?;
        }
        compared += twin.len();
    }
    Ok(format!("{compared} rows equal"))
}

/// Tokens that are equal, of all that were compared.
#[derive(Default)]
struct Share {
    equal: usize,
    of: usize,
}

impl Share {
    /// Counts those of the gaps of `canvas`.
    fn count(&mut self, canvas: &Canvas, a: &Answer, b: &Answer) {
        for slot in (0..canvas.len()).filter(|slot| !canvas.is_fixed(*slot)) {
            self.equal += usize::from(a.token(slot) == b.token(slot));
            self.of += 1;
        }
    }

    fn share(&self) -> f64 {
        self.equal as f64 / self.of.max(1) as f64
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.equal, self.of)
    }
}

fn engine(dtype: DType, device: &Device) -> Result<Engine, EngineFailure> {
    let model = embedded::checkpoint()?.load(dtype, device)?;
    let config = EngineConfig {
        coalesces: false,
        ..EngineConfig::default()
    };
    Ok(Engine::start(model, config)?)
}

/// A request of each kind: by the default plan, with a cache of the prefix and of all but a block, with several gaps,
/// with guidance and within a constraint; short canvases and one of so many rows that attention has another kernel for
/// it.
fn requests(engine: &Engine) -> Result<Vec<Request>, EngineFailure> {
    let spec = engine.spec();
    let tokenizer = embedded::checkpoint()?;
    let tokenizer = Arc::new(HfTokenizer::from_bytes(&tokenizer.tokenizer_json()?)?);
    let text = |text: &str| tokenizer.encode(text);
    let plan = |seed: u64, temperature: f32, change: fn(&mut DecodePlan)| {
        let mut plan = spec.default_plan.clone();
        (plan.sampling.seed, plan.sampling.temperature) = (seed, temperature);
        change(&mut plan);
        plan
    };
    let cached = |policy| Cache {
        policy,
        refresh: None,
    };
    let head = text("def mean(values):\n    total = 0\n    for value in values:\n        ")?;
    let tail = text("\n    return total / len(values)\n")?;
    let gap = |before: &[TokenId], gap, after: &[TokenId]| {
        let canvas = Canvas::builder(engine.blank()).fixed(before).gap(gap);
        canvas.fixed(after).build()
    };
    let several = Canvas::builder(engine.blank())
        .fixed(&head)
        .gap(5)
        .fixed(&text(" = ")?)
        .gap(4)
        .fixed(&tail)
        .gap(7);
    let long = head.repeat(80usize.div_ceil(head.len().max(1)));
    let request = |name, canvas, plan| Request {
        name,
        canvas,
        plan,
        language: None,
        constraint: None,
    };
    let mut requests = vec![
        request(
            "the default plan",
            gap(&head, 20, &tail)?,
            plan(1, 0.7, |_| ()),
        ),
        request(
            "one token a step, the most probable",
            gap(&text("import ")?, 12, &[])?,
            plan(2, 0.0, |plan| plan.sampling.top_p = None),
        ),
        request(
            "a long canvas",
            gap(&long, 10, &tail)?,
            plan(3, 1.0, |_| ()),
        ),
        request("several gaps", several.build()?, plan(4, 1.0, |_| ())),
        request(
            "a threshold",
            gap(&head, 16, &[])?,
            plan(5, 0.7, |plan| plan.budget = Budget::Threshold(0.5)),
        ),
    ];
    for (name, policy, seed) in [
        ("a cached prefix", CachePolicy::Prefix, 6),
        ("everything cached but the block", CachePolicy::Dual, 7),
    ] {
        let mut plan = plan(seed, 0.7, |plan| plan.block_length = Some(8));
        plan.cache = cached(policy);
        requests.push(request(name, gap(&head, 24, &tail)?, plan));
    }
    let mut guided = plan(8, 0.7, |plan| plan.sampling.guidance_scale = 1.5);
    guided.cache = cached(CachePolicy::None);
    requests.push(request("guidance", gap(&head, 12, &tail)?, guided.clone()));
    guided.sampling.negative_prompt = Some(text("class Mean:\n")?);
    requests.push(request("a negative prompt", gap(&head, 12, &tail)?, guided));
    requests.push(constrained(
        engine,
        tokenizer.clone(),
        gap(&text("x = ")?, 8, &[])?,
    )?);
    Ok(requests)
}

/// A request whose gap is to hold a list of numbers.
fn constrained(
    engine: &Engine,
    tokenizer: Arc<HfTokenizer>,
    canvas: Canvas,
) -> Result<Request, EngineFailure> {
    let spec = engine.spec();
    let mut plan = spec.default_plan.clone();
    (plan.sampling.seed, plan.sampling.temperature) = (9, 1.0);
    let language = ByteDfa::regex(r"\[[0-9]+(, [0-9]+)*\]\n?")?;
    let vocabulary = Arc::new(spec.vocabulary(|token| tokenizer.bytes(token)));
    let gap = GapConstraint {
        gap: 0,
        language: Arc::new(TokenDfa::new(language.clone(), vocabulary)?),
        may_end: plan.sampling.may_stop_in(&canvas, 0),
    };
    Ok(Request {
        name: "a constraint",
        constraint: Some(CanvasConstraint::new(&canvas, [gap])?),
        canvas,
        plan,
        language: Some((language, tokenizer)),
    })
}

fn submit(engine: &Engine, request: &Request) -> Result<Generation, EngineFailure> {
    Ok(engine.enqueue(Submission {
        constraint: request.constraint.clone(),
        ..Submission::new(request.canvas.clone(), &request.plan)
    })?)
}

/// The answers to requests one after the other.
fn alone(engine: &Engine, requests: &[Request]) -> Result<Vec<Answer>, EngineFailure> {
    let answer = |request| checked(engine, request, submit(engine, request)?);
    requests.iter().map(answer).collect()
}

/// The answers to requests that were submitted at once, from the one at `rotation` on, in the order of `requests`.
fn among_others(
    engine: &Engine,
    requests: &[Request],
    rotation: usize,
) -> Result<Vec<Answer>, EngineFailure> {
    let count = requests.len();
    let mut generations: Vec<_> = (0..count).map(|_| None).collect();
    for index in (0..count).map(|index| (index + rotation) % count) {
        generations[index] = Some(submit(engine, &requests[index])?);
    }
    let generations = requests.iter().zip(generations.into_iter().flatten());
    generations
        .map(|(request, generation)| checked(engine, request, generation))
        .collect()
}

/// The answer to a request, which keeps its promises.
fn checked(
    engine: &Engine,
    request: &Request,
    mut generation: Generation,
) -> Result<Answer, EngineFailure> {
    let broken = |reason: String| EngineFailure::Broken(format!("{}: {reason}", request.name));
    let mut reports = Vec::new();
    let (answer, statistics) = loop {
        match generation.next_blocking() {
            Some(Event::Step(report)) => reports.push(report),
            Some(Event::Finished(answer, statistics)) => break (answer, statistics),
            Some(Event::Failed(error)) => return Err(broken(error.to_string())),
            None => return Err(broken("it has no end".into())),
        }
    };
    let kept = check_reports(engine, request, &reports, &statistics)
        .and_then(|followed| check_answer(engine, request, &followed, &answer));
    kept.map_err(broken)?;
    Ok(answer)
}

/// The canvas that the reports make of the request's; checks them and their numbers.
fn check_reports(
    engine: &Engine,
    request: &Request,
    reports: &[StepReport],
    statistics: &Statistics,
) -> Result<Canvas, String> {
    let steps = [statistics.steps, statistics.nfe, reports.len()];
    if steps.iter().any(|count| *count != steps[0]) {
        let [steps, nfe, reports] = steps;
        return Err(format!(
            "{steps} steps, {nfe} evaluations, {reports} reports"
        ));
    }
    let scheme = engine.cache_scheme(&request.plan);
    if scheme.as_ref().ok() != Some(&statistics.cache) {
        return Err(format!("{:?} cached for {scheme:?}", statistics.cache));
    }
    let mut canvas = request.canvas.clone();
    for (index, report) in reports.iter().enumerate() {
        let counted = [report.step, report.statistics.nfe];
        if counted != [index + 1; 2] {
            return Err(format!(
                "report {index} is of step and evaluation {counted:?}"
            ));
        }
        if report.committed.is_empty() {
            return Err(format!("step {} commits nothing", report.step));
        }
        for (slot, commit) in &report.committed {
            let is_possible = (commit.token as usize) < engine.spec().vocab_size
                && Some(commit.token) != engine.mask_token()
                && (0.0..=1.0).contains(&commit.probability)
                && commit.step == report.step;
            match canvas.gap_slot_mut(*slot) {
                Some(gap) if is_possible => gap.commit(*commit),
                _ => return Err(format!("slot {slot} cannot become {commit:?}")),
            }
        }
    }
    Ok(canvas)
}

fn check_answer(
    engine: &Engine,
    request: &Request,
    followed: &Canvas,
    answer: &Canvas,
) -> Result<(), String> {
    if followed != answer {
        return Err("the steps that were reported do not make up the answer".into());
    }
    if answer.masked() > 0 {
        return Err(format!("{} slots are not filled", answer.masked()));
    }
    for slot in 0..request.canvas.len() {
        let is_kept = match request.canvas.is_fixed(slot) {
            true => answer.token(slot) == request.canvas.token(slot),
            false => answer
                .provenance(slot)
                .is_some_and(|commit| commit.token == answer.token(slot)),
        };
        if !is_kept {
            return Err(format!("slot {slot} holds {}", answer.token(slot)));
        }
    }
    let Some((language, tokenizer)) = &request.language else {
        return Ok(());
    };
    let stops = &engine.spec().stop_tokens;
    let tokens = answer.gaps().iter().cloned().flatten();
    let tokens = tokens.map(|slot| answer.token(slot));
    let text: Vec<u8> = tokens
        .take_while(|token| !stops.contains(token))
        .flat_map(|token| tokenizer.bytes(token))
        .copied()
        .collect();
    match language.matches(&text) {
        true => Ok(()),
        false => Err(format!(
            "{:?} is not of its language",
            String::from_utf8_lossy(&text)
        )),
    }
}
