//! What a step costs, and where its time goes.

use std::time::Instant;

use serde_json::{Map, json};
use unmask::decode::CachePolicy;
use unmask::engine::Phases;
use unmask::models::{AttentionPattern, Denoiser, RaggedBatch, Segment};

use super::figure::{Bar, Figure};
use super::median;
use super::setup::{Setup, Step};

/// The part of a step that is not spent in the model.
pub fn overhead(setup: &Setup) -> anyhow::Result<Figure> {
    const STEPS: usize = 16;
    let length = setup.engine.spec().max_canvas.min(128);
    let prompt = length / 4;
    let canvas = setup.canvas(prompt, length, 0)?;
    let plan = setup.plan(Some(STEPS));
    let (mut outside, mut step_ms) = (Vec::new(), Vec::new());
    let mut shares: [Vec<f64>; 5] = Default::default();
    let mut rows = (0.0, 0.0);
    for round in 0..=setup.rounds {
        let before = setup.engine.status();
        setup.together(std::slice::from_ref(&canvas), &plan)?;
        let after = setup.engine.status();
        if round == 0 {
            continue;
        }
        let times = after.phases.durations().into_iter();
        let times = times.zip(before.phases.durations());
        let times: Vec<f64> = times
            .map(|(after, before)| (after - before).as_secs_f64())
            .collect();
        let total: f64 = times.iter().sum();
        for (shares, time) in shares.iter_mut().zip(times) {
            shares.push(time / total);
        }
        let model = after.phases.model() - before.phases.model();
        outside.push(1.0 - model.as_secs_f64() / total);
        let steps = (after.steps - before.steps) as f64;
        step_ms.push(total / steps * 1e3);
        rows = (
            (after.rows - before.rows) as f64 / steps,
            (after.scored - before.scored) as f64 / steps,
        );
    }
    let mut details = Map::new();
    for (name, shares) in Phases::NAMES.iter().zip(shares) {
        details.insert(format!("share of {name}"), median(shares).into());
    }
    details.insert("rows a step".into(), rows.0.into());
    details.insert("scored rows a step".into(), rows.1.into());
    details.insert("ms a step".into(), median(step_ms).into());
    details.insert(
        "floor, ms a step".into(),
        setup.floor_ms(rows.0, rows.1).into(),
    );
    let what = format!("share of a step on {length} slots outside forward and head");
    let figure = Figure::new("overhead", what, median(outside), 0.0, details.into());
    Ok(figure.held_to(Bar::Below(0.03)))
}

