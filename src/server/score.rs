//! `POST /v1/score`: the NELBO of texts, by Monte Carlo.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::stream::{StreamExt, TryStreamExt};

use super::deadline::{Deadline, within};
use super::error::{ApiError, ErrorBody};
use super::extract::Body;
use super::ledger::Ledger;
use super::probe::{self, Probe, given};
use super::random;
use super::state::{AppState, unix_time};
use super::validate::{self, ScoreJob};
use super::wire::{SCORE_OBJECT, ScoreAnswer, ScoreReport, ScoreRequest, TextScore, Usage};
use crate::canvas::{Canvas, TokenId};
use crate::eval::Target;
use crate::eval::likelihood::{Draw, Estimate, Settings};
use crate::models::AttentionPattern;

/// Bounds the likelihood of texts.
#[utoipa::path(
    post,
    path = "/v1/score",
    tag = "Evaluation",
    operation_id = "score",
    request_body(content = ScoreRequest, example = json!({"input": ["A text.", "Another."], "prompt": "Read: ", "samples": 8, "seed": 1})),
    responses(
        (status = 200, description = "The answer", body = ScoreAnswer),
        (status = "4XX", description = "A request that cannot be answered", body = ErrorBody),
        (status = "5XX", description = "A fault of the server", body = ErrorBody),
    ),
)]
pub(super) async fn create(
    State(state): State<Arc<AppState>>,
    deadline: Deadline,
    Body(request): Body<ScoreRequest>,
) -> Result<Response, ApiError> {
    let job = validate::checked(&state, deadline.clone(), request, validate::score).await?;
    let ledger = Ledger::open(&state);
    let begun = Instant::now();
    let job = Arc::new(job);
    let (estimates, nfe) = within(deadline.clone(), estimates(&job, &state, deadline)).await?;
    let texts = job.targets.iter().zip(&job.bytes).zip(estimates);
    let data: Vec<TextScore> = texts
        .enumerate()
        .map(|(index, ((target, bytes), estimate))| {
            text_score(index, target.slots.len(), *bytes, estimate)
        })
        .collect();
    // The prompt is the same for all.
    let first = &job.targets[0];
    let prompt = first.tokens.len() - first.slots.len();
    let tokens = prompt + data.iter().map(|score| score.tokens).sum::<usize>();
    ledger.scored(tokens, nfe);
    Ok(Json(ScoreAnswer {
        id: &format!("score-{}", random::identifier()?),
        object: SCORE_OBJECT,
        created: unix_time(),
        model: &state.model_name,
        data,
        usage: Usage::new(tokens, 0),
        diffusion: ScoreReport {
            samples: job.settings.groups * job.settings.strata,
            strata: job.settings.strata,
            nfe,
            time_ms: begun.elapsed().as_secs_f64() * 1e3,
            seed: job.settings.seed,
        },
    })
    .into_response())
}

fn text_score(index: usize, tokens: usize, bytes: usize, estimate: Estimate) -> TextScore {
    let nats_per_token = estimate.nelbo / tokens as f64;
    TextScore {
        index,
        tokens,
        bytes,
        nelbo: estimate.nelbo,
        standard_error: estimate.standard_error,
        nats_per_token,
        bits_per_byte: (bytes > 0).then(|| estimate.nelbo / std::f64::consts::LN_2 / bytes as f64),
        perplexity_bound: Some(nats_per_token.exp()).filter(|bound| bound.is_finite()),
    }
}

/// The estimate of every target, and how many forwards they took. Of a draw one number is kept.
async fn estimates(
    job: &Arc<ScoreJob>,
    state: &AppState,
    deadline: Deadline,
) -> Result<(Vec<Estimate>, usize), ApiError> {
    let settings = job.settings;
    let samples = settings.groups * settings.strata;
    let mut losses = vec![0.0; job.targets.len() * samples];
    let probes = probes(job.clone(), state.engine.spec().attention);
    let probes = state.background.stream(deadline, Box::new(probes)).boxed();
    let longest = job.targets.iter().map(|target| target.tokens.len()).max();
    let in_flight = probe::in_flight(longest.unwrap_or_default());
    let guidance_scale = settings.guidance_scale as f32;
    let answers = probe::run(state.engine.clone(), probes, in_flight, guidance_scale);
    let mut answers = std::pin::pin!(answers);
    let mut nfe = 0;
    while let Some((answer, (place, draw))) = answers.try_next().await? {
        // In slot order, so that the sum does not depend on chance.
        let of_slots = draw.masked().iter().zip(draw.weights());
        let logprobs = of_slots.filter_map(|(slot, weight)| Some((answer.get(slot)?, weight)));
        let loss: f64 = logprobs
            .flat_map(|(of, weight)| of.iter().map(move |logprob| -weight * f64::from(*logprob)))
            .sum();
        if !loss.is_finite() {
            return Err(ApiError::internal(format!(
                "the model gives a token of text {} probability 0, so that its NELBO is infinite",
                place / samples
            )));
        }
        losses[place] = loss;
        nfe += 1;
    }
    let estimates = losses.chunks(samples);
    let estimates = estimates.map(|losses| Estimate::of(losses, settings.strata));
    Ok((estimates.collect(), nfe))
}

/// The forwards of a job, each with its draw and the draw's place among all. They are made as they are taken; a draw
/// that masks nothing has no loss and no forward.
fn probes(
    job: Arc<ScoreJob>,
    attention: AttentionPattern,
) -> impl Iterator<Item = Result<(Probe, (usize, Draw)), ApiError>> + Send + 'static {
    let Settings {
        estimator,
        groups,
        strata,
        seed,
        ..
    } = job.settings;
    let of_draws = job.clone();
    (0..job.targets.len())
        .flat_map(move |index| (0..groups).map(move |group| (index, group)))
        .flat_map(move |(index, group)| {
            let target = &of_draws.targets[index];
            estimator.draws(target, attention, strata, seed, group, index)
        })
        .enumerate()
        .filter(|(_, draw)| !draw.masked().is_empty())
        .map(move |(place, draw)| {
            let target = &job.targets[place / (groups * strata)];
            let probe = probe(target, &draw, job.mask);
            probe.map(|probe| (probe, (place, draw)))
        })
}

/// The forward of one draw: its masked slots are masked, and their true tokens asked for. The text is a gap
/// whose other slots are committed, so that guidance takes the prompt away and nothing else.
fn probe(target: &Target, draw: &Draw, mask: TokenId) -> Result<Probe, ApiError> {
    let mut canvas = Canvas::builder(mask)
        .fixed(&target.tokens[..target.slots[0]])
        .gap(target.slots.len())
        .build()
        .map_err(|error| ApiError::internal(format!("a sample cannot be laid out: {error}")))?;
    let mut of: HashMap<usize, Arc<[TokenId]>> = HashMap::with_capacity(draw.masked().len());
    for &slot in &target.slots {
        let truth = target.tokens[slot];
        if draw.masked().binary_search(&slot).is_ok() {
            of.insert(slot, [truth].into());
        } else if let Some(gap_slot) = canvas.gap_slot_mut(slot) {
            gap_slot.commit(given(truth));
        }
    }
    Ok(Probe { canvas, of })
}
