//! What a short request sees next to a long one.

use serde_json::json;

use super::figure::Figure;
use super::setup::{Setup, step};
use super::{median, quantile};

/// Tokens of the short request.
const SHORT: usize = 32;
const PROMPT: usize = 16;
/// Slots of the long canvas, where the model's context has room.
const LONG: usize = 2000;

/// The time between two steps of a short request next to a long one, against one that is alone.
pub fn company(setup: &Setup) -> anyhow::Result<Figure> {
    let long = setup.engine.spec().max_canvas.min(LONG);
    let what = format!(
        "p50 of the time between steps of a request for {SHORT} tokens next to a canvas of {long} slots, over alone"
    );
    if long < 8 * (PROMPT + SHORT) {
        let reason = format!("the model's context is {long} slots");
        return Ok(Figure::not_measured("company", &what, reason));
    }
    let (mut alone, mut beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=setup.rounds {
        let mut one = intervals(setup, round)?;
        let plan = setup.plan(None);
        let mut neighbour = setup
            .engine
            .submit(setup.canvas(PROMPT, long, round)?, &plan)?;
        // It has begun.
        step(&mut neighbour)?;
        let mut other = intervals(setup, round)?;
        drop(neighbour);
        setup.settle();
        if round > 0 {
            ratios.push(quantile(&mut other, 0.5) / quantile(&mut one, 0.5));
            alone.extend(one);
            beside.extend(other);
        }
    }
    let short = (PROMPT + SHORT) as f64;
    let scored = (SHORT + 1) as f64 / 2.0;
    let details = json!({
        "ms between steps alone, p50": quantile(&mut alone, 0.5),
        "ms between steps alone, p99": quantile(&mut alone, 0.99),
        "ms between steps next to the long one, p50": quantile(&mut beside, 0.5),
        "ms between steps next to the long one, p99": quantile(&mut beside, 0.99),
        "floor, ms of a step of the short one": setup.floor_ms(short, scored),
        "floor, ms of a step of the long one": setup.floor_ms(long as f64, (long - PROMPT) as f64),
    });
    Ok(Figure::new("company", what, median(ratios), 1.0, details))
}

/// Milliseconds between the steps of a short request.
fn intervals(setup: &Setup, number: usize) -> anyhow::Result<Vec<f64>> {
    let canvas = setup.canvas(PROMPT, PROMPT + SHORT, number)?;
    let mut generation = setup.engine.submit(canvas, &setup.plan(None))?;
    let mut times = Vec::new();
    while let Some(time) = step(&mut generation)? {
        times.push(time.as_secs_f64() * 1e3);
    }
    Ok(times.windows(2).map(|pair| pair[1] - pair[0]).collect())
}
