//! One file a subcommand.

mod animate;
mod bench;
mod chat;
mod decode_args;
mod denoise;
mod eval;
mod forward;
mod generate;
mod infill;
mod inspect;
mod model;
mod output;
mod ready;
mod selftest;
mod serve;
mod train;

use clap::{Parser, Subcommand};

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
    /// Ask a running server whether it is ready; fails if it is not.
    Ready(ready::ReadyArgs),
    /// Complete a text.
    #[command(after_help = generate::EXAMPLES)]
    Generate(generate::GenerateArgs),
    /// Talk with an instruction model.
    #[command(after_help = chat::EXAMPLES)]
    Chat(chat::ChatArgs),
    /// Fill the gaps of a text.
    #[command(after_help = infill::EXAMPLES)]
    Infill(infill::InfillArgs),
    /// Train a tokenizer and a model on text files.
    Train(train::TrainArgs),
    /// Measure likelihood, infill accuracy and tokens a forward on text files.
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::EvalArgs),
    /// Tell what a checkpoint is: family, sizes, tokens, default plan, memory.
    Inspect(inspect::InspectArgs),
    /// Compute the logits of given inputs, to check a checkpoint against another implementation.
    Forward(forward::ForwardArgs),
    /// Measure steps, a server under load, and the engine's promises on this machine.
    Bench(bench::BenchArgs),
    /// Check this build's kernels and the embedded model on a device.
    Selftest(selftest::SelftestArgs),
}

/// Parses the command line and runs the subcommand.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Ready(args) => ready::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Infill(args) => infill::run(args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Forward(args) => forward::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Selftest(args) => selftest::run(args),
    }
}
