//! One file a subcommand.

mod animate;
mod bench;
mod chat;
mod completions;
mod decode_args;
mod denoise;
mod eval;
mod forward;
mod generate;
mod infill;
mod inspect;
mod logging;
mod model;
mod open_files;
mod output;
mod ready;
mod selftest;
mod serve;
mod signals;
mod traces;
mod train;

use std::io::IsTerminal;

use anyhow::bail;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::ServeArgs),
    /// Ask a running server whether it is ready; fails if it is not.
    #[command(after_help = ready::EXAMPLES)]
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
    #[command(after_help = train::EXAMPLES)]
    Train(train::TrainArgs),
    /// Measure likelihood, infill accuracy and tokens a forward on text files.
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::EvalArgs),
    /// Tell what a checkpoint is: family, sizes, tokens, default plan, memory.
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Compute the logits of given inputs, to check a checkpoint against another implementation.
    #[command(after_help = forward::EXAMPLES)]
    Forward(forward::ForwardArgs),
    /// Measure steps, a server under load, and the engine's promises on this machine.
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// Check this build's kernels and the embedded model on a device.
    #[command(after_help = selftest::EXAMPLES)]
    Selftest(selftest::SelftestArgs),
    /// Print a script that completes this command line in a shell.
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArgs),
}

/// Parses the command line and runs the subcommand.
pub fn run() -> anyhow::Result<()> {
    let command = Cli::parse().command;
    // A server has a log of its own, and is there for its clients, whoever reads its output.
    let is_for_output = !matches!(command, Command::Serve(_));
    if is_for_output {
        show_warnings();
    }
    match execute(command).map_err(decode_args::with_option) {
        // Whoever read the output has read enough, as in `unmask inspect --json | head`.
        Err(error) if is_for_output && is_broken_pipe(&error) => Ok(()),
        ended => ended,
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
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
        Command::Completions(args) => completions::run(args, &mut Cli::command()),
    }
}

/// Shows warnings on standard error, and there downloads too if no bars can be drawn.
fn show_warnings() {
    let shown = match std::io::stderr().is_terminal() {
        true => "warn",
        false => "warn,unmask::hub=info",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(shown))
        .without_time()
        .with_target(false)
        .with_ansi(console::colors_enabled_stderr())
        .with_writer(std::io::stderr)
        // Otherwise a standard error that takes nothing would be a panic.
        .log_internal_errors(false)
        .init();
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Fails with whatever failed of several things that were each tried.
fn all_succeeded(mut failed: Vec<anyhow::Error>) -> anyhow::Result<()> {
    if failed.len() > 1 {
        let texts: Vec<String> = failed.iter().map(|error| format!("{error:#}")).collect();
        bail!("{}", texts.join("; "));
    }
    failed.pop().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    /// The words of a line as a shell has them, where all quotes are double.
    fn words(line: &str) -> Vec<String> {
        line.split('"')
            .enumerate()
            .fold(vec![String::new()], |mut words, (i, part)| {
                if i % 2 == 1 {
                    words.last_mut().expect("there is one").push_str(part);
                } else {
                    let mut pieces = part.split(' ');
                    let first = pieces.next().unwrap_or_default();
                    words.last_mut().expect("there is one").push_str(first);
                    words.extend(pieces.map(String::from));
                }
                words
            })
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect()
    }

    #[test]
    fn every_subcommand_has_examples_that_it_accepts() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().unwrap_or_default().to_string();
            let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| {
                panic!("{} has no examples", command.get_name());
            });
            for example in examples.lines() {
                let line = example.split("unmask ").nth(1).unwrap_or_else(|| {
                    panic!("{example}");
                });
                let line = line.split(" #").next().unwrap_or_default();
                let line = line.split(" > ").next().unwrap_or_default();
                let mut arguments = words(line);
                arguments.insert(0, "unmask".into());
                if let Err(error) = Cli::try_parse_from(&arguments) {
                    panic!("{example}: {error}");
                }
                assert_eq!(arguments[1], command.get_name());
            }
        }
    }
}
