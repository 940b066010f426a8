//! One denoise step over the sequences that are scheduled.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Tensor};

use super::cache::Window;
use super::phases::{Phases, Stopwatch};
use super::scheduler::Part;
use super::sequence::{Running, Sequence};
use super::worker::panic_message;
use super::{GenerationError, StepReport};
use crate::canvas::TokenId;
use crate::decode::Candidate;
use crate::kernels::transfer;
use crate::models::{
    AttentionPattern, Denoiser, HEAD_ROWS, KvPool, ModelError, ModelSpec, RaggedBatch, RowInput,
    Segment,
};
use crate::sampling::score::{self, ScoreStep};
use crate::sampling::{self, Guidance, Logprobs, RowParams, RowSample, SamplingError};

/// What one step did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepCost {
    pub rows: usize,
    pub kept: usize,
    pub scored: usize,
    pub committed: usize,
    pub phases: Phases,
}

/// A row whose logits are needed, and the row of the unconditional segment if it is guided.
struct ScoredRow {
    conditional: u32,
    unconditional: Option<(u32, f32)>,
    input: RowInput,
    /// What is added to the logit of the token that the slot holds.
    own: Option<f32>,
    /// The reverse step that its log-scores are for, of the uniform process.
    reverse: Option<ScoreStep>,
    /// The total of its scores says how likely the slot is unmasked, of the absorbing process.
    by_total_score: bool,
    params: RowParams,
}

/// Whether a sequence goes on after a step.
pub(super) type Outcome = Result<(), GenerationError>;

/// Takes one step with the scheduled sequences. Each outcome is a sequence's own, in the order of `parts`; the
/// outer error is the whole batch's. What `stopwatch` has run already is scheduling.
pub(super) fn step(
    model: &dyn Denoiser,
    pool: Option<&KvPool>,
    running: &mut [Running],
    parts: &[Part],
    stopwatch: &mut Stopwatch,
) -> Result<(Vec<Outcome>, StepCost), ModelError> {
    let mut batch = RaggedBatch::new();
    let mut scored = Vec::new();
    let mut kept = 0;
    for part in parts {
        lay_out(
            &mut running[part.index],
            &part.window,
            model.spec(),
            &mut batch,
            &mut scored,
        );
        let segments = if running[part.index].sequence.is_guided() {
            2
        } else {
            1
        };
        kept += segments * part.window.kept.len();
    }
    let mut cost = StepCost {
        rows: batch.rows(),
        kept,
        scored: scored.len(),
        ..StepCost::default()
    };
    let phases = &mut cost.phases;
    phases.schedule = stopwatch.lap();
    let hidden = model.hidden(&batch, pool)?;
    phases.forward = stopwatch.lap();
    let mut samples = Vec::with_capacity(scored.len());
    let mut totals = Vec::new();
    let mut signals = Vec::new();
    for rows in scored.chunks(HEAD_ROWS) {
        let (mut logits, mut guidance) = logits(model, &hidden, rows)?;
        if let Some(guidance) = guidance.take_if(|_| need_guided(rows)) {
            logits = guidance.apply(&logits)?;
        }
        let logits = reversed(with_own_tokens(logits, rows)?, rows)?;
        if model.spec().self_conditioned {
            signals.push(model.self_conditioning(&tempered(&logits, rows)?)?);
        }
        phases.head += stopwatch.lap();
        let params: Vec<RowParams> = rows.iter().map(|row| row.params.clone()).collect();
        samples.extend(sampling::reduce(&logits, guidance.as_ref(), &params)?);
        if rows.iter().any(|row| row.by_total_score) {
            let of_rows = rows.iter().zip(score_totals(&logits)?);
            totals.extend(of_rows.filter(|(row, _)| row.by_total_score));
        }
        phases.sampling += stopwatch.lap();
    }
    let signals = match signals.is_empty() {
        true => None,
        false => Some(Tensor::cat(&signals, 0)?),
    };
    let mut samples = samples.into_iter();
    let mut totals = totals.into_iter().map(|(_, total)| total);
    let mut first = 0;
    let outcomes = parts
        .iter()
        .map(|part| {
            if !part.window.denoises {
                return Ok(());
            }
            let sequence = &mut running[part.index].sequence;
            let scored = sequence.scored.take().unwrap_or_default();
            let slots: Vec<usize> = scored.into_iter().map(|(slot, _)| slot).collect();
            let samples: Vec<_> = samples.by_ref().take(slots.len()).collect();
            let with_totals = match by_total_scores(model.spec(), sequence) {
                true => slots.len(),
                false => 0,
            };
            let totals: Vec<_> = totals.by_ref().take(with_totals).collect();
            let signal = signals
                .as_ref()
                .map(|signals| signals.narrow(0, first, slots.len())?.force_contiguous());
            first += slots.len();
            failing_alone(|| {
                let unmasking = unmasking(model.spec(), sequence, &totals);
                let block = sequence.decoder.block();
                cost.committed += commit(sequence, &slots, samples, &unmasking)?;
                // A block begins without one.
                let signal = signal.filter(|_| sequence.decoder.block() == block);
                let failed = |error: candle_core::Error| GenerationError::Step(error.to_string());
                sequence.self_conditioning = signal.transpose().map_err(failed)?;
                Ok(())
            })
        })
        .collect();
    cost.phases.decode = stopwatch.lap();
    Ok((outcomes, cost))
}

