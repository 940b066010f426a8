//! `unmask ready`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use ureq::Agent;

/// Shown below the help.
pub const EXAMPLES: &str = "Examples:
  unmask ready
  unmask ready --url http://10.0.0.7:8080 --timeout 1";

/// Arguments of `unmask ready`.
#[derive(clap::Args)]
pub struct ReadyArgs {
    /// The server's address [default: http://127.0.0.1 and --port]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The port of a server on this machine, where there is no --url
    #[arg(long, env = "UNMASK_PORT", default_value_t = super::serve::DEFAULT_PORT, value_parser = super::serve::port)]
    port: u16,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = super::serve::seconds)]
    timeout: Duration,
}

/// Runs `unmask ready`: fails unless the server says that it is ready.
pub fn run(args: ReadyArgs) -> anyhow::Result<()> {
    let is_local = args.url.is_none();
    let address = match args.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("http://127.0.0.1:{}", args.port),
    };
    let mut config = Agent::config_builder()
        .timeout_global(Some(args.timeout))
        .http_status_as_error(false);
    if is_local {
        // A proxy that the environment names is not the way to this machine.
        config = config.proxy(None);
    }
    let mut answer = Agent::new_with_config(config.build())
        .get(format!("{address}/ready"))
        .call()
        .with_context(|| format!("no server answers at {address}; `unmask serve` starts one"))?;
    let body = answer.body_mut().read_to_string()?;
    if !answer.status().is_success() {
        bail!("{address} is not ready: status {}: {body}", answer.status());
    }
    writeln!(std::io::stdout(), "{body}")?;
    Ok(())
}
