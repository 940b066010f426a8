//! `--otlp-endpoint`, and OpenTelemetry's variables.

use std::env::{self, VarError};

#[cfg(feature = "otel")]
use std::time::Duration;

#[cfg(feature = "otel")]
use anyhow::Context;
use anyhow::bail;
#[cfg(feature = "otel")]
use axum::http::Uri;
#[cfg(feature = "otel")]
use unmask::server::Traces;

/// A collector's address for traces, used as it is.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// A collector's address for all signals.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Longest wait for the last traces to be sent.
#[cfg(feature = "otel")]
const LAST: Duration = Duration::from_secs(5);

/// Where traces go.
#[derive(clap::Args)]
pub struct TracesArgs {
    /// Send OpenTelemetry traces of requests, as OTLP over HTTP, to the collector at this URL, as in
    /// http://127.0.0.1:4318; needs a build with the feature otel [env: OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

/// A variable's value; an empty one is as none, as OpenTelemetry has it, and so is one that nobody can read.
fn variable(name: &str) -> Option<String> {
    match env::var(name) {
        Ok(value) => Some(value).filter(|value| !value.is_empty()),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => {
            tracing::warn!("{name} is not UTF-8; it is left out");
            None
        }
    }
}

/// Refuses traces, or says that there are none where only the environment asks for them: it is often the same for all
/// of a cluster's programs.
#[cfg(not(feature = "otel"))]
pub fn refuse(args: &TracesArgs) -> anyhow::Result<()> {
    if args.otlp_endpoint.is_some() {
        bail!(
            "--otlp-endpoint: this build has no OpenTelemetry traces; build it with \
             `cargo build --release --features otel`"
        );
    }
    if let Some(name) = [TRACES_ENDPOINT, ENDPOINT]
        .into_iter()
        .find(|name| variable(name).is_some())
    {
        tracing::warn!(
            "{name} is set, but this build has no OpenTelemetry traces; build it with \
             `cargo build --release --features otel`"
        );
    }
    Ok(())
}

/// Starts sending traces, if the command line or the environment says where to.
#[cfg(feature = "otel")]
pub fn start(args: &TracesArgs) -> anyhow::Result<Option<Traces>> {
    let Some((base, from)) = endpoint(args) else {
        return Ok(None);
    };
    let by_flag = args.otlp_endpoint.is_some();
    if let Some(reason) = reason_for_none(by_flag) {
        tracing::warn!("no traces are sent: {reason}");
        return Ok(None);
    }
    check(&base, from)?;
    check_sampler();
    let url = match from {
        TRACES_ENDPOINT => base,
        _ => format!("{}/v1/traces", base.trim_end_matches('/')),
    };
    let traces = Traces::to(&url).context(from)?;
    tracing::info!(to = url, "sending traces");
    Ok(Some(traces))
}

/// Sends the last traces.
#[cfg(feature = "otel")]
pub fn end(traces: Option<Traces>) {
    if let Some(traces) = traces
        && !traces.end(LAST)
    {
        tracing::warn!(
            seconds = LAST.as_secs(),
            "the last traces could not be sent in time; they are dropped"
        );
    }
}

/// The collector's URL, and what gives it.
#[cfg(feature = "otel")]
fn endpoint(args: &TracesArgs) -> Option<(String, &'static str)> {
    let given = args.otlp_endpoint.clone();
    given
        .map(|url| (url, "--otlp-endpoint"))
        .or_else(|| Some((variable(TRACES_ENDPOINT)?, TRACES_ENDPOINT)))
        .or_else(|| Some((variable(ENDPOINT)?, ENDPOINT)))
}

/// Refuses what is no URL of a collector. One that holds a secret is not repeated, as it would come into the log.
#[cfg(feature = "otel")]
fn check(url: &str, from: &str) -> anyhow::Result<()> {
    const ALLOWED: &str = "allowed: http:// or https://, a host, and a port and a path if need be";
    if url.contains(['@', '?', '#']) {
        bail!(
            "{from} holds a user or a query; {ALLOWED}; keys for the collector belong into \
             OTEL_EXPORTER_OTLP_HEADERS"
        );
    }
    let Ok(uri) = url.parse::<Uri>() else {
        bail!("{from} is {url:?}; {ALLOWED}");
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        bail!("{from} is {url:?}; {ALLOWED}");
    }
    Ok(())
}

/// Why the environment wants no traces, or such as this program cannot send. A flag says more than the environment of
/// how they are sent.
#[cfg(feature = "otel")]
fn reason_for_none(by_flag: bool) -> Option<String> {
    if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Some("OTEL_SDK_DISABLED is true".into());
    }
    if by_flag {
        return None;
    }
    let other = |name: &str, ours: &str| {
        let value = variable(name).filter(|value| value != ours)?;
        Some(format!("{name} is {value:?}; allowed: {ours}"))
    };
    let protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
    let protocol = match variable(protocol) {
        Some(_) => protocol,
        None => "OTEL_EXPORTER_OTLP_PROTOCOL",
    };
    other("OTEL_TRACES_EXPORTER", "otlp").or_else(|| other(protocol, "http/protobuf"))
}

/// Says so if the sampler is not one that there is: all is sampled then.
#[cfg(feature = "otel")]
fn check_sampler() {
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else {
        return;
    };
    let argument = variable("OTEL_TRACES_SAMPLER_ARG");
    let ratio = argument.as_ref().and_then(|ratio| ratio.parse().ok());
    let is_ratio = ratio.is_some_and(|ratio: f64| (0.0..=1.0).contains(&ratio));
    match sampler.as_str() {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => {}
        "traceidratio" | "parentbased_traceidratio" if is_ratio => {}
        "traceidratio" | "parentbased_traceidratio" => tracing::warn!(
            argument,
            "OTEL_TRACES_SAMPLER_ARG is not a number from 0 to 1; every request is traced"
        ),
        _ => tracing::warn!(
            sampler,
            "OTEL_TRACES_SAMPLER is not one of always_on, always_off, traceidratio and parentbased_ with these; \
             every request is traced"
        ),
    }
}