/// Does a sequence's own part of a step: a panic in it fails that sequence, and none of those beside it.
fn failing_alone(work: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(GenerationError::Step(panic_message(&*panic))))
}

/// Appends a sequence's rows to the batch, and the rows that the head is to score.
fn lay_out(
    running: &mut Running,
    window: &Window,
    spec: &ModelSpec,
    batch: &mut RaggedBatch,
    scored: &mut Vec<ScoredRow>,
) {
    let Running {
        sequence, cached, ..
    } = running;
    let slots = match window.denoises {
        true => sequence.choose_scored().to_vec(),
        false => Vec::new(),
    };
    let sequence = &*sequence;
    let canvas = &sequence.canvas;
    let block = sequence.decoder.block();
    let sigma = spec.step_sigma(&sequence.decoder, canvas);
    let temperature = sequence.decoder.temperature();
    let is_encoded = matches!(spec.attention, AttentionPattern::EncodedBlocks { .. });
    let mut push = |twin: bool, rows: Range<usize>, block_start, tokens: Vec<TokenId>| {
        let positions: Vec<u32> = rows.clone().map(|slot| slot as u32).collect();
        let segment = Segment {
            allowed: spec
                .attention
                .allowed_within(sequence.window, rows, block_start),
            context: cached.slots(twin, window.context.iter().flat_map(Clone::clone)),
            store: cached.slots(twin, window.kept.clone()),
            store_from: window.kept.start.saturating_sub(window.rows.start),
            sigma,
            encodes: is_encoded && !window.denoises,
            self_conditioning: match window.denoises {
                true => sequence.self_conditioning.clone(),
                false => None,
            },
            ..Segment::default()
        };
        batch.push_segment(&tokens, &positions, segment)
    };
    let rows = push(
        false,
        window.rows.clone(),
        block.start,
        window.rows.clone().map(|slot| canvas.token(slot)).collect(),
    );
    let twin = sequence.twin().map(|twin| {
        let slots = twin.slots(canvas, &window.rows);
        let tokens = twin.tokens(canvas, &window.rows);
        let rows = push(true, slots.clone(), twin.slot(canvas, block.start), tokens);
        (twin, slots.start, rows)
    });
    let own_token_bias = sequence.decoder.own_token_bias(canvas);
    let by_total_score = by_total_scores(spec, sequence);
    let reverse = (!by_total_score)
        .then(|| score_step(spec, sequence))
        .flatten();
    for (slot, allowed) in slots {
        let row = slot.saturating_sub(spec.logit_shift) - window.rows.start;
        scored.push(ScoredRow {
            conditional: (rows.start + row) as u32,
            unconditional: twin.as_ref().map(|(twin, first, rows)| {
                let row = twin.slot(canvas, slot).saturating_sub(spec.logit_shift) - first;
                (
                    (rows.start + row) as u32,
                    sequence.row_params.guidance_scale(),
                )
            }),
            input: RowInput {
                token: canvas.token(slot),
                sigma,
            },
            own: own_token_bias,
            reverse,
            by_total_score,
            params: sequence.row_params.params(
                slot,
                sequence.decoder.steps(),
                temperature,
                &sequence.decoder.barred(canvas, slot),
                allowed,
            ),
        });
    }
}

