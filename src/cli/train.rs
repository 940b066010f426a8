//! `unmask train`.

/// Arguments of `unmask train`.
#[derive(clap::Args)]
pub struct TrainArgs {}

/// Runs `unmask train`.
pub fn run(_args: TrainArgs) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
