//! Finds the model that a subcommand works with.

use std::path::Path;

use anyhow::Context;
use unmask::models::Checkpoint;

/// Opens the checkpoint in the directory `model`.
pub fn open(model: Option<&Path>) -> anyhow::Result<Checkpoint> {
    let directory = model.context("no model: name a checkpoint directory with --model")?;
    Checkpoint::open(directory)
        .with_context(|| format!("cannot open the checkpoint {}", directory.display()))
}