/// A step without a cache, against one with the dual cache.
pub fn cache(setup: &Setup) -> anyhow::Result<Figure> {
    const LENGTH: usize = 512;
    const BLOCK: usize = 32;
    const PROMPT: usize = 32;
    const BLOCKS: usize = 2;
    const UNCACHED_STEPS: usize = 8;
    let what = format!(
        "ms a step on {LENGTH} slots without a cache, over those with the dual cache, blocks of {BLOCK}, a token \
         a step"
    );
    let spec = setup.engine.spec();
    let refused = match spec.attention {
        AttentionPattern::BlockCausal { .. } => Some("the model is block-causal".to_owned()),
        _ if spec.max_canvas < LENGTH => {
            Some(format!("the model's context is {} slots", spec.max_canvas))
        }
        _ => None,
    };
    if let Some(reason) = refused {
        return Ok(Figure::not_measured("cache", &what, reason));
    }
    let canvas = setup.canvas(PROMPT, LENGTH, 0)?;
    let whole = setup.cached_plan(BLOCK, CachePolicy::None);
    let dual = setup.cached_plan(BLOCK, CachePolicy::Dual);
    let (mut ratios, mut without, mut with) = (Vec::new(), Vec::new(), Vec::new());
    let (mut within, mut rows) = (Vec::new(), 0.0);
    for round in 0..=setup.rounds {
        let uncached = setup.first_steps(canvas.clone(), &whole, UNCACHED_STEPS)?;
        let cached = setup.first_steps(canvas.clone(), &dual, BLOCKS * BLOCK)?;
        if round == 0 {
            continue;
        }
        let whole_ms = mean_ms(&uncached);
        let dual_ms = mean_ms(&cached);
        ratios.push(whole_ms / dual_ms);
        without.push(whole_ms);
        with.push(dual_ms);
        let alone: Vec<Step> = cached
            .iter()
            .copied()
            .filter(|step| step.rows < LENGTH)
            .collect();
        within.push(mean_ms(&alone));
        rows = cached.iter().map(|step| step.rows as f64).sum::<f64>() / cached.len() as f64;
    }
    // Of a block whose slots are committed one a step, half is masked on average.
    let scored = (BLOCK + 1) as f64 / 2.0;
    let operations = |rows: f64| {
        let attention = 4.0 * rows * LENGTH as f64 * (spec.hidden_size * spec.layers) as f64;
        setup.products.operations(rows, scored) + attention
    };
    let details = json!({
        "ms a step, no cache": median(without),
        "ms a step, dual cache": median(with),
        "of these, ms a step that recomputes its block alone": median(within),
        "rows a step, dual cache": rows,
        "floor, ms a step, no cache": operations(LENGTH as f64) / setup.rate * 1e3,
        "floor, ms a step, dual cache": operations(rows) / setup.rate * 1e3,
    });
    let floor = operations(LENGTH as f64) / operations(rows);
    Ok(Figure::new("cache", what, median(ratios), floor, details).held_to(Bar::AtLeast(4.0)))
}

fn mean_ms(steps: &[Step]) -> f64 {
    let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
    seconds * 1e3 / steps.len().max(1) as f64
}

/// The head on all rows, against the head on the scored rows.
pub fn head(model: &dyn Denoiser, rounds: usize) -> anyhow::Result<Figure> {
    let spec = model.spec();
    let length = spec.max_canvas.min(128);
    // A quarter is the prompt; of the gap half is masked on average.
    let scored = (length - length / 4) / 2;
    let what =
        format!("ms of the head on {length} rows, over the {scored} that are scored on average");
    let tokens = (0..length).map(|slot| (slot % spec.vocab_size.min(256)) as u32);
    let positions: Vec<u32> = (0..length as u32).collect();
    let segment = Segment {
        sigma: spec.sigma_of_masked(scored as f64 / (length - length / 4) as f64),
        ..Segment::default()
    };
    let mut batch = RaggedBatch::new();
    batch.push_segment(&tokens.collect::<Vec<_>>(), &positions, segment);
    let inputs = batch.row_inputs();
    let (mut forward, mut all, mut few) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ratios, mut of_steps) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        // What a device was given to do is not done when the call returns.
        let synchronise = || model.device().synchronize();
        let begun = Instant::now();
        let hidden = model.hidden(&batch, None)?;
        synchronise()?;
        let forward_ms = milliseconds(begun);
        let begun = Instant::now();
        model.head_rows(&hidden, &inputs)?;
        synchronise()?;
        let all_ms = milliseconds(begun);
        let begun = Instant::now();
        let chosen = hidden.narrow(0, length - scored, scored)?.contiguous()?;
        model.head_rows(&chosen, &inputs[length - scored..])?;
        synchronise()?;
        let few_ms = milliseconds(begun);
        if round > 0 {
            ratios.push(all_ms / few_ms);
            of_steps.push((forward_ms + all_ms) / (forward_ms + few_ms));
            forward.push(forward_ms);
            all.push(all_ms);
            few.push(few_ms);
        }
    }
    let details = json!({
        "ms of the forward": median(forward),
        "ms of the head, all rows": median(all),
        "ms of the head, scored rows": median(few),
        "forward and head, all rows over scored rows": median(of_steps),
    });
    let floor = length as f64 / scored as f64;
    Ok(Figure::new("head", what, median(ratios), floor, details))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