/// Logits `[rows, vocab]` of the scored rows, and what guides them if any is guided.
fn logits(
    model: &dyn Denoiser,
    hidden: &Tensor,
    rows: &[ScoredRow],
) -> Result<(Tensor, Option<Guidance>), ModelError> {
    let count = rows.len();
    let is_guided = rows.iter().any(|row| row.unconditional.is_some());
    let mut places: Vec<u32> = rows.iter().map(|row| row.conditional).collect();
    if is_guided {
        // A row that is not guided is its own u.
        let of_u = |row: &ScoredRow| row.unconditional.map_or(row.conditional, |(row, _)| row);
        places.extend(rows.iter().map(of_u));
    }
    let places = transfer::to_device(&places, places.len(), hidden.device())?;
    let inputs: Vec<RowInput> = rows.iter().map(|row| row.input).collect();
    let select = |first: usize| -> Result<Tensor, ModelError> {
        let places = places.narrow(0, first, count)?;
        model.head_rows(&hidden.index_select(&places, 0)?, &inputs)
    };
    let conditional = select(0)?;
    let guidance = match is_guided {
        true => Some(Guidance {
            unconditional: select(count)?,
            scales: rows
                .iter()
                .map(|row| row.unconditional.map(|(_, scale)| scale))
                .collect(),
        }),
        false => None,
    };
    Ok((conditional, guidance))
}

/// `logits` divided by the temperatures by which the tokens of `rows` are drawn, each row's largest made 0, so that
/// none overflows; at temperature 0 they are not divided.
fn tempered(logits: &Tensor, rows: &[ScoredRow]) -> Result<Tensor, ModelError> {
    let logits = logits.to_dtype(DType::F32)?;
    let temperatures = rows.iter().map(|row| match row.params.temperature {
        0.0 => 1.0,
        temperature => temperature,
    });
    let temperatures: Vec<f32> = temperatures.collect();
    let temperatures = transfer::to_device(&temperatures, (rows.len(), 1), logits.device())?;
    let below = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
    Ok(below.broadcast_div(&temperatures)?)
}

/// Whether anything but their draws needs the guided logits of `rows`. What goes by scores is not guided.
fn need_guided(rows: &[ScoredRow]) -> bool {
    rows.iter().any(|row| row.own.is_some())
}

/// Whether the total of its scores says how likely a slot of a sequence is unmasked in the next step: of the absorbing
/// process, by the budgets that go by scores. Others read its log-scores as logits.
fn by_total_scores(spec: &ModelSpec, sequence: &Sequence) -> bool {
    spec.mask_token().is_some() && score_step(spec, sequence).is_some()
}

/// The reverse step that the next step of a sequence takes by scores, if it does.
fn score_step(spec: &ModelSpec, sequence: &Sequence) -> Option<ScoreStep> {
    let (t, s) = sequence.decoder.times()?;
    spec.score_step(sequence.decoder.budget(), t, s)
}

/// `logits`, of rows of log-scores of the uniform process those of the tokens that the slots become.
fn reversed(logits: Tensor, rows: &[ScoredRow]) -> Result<Tensor, ModelError> {
    // A model gives either log-scores in all rows or none.
    let steps: Option<Vec<ScoreStep>> = rows.iter().map(|row| row.reverse).collect();
    let Some(steps) = steps.filter(|steps| !steps.is_empty()) else {
        return Ok(logits);
    };
    let held: Vec<TokenId> = rows.iter().map(|row| row.input.token).collect();
    Ok(score::uniform_reverse(&logits, &held, &steps)?)
}

/// For each row of log-scores `[rows, vocab]` the sum of the scores of all tokens but the row's own, whose
/// score is 1.
fn score_totals(log_scores: &Tensor) -> Result<Vec<f32>, ModelError> {
    let totals = log_scores.exp()?.sum(1)?.affine(1.0, -1.0)?;
    Ok(transfer::to_host(&totals)?)
}

