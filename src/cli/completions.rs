//! `unmask completions`.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask completions bash > ~/.local/share/bash-completion/completions/unmask
  unmask completions zsh > ~/.zfunc/_unmask          # a folder of $fpath
  unmask completions fish > ~/.config/fish/completions/unmask.fish";

/// Arguments of `unmask completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Runs `unmask completions` for the command line that `command` describes.
pub fn run(args: CompletionsArgs, command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, command, name, &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(())
}
