//! One file a subcommand.

use clap::{Parser, Subcommand};

mod model;
mod serve;
mod train;

/// Serve, train and evaluate masked text diffusion language models.
#[derive(Parser)]
#[command(name = "unmask", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model over HTTP.
    Serve(serve::ServeArgs),
    /// Train a tokenizer and a model on text files.
    Train(train::TrainArgs),
}

/// Parses the command line and runs the subcommand.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Train(args) => train::run(args),
    }
}
