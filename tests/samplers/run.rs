//! Official sampler runs, canvas by canvas.

use unmask::canvas::{Canvas, TokenId};
use unmask::decode::DecodePlan;
use unmask::engine::Engine;
use unmask::models::ModelSpec;
use unmask::selftest::goldens::folder::Golden;
use unmask::selftest::goldens::runs::{self, Follow};
use unmask::selftest::goldens::{GoldenError, plans};

pub use unmask::selftest::goldens::runs::{Case, Row, set_block_length};

use crate::support::{golden, load};

/// The recorded run called `name`.
pub fn case(family: &str, name: &str) -> Case {
    Case::open(&Golden::new(&golden(family)), name).unwrap()
}

/// The row of a run that has one.
pub fn row(case: &Case) -> Row {
    let [row] = <[Row; 1]>::try_from(case.rows().unwrap()).unwrap();
    row
}

/// What the run returned.
pub fn output(case: &Case) -> Vec<TokenId> {
    case.ids("output_ids").unwrap()
}

/// The run's canvas before any step, laid out for `plan`.
pub fn start(row: &Row, engine: &Engine, plan: &DecodePlan) -> Canvas {
    row.start(engine, plan).unwrap()
}

/// Runs `plan` and compares every canvas.
pub fn assert_equal(row: &Row, engine: &Engine, plan: &DecodePlan, name: &str) {
    let [got, expected] = row.run(engine, plan, Follow::Every).unwrap();
    assert_eq!(got, expected, "{name}");
}

/// As [`assert_equal`], of the canvases that differ from the one before.
pub fn assert_same_changes(row: &Row, engine: &Engine, plan: &DecodePlan, name: &str) {
    let [got, expected] = row.run(engine, plan, Follow::Changes).unwrap();
    assert_eq!(got, expected, "{name}");
}

/// As [`assert_equal`], of every row of a run.
pub fn assert_rows_equal(case: &Case, engine: &Engine, plan: &DecodePlan, name: &str) {
    for row in case.rows().unwrap() {
        assert_equal(&row, engine, plan, name);
    }
}

/// As [`assert_same_changes`], of every row of a run.
pub fn assert_same_changes_of_rows(case: &Case, engine: &Engine, plan: &DecodePlan, name: &str) {
    for row in case.rows().unwrap() {
        assert_same_changes(&row, engine, plan, name);
    }
}

/// The plan of a preset, as the model of `engine` takes it.
pub fn preset_plan(engine: &Engine, name: &str) -> DecodePlan {
    plans::preset(engine.spec(), name).unwrap()
}

/// An engine on a golden checkpoint whose spec `change` has changed: what is an argument of an official
/// sampler (block length, stop tokens, shift) is a property of the model here.
pub fn respecified(name: &str, change: impl FnOnce(&mut ModelSpec)) -> Engine {
    tempered(name, 1.0, change)
}

/// As [`respecified`], with logits divided by a temperature, which greedy plans do not know.
pub fn tempered(name: &str, temperature: f32, change: impl FnOnce(&mut ModelSpec)) -> Engine {
    runs::respecified(load(name), temperature, change).unwrap()
}

/// As [`respecified`], by a change that can fail.
pub fn respecified_by(
    name: &str,
    change: impl FnOnce(&mut ModelSpec) -> Result<(), GoldenError>,
) -> Engine {
    respecified(name, |spec| change(spec).unwrap())
}