/// The probability that the reverse process unmasks each scored slot of a sequence in this step, by the
/// slots' total scores; none where no budget by scores takes it.
///
/// From σ to σ − Δσ a masked slot becomes token y with probability (e^Δσ − 1) s(y), the product of the
/// staggered score and the transition (SEDD, arXiv:2310.16834, theorem 4.1; `AnalyticPredictor`).
fn unmasking(spec: &ModelSpec, sequence: &Sequence, totals: &[f32]) -> Vec<f32> {
    match score_step(spec, sequence) {
        Some(step) => totals.iter().map(|total| step.unmasking(*total)).collect(),
        None => Vec::new(),
    }
}

/// `logits` with what is added to those of the tokens that the slots hold.
fn with_own_tokens(logits: Tensor, rows: &[ScoredRow]) -> Result<Tensor, ModelError> {
    if rows.iter().all(|row| row.own.is_none()) {
        return Ok(logits);
    }
    let (tokens, biases): (Vec<TokenId>, Vec<f32>) = rows
        .iter()
        .map(|row| (row.input.token, row.own.unwrap_or_default()))
        .unzip();
    let column = (rows.len(), 1);
    let tokens = transfer::to_device(&tokens, column, logits.device())?;
    let biases = transfer::to_device(&biases, column, logits.device())?;
    Ok(logits
        .to_dtype(DType::F32)?
        .contiguous()?
        .scatter_add(&tokens, &biases, 1)?)
}

/// Lets the sequence's policy choose among its samples, and reports what it committed.
fn commit(
    sequence: &mut Sequence,
    slots: &[usize],
    samples: Vec<Result<RowSample, SamplingError>>,
    unmasking: &[f32],
) -> Result<usize, GenerationError> {
    let mut logprobs = Vec::new();
    let candidates = slots
        .iter()
        .zip(samples)
        .enumerate()
        .map(|(i, (&slot, sample))| {
            let sample = sample?;
            let of_slot = sample.logprobs.map(|logprobs| (slot, logprobs));
            logprobs.extend(of_slot.map(|of_slot| (of_slot, (sample.token, sample.most_probable))));
            Ok(Candidate {
                slot,
                token: sample.token,
                probability: sample.probability,
                most_probable: sample.most_probable,
                best: sample.best,
                second: sample.second,
                entropy: sample.entropy,
                uniform: sample.uniform,
                unmasking: unmasking.get(i).copied(),
            })
        })
        .collect::<Result<Vec<_>, SamplingError>>()
        .map_err(|error| GenerationError::Step(error.to_string()))?;
    sequence.nfe += 1;
    let change = sequence.decoder.advance_within(
        &mut sequence.canvas,
        &candidates,
        sequence.constraint.as_mut(),
    );
    let committed = change.committed;
    let logprobs = logprobs
        .into_iter()
        .filter_map(|((slot, logprobs), (drawn, best))| {
            let place = committed.binary_search_by_key(&slot, |(slot, _)| *slot);
            let (_, commit) = &committed[place.ok()?];
            // A plan may commit the most probable token in the place of the drawn one.
            let token = match commit.token == best && best != drawn {
                true => logprobs.most_probable,
                false => logprobs.token,
            };
            Some((slot, Logprobs { token, ..logprobs }))
        });
    let logprobs = logprobs.collect();
    let count = committed.len();
    sequence
        .row_params
        .spliced(&change.spliced, &sequence.canvas);
    let statistics = sequence.statistics();
    // Slots that a step without a forward masks again are of a block that is not left before the next forward.
    let final_before = sequence.decoder.final_before(&sequence.canvas);
    sequence.reports.step(StepReport {
        committed,
        logprobs,
        remasked: change.remasked,
        noise: change.noise,
        spliced: change.spliced,
        ..StepReport::of(change.step, final_before, statistics)
    });
    for (step, remasked) in change.idle {
        sequence.reports.step(StepReport {
            remasked,
            ..StepReport::of(step, final_before, statistics)
        });
    }
    Ok(count)
}
