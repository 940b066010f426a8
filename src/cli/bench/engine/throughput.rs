//! Tokens a second of many canvases.

use serde_json::json;
use unmask::canvas::Canvas;

use super::figure::{Bar, Figure};
use super::median;
use super::setup::Setup;
use crate::cli::bench::machine::{TRIES, matrix_rate};

/// Steps that every canvas takes, whatever its length.
const STEPS: usize = 8;

/// 32 canvases of 64 slots at a time, against one at a time.
pub fn batch(setup: &Setup) -> anyhow::Result<Figure> {
    const AT_A_TIME: usize = 32;
    const IN_TURN: usize = 8;
    const LENGTH: usize = 64;
    const PROMPT: usize = 16;
    let what =
        format!("tokens/s of {AT_A_TIME} canvases of {LENGTH} slots at a time, over one at a time");
    let spec = setup.engine.spec();
    if spec.max_canvas < LENGTH {
        return Ok(too_short("batch", &what, spec.max_canvas));
    }
    let plan = setup.plan(Some(STEPS));
    let canvases = (0..AT_A_TIME).map(|number| setup.canvas(PROMPT, LENGTH, number));
    let canvases = canvases.collect::<anyhow::Result<Vec<_>>>()?;
    let gap = (LENGTH - PROMPT) as f64;
    let (mut alone, mut together, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=setup.rounds {
        let one = IN_TURN as f64 * gap / setup.in_turn(&canvases[..IN_TURN], &plan)?;
        let many = AT_A_TIME as f64 * gap / setup.together(&canvases, &plan)?;
        // The first one warms up.
        if round > 0 {
            alone.push(one);
            together.push(many);
            ratios.push(many / one);
        }
    }
    let width = spec.hidden_size;
    let gflops = |rows| {
        let shape = [rows, width, 4 * width];
        anyhow::Ok(matrix_rate(&setup.device, setup.dtype, shape, TRIES)? / 1e9)
    };
    let (few, many) = (gflops(LENGTH)?, gflops(AT_A_TIME * LENGTH)?);
    let details = json!({
        "tokens/s, one at a time": median(alone),
        "tokens/s, 32 at a time": median(together),
        "GFLOP/s of products with 64 rows": few,
        "GFLOP/s of products with 32 x 64 rows": many,
    });
    Ok(Figure::new("batch", what, median(ratios), many / few, details).held_to(Bar::AtLeast(1.5)))
}

/// Canvases of different lengths, against as many rows in canvases of one length.
pub fn ragged(setup: &Setup) -> anyhow::Result<Figure> {
    const CANVASES: usize = 8;
    const SHORTEST: usize = 32;
    const LONGEST: usize = 512;
    const PROMPT: usize = 8;
    let spec = setup.engine.spec();
    let longest = spec.max_canvas.min(LONGEST);
    let what = format!(
        "tokens/s of {CANVASES} canvases of {SHORTEST} to {longest} slots, over as many rows in canvases of one \
         length"
    );
    if longest < 2 * SHORTEST {
        return Ok(too_short("ragged", &what, longest));
    }
    let growth = longest as f64 / SHORTEST as f64;
    let length = |index: usize| {
        let share = index as f64 / (CANVASES - 1) as f64;
        (SHORTEST as f64 * growth.powf(share)).round() as usize
    };
    let lengths: Vec<usize> = (0..CANVASES).map(length).collect();
    let total: usize = lengths.iter().sum();
    let even: Vec<usize> = (0..CANVASES)
        .map(|index| total / CANVASES + usize::from(index < total % CANVASES))
        .collect();
    let canvases = |lengths: &[usize]| -> anyhow::Result<Vec<Canvas>> {
        let canvases = lengths.iter().enumerate();
        canvases
            .map(|(number, length)| setup.canvas(PROMPT, *length, number))
            .collect()
    };
    let (ragged, uniform) = (canvases(&lengths)?, canvases(&even)?);
    let plan = setup.plan(Some(STEPS));
    let tokens = (total - CANVASES * PROMPT) as f64;
    let (mut of_ragged, mut of_uniform, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=setup.rounds {
        let one = tokens / setup.together(&ragged, &plan)?;
        let other = tokens / setup.together(&uniform, &plan)?;
        if round > 0 {
            of_ragged.push(one);
            of_uniform.push(other);
            ratios.push(one / other);
        }
    }
    // Linear layers do the same work; that of attention grows with the square of a canvas's length.
    let operations = |lengths: &[usize]| {
        let squares: usize = lengths.iter().map(|length| length * length).sum();
        let attention = 4.0 * squares as f64 * (spec.hidden_size * spec.layers) as f64;
        setup.products.operations(total as f64, tokens / 2.0) + attention
    };
    let details = json!({
        "slots of the ragged canvases": lengths,
        "slots of the uniform canvases": even,
        "tokens/s, ragged": median(of_ragged),
        "tokens/s, uniform": median(of_uniform),
    });
    let floor = operations(&even) / operations(&lengths);
    Ok(Figure::new("ragged", what, median(ratios), floor, details).held_to(Bar::AtLeast(0.85)))
}

fn too_short(name: &'static str, what: &str, context: usize) -> Figure {
    let reason = format!("the model's context is {context} slots");
    Figure::not_measured(name, what, reason)
}
